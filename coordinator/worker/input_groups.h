#pragma once

#include "coordinator/worker/network.h"

namespace retort {

/// Matrices that share one input, in the order of the computation, and where a factor a column of that input
/// can come from without changing the model: a norm, or rows of the matrix before.
struct InputGroup {
  std::vector<std::string> matrices;
  std::string source;          ///< empty: none that a factor could pass through
  std::int64_t first_row = 0;  ///< of a source matrix: the row that the first column reads
};

/// Of one layer of a decoder or an encoder. No source: where heads share values, for GELU's outputs, and for
/// a BERT's norms, whose outputs also go past the layer.
std::vector<InputGroup> input_groups(const ModelConfig& config, std::size_t layer);
/// Of all layers, not of heads; of a classifier of tensors every matrix by itself.
std::vector<InputGroup> input_groups(const Network& network);

/// Multiplies the columns of the group's matrices by `scale` [columns] and divides its source, and the bias
/// there is beside it, by the same: the network computes what it did.
void fold_scale(Network& network, const InputGroup& group, const at::Tensor& scale);

}  // namespace retort
