#include "agent/serve/runtime/model.h"

#include "common/hf/hf_model.h"

namespace retort {

Result<std::shared_ptr<const Model>> Model::open(const std::filesystem::path& gguf) {
  return from_file(RETORT_TRY(GgufFile::open(gguf)));
}

Result<std::shared_ptr<const Model>> Model::from_file(GgufFile file) {
  ModelConfig config = RETORT_TRY(read_gguf_config(file));
  Tokenizer tokenizer = RETORT_TRY(Tokenizer::from_gguf(file));
  if (tokenizer.vocabulary_size() != config.n_vocab)
    return fail(ErrorCode::kInvalid, file.where(), "the tokenizer has {} tokens, the embedding {}",
                tokenizer.vocabulary_size(), config.n_vocab);
  if (const GgufTensor* positions = file.tensor("position_embd.weight");
      positions != nullptr && positions->type != TensorType::kF32)
    return fail(ErrorCode::kUnsupported, file.where(), "position_embd.weight is {}; it must be F32",
                info(positions->type).name);
  return std::shared_ptr<const Model>(new Model(std::move(file), std::move(config), std::move(tokenizer)));
}

Model::Model(GgufFile file, ModelConfig config, Tokenizer tokenizer)
    : file_(std::move(file)),
      config_(std::move(config)),
      tokenizer_(std::move(tokenizer)),
      layers_(config_.layers.size()) {
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
  const bool llama = config_.family == ModelFamily::kLlama;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    const std::string prefix = "blk." + std::to_string(i) + ".";
    layer.attn_norm = vector(prefix + "attn_norm.weight");
    layer.ffn_norm = vector(prefix + "ffn_norm.weight");
    layer.attn_output = matrix(prefix + "attn_output.weight");
    layer.ffn_up = matrix(prefix + "ffn_up.weight");
    layer.ffn_down = matrix(prefix + "ffn_down.weight");
    if (llama) {
      layer.q = matrix(prefix + "attn_q.weight");
      layer.k = matrix(prefix + "attn_k.weight");
      layer.v = matrix(prefix + "attn_v.weight");
      layer.ffn_gate = matrix(prefix + "ffn_gate.weight");
    } else {
      layer.qkv = matrix(prefix + "attn_qkv.weight");
      layer.qkv_bias = vector(prefix + "attn_qkv.bias");
      layer.attn_norm_bias = vector(prefix + "attn_norm.bias");
      layer.ffn_norm_bias = vector(prefix + "ffn_norm.bias");
      layer.attn_output_bias = vector(prefix + "attn_output.bias");
      layer.ffn_up_bias = vector(prefix + "ffn_up.bias");
      layer.ffn_down_bias = vector(prefix + "ffn_down.bias");
    }
  }
  token_embedding_ = matrix("token_embd.weight");
  output_ = config_.tied_embeddings ? token_embedding_ : matrix("output.weight");
  output_norm_ = vector("output_norm.weight");
  if (!llama) {
    output_norm_bias_ = vector("output_norm.bias");
    position_embedding_ = vector("position_embd.weight");
  }
}

std::uint64_t Model::weight_bytes() const {
  std::uint64_t bytes = 0;
  for (const GgufTensor& tensor : file_.tensors()) bytes += tensor.data.size();
  return bytes;
}

double Model::bits_per_weight() const {
  return static_cast<double>(weight_bytes()) * 8 / static_cast<double>(parameters());
}

}  // namespace retort
