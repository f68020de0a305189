#include "common/model/model_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>
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
  if (config.rope_dim > config.head_dim || config.rope_dim % 2 != 0)
    return fail(ErrorCode::kInvalid, std::string(where),
                "rotary embedding of {} dimensions of a head of {}; an even number, at most all, is possible",
                config.rope_dim, config.head_dim);
  const std::size_t pairs = (config.rope_dim != 0 ? config.rope_dim : config.head_dim) / 2;
  if (!config.rope_factors.empty() && config.rope_factors.size() != pairs)
    return fail(ErrorCode::kInvalid, std::string(where), "{} rope factors for {} pairs",
                config.rope_factors.size(), pairs);
  for (const float factor : config.rope_factors)
    if (!(factor > 0 && std::isfinite(factor)))
      return fail(ErrorCode::kInvalid, std::string(where), "a rope factor is {}", factor);
  if (const RopeScaling& rope = config.rope_scaling; rope.kind != RopeScaling::Kind::kNone) {
    if (!(rope.factor >= 1 && rope.factor <= 1e6f))
      return fail(ErrorCode::kInvalid, std::string(where), "rope scaling's factor {} is outside 1…10^6",
                  rope.factor);
    if (rope.kind != RopeScaling::Kind::kLinear)
      RETORT_TRY(check(rope.original_ctx, 1u << 22, "rope scaling's original context length"));
    if (rope.kind == RopeScaling::Kind::kLlama3 &&
        !(rope.low_freq_factor > 0 && rope.high_freq_factor > rope.low_freq_factor &&
          std::isfinite(rope.high_freq_factor)))
      return fail(ErrorCode::kInvalid, std::string(where),
                  "rope scaling's low_freq_factor {} is not below its high_freq_factor {}",
                  rope.low_freq_factor, rope.high_freq_factor);
    if (rope.kind == RopeScaling::Kind::kYarn &&
        !(rope.beta_slow > 0 && rope.beta_fast >= rope.beta_slow && rope.beta_fast <= 1e6f &&
          rope.attention_factor >= 0 && rope.attention_factor <= 1e3f))
      return fail(ErrorCode::kInvalid, std::string(where),
                  "rope scaling's beta_fast {}, beta_slow {} or attention_factor {} is out of range",
                  rope.beta_fast, rope.beta_slow, rope.attention_factor);
  }
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

std::string_view architecture(const ModelConfig& config) {
  return config.qwen2 ? "qwen2" : to_string(config.family);
}

RopeRates rope_rates(const ModelConfig& c) {
  const std::uint32_t dim = c.rope_dim != 0 ? c.rope_dim : c.head_dim;
  const RopeScaling& scaling = c.rope_scaling;
  RopeRates out;
  const auto rate = [&](double i) { return std::pow(static_cast<double>(c.rope_theta), -2.0 * i / dim); };
  // [Peng 2023] equation 23: the pair that makes `turns` turns in the original context.
  const auto pair_of_turns = [&](double turns) {
    return dim * std::log(scaling.original_ctx / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(static_cast<double>(c.rope_theta)));
  };
  for (std::uint32_t i = 0; i < dim / 2; ++i) {
    const double plain = rate(i), slow = plain / scaling.factor;
    double share = 1;  // of `plain`
    switch (scaling.kind) {
      case RopeScaling::Kind::kNone:
        break;
      case RopeScaling::Kind::kLinear:
        share = 0;
        break;
      case RopeScaling::Kind::kLlama3: {
        const double turns = scaling.original_ctx * plain / (2 * std::numbers::pi);
        share = std::clamp(
            (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0,
            1.0);
        break;
      }
      case RopeScaling::Kind::kYarn: {
        const double low = std::max(0.0, std::floor(pair_of_turns(scaling.beta_fast))),
                     high = std::min(dim - 1.0, std::ceil(pair_of_turns(scaling.beta_slow)));
        share = 1 - std::clamp((i - low) / std::max(0.001, high - low), 0.0, 1.0);
        break;
      }
    }
    const double divisor = c.rope_factors.empty() ? 1 : c.rope_factors[i];
    out.rates.push_back((share * plain + (1 - share) * slow) / divisor);
  }
  if (scaling.kind == RopeScaling::Kind::kYarn)
    out.magnitude = scaling.attention_factor != 0 ? static_cast<double>(scaling.attention_factor)
                                                  : 0.1 * std::log(static_cast<double>(scaling.factor)) + 1;
  return out;
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
  if (config.family == ModelFamily::kLlama) {
    for (const LayerShape& layer : config.layers) {
      if (config.qkv_bias) count += (std::uint64_t{layer.n_head} + 2ull * layer.n_head_kv) * config.head_dim;
      if (config.attn_output_bias) count += embd;
      if (config.mlp_bias) count += 2ull * layer.n_ff + embd;
    }
    return count + (2 * config.n_layer() + 1) * embd;  // RMS norms
  }
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
