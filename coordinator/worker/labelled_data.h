#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "common/model/classifier_config.h"
#include "common/tokenizer/tokenizer.h"
#include "coordinator/worker/network.h"
#include "coordinator/worker/recipe.h"

namespace retort {

/// Some examples together.
struct ExampleBatch {
  at::Tensor inputs;  ///< [batch, values] F32; of texts [batch, seq] token ids, filled up with zeros
  at::Tensor tokens;  ///< of texts: how many of each row are the text's, [batch] int64
  at::Tensor labels;  ///< [batch] int64: places among the labels
  std::int64_t size() const { return labels.size(0); }
};

/// The labels of a file's examples: JSON lines' distinct texts, sorted; of an idx file "0" … "9", up to the
/// largest. kInvalid with fewer than two.
Result<std::vector<std::string>> labels_in(const DataFile& file);
/// The length of the first example's "input", or of an idx file's images.
Result<std::uint32_t> values_in(const DataFile& file);

/// Labelled examples in memory, and an order that depends on (seed, index) alone. Thread: one.
class Examples {
 public:
  /// Numbers in `config`'s shape and with its labels; kInvalid names the place of what is not.
  static Result<Examples> tensors(const DataFile& file, const ClassifierConfig& config);
  /// JSON lines {"text", "label"}: texts as the tokenizer gives them with its special tokens, cut after
  /// `context` tokens but for the last, which stays.
  static Result<Examples> texts(const DataFile& file, const Tokenizer& tokenizer, std::uint32_t context,
                                const std::vector<std::string>& labels);

  std::uint64_t size() const { return labels_.size(); }
  ExampleBatch batch(const std::vector<std::uint64_t>& which) const;
  /// Examples `first` … of the endless sequence that `seed` shuffles epoch by epoch.
  ExampleBatch draw(std::uint64_t seed, std::uint64_t first, std::uint64_t count);
  /// Examples `first` … in the file's order, as many of `count` as there are.
  ExampleBatch in_order(std::uint64_t first, std::uint64_t count) const;

  /// Places among `labels` labels that no example has.
  std::vector<std::size_t> labels_without_example(std::size_t labels) const;
  /// What these labels cost, in nats each, one who only knows how often each of `labels` is among `known`'s;
  /// and the share that are `known`'s commonest.
  std::pair<double, double> guessed_by_frequency(const Examples& known, std::size_t labels) const;
  /// Mean and standard deviation of each channel (a feature is one), or of all values, for ClassifierConfig.
  void normalize(ClassifierConfig& config, bool each) const;

 private:
  at::Tensor inputs_;  ///< [examples, values]
  std::vector<std::vector<TokenId>> texts_;
  std::vector<std::int64_t> labels_;
  std::uint64_t seed_ = 0, epoch_ = UINT64_MAX;
  std::vector<std::uint32_t> order_;
};

}  // namespace retort
