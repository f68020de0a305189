#include "common/model/model_config.h"

#include <set>

namespace retort {

std::string_view to_string(ModelFamily family) {
  switch (family) {
    case ModelFamily::kLlama:
      return "llama";
    case ModelFamily::kGpt2:
      return "gpt2";
    case ModelFamily::kBert:
      return "bert";
  }
  return "";
}

Result<void> validate(const ModelConfig& config, std::string_view where) {
  const auto check = [&](std::uint64_t value, std::uint64_t limit, std::string_view name) -> Result<void> {
    if (value >= 1 && value <= limit) return {};
    return fail(ErrorCode::kInvalid, std::string(where), "{} is {}, outside 1…{}", name, value, limit);
  };
  RETORT_TRY(check(config.n_vocab, 1u << 20, "the vocabulary size"));
  RETORT_TRY(check(config.n_ctx, 1u << 22, "the context length"));
  RETORT_TRY(check(config.n_embd, 1u << 16, "the hidden width"));
  RETORT_TRY(check(config.head_dim, 1u << 12, "the head width"));
  RETORT_TRY(check(config.layers.size(), 1u << 10, "the number of layers"));
  for (const LayerShape& layer : config.layers) {
    RETORT_TRY(check(layer.n_head, 1u << 12, "the number of heads"));
    RETORT_TRY(check(layer.n_head_kv, layer.n_head, "the number of key/value heads"));
    RETORT_TRY(check(layer.n_ff, 1u << 20, "the FFN width"));
    if (config.is_encoder() && layer.n_head_kv != layer.n_head)
      return fail(ErrorCode::kInvalid, std::string(where),
                  "{} key/value heads for {} heads: encoders have as many", layer.n_head_kv, layer.n_head);
    if (layer.n_head % layer.n_head_kv != 0)
      return fail(ErrorCode::kInvalid, std::string(where), "{} key/value heads do not divide {} heads",
                  layer.n_head_kv, layer.n_head);
  }
  if (config.family == ModelFamily::kLlama && config.head_dim % 2 != 0)
    return fail(ErrorCode::kInvalid, std::string(where), "head width {} is odd, rotary embedding needs pairs",
                config.head_dim);
  if (!(config.norm_eps > 0 && config.norm_eps < 1))
    return fail(ErrorCode::kInvalid, std::string(where), "norm epsilon {} is outside (0, 1)",
                config.norm_eps);
  if (!(config.rope_theta > 0))
    return fail(ErrorCode::kInvalid, std::string(where), "rope theta {} is not positive", config.rope_theta);
  const EncoderConfig& encoder = config.encoder;
  if (!config.is_encoder()) {
    if (encoder == EncoderConfig()) return {};
    return fail(ErrorCode::kInvalid, std::string(where),
                "a {} model has no pooling, labels or masked-LM head", to_string(config.family));
  }
  if (encoder.n_token_types > 1u << 10)
    return fail(ErrorCode::kInvalid, std::string(where), "the number of token types is {}, beyond {}",
                encoder.n_token_types, 1u << 10);
  if (encoder.labels.size() > 1u << 16)
    return fail(ErrorCode::kInvalid, std::string(where), "{} labels, beyond {}", encoder.labels.size(),
                1u << 16);
  const bool classifies = !encoder.labels.empty();
  if (encoder.pooler && !classifies)
    return fail(ErrorCode::kInvalid, std::string(where), "a pooler without a classification head");
  if (classifies && encoder.pooling != TextPooling::kCls)
    return fail(ErrorCode::kInvalid, std::string(where), "a classification head reads the first token");
  if (!encoder.mlm_head && !config.tied_embeddings)
    return fail(ErrorCode::kInvalid, std::string(where), "an output matrix without a masked-LM head");
  std::set<std::string_view> names;
  for (const std::string& label : encoder.labels)
    if (label.empty() || label.size() > 1024 || !names.insert(label).second)
      return fail(ErrorCode::kInvalid, std::string(where),
                  "label '{}' is there twice, empty, or longer than 1024 bytes", label.substr(0, 64));
  return {};
}

std::vector<Operation> operations(const ModelConfig& config) {
  std::vector<Operation> ops;
  for (std::uint32_t i = 0; i < config.n_layer(); ++i) {
    const LayerShape& layer = config.layers[i];
    const std::string prefix = "blk." + std::to_string(i) + ".";
    const std::uint32_t q = layer.n_head * config.head_dim, kv = layer.n_head_kv * config.head_dim;
    if (config.family == ModelFamily::kGpt2) {
      ops.push_back({prefix + "attn_qkv.weight", q + 2 * kv, config.n_embd});
    } else {
      ops.push_back({prefix + "attn_q.weight", q, config.n_embd});
      ops.push_back({prefix + "attn_k.weight", kv, config.n_embd});
      ops.push_back({prefix + "attn_v.weight", kv, config.n_embd});
    }
    ops.push_back({prefix + "attn_output.weight", config.n_embd, q});
    if (config.family == ModelFamily::kLlama)
      ops.push_back({prefix + "ffn_gate.weight", layer.n_ff, config.n_embd});
    ops.push_back({prefix + "ffn_up.weight", layer.n_ff, config.n_embd});
    ops.push_back({prefix + "ffn_down.weight", config.n_embd, layer.n_ff});
  }
  if (config.is_encoder()) {
    const auto labels = static_cast<std::uint32_t>(config.encoder.labels.size());
    if (config.encoder.pooler) ops.push_back({"cls.weight", config.n_embd, config.n_embd});
    if (labels > 0) ops.push_back({"cls.output.weight", labels, config.n_embd});
    if (!config.encoder.mlm_head) return ops;
    ops.push_back({"mlm.dense.weight", config.n_embd, config.n_embd});
  }
  ops.push_back(
      {config.tied_embeddings ? "token_embd.weight" : "output.weight", config.n_vocab, config.n_embd});
  return ops;
}

std::uint64_t parameter_count(const ModelConfig& config) {
  std::uint64_t count = 0;
  for (const Operation& op : operations(config)) count += std::uint64_t{op.rows} * op.columns;
  if (!config.tied_embeddings || (config.is_encoder() && !config.encoder.mlm_head))
    count += std::uint64_t{config.n_vocab} * config.n_embd;  // the input embedding
  const std::uint64_t embd = config.n_embd;
  if (config.family == ModelFamily::kLlama) return count + (2 * config.n_layer() + 1) * embd;  // RMS norms
  count += std::uint64_t{config.n_ctx} * embd + 2 * embd;  // positions; the final norm, or the embedding's
  for (const LayerShape& layer : config.layers) {
    const std::uint64_t q = std::uint64_t{layer.n_head} * config.head_dim,
                        kv = std::uint64_t{layer.n_head_kv} * config.head_dim;
    count += 4 * embd + (q + 2 * kv) + embd + layer.n_ff + embd;  // two norms, four biases
  }
  if (config.is_encoder()) {
    const EncoderConfig& encoder = config.encoder;
    count += encoder.n_token_types * embd + (encoder.pooler ? embd : 0) + encoder.labels.size();
    if (encoder.mlm_head) count += 3 * embd + config.n_vocab;  // dense's bias, norm, the output's bias
  }
  return count;
}

std::uint64_t kv_cache_bytes(const ModelConfig& config, std::uint32_t n_ctx, std::uint32_t bytes_per_value) {
  std::uint64_t bytes = 0;
  if (config.is_encoder()) return bytes;
  for (const LayerShape& layer : config.layers)
    bytes += 2ull * layer.n_head_kv * config.head_dim * n_ctx * bytes_per_value;
  return bytes;
}

}  // namespace retort
