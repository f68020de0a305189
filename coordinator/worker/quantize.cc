#include "coordinator/worker/quantize.h"

#include <cmath>

#include "common/hf/hf_model.h"
#include "common/process/process.h"
#include "coordinator/worker/input_groups.h"
#include "coordinator/worker/plan.h"

namespace retort {
namespace {

using at::Tensor;

/// GPTQ's damping of a tied embedding, at least: better than 0.01 (docs/benchmarks.md).
constexpr double kTiedDamping = 0.1;

/// The matrices of one network as rows of outputs by columns of inputs, whatever the family's layout.
class Matrices {
 public:
  Matrices(Network& network, const QuantizePass& pass) : network_(network) {
    for (const auto& [name, tensor] : network.weights)
      if (stored(name).matrix) {
        const TensorType type = stored_type(format_of(pass, name), static_cast<std::uint64_t>(columns(name)));
        types_.emplace(name, type);
      }
  }
  const std::map<std::string, TensorType>& types() const { return types_; }
  TensorType type(const std::string& name) const { return types_.at(name); }
  void set_type(const std::string& name, TensorType type) { types_.at(name) = type; }
  std::int64_t columns(const std::string& name) const {
    const Tensor& tensor = network_.weight(name);
    return stored(name).transposed ? tensor.size(0) : tensor.size(1);
  }
  Tensor get(const std::string& name) const { return matrix_of(network_, name); }
  void set(const std::string& name, const Tensor& values) { set_matrix(network_, name, values); }

 private:
  StoredAs stored(const std::string& name) const {
    return stored_as(network_.config.family, name, static_cast<std::size_t>(network_.weight(name).dim()));
  }
  Network& network_;
  std::map<std::string, TensorType> types_;
};

/// Quantizes one network; the steps' order is in run().
class Quantizer {
 public:
  Quantizer(Network& network, const QuantizePass& pass, const std::vector<Tensor>& calibration,
            const std::function<Result<void>()>& check_stop)
      : network_(network),
        pass_(pass),
        ids_(calibration),
        check_stop_(check_stop),
        matrices_(network, pass) {}

  Result<std::vector<QuantizedMatrix>> run() {
    network_.encoded.clear();
    release_freed_memory();
    if (pass_.bits) RETORT_TRY(allocate());
    if (pass_.needs_statistics()) {
      CalibrationText text(network_, ids_);
      for (std::size_t layer = 0; layer < network_.config.layers.size(); ++layer) {
        const auto groups = input_groups(network_.config, layer);
        if (pass_.awq) {
          for (const InputGroup& group : groups) {
            if (group.source.empty()) continue;
            RETORT_TRY(check_stop_());
            fold(group, observe(text, layer, {group.matrices[0]}).at(group.matrices[0]));
          }
        }
        // GPTQ mends what the matrices before lost, so it looks again after each; importance only needs one
        // look.
        std::map<std::string, InputStatistics> seen;
        for (const InputGroup& group : groups) {
          RETORT_TRY(check_stop_());
          if (pass_.method == QuantizePass::Method::kGptq)
            seen = observe(text, layer, {group.matrices[0]});
          else if (seen.empty())
            seen = observe(text, layer, firsts(groups));
          for (const std::string& name : group.matrices) round(name, &seen.at(group.matrices[0]));
        }
        text.advance(layer);
      }
      std::map<std::string, InputStatistics> last;  // the head's; an encoder has a dense layer before
      Trace trace;
      trace.inputs = [&](const std::string& name, const Tensor& input) { last[name].add(input); };
      text.look_at_head(trace);
      release_freed_memory();  // the embedding is the largest matrix by far
      for (const auto& [name, input] : last) round(name, &input);
    }
    for (const auto& [name, type] : matrices_.types()) {
      if (network_.encoded.contains(name)) continue;
      RETORT_TRY(check_stop_());
      round(name, nullptr);
    }
    return std::move(report_);
  }

 private:
  static std::vector<std::string> firsts(const std::vector<InputGroup>& groups) {
    std::vector<std::string> out;
    for (const InputGroup& group : groups) out.push_back(group.matrices[0]);
    return out;
  }

  /// Input statistics of the named matrices of a layer, over the whole calibration text.
  static std::map<std::string, InputStatistics> observe(const CalibrationText& text, std::size_t layer,
                                                        const std::vector<std::string>& names) {
    std::map<std::string, InputStatistics> out;
    for (const std::string& name : names) out[name];
    Trace trace;
    trace.inputs = [&](const std::string& name, const Tensor& input) {
      if (const auto found = out.find(name); found != out.end()) found->second.add(input);
    };
    text.look(layer, trace);
    return out;
  }

