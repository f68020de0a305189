#include "coordinator/worker/network.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/core/random.h"
#include "common/hf/classifier_model.h"
#include "coordinator/worker/fused.h"
#include "coordinator/worker/plan.h"

namespace retort {
namespace {

using at::Tensor;

/// q [B, S, H, D], k and v [B, K, G, D] with G dividing H → [B, S, H, D]. `maps`, when given, gets the
/// attention [B, H, S, K].
Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask,
              std::vector<Tensor>* maps) {
  const std::int64_t b = q.size(0), s = q.size(1), h = q.size(2), d = q.size(3), g = k.size(2);
  const std::int64_t seen = k.size(1);
  const auto heads = [&](const Tensor& x) {
    Tensor y = x.transpose(1, 2);
    if (x.size(2) != h) y = y.unsqueeze(2).expand({b, g, h / g, seen, d}).reshape({b, h, seen, d});
    return y.reshape({b * h, x.size(1), d});
  };
  // One mask for all, or [batch · heads, 1, seen] where each text has its own.
  const Tensor scores = at::baddbmm(mask.dim() == 2 ? mask.unsqueeze(0) : mask, heads(q),
                                    heads(k).transpose(1, 2), 1, 1 / std::sqrt(static_cast<double>(d)));
  const Tensor attention = at::softmax(scores, -1);
  if (maps != nullptr) maps->push_back(attention.view({b, h, s, seen}));
  return at::bmm(attention, heads(v)).view({b, h, s, d}).transpose(1, 2);
}

Tensor layer_norm(const Network& n, const Tensor& x, const std::string& name) {
  // Of one type with its weights, whatever a product before it gave.
  return at::layer_norm(x.to(at::kFloat), {n.config.n_embd}, n.weight(name + ".weight"),
                        n.weight(name + ".bias"), static_cast<double>(n.config.norm_eps));
}

void tell(Trace* trace, const std::string& weight, const Tensor& input) {
  if (trace != nullptr && trace->inputs) trace->inputs(weight, input);
}

void note_projections(Trace* trace, const Tensor& q, const Tensor& k, const Tensor& v) {
  if (trace == nullptr || !trace->keep) return;
  trace->query.push_back(q);
  trace->key.push_back(k);
  trace->value.push_back(v);
}

void note_heads(Trace* trace, std::size_t layer, const Tensor& output) {
  if (trace == nullptr || trace->statistics == nullptr) return;
  trace->statistics->layers[layer].heads += output.detach().norm(2, -1).sum(at::IntArrayRef({0, 1}));
}

const Tensor& note_channels(Trace* trace, const Tensor& normed) {
  if (trace != nullptr && trace->statistics != nullptr)
    trace->statistics->channels += normed.detach().abs().sum(at::IntArrayRef({0, 1}));
  return normed;
}

void note_ffn(Trace* trace, std::size_t layer, const Tensor& activation) {
  if (trace == nullptr || trace->statistics == nullptr) return;
  trace->statistics->layers[layer].ffn += activation.detach().abs().sum(at::IntArrayRef({0, 1}));
}

void note_layer(Trace* trace, std::size_t layer, const Tensor& in, const Tensor& out) {
  if (trace == nullptr) return;
  if (trace->keep) trace->hidden.push_back(out);
  if (trace->statistics != nullptr)
    trace->statistics->layers[layer].similarity +=
        at::cosine_similarity(in.detach(), out.detach(), -1).sum().item<double>();
}

/// Puts what was before in front of a layer's keys and values.
void take_past(Trace* trace, std::size_t layer, Tensor& k, Tensor& v) {
  if (trace == nullptr || trace->past == nullptr) return;
  Trace::Past& past = trace->past->at(layer);
  if (past.key.defined()) k = at::cat({past.key, k}, 1), v = at::cat({past.value, v}, 1);
  past = {k, v};
}

std::vector<Tensor>* maps_of(Trace* trace) {
  return trace != nullptr && trace->keep ? &trace->attention : nullptr;
}

Tensor llama_layer(const Network& n, std::size_t layer, const Tensor& in, const Positions& positions,
                   Trace* trace) {
  const ModelConfig& c = n.config;
  const std::int64_t b = in.size(0), s = in.size(1), d = c.head_dim;
  const std::string p = layer_prefix(c, layer);
  const LayerShape& shape = c.layers[layer];
  const auto product = [&](const Tensor& x, const char* name) {
    tell(trace, p + name, x);
    constexpr std::string_view kWeight = "weight";
    const std::string weight(name);
    const auto bias = n.weights.find(p + weight.substr(0, weight.size() - kWeight.size()) + "bias");
    return bias == n.weights.end() ? at::linear(x, n.weight(p + name))
                                   : at::linear(x, n.weight(p + name), bias->second);
  };
  Tensor h = note_channels(trace, rms_norm(in, n.weight(p + "input_layernorm.weight"), c.norm_eps));
  const Tensor q = product(h, "self_attn.q_proj.weight").view({b, s, shape.n_head, d});
  const Tensor k = product(h, "self_attn.k_proj.weight").view({b, s, shape.n_head_kv, d});
  Tensor v = product(h, "self_attn.v_proj.weight").view({b, s, shape.n_head_kv, d});
  note_projections(trace, q, k, v);
  Tensor keys = rotate(k, positions.cos, positions.sin);
  take_past(trace, layer, keys, v);
  const Tensor attention =
      attend(rotate(q, positions.cos, positions.sin), keys, v, positions.mask, maps_of(trace));
  note_heads(trace, layer, attention);
  Tensor x = in + product(attention.reshape({b, s, shape.n_head * d}), "self_attn.o_proj.weight");
  h = note_channels(trace, rms_norm(x, n.weight(p + "post_attention_layernorm.weight"), c.norm_eps));
  const Tensor active = silu_gate(product(h, "mlp.gate_proj.weight"), product(h, "mlp.up_proj.weight"));
  note_ffn(trace, layer, active);
  x = x + product(active, "mlp.down_proj.weight");
  note_layer(trace, layer, in, x);
  return x;
}

Tensor gpt2_layer(const Network& n, std::size_t layer, const Tensor& in, const Positions& positions,
                  Trace* trace) {
  const ModelConfig& c = n.config;
  const std::int64_t b = in.size(0), s = in.size(1), d = c.head_dim, heads = c.layers[layer].n_head;
  const std::string p = layer_prefix(c, layer);
  const auto conv = [&](const Tensor& x, const std::string& name) {  // Conv1D: weight [in, out]
    tell(trace, p + name + ".weight", x);
    return at::matmul(x, n.weight(p + name + ".weight")) + n.weight(p + name + ".bias");
  };
  const Tensor qkv =
      conv(note_channels(trace, layer_norm(n, in, p + "ln_1")), "attn.c_attn").view({b, s, 3, heads, d});
  Tensor k = qkv.select(2, 1), v = qkv.select(2, 2);
  note_projections(trace, qkv.select(2, 0), k, v);
  take_past(trace, layer, k, v);
  const Tensor attention = attend(qkv.select(2, 0), k, v, positions.mask, maps_of(trace));
  note_heads(trace, layer, attention);
  Tensor x = in + conv(attention.reshape({b, s, heads * d}), "attn.c_proj");
  const Tensor active =
      at::gelu(conv(note_channels(trace, layer_norm(n, x, p + "ln_2")), "mlp.c_fc"), "tanh");
  note_ffn(trace, layer, active);
  x = x + conv(active, "mlp.c_proj");
  note_layer(trace, layer, in, x);
  return x;
}

std::vector<WeightShape> weight_shapes(const Network& network) {
  return network.classifier ? classifier_weights(*network.classifier) : hf_weights(network.config);
}

Result<void> gather(Network& network, const std::function<const SafeTensor*(const std::string&)>& find) {
  network.weights.clear();
  for (const WeightShape& wanted : weight_shapes(network)) {
    const SafeTensor* tensor = find(wanted.name);
    if (tensor == nullptr || tensor->shape != wanted.shape)
      return fail(ErrorCode::kCorrupt, wanted.name,
                  "this weight is missing or has another shape than the model's");
    Tensor values =
        at::empty(std::vector<std::int64_t>(wanted.shape.begin(), wanted.shape.end()), at::kFloat);
    tensor->read_f32(0, {values.data_ptr<float>(), static_cast<std::size_t>(values.numel())});
    network.weights.emplace(wanted.name, std::move(values));
  }
  return {};
}

/// Its bias where a layer has one: BERT's all have.
Tensor dense(const Network& n, const Tensor& x, const std::string& name, Trace* trace) {
  tell(trace, name + ".weight", x);
  return at::linear(x, n.weight(name + ".weight"), n.weight(name + ".bias"));
}

Tensor bert_layer(const Network& n, std::size_t layer, const Tensor& in, const Tensor& mask, Trace* trace) {
  const ModelConfig& c = n.config;
  const std::int64_t b = in.size(0), s = in.size(1), d = c.head_dim, heads = c.layers[layer].n_head;
  const std::string p = layer_prefix(c, layer);
  const auto projected = [&](const char* name) {
    return dense(n, in, p + "attention.self." + name, trace).view({b, s, heads, d});
  };
  const Tensor q = projected("query"), k = projected("key"), v = projected("value");
  note_projections(trace, q, k, v);
  const Tensor attention = attend(q, k, v, mask, maps_of(trace));
  note_heads(trace, layer, attention);
  const Tensor x =
      layer_norm(n, in + dense(n, attention.reshape({b, s, heads * d}), p + "attention.output.dense", trace),
                 p + "attention.output.LayerNorm");
  const Tensor active =
      at::gelu(dense(n, x, p + "intermediate.dense", trace), c.encoder.gelu == Gelu::kTanh ? "tanh" : "none");
  note_ffn(trace, layer, active);
  const Tensor out = layer_norm(n, x + dense(n, active, p + "output.dense", trace), p + "output.LayerNorm");
  note_layer(trace, layer, in, out);
  return out;
}

/// Statistics in the network's shape, where none have been taken yet.
void begin_statistics(const ModelConfig& config, Trace* trace, std::int64_t tokens) {
  if (trace == nullptr || trace->statistics == nullptr) return;
  ActivationStatistics& statistics = *trace->statistics;
  if (statistics.layers.empty()) {
    statistics.channels = at::zeros({config.n_embd});
    for (const LayerShape& layer : config.layers)
      statistics.layers.push_back({at::zeros({layer.n_ff}), at::zeros({layer.n_head}), 0});
  }
  statistics.tokens += tokens;
}

}  // namespace

