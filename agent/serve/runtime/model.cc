#include "agent/serve/runtime/model.h"

#include "agent/serve/kernels/own_formats.h"
#include "common/hf/hf_model.h"

namespace retort {

namespace {

/// Where the packed weights go, one matrix after the other. Run twice over the same model: first to learn the
/// size, then with the memory.
class Layout {
 public:
  Layout(bool pack, std::byte* memory, bool fill) : pack_(pack), memory_(memory), fill_(fill) {}

  Model::Projection place(std::initializer_list<kernels::Matrix> matrices, const float* bias) {
    Model::Projection out;
    out.bias = bias;
    out.columns = matrices.begin()->columns;
    bool same = true;
    for (const kernels::Matrix& m : matrices) {
      out.rows += m.rows;
      out.bytes += kernels::stored_bytes(m);
      out.quantized |= info(m.type).block_values > 1;
      same &= m.type == matrices.begin()->type && (matrices.size() == 1 || !kernels::is_own_format(m.type));
    }
    if (same) {
      out.parts.push_back({stack(matrices, out.rows), 0, out.bytes});
    }
    if (!same || out.parts.front().matrix.data == nullptr) {
      out.parts.clear();
      std::uint32_t first = 0;
      for (const kernels::Matrix& m : matrices) {
        const kernels::Matrix packed = same ? kernels::Matrix{} : stack({m}, m.rows);
        out.parts.push_back({packed.data != nullptr ? packed : m, first, kernels::stored_bytes(m)});
        first += m.rows;
      }
    }
    return out;
  }
  std::uint64_t size() const { return size_; }

 private:
  /// Without data where it stays in the file, or where there is no memory yet.
  kernels::Matrix stack(std::initializer_list<kernels::Matrix> matrices, std::uint32_t rows) {
    kernels::Matrix out = *matrices.begin();
    if (kernels::is_own_format(out.type)) return alone(out);
    out.rows = rows;
    out.packed = true;
    out.data = nullptr;
    const std::uint64_t bytes = pack_ ? kernels::packed_bytes(out.type, rows, out.columns) : 0;
    if (memory_ != nullptr && bytes != 0) {
      out.data = memory_ + size_;
      std::uint32_t first = 0;
      for (const kernels::Matrix& m : matrices) {
        if (fill_) kernels::pack(m, first, rows, memory_ + size_);
        first += m.rows;
      }
    }
    size_ += (bytes + 63) / 64 * 64;
    return out;
  }

  kernels::Matrix alone(const kernels::Matrix& matrix) {
    const std::uint64_t bytes = pack_ ? kernels::packed_bytes(matrix) : 0;
    kernels::Matrix out = matrix;
    out.data = nullptr;
    if (memory_ != nullptr && bytes != 0) out = kernels::pack(matrix, memory_ + size_, fill_);
    size_ += (bytes + 63) / 64 * 64;
    return out;
  }

