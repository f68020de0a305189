#include "agent/serve/runtime/evaluate_classifier.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "agent/serve/kernels/kernels.h"

namespace retort {

TensorShape input_shape(const ClassifierConfig& config) {
  if (config.family == ClassifierFamily::kMlp) return {{config.input.channels}, config.feature_names};
  return {{config.input.channels, config.input.height, config.input.width}, {}};
}

json::object ClassifierEvaluation::to_json() const {
  json::object out = metrics.to_json();
  out["kl_divergence"] = kl_divergence < 0 ? json::value(nullptr) : json::value(kl_divergence);
  out["top1_agreement"] = top1_agreement < 0 ? json::value(nullptr) : json::value(top1_agreement);
  out["inputs_per_second"] = inputs_per_second;
  return out;
}

Result<ClassifierEvaluation> evaluate_classifier(std::shared_ptr<const Classifier> student,
                                                 std::shared_ptr<const Classifier> teacher,
                                                 const std::filesystem::path& data,
                                                 const std::filesystem::path& labels_file,
                                                 std::uint64_t max_examples, ThreadTeam& team) {
  const ClassifierConfig& c = student->config();
  if (teacher != nullptr && (teacher->config().labels != c.labels || !(teacher->config().input == c.input)))
    return fail(ErrorCode::kInvalid, teacher->file().where(),
                "its labels or its input differ from the student's: they cannot be compared");
  const auto session = RETORT_TRY(ClassifierSession::create(student, team, {}));
  std::unique_ptr<ClassifierSession> reference;
  if (teacher != nullptr) reference = RETORT_TRY(ClassifierSession::create(teacher, team, {}));

  ClassifierEvaluation result{ClassificationMetrics(c.labels)};
  const std::size_t n_labels = c.labels.size();
  std::vector<float> inputs, shares(n_labels);
  std::vector<std::size_t> truths;
  double seconds = 0, divergence = 0;
  std::uint64_t agreed = 0, done = 0;
  const auto compute = [&]() -> Result<void> {
    const auto begin = std::chrono::steady_clock::now();
    const std::span<const float> logits = RETORT_TRY(session->run(inputs));
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::span<const float> wanted;
    if (reference) wanted = RETORT_TRY(reference->run(inputs));
    for (std::size_t i = 0; i < truths.size(); ++i) {
      const std::span<const float> mine = logits.subspan(i * n_labels, n_labels);
      if (!kernels::all_finite(mine.data(), mine.size()))
        return fail(ErrorCode::kInvalid, student->file().where(), "its outputs for example {} are not finite",
                    done + i + 1);
      probabilities(mine, shares);
      result.metrics.add(truths[i], shares);
      if (!reference) continue;
      const float* const theirs = wanted.data() + i * n_labels;
      divergence += kernels::kl_divergence(theirs, kernels::log_sum_exp(theirs, n_labels), mine.data(),
                                           kernels::log_sum_exp(mine.data(), n_labels), n_labels);
      agreed += kernels::best(mine.data(), n_labels) == kernels::best(theirs, n_labels) ? 1 : 0;
    }
    done += truths.size();
    inputs.clear();
    truths.clear();
    return {};
  };
  Result<void> computed;
  RETORT_TRY(visit_labelled_tensors(
      data, labels_file, input_shape(c), c.labels, [&](std::span<const float> input, std::size_t label) {
        inputs.insert(inputs.end(), input.begin(), input.end());
        truths.push_back(label);
        if (truths.size() == session->batch()) computed = compute();
        return computed.has_value() &&
               (max_examples == 0 || result.metrics.examples() + truths.size() < max_examples);
      }));
  RETORT_TRY(std::move(computed));
  if (!truths.empty()) RETORT_TRY(compute());
  const double n = static_cast<double>(result.metrics.examples());
  if (reference) {
    result.kl_divergence = std::max(0.0, divergence / n);
    result.top1_agreement = static_cast<double>(agreed) / n;
  }
  result.inputs_per_second = n / std::max(seconds, 1e-9);
  return result;
}

}  // namespace retort
