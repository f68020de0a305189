#pragma once

#include <span>
#include <string>
#include <vector>

#include "common/gguf/gguf.h"
#include "common/model/model_config.h"
#include "common/tokenizer/tokenizer.h"

namespace retort::testing {

/// BERT as Hugging Face's modelling code has it, from a GGUF file's tensors, in F64 and without any of the
/// runtime's code. File and configuration outlive it.
class BertReference {
 public:
  using Row = std::vector<double>;
  BertReference(const GgufFile& file, const ModelConfig& config) : file_(file), c_(config) {}

  /// The last layer's state of each token.
  std::vector<Row> states(std::span<const TokenId> ids) const;
  /// The states' mean, or the first one where the model's pooling is so, of length 1.
  Row embedding(std::span<const TokenId> ids) const;
  /// Logits of the labels, from the first token's state.
  Row classify(const Row& first) const;
  /// Logits of the vocabulary, from a token's state.
  Row predict(const Row& state) const;

 private:
  Row tensor(const std::string& name, std::size_t row) const;
  Row linear(const Row& x, const std::string& name) const;
  Row normalized(const Row& x, const std::string& name) const;
  double gelu(double x) const;

  const GgufFile& file_;
  const ModelConfig& c_;
};

}  // namespace retort::testing