  void fold(const InputGroup& group, const InputStatistics& input) {
    std::vector<std::pair<Tensor, TensorType>> matrices;
    for (const std::string& name : group.matrices)
      matrices.emplace_back(matrices_.get(name), matrices_.type(name));
    const AwqScale found = awq_scale(matrices, input, pass_.method != QuantizePass::Method::kNearest);
    for (const std::string& name : group.matrices) alpha_[name] = found.alpha;
    fold_scale(network_, group, found.scale);
  }

  /// The order of rows in which a matrix is encoded; undefined: as they are (EncodedMatrix says when not).
  Tensor row_order(const std::string& name, TensorType type) const {
    if (!encoded_whole(type)) return {};
    const std::vector<std::int64_t> rows = gguf_row_order(network_.config, name);
    return rows.empty() ? Tensor() : at::tensor(rows);
  }

  /// `input`: nullptr where the method takes none, or where the matrix multiplies nothing (an embedding).
  void round(const std::string& name, const InputStatistics* input) {
    const TensorType type = matrices_.type(name);
    // A row of a tied embedding is also looked up by itself, where no later column makes up for an earlier
    // one: an identity in the Hessian, for which more damping stands.
    QuantizePass pass = pass_;
    if (name == head_weight(network_.config) && head_is_embedding(network_.config))
      pass.damping = std::max(pass.damping, kTiedDamping);
    RoundedMatrix rounded = round_matrix(name, matrices_.get(name), type, input, pass, row_order(name, type));
    if (const auto found = alpha_.find(name); found != alpha_.end()) rounded.line.alpha = found->second;
    if (const auto found = sensitivity_.find(name); found != sensitivity_.end())
      rounded.line.sensitivity = found->second;
    report_.push_back(std::move(rounded.line));
    matrices_.set(name, rounded.values);
    network_.encoded.emplace(name, std::move(rounded.encoded));
    // What was there before lies between others', and nothing of its size, aligned, fits into such a gap.
    release_freed_memory();
  }

  /// Measures what each format of each matrix costs and chooses within the budget.
  Result<void> allocate() {
    std::vector<Tensor> windows;
    std::int64_t tokens = 0;
    for (std::size_t i = 0; i < ids_.size() && tokens < static_cast<std::int64_t>(pass_.sensitivity_tokens);
         ++i) {
      windows.push_back(ids_[i]);
      tokens += ids_[i].numel();
    }
    std::map<std::int64_t, Positions> by_length;
    for (const Tensor& ids : windows) by_length.try_emplace(ids.size(1), network_.config, ids.size(1));
    const std::size_t layers = network_.config.layers.size();
    std::vector<std::vector<Tensor>> hidden(layers + 1);  // [layer][window]: what goes into it
    std::vector<Tensor> wanted;
    for (const Tensor& ids : windows) {
      Tensor x = embed(network_, ids);
      for (std::size_t layer = 0; layer <= layers; ++layer) {
        hidden[layer].push_back(x);
        if (layer < layers) x = run_layer(network_, layer, x, by_length.at(x.size(1)));
      }
      wanted.push_back(at::log_softmax(logits_of(network_, x), -1));
    }
    const auto divergence = [&](std::size_t from,
                                bool embedding) {  // mean per token; of a classifier per text
      double sum = 0, answers = 0;
      for (std::size_t i = 0; i < windows.size(); ++i) {
        Tensor x = embedding ? embed(network_, windows[i]) : hidden[from][i];
        for (std::size_t layer = from; layer < layers; ++layer)
          x = run_layer(network_, layer, x, by_length.at(x.size(1)));
        const Tensor got = at::log_softmax(logits_of(network_, x), -1);
        sum += (wanted[i].exp() * (wanted[i] - got)).sum().item<double>();
        answers += static_cast<double>(got.numel() / got.size(-1));
      }
      return sum / answers;
    };
    std::vector<FormatTrials> trials;
    std::uint64_t values = 0;
    for (const auto& [name, type] : matrices_.types()) {
      const Tensor original = matrices_.get(name);
      values += static_cast<std::uint64_t>(original.numel());
      std::size_t from = layers;  // the first layer that this matrix changes
      for (std::size_t layer = 0; layer < layers; ++layer)
        if (name.starts_with(layer_prefix(network_.config, layer))) from = layer;
      const bool head = name == head_weight(network_.config);
      // An encoder's dense layer before its head is taken for an embedding here, which only costs time.
      const bool embedding = from == layers && (!head || head_is_embedding(network_.config));
      if (embedding) from = 0;
      const auto round_to = [&, &name = name](TensorType stored) {
        const RoundedMatrix rounded =
            round_matrix(name, original, stored, nullptr, pass_, row_order(name, stored));
        matrices_.set(name, rounded.values);
        return rounded.encoded.bytes.size();
      };
      trials.push_back(RETORT_TRY(try_formats(
          name, fixed_format(pass_, name) ? std::vector{type} : pass_.candidates,
          static_cast<std::uint64_t>(original.size(1)), round_to, [&] { return divergence(from, embedding); },
          check_stop_)));
      sensitivity_[name] = trials.back().sensitivity();
      matrices_.set(name, original);
    }
    for (const auto& [name, type] : RETORT_TRY(spend_bits(pass_, trials, values)))
      matrices_.set_type(name, type);
    return {};
  }

