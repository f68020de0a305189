#include "common/hf/classifier_model.h"
#include "common/hf/hf_model.h"
#include "coordinator/worker/classifier.h"
#include "coordinator/worker/quantize.h"

namespace retort {
namespace {

using at::Tensor;

/// Rows of PyTorch's [channels][positions] as rows of the file's [positions][channels], filled up with zeros
/// to `columns`.
Tensor as_stored(const Tensor& values, const ClassifierMatrix& m, std::int64_t columns) {
  const auto channels = static_cast<std::int64_t>(m.channels),
             positions = static_cast<std::int64_t>(m.positions);
  const Tensor out = at::zeros({values.size(0), columns});
  out.slice(1, 0, channels * positions)
      .copy_(values.reshape({-1, channels, positions}).transpose(1, 2).reshape({-1, channels * positions}));
  return out;
}

/// And back, in the weight's own shape.
Tensor as_computed(const Tensor& stored, const ClassifierMatrix& m, const Tensor& like) {
  const auto channels = static_cast<std::int64_t>(m.channels),
             positions = static_cast<std::int64_t>(m.positions);
  return stored.slice(1, 0, channels * positions)
      .reshape({-1, positions, channels})
      .transpose(1, 2)
      .reshape(like.sizes())
      .contiguous();
}

/// Quantizes one classifier of tensors.
class ClassifierQuantizer {
 public:
  ClassifierQuantizer(Network& network, const QuantizePass& pass, const std::vector<Tensor>& batches,
                      const std::function<Result<void>()>& check_stop)
      : network_(network),
        pass_(pass),
        batches_(batches),
        check_stop_(check_stop),
        matrices_(classifier_matrices(*network.classifier)) {
    for (const ClassifierMatrix& m : matrices_)
      types_.emplace(m.name, stored_type(format_of(pass, m.name), m.filled()));
  }

  Result<std::vector<QuantizedMatrix>> run() {
    network_.encoded.clear();
    if (pass_.bits) RETORT_TRY(allocate());
    std::vector<QuantizedMatrix> report;
    for (const ClassifierMatrix& m : matrices_) {
      RETORT_TRY(check_stop_());
      std::optional<InputStatistics> input;
      if (pass_.needs_statistics()) input = observe(m, columns(m, types_.at(m.name)));
      RoundedMatrix rounded = round(m, types_.at(m.name), input ? &*input : nullptr);
      if (const auto found = sensitivity_.find(m.name); found != sensitivity_.end())
        rounded.line.sensitivity = found->second;
      report.push_back(std::move(rounded.line));
      put(m, rounded.values);
      network_.encoded.emplace(m.name, std::move(rounded.encoded));
    }
    return report;
  }

 private:
  static std::int64_t columns(const ClassifierMatrix& m, TensorType type) {
    return static_cast<std::int64_t>(info(type).block_values > 1 ? m.filled() : m.columns());
  }
  RoundedMatrix round(const ClassifierMatrix& m, TensorType type, const InputStatistics* input) const {
    const Tensor weight = as_stored(network_.weight(m.name), m, columns(m, type));
    RoundedMatrix out = round_matrix(m.name, weight, type, input, pass_);
    out.line.values = m.rows * m.columns();  // what fills a row up costs bits and is no weight
    return out;
  }
  void put(const ClassifierMatrix& m, const Tensor& stored) {
    Tensor& weight = network_.weights.at(m.name);
    weight = as_computed(stored, m, weight);
  }

  /// What the matrix reads, through the matrices before it as they are now rounded.
  InputStatistics observe(const ClassifierMatrix& m, std::int64_t columns) const {
    InputStatistics out;
    Trace trace;
    trace.inputs = [&](const std::string& name, const Tensor& input) {
      if (name != m.name) return;
      if (!name.starts_with("conv.")) return out.add(as_stored(input, m, columns));
      const Convolution& conv = network_.classifier->convolutions[std::stoul(name.substr(5))];
      const std::int64_t kernel = conv.kernel, stride = conv.stride, padding = conv.padding;
      for (const Tensor& example : input.split(1)) {  // all at once would take kernel² times the map's memory
        const Tensor windows =                        // [1, channels · kernel², places]
            at::im2col(example, {kernel, kernel}, {1, 1}, {padding, padding}, {stride, stride});
        out.add(as_stored(windows[0].t(), m, columns));
      }
    };
    for (const Tensor& batch : batches_) logits(batch, &trace);
    return out;
  }
  Tensor logits(const Tensor& inputs, Trace* trace = nullptr) const {
    return class_logits(network_, {inputs, {}, {}}, nullptr, trace);
  }

  Result<void> allocate() {
    std::vector<Tensor> batches;
    std::uint64_t examples = 0, values = 0;
    for (std::size_t i = 0; i < batches_.size() && examples < pass_.sensitivity_tokens; ++i) {
      batches.push_back(batches_[i]);
      examples += static_cast<std::uint64_t>(batches_[i].size(0));
    }
    std::vector<Tensor> wanted;
    for (const Tensor& batch : batches) wanted.push_back(at::log_softmax(logits(batch), -1));
    const auto divergence = [&] {
      double sum = 0;
      for (std::size_t i = 0; i < batches.size(); ++i) {
        const Tensor got = at::log_softmax(logits(batches[i]), -1);
        sum += (wanted[i].exp() * (wanted[i] - got)).sum().item<double>();
      }
      return sum / static_cast<double>(examples);
    };
    std::vector<FormatTrials> trials;
    for (const ClassifierMatrix& m : matrices_) {
      values += m.rows * m.columns();
      const Tensor original = network_.weight(m.name);
      const auto round_to = [&](TensorType type) {
        network_.weights.at(m.name) = original;
        const RoundedMatrix rounded = round(m, type, nullptr);
        put(m, rounded.values);
        return rounded.encoded.bytes.size();
      };
      trials.push_back(RETORT_TRY(
          try_formats(m.name, fixed_format(pass_, m.name) ? std::vector{types_.at(m.name)} : pass_.candidates,
                      m.filled(), round_to, divergence, check_stop_)));
      sensitivity_[m.name] = trials.back().sensitivity();
      network_.weights.at(m.name) = original;
    }
    types_ = RETORT_TRY(spend_bits(pass_, trials, values));
    return {};
  }

  Network& network_;
  const QuantizePass& pass_;
  const std::vector<Tensor>& batches_;
  const std::function<Result<void>()>& check_stop_;
  std::vector<ClassifierMatrix> matrices_;
  std::map<std::string, TensorType> types_;
  std::map<std::string, std::vector<std::pair<TensorType, double>>> sensitivity_;
};

}  // namespace

Result<std::vector<QuantizedMatrix>> quantize_classifier(Network& network, const QuantizePass& pass,
                                                         const std::vector<Tensor>& batches,
                                                         const std::function<Result<void>()>& check_stop) {
  torch::NoGradGuard no_grad;
  return ClassifierQuantizer(network, pass, batches, check_stop).run();
}

}  // namespace retort
