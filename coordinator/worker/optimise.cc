#include "coordinator/worker/optimise.h"

#include <ATen/autocast_mode.h>
#include <torch/version.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "coordinator/worker/blas.h"
#include "coordinator/worker/distil.h"
#include "coordinator/worker/masked_text.h"
#include "coordinator/worker/matrix_quantizer.h"
#include "coordinator/worker/plan.h"

namespace retort {
namespace {

using at::Tensor;

/// LibTorch's rules for which operations take bfloat16, while it lives.
class LowPrecision {
 public:
  LowPrecision(bool on, at::Device device) : on_(on), device_(device.type()) {
    if (on_) set(true);
  }
  ~LowPrecision() {
    if (!on_) return;
    set(false);
    at::autocast::clear_cache();  // of weights that the step will change
  }
  LowPrecision(const LowPrecision&) = delete;
  LowPrecision& operator=(const LowPrecision&) = delete;

 private:
  void set(bool on) const {
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 4)
    at::autocast::set_autocast_dtype(device_, at::kBFloat16);
    at::autocast::set_autocast_enabled(device_, on);
#else
    if (device_ == at::kCUDA) {
      at::autocast::set_autocast_gpu_dtype(at::kBFloat16);
      at::autocast::set_enabled(on);
    } else {
      at::autocast::set_autocast_cpu_dtype(at::kBFloat16);
      at::autocast::set_cpu_enabled(on);
    }
#endif
  }
  bool on_;
  at::DeviceType device_;
};

/// Windows that go through the model together, and who wrote their ends.
struct Batch {
  Tensor ids;                         ///< [count, window + 1]; of an encoder unused
  std::optional<MaskedText> masked;   ///< of an encoder
  std::vector<std::uint64_t> at;      ///< which windows of the text
  std::vector<std::int64_t> written;  ///< rows that the student writes on
  std::vector<std::int64_t> told;     ///< rows that the teacher writes on