  Network& network_;
  const QuantizePass& pass_;
  const std::vector<Tensor>& ids_;
  const std::function<Result<void>()>& check_stop_;
  Matrices matrices_;
  std::map<std::string, double> alpha_;
  std::map<std::string, std::vector<std::pair<TensorType, double>>> sensitivity_;
  std::vector<QuantizedMatrix> report_;
};

}  // namespace

RoundedMatrix round_matrix(const std::string& name, const Tensor& weight, TensorType type,
                           const InputStatistics* input, const QuantizePass& pass, const Tensor& order) {
  const Tensor source = order.defined() ? weight.index_select(0, order) : weight;
  RoundedMatrix out;
  if (input == nullptr || pass.method == QuantizePass::Method::kNearest)
    out.encoded = encode_matrix(source, type);
  else if (pass.method == QuantizePass::Method::kImportance)
    out.encoded = encode_matrix(source, type, input->importance());
  else
    out.encoded = gptq(source, *input, type, {pass.damping, pass.act_order});
  out.values = decode_matrix(out.encoded);
  if (order.defined()) out.values = at::empty_like(out.values).index_copy_(0, order, out.values);
  out.line = {name, type, static_cast<std::uint64_t>(weight.numel()), out.encoded.bytes.size()};
  // Some rows at a time: whole, the differences of an embedding take several times what it does.
  constexpr std::int64_t kRows = 2048;
  double power = 0, lost = 0, output_power = 0, output_lost = 0;
  for (std::int64_t row = 0; row < weight.size(0); row += kRows) {
    const Tensor some = weight.slice(0, row, row + kRows),
                 gone = out.values.slice(0, row, row + kRows) - some;
    power += some.square().sum().item<double>();
    lost += gone.square().sum().item<double>();
    if (input == nullptr) continue;
    output_power += output_power_of(some, *input);
    output_lost += output_power_of(gone, *input);
  }
  out.line.weight_error = power > 0 ? lost / power : 0;
  if (input != nullptr)
    out.line.output_error = output_power > 0 ? std::max(0.0, output_lost) / output_power : 0;
  return out;
}

std::vector<std::pair<TensorType, double>> FormatTrials::sensitivity() const {
  std::vector<std::pair<TensorType, double>> out;
  for (std::size_t i = 0; i < types.size(); ++i) out.emplace_back(types[i], choices[i].divergence);
  return out;
}

Result<FormatTrials> try_formats(const std::string& name, const std::vector<TensorType>& wanted,
                                 std::uint64_t columns, const std::function<std::uint64_t(TensorType)>& round,
                                 const std::function<double()>& divergence,
                                 const std::function<Result<void>()>& check_stop) {
  FormatTrials out{name, {}, {}};
  for (const TensorType wanted_type : wanted) {
    RETORT_TRY(check_stop());
    const TensorType type = stored_type(wanted_type, columns);
    if (std::find(out.types.begin(), out.types.end(), type) != out.types.end()) continue;
    const std::uint64_t bytes = round(type);
    out.types.push_back(type);
    out.choices.push_back({bytes, divergence()});
  }
  return out;
}

Result<std::map<std::string, TensorType>> spend_bits(const QuantizePass& pass,
                                                     const std::vector<FormatTrials>& trials,
                                                     std::uint64_t values) {
  const auto budget = static_cast<std::uint64_t>(*pass.bits / 8 * static_cast<double>(values));
  std::vector<std::vector<FormatChoice>> choices;
  for (const FormatTrials& trial : trials) choices.push_back(trial.choices);
  const std::vector<std::size_t> chosen = choose_formats(choices, budget);
  std::map<std::string, TensorType> out;
  std::uint64_t used = 0;
  for (std::size_t i = 0; i < trials.size(); ++i) {
    out[trials[i].name] = trials[i].types[chosen[i]];
    used += choices[i][chosen[i]].bytes;
  }
  if (used > budget)
    return fail(ErrorCode::kOutOfBudget, "quantize.weights",
                "even the smallest candidates take {:.3f} bits a weight, and the budget is {}; give smaller "
                "candidates, or widths that are multiples of 256, which those of 3 bits need",
                8.0 * static_cast<double>(used) / static_cast<double>(values), *pass.bits);
  return out;
}

Result<std::vector<QuantizedMatrix>> quantize(Network& network, const QuantizePass& pass,
                                              const std::vector<Tensor>& calibration,
                                              const std::function<Result<void>()>& check_stop) {
  torch::NoGradGuard no_grad;
  return Quantizer(network, pass, calibration, check_stop).run();
}

}  // namespace retort