const at::Tensor& Network::weight(const std::string& name) const { return weights.at(name); }

at::Device Network::device() const {
  return weights.empty() ? at::Device(at::kCPU) : weights.begin()->second.device();
}

void move_to(Network& network, at::Device device) {
  for (auto& [name, tensor] : network.weights)
    if (tensor.device() != device) tensor = tensor.detach().to(device);
}

namespace {
bool transposed(const Network& network, const std::string& name) {
  return stored_as(network.config.family, name, static_cast<std::size_t>(network.weight(name).dim()))
      .transposed;
}
}  // namespace

Tensor matrix_of(const Network& network, const std::string& name) {
  const Tensor tensor = network.weight(name).detach();
  return transposed(network, name) ? tensor.t().contiguous() : tensor.contiguous();
}

void set_matrix(Network& network, const std::string& name, const Tensor& values) {
  network.weights.at(name) = transposed(network, name) ? values.t().contiguous() : values;
}

bool head_is_embedding(const ModelConfig& config) {
  return config.tied_embeddings && (!config.is_encoder() || config.encoder.mlm_head);
}

std::string head_weight(const ModelConfig& config) {
  if (config.is_encoder())
    return !config.encoder.mlm_head ? "classifier.weight"
           : config.tied_embeddings ? "bert.embeddings.word_embeddings.weight"
                                    : "cls.predictions.decoder.weight";
  if (!config.tied_embeddings) return "lm_head.weight";
  return config.family == ModelFamily::kLlama ? "model.embed_tokens.weight" : "transformer.wte.weight";
}

