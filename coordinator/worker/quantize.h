#pragma once

#include <functional>
#include <optional>

#include "coordinator/worker/network.h"
#include "coordinator/worker/recipe.h"

namespace retort {

/// What became of one matrix.
struct QuantizedMatrix {
  std::string name;  ///< Hugging Face's
  TensorType type = TensorType::kF32;
  std::uint64_t values = 0, bytes = 0;
  double weight_error = 0;  ///< ‖ΔW‖² / ‖W‖²
  std::optional<double>
      output_error;  ///< ‖ΔX‖² / ‖WX‖² over the calibration text, where the method takes any
  double alpha = 0;  ///< AWQ's; 0: not scaled
  std::vector<std::pair<TensorType, double>>
      sensitivity;  ///< with a budget of bits: ΔKL of this matrix alone
};

/// Rounds every matrix as `pass` says and leaves both the encoded matrices and their values in the network.
/// `calibration`: token ids [batch, seq], at least one where the pass needs text (needs_calibration). Layer
/// by layer: each layer's inputs are computed through the layers that are already rounded, and only one
/// layer's statistics are in memory at a time. `check_stop` is asked between matrices.
Result<std::vector<QuantizedMatrix>> quantize(Network& network, const QuantizePass& pass,
                                              const std::vector<at::Tensor>& calibration,
                                              const std::function<Result<void>()>& check_stop);

}  // namespace retort
