#pragma once

#include <functional>

#include "common/hf/hf_model.h"
#include "coordinator/worker/network.h"
#include "coordinator/worker/recipe.h"

namespace retort {

/// What quantize.activations found of one input.
struct CalibratedInput {
  std::vector<std::string> matrices;     ///< that read it
  double largest = 0, clip = 0;          ///< |x|; as it is after smoothing. clip 0: only zeros were seen
  std::optional<double> largest_before;  ///< where it was smoothed
};

/// Sends all calibration text or examples through the network, whatever reads them.
using CalibrationRun = std::function<Result<void>(Trace& trace)>;

/// Finds the scales of the inputs of the layers' matrices and leaves them in network.input_scales. The text
/// is streamed: of an input there are a histogram and, for smoothing, a maximum a column in memory. With
/// pass.smooth, first SmoothQuant (Xiao et al., 2211.10438, equation 4): what makes an input's columns unlike
/// moves into the matrices' columns, s_j = max|X_j|^α / max|W_j|^(1−α), and 1/s into what stands before
/// (input_groups.h). Where nothing does, the input stays as it is. We take s_j = 1 for columns that are zero
/// in the text or in all matrices.
Result<std::vector<CalibratedInput>> calibrate_inputs(Network& network, const ActivationPass& pass,
                                                      const CalibrationRun& run);

/// The scales for a file's metadata; `type_of` says how a matrix is stored in it. Those inputs only whose
/// matrices are all of formats that read quantized inputs.
GgufMetadata input_scale_metadata(const Network& network,
                                  const std::function<TensorType(const std::string&)>& type_of);

}  // namespace retort
