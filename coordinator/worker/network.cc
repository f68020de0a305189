#include "coordinator/worker/network.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/core/random.h"

namespace retort {
namespace {

using at::Tensor;

/// Scores of the keys that a query may not see.
Tensor causal_mask(std::int64_t length) { return at::full({length, length}, -1e30f).triu_(1); }

/// q [B, S, H, D], k and v [B, S, G, D] with G dividing H → [B, S, H, D].
Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask) {
  const std::int64_t b = q.size(0), s = q.size(1), h = q.size(2), d = q.size(3), g = k.size(2);
  const auto heads = [&](const Tensor& x) {
    Tensor y = x.transpose(1, 2);
    if (x.size(2) != h) y = y.unsqueeze(2).expand({b, g, h / g, s, d}).reshape({b, h, s, d});
    return y.reshape({b * h, s, d});
  };
  const Tensor scores = at::baddbmm(mask.unsqueeze(0), heads(q), heads(k).transpose(1, 2), 1,
                                    1 / std::sqrt(static_cast<double>(d)));
  return at::bmm(at::softmax(scores, -1), heads(v)).view({b, h, s, d}).transpose(1, 2);
}

struct Rotary {
  Tensor cos, sin;  ///< [S, 1, D]
  Rotary(std::int64_t length, std::int64_t dim, double theta) {
    const Tensor rate = at::pow(theta, at::arange(0, dim, 2, at::kDouble) / -static_cast<double>(dim));
    const Tensor angle = at::arange(length, at::kDouble).unsqueeze(1) * rate.unsqueeze(0);
    const Tensor both = at::cat({angle, angle}, 1).unsqueeze(1);
    cos = both.cos().to(at::kFloat);
    sin = both.sin().to(at::kFloat);
  }
  /// Rotate-half pairing: feature i with i + D/2.
  Tensor operator()(const Tensor& x) const {
    const std::int64_t half = x.size(3) / 2;
    const Tensor turned = at::cat({-x.slice(3, half), x.slice(3, 0, half)}, 3);
    return x * cos + turned * sin;
  }
};

void note_heads(ActivationStatistics* statistics, std::size_t layer, const Tensor& output) {
  if (statistics == nullptr) return;
  statistics->layers[layer].heads += output.detach().norm(2, -1).sum(at::IntArrayRef({0, 1}));
}

void note_ffn(ActivationStatistics* statistics, std::size_t layer, const Tensor& activation) {
  if (statistics == nullptr) return;
  statistics->layers[layer].ffn += activation.detach().abs().sum(at::IntArrayRef({0, 1}));
}

void note_layer(ActivationStatistics* statistics, std::size_t layer, const Tensor& in, const Tensor& out) {
  if (statistics == nullptr) return;
  statistics->layers[layer].similarity +=
      at::cosine_similarity(in.detach(), out.detach(), -1).sum().item<double>();
}

Tensor llama(const Network& n, const Tensor& ids, ActivationStatistics* statistics) {
  const ModelConfig& c = n.config;
  const std::int64_t b = ids.size(0), s = ids.size(1), d = c.head_dim;
  const Tensor mask = causal_mask(s);
  const Rotary rotate(s, d, c.rope_theta);
  const auto norm = [&](const Tensor& x, const Tensor& w) {
    return x * at::rsqrt(x.square().mean(-1, true) + static_cast<double>(c.norm_eps)) * w;
  };
  Tensor x = at::embedding(n.weight("model.embed_tokens.weight"), ids);
  for (std::size_t i = 0; i < c.layers.size(); ++i) {
    const std::string p = "model.layers." + std::to_string(i) + ".";
    const LayerShape& shape = c.layers[i];
    const Tensor in = x;
    Tensor h = norm(x, n.weight(p + "input_layernorm.weight"));
    const Tensor q = at::linear(h, n.weight(p + "self_attn.q_proj.weight")).view({b, s, shape.n_head, d});
    const Tensor k = at::linear(h, n.weight(p + "self_attn.k_proj.weight")).view({b, s, shape.n_head_kv, d});
    const Tensor v = at::linear(h, n.weight(p + "self_attn.v_proj.weight")).view({b, s, shape.n_head_kv, d});
    const Tensor attention = attend(rotate(q), rotate(k), v, mask);
    note_heads(statistics, i, attention);
    x = x + at::linear(attention.reshape({b, s, shape.n_head * d}), n.weight(p + "self_attn.o_proj.weight"));
    h = norm(x, n.weight(p + "post_attention_layernorm.weight"));
    const Tensor active = at::silu(at::linear(h, n.weight(p + "mlp.gate_proj.weight"))) *
                          at::linear(h, n.weight(p + "mlp.up_proj.weight"));
    note_ffn(statistics, i, active);
    x = x + at::linear(active, n.weight(p + "mlp.down_proj.weight"));
    note_layer(statistics, i, in, x);
  }
  x = norm(x, n.weight("model.norm.weight"));
  return at::linear(x, n.weight(c.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight"));
}

Tensor gpt2(const Network& n, const Tensor& ids, ActivationStatistics* statistics) {
  const ModelConfig& c = n.config;
  const std::int64_t b = ids.size(0), s = ids.size(1), d = c.head_dim;
  const Tensor mask = causal_mask(s);
  const auto norm = [&](const Tensor& x, const std::string& name) {
    return at::layer_norm(x, {c.n_embd}, n.weight(name + ".weight"), n.weight(name + ".bias"),
                          static_cast<double>(c.norm_eps));
  };
  const auto conv = [&](const Tensor& x, const std::string& name) {  // Conv1D: weight [in, out]
    return at::matmul(x, n.weight(name + ".weight")) + n.weight(name + ".bias");
  };
  Tensor x = at::embedding(n.weight("transformer.wte.weight"), ids) +
             n.weight("transformer.wpe.weight").slice(0, 0, s).unsqueeze(0);
  for (std::size_t i = 0; i < c.layers.size(); ++i) {
    const std::string p = "transformer.h." + std::to_string(i) + ".";
    const std::int64_t heads = c.layers[i].n_head;
    const Tensor in = x;
    const Tensor qkv = conv(norm(x, p + "ln_1"), p + "attn.c_attn").view({b, s, 3, heads, d});
    const Tensor attention = attend(qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), mask);
    note_heads(statistics, i, attention);
    x = x + conv(attention.reshape({b, s, heads * d}), p + "attn.c_proj");
    const Tensor active = at::gelu(conv(norm(x, p + "ln_2"), p + "mlp.c_fc"), "tanh");
    note_ffn(statistics, i, active);
    x = x + conv(active, p + "mlp.c_proj");
    note_layer(statistics, i, in, x);
  }
  x = norm(x, "transformer.ln_f");
  return at::linear(x, n.weight(c.tied_embeddings ? "transformer.wte.weight" : "lm_head.weight"));
}

Result<Network> gather(const ModelConfig& config,
                       const std::function<const SafeTensor*(const std::string&)>& find) {
  Network network{config, {}};
  for (const WeightShape& wanted : hf_weights(config)) {
    const SafeTensor* tensor = find(wanted.name);
    if (tensor == nullptr || tensor->shape != wanted.shape)
      return fail(ErrorCode::kCorrupt, wanted.name,
                  "this weight is missing or has another shape than the model's");
    Tensor values =
        at::empty(std::vector<std::int64_t>(wanted.shape.begin(), wanted.shape.end()), at::kFloat);
    tensor->read_f32(0, {values.data_ptr<float>(), static_cast<std::size_t>(values.numel())});
    network.weights.emplace(wanted.name, std::move(values));
  }
  return network;
}

}  // namespace

const at::Tensor& Network::weight(const std::string& name) const { return weights.at(name); }

Tensor forward(const Network& network, const Tensor& ids, ActivationStatistics* statistics) {
  if (statistics != nullptr) {
    if (statistics->layers.empty())
      for (const LayerShape& layer : network.config.layers)
        statistics->layers.push_back({at::zeros({layer.n_ff}), at::zeros({layer.n_head}), 0});
    statistics->tokens += ids.numel();
  }
  return network.config.family == ModelFamily::kLlama ? llama(network, ids, statistics)
                                                      : gpt2(network, ids, statistics);
}

Tensor distillation_loss(const Tensor& student_logits, const Tensor& teacher_logits, const Tensor& targets,
                         double temperature, double alpha) {
  Tensor teacher;
  {
    torch::NoGradGuard no_grad;
    teacher = at::log_softmax(teacher_logits / temperature, -1);
  }
  const Tensor student = at::log_softmax(student_logits / temperature, -1);
  const Tensor divergence = (teacher.exp() * (teacher - student)).sum(-1).mean();
  Tensor loss = divergence * (alpha * temperature * temperature);
  if (alpha < 1) loss = loss + at::cross_entropy_loss(student_logits, targets) * (1 - alpha);
  return loss;
}

Result<Network> load_network(const HfModel& model) {
  return gather(model.config, [&](const std::string& name) { return model.weights.find(name); });
}

Result<Network> load_network(const ModelConfig& config, const Safetensors& file, const std::string& prefix) {
  return gather(config, [&](const std::string& name) { return file.find(prefix + name); });
}

Network random_network(const ModelConfig& config, std::uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  Network network{config, {}};
  const double narrow = 0.02 / std::sqrt(2.0 * config.n_layer());
  for (const WeightShape& wanted : hf_weights(config)) {
    const std::vector<std::int64_t> shape(wanted.shape.begin(), wanted.shape.end());
    const std::string& name = wanted.name;
    const auto ends = [&](std::string_view suffix) { return name.ends_with(suffix); };
    const bool residual = ends("o_proj.weight") || ends("down_proj.weight") || ends("c_proj.weight");
    Tensor values = at::zeros(shape, at::kFloat);
    if (shape.size() > 1)
      values.normal_(0, residual ? narrow : 0.02, generator);
    else if (!ends("bias"))
      values.fill_(1);
    network.weights.emplace(name, std::move(values));
  }
  return network;
}

std::vector<TensorSource> sources_of(const std::map<std::string, Tensor>& tensors,
                                     const std::string& prefix) {
  std::vector<TensorSource> sources;
  for (const auto& [name, tensor] : tensors) {
    TensorSource source;
    source.name = prefix + name;
    for (const std::int64_t size : tensor.sizes()) source.shape.push_back(static_cast<std::uint64_t>(size));
    source.read = [&tensor](std::span<float> out) -> Result<void> {
      const Tensor values = tensor.detach().contiguous();
      std::memcpy(out.data(), values.data_ptr<float>(), out.size_bytes());
      return {};
    };
    sources.push_back(std::move(source));
  }
  return sources;
}

std::vector<TensorSource> weight_sources(const Network& network) { return sources_of(network.weights, ""); }

}  // namespace retort
