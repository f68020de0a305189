#include "coordinator/worker/prune.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "coordinator/worker/plan.h"

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

/// The dimension along which a weight's values belong to hidden channels; −1: none.
std::int64_t channel_dimension(const std::string& name) {
  const auto ends = [&](std::string_view suffix) { return name.ends_with(suffix); };
  if (ends("q_proj.weight") || ends("k_proj.weight") || ends("v_proj.weight") || ends("gate_proj.weight") ||
      ends("up_proj.weight") || ends("embed_tokens.weight") || ends("lm_head.weight") || ends("wte.weight") ||
      ends("wpe.weight") || ends("c_proj.weight"))
    return 1;
  for (const char* part : {"q_proj.bias", "k_proj.bias", "v_proj.bias", "gate_proj.bias", "up_proj.bias",
                           "c_attn.bias", "c_fc.bias"})
    if (ends(part)) return -1;
  return 0;  // norms, o_proj, down_proj, c_attn, c_fc, and biases of what writes to the channels
}

/// How a part of a layer's name is cut: along which dimension, by what.
enum class Part { kWhole, kQueries, kKeys, kNeurons, kQkv };
struct PartCut {
  Part part = Part::kWhole;
  std::int64_t dimension = 0;
};
PartCut part_cut(const std::string& part) {
  static const std::map<std::string_view, PartCut> kCuts{
      {"self_attn.q_proj.weight", {Part::kQueries, 0}},
      {"self_attn.q_proj.bias", {Part::kQueries, 0}},
      {"self_attn.k_proj.weight", {Part::kKeys, 0}},
      {"self_attn.k_proj.bias", {Part::kKeys, 0}},
      {"self_attn.v_proj.weight", {Part::kKeys, 0}},
      {"self_attn.v_proj.bias", {Part::kKeys, 0}},
      {"self_attn.o_proj.weight", {Part::kQueries, 1}},
      {"mlp.gate_proj.weight", {Part::kNeurons, 0}},
      {"mlp.gate_proj.bias", {Part::kNeurons, 0}},
      {"mlp.up_proj.weight", {Part::kNeurons, 0}},
      {"mlp.up_proj.bias", {Part::kNeurons, 0}},
      {"mlp.down_proj.weight", {Part::kNeurons, 1}},
      {"attn.c_attn.weight", {Part::kQkv, 1}},
      {"attn.c_attn.bias", {Part::kQkv, 0}},
      {"attn.c_proj.weight", {Part::kQueries, 0}},
      {"mlp.c_fc.weight", {Part::kNeurons, 1}},
      {"mlp.c_fc.bias", {Part::kNeurons, 0}},
      {"mlp.c_proj.weight", {Part::kNeurons, 0}},
      {"attention.output.dense.weight", {Part::kQueries, 1}},
      {"intermediate.dense.weight", {Part::kNeurons, 0}},
      {"intermediate.dense.bias", {Part::kNeurons, 0}},
      {"output.dense.weight", {Part::kNeurons, 1}}};
  if (part.starts_with("attention.self.")) return {Part::kQueries, 0};
  const auto found = kCuts.find(part);
  return found == kCuts.end() ? PartCut{} : found->second;
}

