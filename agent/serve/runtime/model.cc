#include "agent/serve/runtime/model.h"

#include "agent/serve/kernels/own_formats.h"
#include "common/hf/hf_model.h"

namespace retort {

namespace {

/// Where the packed weights go, one matrix after the other. Run twice over the same model: first to learn the
/// size, then with the memory.
class Layout {
 public:
  Layout(bool pack, std::byte* memory, bool fill, bool far)
      : pack_(pack), memory_(memory), fill_(fill), far_(far) {}

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
  /// Bytes of the file that were packed and are not looked at again.
  const std::vector<std::span<const std::byte>>& done_with() const { return done_with_; }

 private:
  /// Without data where it stays in the file, or where there is no memory yet.
  kernels::Matrix stack(std::initializer_list<kernels::Matrix> matrices, std::uint32_t rows) {
    kernels::Matrix out = *matrices.begin();
    if (kernels::is_own_format(out.type)) return alone(out);
    out.rows = rows;
    out.packed = true;
    out.far = far_;
    out.data = nullptr;
    const std::uint64_t bytes = pack_ ? kernels::packed_bytes(out.type, rows, out.columns) : 0;
    if (memory_ != nullptr && bytes != 0) {
      out.data = memory_ + size_;
      std::uint32_t first = 0;
      for (const kernels::Matrix& m : matrices) {
        if (fill_) {
          kernels::pack(m, first, rows, memory_ + size_);
          done_with_.push_back({m.data, kernels::stored_bytes(m)});
        }
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
    out.far = far_;
    size_ += (bytes + 63) / 64 * 64;
    return out;
  }

  const bool pack_;
  std::byte* const memory_;
  const bool fill_, far_;
  std::uint64_t size_ = 0;
  std::vector<std::span<const std::byte>> done_with_;
};

// read_gguf_config has checked that every tensor is there with the right shape, and F32 where it is a vector.
kernels::Matrix matrix_in(const GgufFile& file, const std::string& name) {
  const GgufTensor* t = file.tensor(name);
  return {t->type, static_cast<std::uint32_t>(t->rows()), static_cast<std::uint32_t>(t->columns()),
          t->data.data()};
}
const float* vector_in(const GgufFile& file, const std::string& name) {
  return reinterpret_cast<const float*>(file.tensor(name)->data.data());
}

}  // namespace

Result<std::shared_ptr<const Model>> Model::open(const std::filesystem::path& gguf,
                                                 const ModelOptions& options) {
  return from_file(RETORT_TRY(GgufFile::open(gguf)), options, gguf);
}

Result<std::shared_ptr<const Model>> Model::from_file(GgufFile file, const ModelOptions& options,
                                                      const std::filesystem::path& source) {
  ModelConfig config = RETORT_TRY(read_gguf_config(file));
  Tokenizer tokenizer = RETORT_TRY(Tokenizer::from_gguf(file));
  if (tokenizer.vocabulary_size() != config.n_vocab)
    return fail(ErrorCode::kInvalid, file.where(), "the tokenizer has {} tokens, the embedding {}",
                tokenizer.vocabulary_size(), config.n_vocab);
  for (const char* name : {"position_embd.weight", "token_types.weight"})
    if (const GgufTensor* rows = file.tensor(name); rows != nullptr && rows->type != TensorType::kF32)
      return fail(ErrorCode::kUnsupported, file.where(), "{} is {}; it must be F32", name,
                  info(rows->type).name);
  RETORT_TRY(check_finite(file, false));
  InputScales scales = RETORT_TRY(read_input_scales(file));
  for (std::uint32_t i = 0; i < config.n_layer(); ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    const std::vector<std::string> qkv{prefix + "attn_q.weight", prefix + "attn_k.weight",
                                       prefix + "attn_v.weight"};
    RETORT_TRY(shared_input_scale(scales, qkv, file.where()));
    const std::vector<std::string> ffn{prefix + "ffn_gate.weight", prefix + "ffn_up.weight"};
    if (config.family == ModelFamily::kLlama) RETORT_TRY(shared_input_scale(scales, ffn, file.where()));
  }
  std::shared_ptr<Model> model(
      new Model(std::move(file), std::move(config), std::move(tokenizer), std::move(scales)));
  model->own_formats_stay_ = static_cast<bool>(options.done_with);
  const std::uint64_t size = model->lay_out(options.pack, nullptr, false);
  if (size == 0 || (options.pack_if && !options.pack_if(*model, size))) return model;
  model->packed_ = RETORT_TRY(
      PackedWeights::make(size, source, options.pack_cache, [&](std::byte* memory) -> Result<void> {
        RETORT_TRY(check_finite(model->file_, true));
        model->lay_out(true, memory, true, options.done_with);
        model->file_.drop_pages();  // what was packed is not read again
        return {};
      }));
  model->lay_out(true, const_cast<std::byte*>(model->packed_.data()), false);
  return model;
}

Model::Model(GgufFile file, ModelConfig config, Tokenizer tokenizer, InputScales input_scales)
    : file_(std::move(file)),
      config_(std::move(config)),
      tokenizer_(std::move(tokenizer)),
      input_scales_(std::move(input_scales)),
      layers_(config_.layers.size()),
      joined_biases_(config_.layers.size()) {}

/// Q's, K's and V's biases, side by side as their projections are.
void Model::join_biases(std::size_t layer) {
  std::vector<float>& joined = joined_biases_[layer];
  if (!joined.empty()) return;
  for (const char* name : {"attn_q.bias", "attn_k.bias", "attn_v.bias"}) {
    const GgufTensor* tensor = file_.tensor("blk." + std::to_string(layer) + "." + name);
    const auto* const values = reinterpret_cast<const float*>(tensor->data.data());
    joined.insert(joined.end(), values, values + tensor->columns());
  }
}

/// Points every weight to where it is: in the file, or in `memory` when it is packed (null: nowhere yet).
/// `fill` writes the packed ones there. Returns their size.
std::uint64_t Model::lay_out(bool pack, std::byte* memory, bool fill,
                             const std::function<void(std::span<const std::byte>)>& done_with) {
  const auto matrix = [&](const std::string& name) { return matrix_in(file_, name); };
  const auto vector = [&](const std::string& name) { return vector_in(file_, name); };
  Layout layout(pack, memory, fill, packed_.size() >= kernels::kCachedBytes);
  const auto tell = [&] {
    for (const auto& bytes : layout.done_with())
      if (done_with && bytes.data() != token_embedding_.data) done_with(bytes);
  };
  token_embedding_ = matrix("token_embd.weight");
  if (config_.is_encoder()) {
    lay_out_encoder(layout);
    scale_inputs();
    tell();
    return layout.size();
  }
  const bool llama = config_.family == ModelFamily::kLlama;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    const std::string prefix = "blk." + std::to_string(i) + ".";
    const auto bias = [&](const char* name, bool there) { return there ? vector(prefix + name) : nullptr; };
    const bool mlp_bias = !llama || config_.mlp_bias;
    layer.attn_norm = vector(prefix + "attn_norm.weight");
    layer.attn_norm_bias = bias("attn_norm.bias", !llama);
    layer.ffn_norm = vector(prefix + "ffn_norm.weight");
    layer.ffn_norm_bias = bias("ffn_norm.bias", !llama);
    if (llama) {
      if (config_.qkv_bias) join_biases(i);
      layer.qkv = layout.place({matrix(prefix + "attn_q.weight"), matrix(prefix + "attn_k.weight"),
                                matrix(prefix + "attn_v.weight")},
                               config_.qkv_bias ? joined_biases_[i].data() : nullptr);
      layer.ffn_gate = layout.place({matrix(prefix + "ffn_gate.weight")}, bias("ffn_gate.bias", mlp_bias));
    } else {
      layer.qkv = layout.place({matrix(prefix + "attn_qkv.weight")}, vector(prefix + "attn_qkv.bias"));
    }
    layer.attn_output = layout.place({matrix(prefix + "attn_output.weight")},
                                     bias("attn_output.bias", !llama || config_.attn_output_bias));
    layer.ffn_up = layout.place({matrix(prefix + "ffn_up.weight")}, bias("ffn_up.bias", mlp_bias));
    layer.ffn_down = layout.place({matrix(prefix + "ffn_down.weight")}, bias("ffn_down.bias", mlp_bias));
  }
  output_ = layout.place({config_.tied_embeddings ? token_embedding_ : matrix("output.weight")}, nullptr);
  output_norm_ = vector("output_norm.weight");
  if (!llama) {
    output_norm_bias_ = vector("output_norm.bias");
    position_embedding_ = vector("position_embd.weight");
  }
  scale_inputs();
  tell();
  return layout.size();
}

/// Tells each projection the calibrated scale of its input.
void Model::scale_inputs() {
  const auto scale = [&](Projection& projection, const std::string& tensor) {
    const auto found = input_scales_.find(tensor);
    projection.input_scale = found == input_scales_.end() ? 0.0f : found->second;
  };
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    const std::string prefix = "blk." + std::to_string(i) + ".";
    const bool joined = config_.family == ModelFamily::kGpt2;
    scale(layer.qkv, prefix + (joined ? "attn_qkv.weight" : "attn_q.weight"));
    scale(layer.attn_output, prefix + "attn_output.weight");
    scale(layer.ffn_gate, prefix + "ffn_gate.weight");
    scale(layer.ffn_up, prefix + "ffn_up.weight");
    scale(layer.ffn_down, prefix + "ffn_down.weight");
  }
  scale(encoder_.pooler, "cls.weight");
  scale(encoder_.classifier, "cls.output.weight");
  scale(encoder_.mlm_dense, "mlm.dense.weight");
  scale(output_, config_.tied_embeddings ? "token_embd.weight" : "output.weight");
}

template <typename Placer>
void Model::lay_out_encoder(Placer& layout) {
  const auto matrix = [&](const std::string& name) { return matrix_in(file_, name + ".weight"); };
  const auto weight = [&](const std::string& name) { return vector_in(file_, name + ".weight"); };
  const auto bias = [&](const std::string& name) { return vector_in(file_, name + ".bias"); };
  const auto dense = [&](const std::string& name) { return layout.place({matrix(name)}, bias(name)); };
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    const std::string prefix = "blk." + std::to_string(i) + ".";
    join_biases(i);
    layer.qkv =
        layout.place({matrix(prefix + "attn_q"), matrix(prefix + "attn_k"), matrix(prefix + "attn_v")},
                     joined_biases_[i].data());
    layer.attn_output = dense(prefix + "attn_output");
    layer.attn_norm = weight(prefix + "attn_output_norm");
    layer.attn_norm_bias = bias(prefix + "attn_output_norm");
    layer.ffn_up = dense(prefix + "ffn_up");
    layer.ffn_down = dense(prefix + "ffn_down");
    layer.ffn_norm = weight(prefix + "layer_output_norm");
    layer.ffn_norm_bias = bias(prefix + "layer_output_norm");
  }
  position_embedding_ = weight("position_embd");
  encoder_.embedding_norm = weight("token_embd_norm");
  encoder_.embedding_norm_bias = bias("token_embd_norm");
  if (config_.encoder.n_token_types > 0) encoder_.token_type = weight("token_types");
  if (config_.encoder.pooler) encoder_.pooler = dense("cls");
  if (!config_.encoder.labels.empty()) encoder_.classifier = dense("cls.output");
  if (!config_.encoder.mlm_head) return;
  encoder_.mlm_dense = dense("mlm.dense");
  encoder_.mlm_norm = weight("mlm.norm");
  encoder_.mlm_norm_bias = bias("mlm.norm");
  output_ = layout.place({config_.tied_embeddings ? token_embedding_ : matrix("output")}, bias("output"));
}

std::uint64_t Model::weight_bytes() const {
  std::uint64_t bytes = 0;
  for (const GgufTensor& tensor : file_.tensors()) bytes += tensor.data.size();
  return bytes;
}

std::uint64_t Model::file_bytes_in_use() const {
  const auto own = [this](const Projection& p) {  // packed part for packed part
    std::uint64_t bytes = 0;
    for (const Projection::Part& part : p.parts)
      if (part.matrix.packed && !(own_formats_stay_ && kernels::is_own_format(part.matrix.type)))
        bytes += part.bytes;
    return bytes;
  };
  std::uint64_t packed = config_.tied_embeddings ? 0 : own(output_);
  packed += own(encoder_.pooler) + own(encoder_.classifier) + own(encoder_.mlm_dense);
  for (const Layer& layer : layers_)
    packed += own(layer.qkv) + own(layer.attn_output) + own(layer.ffn_gate) + own(layer.ffn_up) +
              own(layer.ffn_down);
  return file_.file_length() - packed;
}

double Model::bits_per_weight() const {
  return static_cast<double>(weight_bytes()) * 8 / static_cast<double>(parameters());
}

}  // namespace retort