  const bool pack_;
  std::byte* const memory_;
  const bool fill_;
  std::uint64_t size_ = 0;
};

}  // namespace

Result<std::shared_ptr<const Model>> Model::open(const std::filesystem::path& gguf,
                                                 const ModelOptions& options) {
  return from_file(RETORT_TRY(GgufFile::open(gguf)), options, gguf);
}

Result<std::shared_ptr<const Model>> Model::from_file(GgufFile file, const ModelOptions& options,
                                                      const std::filesystem::path& source) {
  ModelConfig config = RETORT_TRY(read_gguf_config(file));
  Tokenizer tokenizer = RETORT_TRY(Tokenizer::from_gguf(file));
  file.drop_lists();
  if (tokenizer.vocabulary_size() != config.n_vocab)
    return fail(ErrorCode::kInvalid, file.where(), "the tokenizer has {} tokens, the embedding {}",
                tokenizer.vocabulary_size(), config.n_vocab);
  if (const GgufTensor* positions = file.tensor("position_embd.weight");
      positions != nullptr && positions->type != TensorType::kF32)
    return fail(ErrorCode::kUnsupported, file.where(), "position_embd.weight is {}; it must be F32",
                info(positions->type).name);
  InputScales scales = RETORT_TRY(read_input_scales(file));
  for (std::uint32_t i = 0; i < config.n_layer(); ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    RETORT_TRY(shared_input_scale(
        scales, {prefix + "attn_q.weight", prefix + "attn_k.weight", prefix + "attn_v.weight"},
        file.where()));
    if (config.family == ModelFamily::kLlama)
      RETORT_TRY(
          shared_input_scale(scales, {prefix + "ffn_gate.weight", prefix + "ffn_up.weight"}, file.where()));
  }
  std::shared_ptr<Model> model(
      new Model(std::move(file), std::move(config), std::move(tokenizer), std::move(scales)));
  const std::uint64_t size = model->lay_out(options.pack, nullptr, false);
  if (size == 0 || (options.pack_if && !options.pack_if(*model, size))) return model;
  model->packed_ = PackedWeights::make(size, source, options.pack_cache, [&](std::byte* memory) {
    model->lay_out(true, memory, true);
    model->file_.drop_pages();  // what was packed is not read again
  });
  model->lay_out(true, const_cast<std::byte*>(model->packed_.data()), false);
  return model;
}

Model::Model(GgufFile file, ModelConfig config, Tokenizer tokenizer, InputScales input_scales)
    : file_(std::move(file)),
      config_(std::move(config)),
      tokenizer_(std::move(tokenizer)),
      input_scales_(std::move(input_scales)),
      layers_(config_.layers.size()) {}

/// Points every weight to where it is: in the file, or in `memory` when it is packed (null: nowhere yet).
/// `fill` writes the packed ones there. Returns their size.
std::uint64_t Model::lay_out(bool pack, std::byte* memory, bool fill) {
  // read_gguf_config has checked that every tensor is there with the right shape, and F32 where it is a
  // vector.
  const auto matrix = [&](const std::string& name) {
    const GgufTensor* t = file_.tensor(name);
    return Matrix{t->type, static_cast<std::uint32_t>(t->rows()), static_cast<std::uint32_t>(t->columns()),
                  t->data.data()};
  };
  const auto vector = [&](const std::string& name) {
    return reinterpret_cast<const float*>(file_.tensor(name)->data.data());
  };
  Layout layout(pack, memory, fill);
  const bool llama = config_.family == ModelFamily::kLlama;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    const std::string prefix = "blk." + std::to_string(i) + ".";
    const auto bias = [&](const char* name) { return llama ? nullptr : vector(prefix + name); };
    layer.attn_norm = vector(prefix + "attn_norm.weight");
    layer.attn_norm_bias = bias("attn_norm.bias");
    layer.ffn_norm = vector(prefix + "ffn_norm.weight");
    layer.ffn_norm_bias = bias("ffn_norm.bias");
    if (llama) {
      layer.qkv = layout.place({matrix(prefix + "attn_q.weight"), matrix(prefix + "attn_k.weight"),
                                matrix(prefix + "attn_v.weight")},
                               nullptr);
      layer.ffn_gate = layout.place({matrix(prefix + "ffn_gate.weight")}, nullptr);
    } else {
      layer.qkv = layout.place({matrix(prefix + "attn_qkv.weight")}, vector(prefix + "attn_qkv.bias"));
    }
    layer.attn_output = layout.place({matrix(prefix + "attn_output.weight")}, bias("attn_output.bias"));
    layer.ffn_up = layout.place({matrix(prefix + "ffn_up.weight")}, bias("ffn_up.bias"));
    layer.ffn_down = layout.place({matrix(prefix + "ffn_down.weight")}, bias("ffn_down.bias"));
  }
  token_embedding_ = matrix("token_embd.weight");
  output_ = layout.place({config_.tied_embeddings ? token_embedding_ : matrix("output.weight")}, nullptr);
  output_norm_ = vector("output_norm.weight");
  const auto scale = [&](Projection& projection, const std::string& tensor) {
    const auto found = input_scales_.find(tensor);
    projection.input_scale = found == input_scales_.end() ? 0.0f : found->second;
  };
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    const std::string prefix = "blk." + std::to_string(i) + ".";
    scale(layer.qkv, prefix + (llama ? "attn_q.weight" : "attn_qkv.weight"));
    scale(layer.attn_output, prefix + "attn_output.weight");
    scale(layer.ffn_gate, prefix + "ffn_gate.weight");
    scale(layer.ffn_up, prefix + "ffn_up.weight");
    scale(layer.ffn_down, prefix + "ffn_down.weight");
  }
  scale(output_, config_.tied_embeddings ? "token_embd.weight" : "output.weight");
  if (!llama) {
    output_norm_bias_ = vector("output_norm.bias");
    position_embedding_ = vector("position_embd.weight");
  }
  return layout.size();
}

std::uint64_t Model::weight_bytes() const {
  std::uint64_t bytes = 0;
  for (const GgufTensor& tensor : file_.tensors()) bytes += tensor.data.size();
  return bytes;
}

std::uint64_t Model::file_bytes_in_use() const {
  const auto own = [](const Projection& p) {  // packed part for packed part
    std::uint64_t bytes = 0;
    for (const Projection::Part& part : p.parts)
      if (part.matrix.packed) bytes += part.bytes;
    return bytes;
  };
  std::uint64_t packed = config_.tied_embeddings ? 0 : own(output_);
  for (const Layer& layer : layers_)
    packed += own(layer.qkv) + own(layer.attn_output) + own(layer.ffn_gate) + own(layer.ffn_up) +
              own(layer.ffn_down);
  return file_.file_length() - packed;
}

double Model::bits_per_weight() const {
  return static_cast<double>(weight_bytes()) * 8 / static_cast<double>(parameters());
}

}  // namespace retort