/// Scores by weight norms, in the statistics' shape, where no activations were taken.
ActivationStatistics magnitudes(const Network& n) {
  ActivationStatistics out;
  out.tokens = 1;
  const ModelConfig& c = n.config;
  for (std::size_t i = 0; i < c.layers.size(); ++i) {
    const std::string p = layer_prefix(c, i);
    const std::int64_t heads = c.layers[i].n_head;
    ActivationStatistics::Layer layer;
    if (c.family == ModelFamily::kLlama) {
      layer.ffn = n.weight(p + "mlp.gate_proj.weight").square().sum(1) +
                  n.weight(p + "mlp.up_proj.weight").square().sum(1) +
                  n.weight(p + "mlp.down_proj.weight").square().sum(0);
      layer.heads = n.weight(p + "self_attn.q_proj.weight").view({heads, -1}).square().sum(1) +
                    n.weight(p + "self_attn.o_proj.weight").t().reshape({heads, -1}).square().sum(1);
    } else if (c.family == ModelFamily::kBert) {
      layer.ffn = n.weight(p + "intermediate.dense.weight").square().sum(1) +
                  n.weight(p + "output.dense.weight").square().sum(0);
      layer.heads = n.weight(p + "attention.self.query.weight").view({heads, -1}).square().sum(1) +
                    n.weight(p + "attention.output.dense.weight").t().reshape({heads, -1}).square().sum(1);
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
  out.channels = at::zeros({c.n_embd});
  for (const auto& [name, tensor] : n.weights)
    if (const std::int64_t channel = channel_dimension(name); tensor.dim() == 2 && channel >= 0)
      out.channels += tensor.detach().square().sum(1 - channel);
  return out;
}

}  // namespace

Tensor best_of(const Tensor& scores, std::size_t count) {
  return index_tensor(largest(to_vector(scores), count));
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

  Network out{target, {}, {}};
  for (const auto& [name, tensor] : network.weights)
    if (!name.starts_with(layers_prefix(c))) out.weights.emplace(name, tensor.detach().clone());

  for (std::size_t i = 0; i < kept.size(); ++i) {
    const auto from = static_cast<std::size_t>(kept[i]);
    const LayerShape& have = c.layers[from];
    const LayerShape& want = target.layers[i];
    const std::string p = layer_prefix(c, from), q = layer_prefix(target, i);

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
    Network::Origin origin{kept[i], heads};
    if (!network.origins.empty()) {
      origin.layer = network.origins[from].layer;
      for (std::int64_t& head : origin.heads)
        head = network.origins[from].heads[static_cast<std::size_t>(head)];
    }
    out.origins.push_back(std::move(origin));

    for (const auto& [name, tensor] : network.weights) {
      if (!name.starts_with(p)) continue;
      const std::string part = name.substr(p.size());
      Tensor cut = tensor.detach();
      const PartCut how = part_cut(part);
      if (how.part == Part::kQueries) cut = cut.index_select(how.dimension, query);
      if (how.part == Part::kKeys) cut = cut.index_select(how.dimension, key);
      if (how.part == Part::kNeurons) cut = cut.index_select(how.dimension, neurons);
      if (how.part == Part::kQkv)
        cut = cut.index_select(how.dimension, at::cat({query, features(heads, d, have.n_head * d),
                                                       features(heads, d, 2 * have.n_head * d)}));
      out.weights.emplace(q + part, cut.clone());
    }
  }
  if (target.n_embd != c.n_embd) {
    const Tensor channels = index_tensor(largest(to_vector(scores.channels), target.n_embd));
    for (auto& [name, tensor] : out.weights)
      if (const std::int64_t channel = channel_dimension(name); channel >= 0)
        tensor = tensor.index_select(channel, channels).contiguous();
  }
  return out;
}

void keep_tokens(Network& network, const std::vector<std::int32_t>& kept, const ModelConfig& config) {
  torch::NoGradGuard no_grad;
  const Tensor rows = at::tensor(kept, at::kInt).to(at::kLong);
  for (auto& [name, tensor] : network.weights)
    for (const char* part : {"embed_tokens.weight", "lm_head.weight", "wte.weight"})
      if (name.ends_with(part)) tensor = tensor.index_select(0, rows);
  network.config = config;
}

Tensor keep_in_rows(const Tensor& scores, const SparsePass& pass) {
  const Tensor groups =
      pass.m != 0 ? scores.reshape({-1, static_cast<std::int64_t>(pass.m)}) : scores.contiguous();
  const std::int64_t keep =
      pass.m != 0 ? pass.n
                  : groups.size(1) - std::llround(pass.sparsity * static_cast<double>(groups.size(1)));
  const Tensor order = std::get<1>(groups.sort(/*stable=*/true, -1, /*descending=*/true));
  return at::zeros(groups.sizes(), at::kBool)
      .scatter_(1, order.slice(1, 0, keep), true)
      .reshape(scores.sizes());
}

Result<void> sparsify(Network& network, const SparsePass& pass, const std::vector<std::string>& matrices,
                      const std::vector<Tensor>& calibration,
                      const std::function<Result<void>()>& check_stop) {
  torch::NoGradGuard no_grad;
  const auto cut = [&](const std::string& name, const Tensor& norms) {
    const Tensor weight = matrix_of(network, name);
    Tensor scores = weight.abs();
    if (norms.defined()) scores = scores * norms.unsqueeze(0);
    // Without a pattern a magnitude is compared over the whole matrix: one long row.
    const bool whole = !norms.defined() && pass.m == 0;
    const Tensor kept = keep_in_rows(whole ? scores.reshape({1, -1}) : scores, pass).reshape(weight.sizes());
    set_matrix(network, name, at::where(kept, weight, at::zeros({})));
    network.sparse.insert(name);
  };
  if (!pass.wanda) {
    for (const std::string& name : matrices) cut(name, {});
    return {};
  }
  CalibrationText text(network, calibration);
  for (std::size_t layer = 0; layer < network.config.layers.size(); ++layer) {
    RETORT_TRY(check_stop());
    std::map<std::string, Tensor> squares;
    Trace trace;
    trace.inputs = [&](const std::string& name, const Tensor& input) {
      const Tensor more = input.reshape({-1, input.size(-1)}).square().sum(0);
      Tensor& sum = squares[name];
      sum = sum.defined() ? sum + more : more;
    };
    text.look(layer, trace);
    for (const std::string& name : matrices)
      if (const auto found = squares.find(name); found != squares.end()) cut(name, found->second.sqrt());
    text.advance(layer);
  }
  return {};
}

}  // namespace retort
