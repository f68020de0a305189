#include "agent/serve/runtime/classification_metrics.h"

#include <algorithm>
#include <cmath>

namespace retort {
namespace {

constexpr std::size_t kMaxConfusionLabels = 256;

double ratio(double part, double whole) { return whole == 0 ? 0 : part / whole; }

json::value ratio_json(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? json::value(nullptr)
                    : json::value(static_cast<double>(part) / static_cast<double>(whole));
}

}  // namespace

double ClassificationMetrics::OfLabel::f1() const {
  return ratio(2.0 * static_cast<double>(right), static_cast<double>(examples + given));
}

ClassificationMetrics::ClassificationMetrics(std::vector<std::string> labels)
    : labels_(std::move(labels)), of_label_(labels_.size()) {}

void ClassificationMetrics::add(std::size_t label, std::span<const float> probabilities) {
  const auto best = static_cast<std::size_t>(
      std::distance(probabilities.begin(), std::max_element(probabilities.begin(), probabilities.end())));
  const double confidence = static_cast<double>(probabilities[best]);
  const bool right = best == label;
  ++examples_;
  ++of_label_[label].examples;
  ++of_label_[best].given;
  if (right) {
    ++right_;
    ++of_label_[label].right;
  }
  ++confusion_[{label, best}];
  nll_ -= std::log(std::max(static_cast<double>(probabilities[label]), 1e-30));
  // (0, 1/15], (1/15, 2/15], …
  const double place = std::ceil(confidence * static_cast<double>(bins_.size())) - 1;
  Bin& bin = bins_[static_cast<std::size_t>(std::clamp(place, 0.0, static_cast<double>(bins_.size() - 1)))];
  ++bin.examples;
  bin.right += right ? 1 : 0;
  bin.confidence += confidence;
}

double ClassificationMetrics::accuracy() const {
  return ratio(static_cast<double>(right_), static_cast<double>(examples_));
}

double ClassificationMetrics::macro_f1() const {
  double sum = 0, count = 0;
  for (const OfLabel& of : of_label_)
    if (of.examples + of.given != 0) sum += of.f1(), ++count;
  return ratio(sum, count);
}

double ClassificationMetrics::expected_calibration_error() const {
  double sum = 0;
  for (const Bin& bin : bins_) sum += std::fabs(static_cast<double>(bin.right) - bin.confidence);
  return ratio(sum, static_cast<double>(examples_));
}

double ClassificationMetrics::nll() const { return ratio(nll_, static_cast<double>(examples_)); }

json::object ClassificationMetrics::to_json() const {
  json::array per_class;
  for (std::size_t i = 0; i < labels_.size(); ++i) {
    const OfLabel& of = of_label_[i];
    per_class.push_back(
        json::object{{"label", labels_[i]},
                     {"examples", of.examples},
                     {"precision", ratio_json(of.right, of.given)},
                     {"recall", ratio_json(of.right, of.examples)},
                     {"f1", of.examples + of.given == 0 ? json::value(nullptr) : json::value(of.f1())}});
  }
  json::object out{{"examples", examples_},  {"accuracy", accuracy()},
                   {"macro_f1", macro_f1()}, {"expected_calibration_error", expected_calibration_error()},
                   {"nll", nll()},           {"per_class", std::move(per_class)},
                   {"confusion", nullptr}};
  if (labels_.size() > kMaxConfusionLabels) return out;
  json::array rows(labels_.size(), json::array(labels_.size(), 0));
  for (const auto& [pair, count] : confusion_) rows[pair.first].as_array()[pair.second] = count;
  out["confusion"] = std::move(rows);
  return out;
}

}  // namespace retort