Positions::Positions(const ModelConfig& config, std::int64_t length, std::int64_t first, at::Device device)
    : mask((config.is_encoder() ? at::zeros({length, length})
                                : at::full({length, first + length}, -1e30f).triu_(first + 1))
               .to(device)) {
  if (config.family != ModelFamily::kLlama) return;
  const RopeRates rates = rope_rates(config);
  const Tensor rate = at::tensor(rates.rates, at::kDouble);
  const Tensor angle = at::arange(first, first + length, at::kDouble).unsqueeze(1) * rate.unsqueeze(0);
  const Tensor both = at::cat({angle, angle}, 1).unsqueeze(1);  // [length, 1, head_dim]
  cos = (both.cos() * rates.magnitude).to(device, at::kFloat);
  sin = (both.sin() * rates.magnitude).to(device, at::kFloat);
}

Tensor embed(const Network& n, const Tensor& anywhere, std::int64_t first) {
  const Tensor ids = anywhere.to(n.device());
  if (n.config.is_encoder()) {
    Tensor x = at::embedding(n.weight("bert.embeddings.word_embeddings.weight"), ids) +
               n.weight("bert.embeddings.position_embeddings.weight").slice(0, 0, ids.size(1)).unsqueeze(0);
    if (n.config.encoder.n_token_types > 0)
      x = x + n.weight("bert.embeddings.token_type_embeddings.weight").slice(0, 0, 1).unsqueeze(0);
    return layer_norm(n, x, "bert.embeddings.LayerNorm");
  }
  if (n.config.family == ModelFamily::kLlama)
    return at::embedding(n.weight("model.embed_tokens.weight"), ids);
  return at::embedding(n.weight("transformer.wte.weight"), ids) +
         n.weight("transformer.wpe.weight").slice(0, first, first + ids.size(1)).unsqueeze(0);
}

