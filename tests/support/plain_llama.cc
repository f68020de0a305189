#include "tests/support/plain_llama.h"

#include <cmath>
#include <map>
#include <numbers>

#include "common/core/file.h"
#include "common/core/json.h"
#include "common/gguf/safetensors.h"

namespace retort::testing {
namespace {

using Row = std::vector<double>;

/// Each pair's angle per position, as Hugging Face's modeling_rope_utils defines it; `scale` of cosine and
/// sine.
Row angles(const json::object& config, std::size_t dim, double& scale) {
  const double base = config.at("rope_theta").to_number<double>();
  Row out;
  for (std::size_t i = 0; i < dim; i += 2)
    out.push_back(1 / std::pow(base, static_cast<double>(i) / static_cast<double>(dim)));
  if (!config.contains("rope_scaling")) return out;
  const json::object& rope = config.at("rope_scaling").as_object();
  const auto number = [&](const char* key) { return rope.at(key).to_number<double>(); };
  const std::string kind(rope.at("rope_type").as_string());
  const double factor = number("factor");
  if (kind == "linear") {
    for (double& x : out) x /= factor;
    return out;
  }
  const double before = number("original_max_position_embeddings");
  if (kind == "llama3") {
    const double low = number("low_freq_factor"), high = number("high_freq_factor");
    for (double& x : out) {
      const double wave = 2 * std::numbers::pi / x;
      if (wave > before / low) {
        x /= factor;
      } else if (wave > before / high) {
        const double smooth = (before / wave - low) / (high - low);
        x = (1 - smooth) * x / factor + smooth * x;
      }
    }
    return out;
  }
  const auto correction = [&](double turns) {
    return static_cast<double>(dim) * std::log(before / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(base));
  };
  const double low = std::max(std::floor(correction(number("beta_fast"))), 0.0);
  const double high = std::min(std::ceil(correction(number("beta_slow"))), static_cast<double>(dim) - 1);
  for (std::size_t i = 0; i < out.size(); ++i) {
    double ramp = (static_cast<double>(i) - low) / (low == high ? 0.001 : high - low);
    ramp = std::min(std::max(ramp, 0.0), 1.0);
    out[i] = out[i] / factor * ramp + out[i] * (1 - ramp);
  }
  scale = rope.contains("attention_factor") ? number("attention_factor") : 0.1 * std::log(factor) + 1;
  return out;
}

}  // namespace

std::vector<std::pair<std::string, std::function<void(ModelConfig&)>>> llama_variants() {
  const auto scaling = [](RopeScaling::Kind kind, float attention = 0) {
    return [=](ModelConfig& c) {
      c.rope_scaling.kind = kind;
      c.rope_scaling.factor = 4;
      c.rope_scaling.original_ctx = kind == RopeScaling::Kind::kLinear ? 0 : 32;
      c.rope_scaling.attention_factor = attention;
      if (kind == RopeScaling::Kind::kYarn) c.rope_scaling.beta_fast = 8;
    };
  };
  return {
      {"plain", [](ModelConfig&) {}},
      {"wide heads", [](ModelConfig& c) { c.head_dim *= 2; }},
      {"attention_bias", [](ModelConfig& c) { c.qkv_bias = c.attn_output_bias = true; }},
      {"mlp_bias", [](ModelConfig& c) { c.mlp_bias = true; }},
      {"qwen2", [](ModelConfig& c) { c.qwen2 = c.qkv_bias = true; }},
      {"qwen2 untied, large base",
       [](ModelConfig& c) {
         c.qwen2 = c.qkv_bias = true;
         c.tied_embeddings = false;
         c.rope_theta = 1e6f;
       }},
      {"linear", scaling(RopeScaling::Kind::kLinear)},
      {"llama3", scaling(RopeScaling::Kind::kLlama3)},
      {"yarn", scaling(RopeScaling::Kind::kYarn)},
      {"yarn with a factor", scaling(RopeScaling::Kind::kYarn, 1.3f)},
  };
}

Result<std::vector<double>> plain_llama(const std::filesystem::path& folder, const std::vector<int>& tokens) {
  const json::value document =
      RETORT_TRY(parse_json(RETORT_TRY(read_file(folder / "config.json")), "config"));
  const json::object& config = document.as_object();
  const Safetensors file = RETORT_TRY(Safetensors::open_folder(folder));
  const auto number = [&](const char* key) {
    return static_cast<std::size_t>(config.at(key).to_number<std::uint64_t>());
  };
  const auto weight = [&](const std::string& name) {
    const SafeTensor* tensor = file.find(name);
    Row out;
    if (tensor == nullptr) return out;
    std::uint64_t count = 1;
    for (const std::uint64_t d : tensor->shape) count *= d;
    std::vector<float> values(count);
    tensor->read_f32(0, values);
    out.assign(values.begin(), values.end());
    return out;
  };
  const auto linear = [&](const Row& x, const std::string& name) {
    const Row w = weight(name + ".weight"), bias = weight(name + ".bias");
    Row out(w.size() / x.size());
    for (std::size_t r = 0; r < out.size(); ++r) {
      out[r] = bias.empty() ? 0 : bias[r];
      for (std::size_t k = 0; k < x.size(); ++k) out[r] += w[r * x.size() + k] * x[k];
    }
    return out;
  };
  const double eps = config.at("rms_norm_eps").to_number<double>();
  const auto norm = [&](const Row& x, const std::string& name) {
    const Row w = weight(name + ".weight");
    double sum = 0;
    for (const double v : x) sum += v * v;
    Row out(x.size());
    for (std::size_t i = 0; i < x.size(); ++i)
      out[i] = x[i] / std::sqrt(sum / static_cast<double>(x.size()) + eps) * w[i];
    return out;
  };
  const std::size_t width = number("hidden_size"), heads = number("num_attention_heads"),
                    groups = number("num_key_value_heads"), dim = number("head_dim");
  double scale = 1;
  const Row rate = angles(config, dim, scale);
  const auto rotate = [&](Row& x, std::size_t position) {
    const Row old = x;
    for (std::size_t at = 0; at < x.size(); at += dim)
      for (std::size_t i = 0; i < dim / 2; ++i) {
        const double angle = static_cast<double>(position) * rate[i], c = scale * std::cos(angle),
                     s = scale * std::sin(angle);
        x[at + i] = old[at + i] * c - old[at + i + dim / 2] * s;
        x[at + i + dim / 2] = old[at + i + dim / 2] * c + old[at + i] * s;
      }
  };
  const Row embedding = weight("model.embed_tokens.weight");
  std::vector<Row> x;
  for (const int token : tokens) {
    const auto begin = embedding.begin() + static_cast<std::ptrdiff_t>(token * width);
    x.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(width));
  }
  for (std::size_t layer = 0; layer < number("num_hidden_layers"); ++layer) {
    const std::string p = "model.layers." + std::to_string(layer) + ".";
    std::vector<Row> keys, values;
    for (std::size_t t = 0; t < x.size(); ++t) {
      const Row h = norm(x[t], p + "input_layernorm");
      Row q = linear(h, p + "self_attn.q_proj");
      keys.push_back(linear(h, p + "self_attn.k_proj"));
      values.push_back(linear(h, p + "self_attn.v_proj"));
      rotate(q, t);
      rotate(keys.back(), t);
      Row attended(q.size());
      for (std::size_t head = 0; head < heads; ++head) {
        const std::size_t own = head * dim, shared = head / (heads / groups) * dim;
        Row share;
        double sum = 0;
        for (std::size_t u = 0; u <= t; ++u) {
          double dot = 0;
          for (std::size_t i = 0; i < dim; ++i) dot += q[own + i] * keys[u][shared + i];
          share.push_back(std::exp(dot / std::sqrt(static_cast<double>(dim))));
          sum += share.back();
        }
        for (std::size_t u = 0; u <= t; ++u)
          for (std::size_t i = 0; i < dim; ++i) attended[own + i] += share[u] / sum * values[u][shared + i];
      }
      const Row out = linear(attended, p + "self_attn.o_proj");
      for (std::size_t i = 0; i < width; ++i) x[t][i] += out[i];
      const Row n = norm(x[t], p + "post_attention_layernorm");
      Row gate = linear(n, p + "mlp.gate_proj");
      const Row up = linear(n, p + "mlp.up_proj");
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      const Row down = linear(gate, p + "mlp.down_proj");
      for (std::size_t i = 0; i < width; ++i) x[t][i] += down[i];
    }
  }
  std::vector<double> logits;
  for (const Row& row : x) {
    const Row out = linear(norm(row, "model.norm"),
                           config.at("tie_word_embeddings").as_bool() ? "model.embed_tokens" : "lm_head");
    logits.insert(logits.end(), out.begin(), out.end());
  }
  return logits;
}

}  // namespace retort::testing
