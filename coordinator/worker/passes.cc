#include "coordinator/worker/passes.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "common/blocks/tensor_type.h"
#include "coordinator/worker/plan.h"
#include "coordinator/worker/run.h"

namespace retort {
namespace {

using at::Tensor;

Tensor index_tensor(const std::vector<std::int64_t>& values) {
  return at::tensor(values, at::TensorOptions().dtype(at::kLong));
}

/// The `count` largest, in ascending order of position (ties: the earlier one).
std::vector<std::int64_t> largest(const std::vector<double>& scores, std::size_t count) {
  std::vector<std::int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<double> to_vector(const Tensor& tensor) {
  const Tensor values = tensor.to(at::kDouble).contiguous();
  return {values.data_ptr<double>(), values.data_ptr<double>() + values.numel()};
}

/// Features of the given heads: head h owns [h·D, (h+1)·D).
Tensor features(const std::vector<std::int64_t>& heads, std::int64_t dim, std::int64_t offset = 0) {
  std::vector<std::int64_t> out;
  for (const std::int64_t head : heads)
    for (std::int64_t i = 0; i < dim; ++i) out.push_back(offset + head * dim + i);
  return index_tensor(out);
}

struct LayerNames {
  std::string prefix;
  explicit LayerNames(const ModelConfig& config, std::size_t layer)
      : prefix((config.family == ModelFamily::kLlama ? "model.layers." : "transformer.h.") +
               std::to_string(layer) + ".") {}
};

/// Scores by weight norms, in the statistics' shape, where no activations were taken.
ActivationStatistics magnitudes(const Network& n) {
  ActivationStatistics out;
  out.tokens = 1;
  const ModelConfig& c = n.config;
  for (std::size_t i = 0; i < c.layers.size(); ++i) {
    const std::string p = LayerNames(c, i).prefix;
    const std::int64_t heads = c.layers[i].n_head;
    ActivationStatistics::Layer layer;
    if (c.family == ModelFamily::kLlama) {
      layer.ffn = n.weight(p + "mlp.gate_proj.weight").square().sum(1) +
                  n.weight(p + "mlp.up_proj.weight").square().sum(1) +
                  n.weight(p + "mlp.down_proj.weight").square().sum(0);
      layer.heads = n.weight(p + "self_attn.q_proj.weight").view({heads, -1}).square().sum(1) +
                    n.weight(p + "self_attn.o_proj.weight").t().reshape({heads, -1}).square().sum(1);
    } else {
      layer.ffn =
          n.weight(p + "mlp.c_fc.weight").square().sum(0) + n.weight(p + "mlp.c_proj.weight").square().sum(1);
      layer.heads = n.weight(p + "attn.c_proj.weight").view({heads, -1}).square().sum(1);
    }
    double norm = 0;
    for (const auto& [name, tensor] : n.weights)
      if (name.starts_with(p)) norm += tensor.square().sum().item<double>();
    layer.similarity = -norm;  // small weights look like a layer that changes little
    out.layers.push_back(std::move(layer));
  }
  return out;
}

}  // namespace

double schedule_factor(const OptimisePass& pass, std::uint64_t step, std::uint64_t steps) {
  const double at = static_cast<double>(step), all = static_cast<double>(steps);
  const double warm = std::max(1.0, std::floor(pass.warmup * all));
  if (at < warm) return (at + 1) / warm;
  if (pass.schedule == OptimisePass::Schedule::kCosine) {
    const double share = all > warm ? (at - warm) / (all - warm) : 1;
    return 0.1 + 0.45 * (1 + std::cos(M_PI * share));
  }
  if (pass.schedule == OptimisePass::Schedule::kWsd) {
    const double fall = std::max(1.0, pass.decay * all);
    return std::min(1.0, (all - at) / fall);
  }
  return 1;
}

StepReport optimise_step(Network& network, Moments& moments, const Network* teacher, TokenStream& stream,
                         const OptimisePass& pass, std::uint64_t seed, std::uint64_t step,
                         std::uint64_t steps, std::uint32_t window, std::uint32_t windows) {
  constexpr double kBeta1 = 0.9, kBeta2 = 0.95, kEpsilon = 1e-8;
  for (auto& [name, tensor] : network.weights) {
    tensor.set_requires_grad(true);
    tensor.mutable_grad() = Tensor();
  }
  StepReport report;
  const std::uint32_t micro = micro_batch(windows, window, network.config.n_vocab);
  for (std::uint32_t first = 0; first < windows; first += micro) {
    const std::uint32_t count = std::min(micro, windows - first);
    const Tensor ids = at::empty({count, window + 1}, at::kLong);
    for (std::uint32_t i = 0; i < count; ++i)
      stream.window(seed, step * windows + first + i, window,
                    ids.data_ptr<std::int64_t>() + std::size_t{i} * (window + 1));
    const Tensor inputs = ids.slice(1, 0, window).contiguous();
    const Tensor targets = ids.slice(1, 1).reshape({-1});
    const Tensor logits = forward(network, inputs).view({-1, network.config.n_vocab});
    Tensor loss;
    if (pass.distil) {
      Tensor teacher_logits;
      {
        torch::NoGradGuard no_grad;
        teacher_logits = forward(*teacher, inputs).view({-1, network.config.n_vocab});
      }
      loss = distillation_loss(logits, teacher_logits, targets, pass.temperature, pass.alpha);
    } else {
      loss = at::cross_entropy_loss(logits, targets);
    }
    loss = loss * (static_cast<double>(count) / windows);
    loss.backward();
    report.loss += loss.item<double>();
  }
  torch::NoGradGuard no_grad;
  double squares = 0;
  for (auto& [name, tensor] : network.weights)
    if (tensor.grad().defined()) squares += tensor.grad().square().sum().item<double>();
  const double norm = std::sqrt(squares), scale = norm > pass.clip ? pass.clip / norm : 1;
  report.learning_rate = pass.learning_rate * schedule_factor(pass, step, steps);
  const double correct1 = 1 - std::pow(kBeta1, static_cast<double>(step + 1));
  const double correct2 = 1 - std::pow(kBeta2, static_cast<double>(step + 1));
  for (auto& [name, tensor] : network.weights) {
    if (!tensor.grad().defined()) continue;
    Tensor& first = moments.first[name];
    Tensor& second = moments.second[name];
    if (!first.defined()) first = at::zeros_like(tensor), second = at::zeros_like(tensor);
    const Tensor gradient = scale == 1 ? tensor.grad() : tensor.grad() * scale;
    first.mul_(kBeta1).add_(gradient, 1 - kBeta1);
    second.mul_(kBeta2).addcmul_(gradient, gradient, 1 - kBeta2);
    if (tensor.dim() > 1) tensor.mul_(1 - report.learning_rate * pass.weight_decay);
    tensor.addcdiv_(first, (second / correct2).sqrt_().add_(kEpsilon), -report.learning_rate / correct1);
    tensor.mutable_grad() = Tensor();
  }
  return report;
}

Network prune(const Network& network, const ModelConfig& target, const ActivationStatistics* given) {
  torch::NoGradGuard no_grad;
  ActivationStatistics by_weight;
  if (given == nullptr) by_weight = magnitudes(network);
  const ActivationStatistics& scores = given != nullptr ? *given : by_weight;
  const ModelConfig& c = network.config;
  const std::int64_t d = c.head_dim;

  std::vector<double> change;
  for (const auto& layer : scores.layers)
    change.push_back(1 - layer.similarity / static_cast<double>(scores.tokens));
  const std::vector<std::int64_t> kept = largest(change, target.layers.size());

  Network out{target, {}};
  for (const auto& [name, tensor] : network.weights)
    if (!name.starts_with(c.family == ModelFamily::kLlama ? "model.layers." : "transformer.h."))
      out.weights.emplace(name, tensor.detach().clone());

  for (std::size_t i = 0; i < kept.size(); ++i) {
    const auto from = static_cast<std::size_t>(kept[i]);
    const LayerShape& have = c.layers[from];
    const LayerShape& want = target.layers[i];
    const std::string p = LayerNames(c, from).prefix, q = LayerNames(target, i).prefix;

    const Tensor neurons = index_tensor(largest(to_vector(scores.layers[from].ffn), want.n_ff));
    // Groups by the sum of their heads, then the best heads of each group that stays.
    const std::vector<double> head_scores = to_vector(scores.layers[from].heads);
    const std::uint32_t group = have.n_head / have.n_head_kv;
    std::vector<double> group_scores(have.n_head_kv, 0);
    for (std::size_t h = 0; h < head_scores.size(); ++h) group_scores[h / group] += head_scores[h];
    const std::vector<std::int64_t> groups = largest(group_scores, want.n_head_kv);
    std::vector<std::int64_t> heads;
    for (const std::int64_t g : groups) {
      const auto begin = head_scores.begin() + g * group;
      for (const std::int64_t h : largest({begin, begin + group}, want.n_head / want.n_head_kv))
        heads.push_back(g * group + h);
    }
    const Tensor query = features(heads, d), key = features(groups, d);

    for (const auto& [name, tensor] : network.weights) {
      if (!name.starts_with(p)) continue;
      const std::string part = name.substr(p.size());
      Tensor cut = tensor.detach();
      if (part == "self_attn.q_proj.weight")
        cut = cut.index_select(0, query);
      else if (part == "self_attn.k_proj.weight" || part == "self_attn.v_proj.weight")
        cut = cut.index_select(0, key);
      else if (part == "self_attn.o_proj.weight")
        cut = cut.index_select(1, query);
      else if (part == "mlp.gate_proj.weight" || part == "mlp.up_proj.weight")
        cut = cut.index_select(0, neurons);
      else if (part == "mlp.down_proj.weight")
        cut = cut.index_select(1, neurons);
      else if (part == "attn.c_attn.weight" || part == "attn.c_attn.bias")
        cut =
            cut.index_select(cut.dim() - 1, at::cat({features(heads, d), features(heads, d, have.n_head * d),
                                                     features(heads, d, 2 * have.n_head * d)}));
      else if (part == "attn.c_proj.weight")
        cut = cut.index_select(0, query);
      else if (part == "mlp.c_fc.weight" || part == "mlp.c_fc.bias")
        cut = cut.index_select(cut.dim() - 1, neurons);
      else if (part == "mlp.c_proj.weight")
        cut = cut.index_select(0, neurons);
      out.weights.emplace(q + part, cut.clone());
    }
  }
  return out;
}

void round_weights(Network& network, TensorType format) {
  torch::NoGradGuard no_grad;
  for (auto& [name, tensor] : network.weights) {
    const StoredAs stored = stored_as(network.config.family, name, static_cast<std::size_t>(tensor.dim()));
    if (!stored.matrix) continue;
    Tensor values = (stored.transposed ? tensor.detach().t() : tensor.detach()).contiguous().clone();
    const auto columns = static_cast<std::uint64_t>(values.size(1));
    const TensorType type = stored_type(format, columns);
    std::vector<std::byte> encoded(*row_bytes(type, columns));
    for (std::int64_t row = 0; row < values.size(0); ++row) {
      const std::span<float> line(values.data_ptr<float>() + row * values.size(1), columns);
      encode_row(type, line, encoded);
      decode_row(type, encoded, line);
    }
    tensor = stored.transposed ? values.t().contiguous() : values;
  }
}

Evaluation evaluate(const Network& network, const Network* teacher, const Tokenizer& tokenizer,
                    const std::vector<std::string>& documents, std::uint64_t max_tokens,
                    const std::function<bool()>& stop) {
  torch::NoGradGuard no_grad;
  Evaluation out;
  double divergence = 0;
  std::int64_t agreed = 0;
  const auto start = std::chrono::steady_clock::now();
  for (const std::string& text : documents) {
    if ((max_tokens != 0 && out.tokens >= max_tokens) || stop()) break;
    const std::vector<TokenId> ids = document_tokens(tokenizer, text);
    for (std::size_t at = 0; at + 1 < ids.size(); at += network.config.n_ctx) {
      std::size_t end = std::min<std::size_t>(at + network.config.n_ctx, ids.size());
      if (max_tokens != 0) end = std::min<std::size_t>(end, at + 1 + (max_tokens - out.tokens));
      if (end - at < 2) break;
      const std::vector<std::int64_t> wide(ids.begin() + static_cast<std::ptrdiff_t>(at),
                                           ids.begin() + static_cast<std::ptrdiff_t>(end));
      const Tensor all = index_tensor(wide);
      const Tensor inputs = all.slice(0, 0, -1).unsqueeze(0), targets = all.slice(0, 1);
      const Tensor logp = at::log_softmax(forward(network, inputs).squeeze(0), -1);
      out.nll -= logp.gather(1, targets.unsqueeze(1)).sum().item<double>();
      out.tokens += end - at - 1;
      for (std::size_t i = at + 1; i < end; ++i) out.bytes += tokenizer.piece(ids[i]).size();
      if (teacher == nullptr) continue;
      const Tensor wanted = at::log_softmax(forward(*teacher, inputs).squeeze(0), -1);
      divergence += (wanted.exp() * (wanted - logp)).sum().item<double>();
      agreed += wanted.argmax(-1).eq(logp.argmax(-1)).sum().item<std::int64_t>();
    }
  }
  if (teacher != nullptr && out.tokens > 0) {
    out.divergence = divergence / static_cast<double>(out.tokens);
    out.agreement = static_cast<double>(agreed) / static_cast<double>(out.tokens);
  }
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return out;
}

double matrix_product_rate() {
  torch::NoGradGuard no_grad;
  const Tensor a = at::ones({512, 512}), b = at::ones({512, 512});
  at::mm(a, b);
  double best = 0;
  for (int i = 0; i < 8; ++i) {
    const auto start = std::chrono::steady_clock::now();
    at::mm(a, b);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * 512 * 512 * 512 / took.count());
    if (took.count() > 0.5) break;
  }
  return best;
}

void set_loop_threads(int threads) {
  at::set_num_threads(threads);
  at::globalContext().setFlushDenormal(true);
}

}  // namespace retort