Tensor run_layer(const Network& network, std::size_t layer, const Tensor& x, const Positions& positions,
                 Trace* trace) {
  if (network.config.is_encoder()) return bert_layer(network, layer, x, positions.mask, trace);
  return network.config.family == ModelFamily::kLlama ? llama_layer(network, layer, x, positions, trace)
                                                      : gpt2_layer(network, layer, x, positions, trace);
}

Tensor masked_logits(const Network& n, const Tensor& hidden, Trace* trace) {
  const std::string transform = "cls.predictions.transform.";
  const Tensor turned = layer_norm(n,
                                   at::gelu(dense(n, hidden, transform + "dense", trace),
                                            n.config.encoder.gelu == Gelu::kTanh ? "tanh" : "none"),
                                   transform + "LayerNorm");
  const std::string head = head_weight(n.config);
  tell(trace, head, turned);
  return at::linear(turned, n.weight(head), n.weight("cls.predictions.bias"));
}

Tensor text_class_logits(const Network& n, const Tensor& first, Trace* trace) {
  return dense(n, at::tanh(dense(n, first, "bert.pooler.dense", trace)), "classifier", trace);
}

Tensor logits_of(const Network& n, const Tensor& x, Trace* trace) {
  if (n.config.is_encoder())
    return n.config.encoder.mlm_head ? masked_logits(n, x, trace)
                                     : text_class_logits(n, x.select(1, 0), trace);
  const Tensor last = n.config.family == ModelFamily::kLlama
                          ? rms_norm(x, n.weight("model.norm.weight"), n.config.norm_eps)
                          : layer_norm(n, x, "transformer.ln_f");
  const std::string head = head_weight(n.config);
  note_channels(trace, last);
  tell(trace, head, last);
  return at::linear(last, n.weight(head));
}

Tensor forward(const Network& network, const Tensor& ids, Trace* trace) {
  begin_statistics(network.config, trace, ids.numel());
  const Positions positions(network.config, ids.size(1), 0, network.device());
  Tensor x = embed(network, ids);
  if (trace != nullptr && trace->keep) trace->hidden.push_back(x);
  for (std::size_t i = 0; i < network.config.layers.size(); ++i)
    x = run_layer(network, i, x, positions, trace);
  return logits_of(network, x, trace);
}

CalibrationText::CalibrationText(const Network& network, const std::vector<Tensor>& ids) : network_(network) {
  torch::NoGradGuard no_grad;
  for (const Tensor& some : ids) {
    hidden_.push_back(embed(network, some));
    positions_.try_emplace(some.size(1), network.config, some.size(1), 0, network.device());
  }
}

void CalibrationText::look(std::size_t layer, Trace& trace) const {
  torch::NoGradGuard no_grad;
  for (const Tensor& x : hidden_) run_layer(network_, layer, x, positions_.at(x.size(1)), &trace);
}

void CalibrationText::look_at_head(Trace& trace) const {
  torch::NoGradGuard no_grad;
  for (const Tensor& x : hidden_) logits_of(network_, x, &trace);
}

void CalibrationText::advance(std::size_t layer) {
  torch::NoGradGuard no_grad;
  for (Tensor& x : hidden_) x = run_layer(network_, layer, x, positions_.at(x.size(1)));
}

