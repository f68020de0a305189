#pragma once

#include "coordinator/worker/labelled_data.h"
#include "coordinator/worker/network.h"

/// What classifiers of tensors (mlp, cnn) and of texts (bert with a classification head) have in common.
namespace retort {

/// A dense or convolution layer's outputs after its activation, summed over examples and positions.
struct OutputSums {
  std::vector<at::Tensor> channels;  ///< each convolution's Σ|output|, [out_channels]
  std::vector<at::Tensor> dense;     ///< each hidden dense layer's, [width]
};

/// Logits [batch, labels]. Autograd follows unless a NoGradGuard is in force. `sums`, of classifiers of
/// tensors, is added to; `trace` is told each matrix's input, and of texts fills what else it asks for.
at::Tensor class_logits(const Network& network, const ExampleBatch& batch, OutputSums* sums = nullptr,
                        Trace* trace = nullptr);

/// Cuts convolutions and hidden dense layers down to `target`'s widths: those filters and neurons stay that
/// have the largest sums of outputs, or, without `sums`, the largest L1 norm of their own weights (Li et al.,
/// 1608.08710, section 3.1; we do the same for dense layers). Nothing makes up for what goes.
Network prune_classifier(const Network& network, const ClassifierConfig& target, const OutputSums* sums);

}  // namespace retort
