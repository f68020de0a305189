#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/core/json.h"

namespace retort {

/// How well a classifier tells examples of known label apart. Thread: one.
class ClassificationMetrics {
 public:
  explicit ClassificationMetrics(std::vector<std::string> labels);

  /// One example: the label that it has, below the number of labels, and the probability of each.
  void add(std::size_t label, std::span<const float> probabilities);

  std::uint64_t examples() const { return examples_; }
  double accuracy() const;
  /// The mean of the F1 of every label that an example has or was given; one that no example has counts 0.
  double macro_f1() const;
  /// Mean |accuracy − confidence| over 15 equal bins of the likeliest label's probability, weighted by their
  /// examples [Guo 2017, §2].
  double expected_calibration_error() const;
  /// Mean −log of the probability of the label that an example has, in nats.
  double nll() const;

  /// The above, "per_class" (label, examples, precision, recall, f1; null where nothing is divided), and
  /// "confusion": rows are the labels that examples have, columns those given (null above 256 labels).
  json::object to_json() const;

 private:
  struct OfLabel {
    std::uint64_t examples = 0, given = 0, right = 0;
    double f1() const;
  };
  struct Bin {
    std::uint64_t examples = 0, right = 0;
    double confidence = 0;
  };
  std::vector<std::string> labels_;
  std::vector<OfLabel> of_label_;
  std::array<Bin, 15> bins_{};
  std::map<std::pair<std::size_t, std::size_t>, std::uint64_t> confusion_;  ///< (has, given)
  std::uint64_t examples_ = 0, right_ = 0;
  double nll_ = 0;
};

}  // namespace retort