Tensor encode_text(const Network& n, const Tensor& ids, const Tensor& tokens, Trace* trace) {
  begin_statistics(n.config, trace, tokens.sum().item<std::int64_t>());
  const std::int64_t b = ids.size(0), s = ids.size(1);
  Tensor x = embed(n, ids);
  if (trace != nullptr && trace->keep) trace->hidden.push_back(x);
  const Tensor filled =
      at::arange(s, at::kLong).unsqueeze(0).ge(tokens.cpu().unsqueeze(1)).to(n.device());  // [batch, seq]
  for (std::size_t i = 0; i < n.config.layers.size(); ++i) {
    const std::int64_t heads = n.config.layers[i].n_head;
    const Tensor mask =
        (filled.to(at::kFloat) * -1e30f).unsqueeze(1).expand({b, heads, s}).reshape({b * heads, 1, s});
    x = bert_layer(n, i, x, mask, trace);
  }
  return x;
}

Tensor write_on(const Network& network, const Tensor& prompts, std::int64_t count,
                const std::vector<std::uint64_t>& seeds, double temperature) {
  torch::NoGradGuard no_grad;
  std::vector<at::Generator> generators;
  for (const std::uint64_t seed : seeds) generators.push_back(at::detail::createCPUGenerator(seed));
  std::vector<Trace::Past> past(network.config.layers.size());
  Trace trace;
  trace.past = &past;
  Tensor out = at::empty({prompts.size(0), 0}, at::kLong), next = prompts;
  for (std::int64_t first = 0; out.size(1) < count; first += next.size(1)) {
    if (out.size(1) > 0) next = out.slice(1, -1);
    const Positions positions(network.config, next.size(1), first, network.device());
    Tensor x = embed(network, next, first);
    for (std::size_t i = 0; i < network.config.layers.size(); ++i)
      x = run_layer(network, i, x, positions, &trace);
    const Tensor logits = logits_of(network, x.slice(1, -1)).squeeze(1).cpu();
    if (temperature == 0) {
      out = at::cat({out, logits.argmax(-1, true)}, 1);
      continue;
    }
    const Tensor chances = at::softmax(logits / temperature, -1);
    std::vector<Tensor> drawn;
    for (std::size_t row = 0; row < generators.size(); ++row)
      drawn.push_back(chances[static_cast<std::int64_t>(row)].multinomial(1, false, generators[row]));
    out = at::cat({out, at::stack(drawn)}, 1);
  }
  return out;
}

Result<Network> load_network(const HfModel& model, const std::string& where) {
  Network network{model.config, {}, {}};
  RETORT_TRY(gather(network, [&](const std::string& name) { return model.weights.find(name); }));
  for (const auto& [name, tensor] : network.weights)
    if (!tensor.isfinite().all().item<bool>())
      return fail(
          ErrorCode::kCorrupt, where,
          "tensor '{}' holds NaN or infinity: the file is broken, or was written by a training that had "
          "failed",
          name);
  return network;
}

Result<void> load_weights(Network& network, const Safetensors& file, const std::string& prefix) {
  return gather(network, [&](const std::string& name) { return file.find(prefix + name); });
}

void randomize(Network& network, std::uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const bool decoder = !network.classifier && !network.config.is_encoder();
  const double narrow = 0.02 / std::sqrt(2.0 * std::max(1u, network.config.n_layer()));
  for (const WeightShape& wanted : weight_shapes(network)) {
    const std::vector<std::int64_t> shape(wanted.shape.begin(), wanted.shape.end());
    const std::string& name = wanted.name;
    const auto ends = [&](std::string_view suffix) { return name.ends_with(suffix); };
    const bool residual =
        decoder && (ends("o_proj.weight") || ends("down_proj.weight") || ends("c_proj.weight"));
    Tensor values = at::zeros(shape, at::kFloat);
    if (shape.size() > 1 && network.classifier)
      values.normal_(0, std::sqrt(2.0 * static_cast<double>(shape[0]) / static_cast<double>(values.numel())),
                     generator);
    else if (shape.size() > 1)
      values.normal_(0, residual ? narrow : 0.02, generator);
    else if (!ends("bias"))
      values.fill_(1);
    network.weights.insert_or_assign(name, std::move(values));
  }
}

Network random_network(const ModelConfig& config, std::uint64_t seed) {
  Network network{config, {}, {}};
  randomize(network, seed);
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
      const Tensor values = tensor.detach().cpu().contiguous();
      std::memcpy(out.data(), values.data_ptr<float>(), out.size_bytes());
      return {};
    };
    sources.push_back(std::move(source));
  }
  return sources;
}

std::vector<TensorSource> weight_sources(const Network& network) { return sources_of(network.weights, ""); }

}  // namespace retort