  Tensor inputs() const { return ids.slice(1, 0, -1).contiguous(); }
};

/// Logits [N, vocabulary] of the batch's tokens, of an encoder of those that are hidden, in F32 or bfloat16;
/// the trace in F32.
Tensor run(const Network& network, const Batch& batch, bool bf16, Trace* trace = nullptr) {
  Tensor logits;
  {
    const LowPrecision low(bf16, network.device());
    logits =
        batch.masked ? told_logits(network, *batch.masked, trace) : forward(network, batch.inputs(), trace);
    logits = logits.view({-1, network.config.n_vocab});
  }
  if (bf16 && trace != nullptr)
    for (auto* kept : {&trace->hidden, &trace->attention, &trace->query, &trace->key, &trace->value})
      for (Tensor& tensor : *kept) tensor = tensor.to(at::kFloat);
  return logits;
}

/// A number of [0, 1) from a window's place in the run.
double chance(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t x = seed * 0x9E3779B97F4A7C15ull + index + 1;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return static_cast<double>((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

Batch take(TokenStream& stream, std::uint64_t seed, std::uint64_t first, std::int64_t count,
           std::uint32_t window, const Mixture& mixture) {
  Batch out;
  out.ids = at::empty({count, window + 1}, at::kLong);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint64_t index = first + static_cast<std::uint64_t>(i);
    out.at.push_back(stream.window(seed, index, window, out.ids.data_ptr<std::int64_t>() + i * (window + 1)));
    const double drawn = chance(seed, index);
    if (drawn < mixture.on_policy)
      out.written.push_back(i);
    else if (drawn < mixture.on_policy + mixture.teacher_text)
      out.told.push_back(i);
  }
  return out;
}

/// The kept outputs for a batch's windows: from the cache, else from the teacher, and then into the cache.
TeacherTargets targets_of(Teacher& teacher, const Batch& batch, const Tensor& inputs) {
  const TeacherOutputsKey& key = teacher.key;
  std::vector<TeacherTargets> each(batch.at.size());
  std::vector<std::byte> record(key.record_bytes());
  for (std::size_t i = 0; i < each.size(); ++i) {
    if (teacher.cache == nullptr || !teacher.cache->read(batch.at[i], record)) {
      torch::NoGradGuard no_grad;
      // Alone, because the last bits of a product depend on its size, and in F32 whatever the student's
      // precision is: what a cache holds must not depend on who filled it.
      const auto row = static_cast<std::int64_t>(i);
      const Tensor logits = forward(teacher.network, inputs.slice(0, row, row + 1));
      const TeacherTargets made = teacher_targets(logits[0], key.outputs, key.k, key.temperature,
                                                  key.seed * 0x9E3779B97F4A7C15ull + batch.at[i]);
      // Through the stored form in any case, so that a cache changes speed and not results.
      record = pack_targets(made, key);
      if (teacher.cache != nullptr && !teacher.cache->write(batch.at[i], record)) teacher.cache = nullptr;
      ++teacher.forwards;
    }
    each[i] = unpack_targets(record, key);
  }
  TeacherTargets out;
  std::vector<Tensor> ids, logs;
  for (const TeacherTargets& one : each) ids.push_back(one.ids), logs.push_back(one.logs);
  out.ids = at::cat(ids);
  if (logs[0].defined()) out.logs = at::cat(logs);
  return out;
}

/// How much of a window is the text's where a model writes the rest.
std::int64_t prompt_length(std::int64_t window) { return std::max<std::int64_t>(1, window / 4); }

/// Puts what the teacher writes into the rows that it writes on: from the cache, else written now and then
/// kept there.
void take_teacher_text(Teacher& teacher, Batch& batch, double temperature) {
  const TeacherOutputsKey& key = teacher.key;
  const std::int64_t window = key.window, prompt = prompt_length(window);
  std::vector<std::byte> record(key.record_bytes());
  std::vector<std::int64_t> missing;
  std::vector<std::uint64_t> seeds;
  for (const std::int64_t row : batch.told) {
    const std::uint64_t at = batch.at[static_cast<std::size_t>(row)];
    if (teacher.cache != nullptr && teacher.cache->read(at, record)) {
      batch.ids[row].slice(0, 1).copy_(unpack_targets(record, key).ids.squeeze(1));
    } else {
      missing.push_back(row);
      seeds.push_back(key.seed * 0x9E3779B97F4A7C15ull + at);
    }
  }
  if (missing.empty()) return;
  const Tensor begun = batch.ids.index_select(0, at::tensor(missing, at::kLong)).slice(1, 0, prompt);
  const Tensor own = write_on(teacher.network, begun, window + 1 - prompt, seeds, temperature);
  for (std::size_t i = 0; i < missing.size(); ++i) {
    const Tensor ids = batch.ids[missing[i]];
    ids.slice(0, prompt).copy_(own[static_cast<std::int64_t>(i)]);
    const std::vector<std::byte> packed = pack_targets({ids.slice(0, 1).unsqueeze(1), {}}, key);
    if (teacher.cache != nullptr &&
        !teacher.cache->write(batch.at[static_cast<std::size_t>(missing[i])], packed))
      teacher.cache = nullptr;
    ++teacher.forwards;
  }
}

/// The token that came next [N], -1 where the student wrote it: that is no label.
Tensor labels_of(const Batch& batch) {
  if (batch.masked) return batch.masked->targets;
  Tensor labels = batch.ids.slice(1, 1);
  if (!batch.written.empty()) labels = labels.index_fill(0, at::tensor(batch.written, at::kLong), -1);
  return labels.reshape({-1});
}

Tensor distillation(const Network& student, Teacher& teacher, const Batch& batch, const Mixture& mixture,
                    bool bf16) {
  Trace ours, theirs;
  ours.keep = theirs.keep = mixture.needs_trace();
  const Tensor logits = run(student, batch, bf16, &ours);
  Tensor loss = at::zeros({});
  TokenTargets targets;
  if (mixture.labels > 0) targets.labels = labels_of(batch), targets.labels_weight = mixture.labels;
  if (mixture.outputs != TeacherOutputs::kFull) {
    targets.kept = targets_of(teacher, batch, batch.inputs());
    targets.soft_weight = mixture.soft, targets.temperature = mixture.temperature;
  } else if (mixture.soft > 0 || mixture.needs_trace()) {
    Tensor teacher_logits;
    {
      torch::NoGradGuard no_grad;
      teacher_logits = run(teacher.network, batch, bf16, &theirs).to(at::kFloat);
      teacher.forwards += batch.at.size();
    }
    if (mixture.soft > 0)
      loss = loss + soft_loss(logits.to(at::kFloat), teacher_logits, mixture.temperature, mixture.divergence,
                              mixture.beta) *
                        mixture.soft;
  }
  if (targets.labels.defined() || targets.kept.ids.defined()) loss = loss + token_loss(logits, targets);
  if (!mixture.needs_trace()) return loss;
  const std::size_t student_layers = student.config.layers.size(),
                    layers = teacher.network.config.layers.size();
  std::vector<std::size_t> map(mixture.layer_map.begin(), mixture.layer_map.end());
  if (map.empty()) map = layer_map(student_layers, layers);
  if (mixture.attention > 0) {
    std::vector<std::size_t> seen = map;  // a layer that survived a cut looks at what it looked at before
    if (mixture.layer_map.empty())
      for (std::size_t i = 0; i < student.origins.size(); ++i)
        seen[i] = static_cast<std::size_t>(student.origins[i].layer);
    loss = loss + attention_loss(ours, theirs, seen, student.origins) * mixture.attention;
  }
  if (mixture.hidden > 0) {
    std::vector<Tensor> projections;
    for (std::size_t i = 0; student.weights.contains("distil.hidden." + std::to_string(i)); ++i)
      projections.push_back(student.weight("distil.hidden." + std::to_string(i)));
    loss = loss + hidden_loss(ours, theirs, map, projections) * mixture.hidden;
  }
  if (mixture.relation > 0) {
    const std::int64_t heads =
        mixture.relation_heads != 0 ? mixture.relation_heads : student.config.layers.back().n_head_kv;
    loss = loss + relation_loss(ours, student_layers - 1, theirs, map.back(), heads) * mixture.relation;
  }
  return loss;
}

/// The network with its matrices rounded as they will be stored, so that gradients pass straight through to
/// the unrounded ones (Bengio et al., 1308.3432): value Q(w), derivative that of w.
Network rounded_copy(const Network& network, const QuantizePass& formats) {
  Network out = network;
  for (auto& [name, tensor] : out.weights) {
    const StoredAs stored = stored_as(network.config.family, name, static_cast<std::size_t>(tensor.dim()));
    if (!stored.matrix || name.starts_with("distil.")) continue;
    Tensor lost;
    {
      torch::NoGradGuard no_grad;
      const Tensor on_cpu = tensor.detach().cpu();
      const Tensor whole = stored.transposed ? on_cpu.t().contiguous() : on_cpu;
      const TensorType type =
          stored_type(format_of(formats, name), static_cast<std::uint64_t>(whole.size(1)));
      lost = decode_matrix(encode_matrix(whole, type)) - whole;
      if (stored.transposed) lost = lost.t();
    }
    tensor = tensor + lost.to(tensor.device());
  }
  return out;
}

}  // namespace

void add_projections(Network& network, const ModelConfig& teacher, std::uint64_t seed) {
  if (network.config.n_embd == teacher.n_embd) return;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  for (std::size_t i = 0; i <= network.config.layers.size(); ++i) {
    const std::string name = "distil.hidden." + std::to_string(i);
    if (network.weights.contains(name)) continue;
    network.weights[name] =
        at::empty({network.config.n_embd, teacher.n_embd}, at::kFloat)
            .normal_(0, 1 / std::sqrt(static_cast<double>(network.config.n_embd)), generator);
  }
}

void drop_projections(Network& network) {
  std::erase_if(network.weights, [](const auto& entry) { return entry.first.starts_with("distil."); });
}

bool has_bf16(at::Device device) {
  if (device.is_cuda()) return true;
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

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

double text_loss(const Network& network, Teacher* teacher, TokenStream& stream, const OptimisePass& pass,
                 std::uint64_t seed, std::uint64_t step, std::uint32_t window, std::uint32_t windows,
                 const Tokenizer* tokenizer) {
  double sum = 0;
  const bool bf16 = pass.precision == OptimisePass::Precision::kBf16 ||
                    (pass.precision == OptimisePass::Precision::kAuto && has_bf16(network.device()));
  const std::uint32_t micro = micro_batch(windows, window, network.config.n_vocab);
  const Mixture mixture = pass.distil.value_or(Mixture{});
  for (std::uint32_t first = 0; first < windows; first += micro) {
    const std::uint32_t count = std::min(micro, windows - first);
    Batch batch = take(stream, seed, step * windows + first, count, window, mixture);
    if (network.config.is_encoder())
      batch.masked =
          hide_tokens(batch.inputs(), *tokenizer, seed * 0x9E3779B97F4A7C15ull + step * windows + first);
    // With rounding in the forward pass, the gradients still land on network's own weights.
    const Network rounded = pass.aware ? rounded_copy(network, *pass.aware) : Network{};
    const Network& student = pass.aware ? rounded : network;
    if (!batch.written.empty()) {  // the text's beginning, and the student goes on
      const std::int64_t prompt = prompt_length(window);
      const Tensor rows = at::tensor(batch.written, at::kLong);
      const Tensor begun = batch.ids.index_select(0, rows).slice(1, 0, prompt);
      std::vector<std::uint64_t> seeds;
      for (const std::int64_t row : batch.written)
        seeds.push_back(seed * 31 + step * windows + first + static_cast<std::uint64_t>(row));
      batch.ids.index_copy_(0, rows,
                            at::cat({begun, write_on(student, begun, window + 1 - prompt, seeds)}, 1));
    }
    if (!batch.told.empty()) take_teacher_text(*teacher, batch, mixture.text_temperature);
    Tensor loss;
    if (pass.distil) {
      loss = distillation(student, *teacher, batch, mixture, bf16);
    } else {
      loss = token_loss(run(student, batch, bf16), {.labels = labels_of(batch)});
    }
    loss = loss * (static_cast<double>(count) / windows);
    if (loss.requires_grad()) loss.backward();
    sum += loss.item<double>();
  }
  return sum;
}

void begin_step(Network& network) {
  for (auto& [name, tensor] : network.weights) {
    if (!tensor.is_contiguous()) tensor = tensor.detach().contiguous();  // finish_step takes it in pieces
    tensor.set_requires_grad(true);
    tensor.mutable_grad() = Tensor();
  }
}

StepReport finish_step(Network& network, Moments& moments, const OptimisePass& pass, double loss,
                       std::uint64_t step, std::uint64_t steps) {
  constexpr double kBeta1 = 0.9, kBeta2 = 0.95, kEpsilon = 1e-8;
  StepReport report;
  report.loss = loss;
  torch::NoGradGuard no_grad;
  // Pruned weights are zero and get no gradient: their moments stay zero, and so do they.
  for (const std::string& name : network.sparse)
    if (Tensor& weight = network.weights.at(name); weight.grad().defined())
      weight.mutable_grad() = weight.grad() * weight.detach().ne(0);
  double squares = 0;
  for (auto& [name, tensor] : network.weights)
    if (tensor.grad().defined()) squares += tensor.grad().square().sum().item<double>();
  if (!std::isfinite(squares) || !std::isfinite(report.loss)) {
    report.loss = std::numeric_limits<double>::quiet_NaN();
    return report;
  }
  const double norm = std::sqrt(squares), scale = norm > pass.clip ? pass.clip / norm : 1;
  report.learning_rate = pass.learning_rate * schedule_factor(pass, step, steps);
  const double correct1 = 1 - std::pow(kBeta1, static_cast<double>(step + 1));
  const double correct2 = 1 - std::pow(kBeta2, static_cast<double>(step + 1));
  for (auto& [name, tensor] : network.weights) {
    if (!tensor.grad().defined()) continue;
    Tensor& first = moments.first[name];
    Tensor& second = moments.second[name];
    if (!first.defined()) first = at::zeros_like(tensor), second = at::zeros_like(tensor);
    const Tensor gradients = tensor.grad().reshape({-1});
    in_pieces(tensor, tensor.numel(), [&, &w = tensor](std::int64_t begin, std::int64_t end) {
      const auto piece = [&](const Tensor& all) { return all.view({-1}).slice(0, begin, end); };
      Tensor values = piece(w), g = piece(gradients), m = piece(first), v = piece(second);
      if (scale != 1) g = g * scale;
      m.mul_(kBeta1).add_(g, 1 - kBeta1);
      v.mul_(kBeta2).addcmul_(g, g, 1 - kBeta2);
      if (w.dim() > 1) values.mul_(1 - report.learning_rate * pass.weight_decay);
      values.addcdiv_(m, (v / correct2).sqrt_().add_(kEpsilon), -report.learning_rate / correct1);
    });
    tensor.mutable_grad() = Tensor();
  }
  return report;
}

}  // namespace retort
