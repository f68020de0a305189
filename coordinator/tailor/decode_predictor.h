#pragma once

#include <map>
#include <optional>
#include <span>
#include <vector>

#include "common/blocks/tensor_type.h"
#include "common/model/decode_sample.h"
#include "common/model/model_config.h"

namespace retort {

/// Whether its time is one that a device may have: it comes from outside.
bool is_measured(const DecodeSample& sample);

/// Tells the time of a generated token on a device from what was measured there: a sum of costs, none of
/// which is negative, for a token, a layer, an output feature and an input feature of a matrix product, a
/// position and a value that attention reads, and a byte of weights. A byte's cost depends on the format and,
/// as caches do, on how many bytes a token reads in all: linear in their logarithm between five knots for
/// Q8_0, other formats by a ratio to it. Fitted by non-negative least squares of relative errors. A value: it
/// may be copied.
class DecodePredictor {
 public:
  /// Nothing: the samples are too few to say something (older agents send none). Samples of formats that this
  /// program does not know, or with figures that no device has, are left out.
  static std::optional<DecodePredictor> fit(std::span<const DecodeSample> samples);

  /// Seconds for a token behind `position` others, weights stored as a file of `format` has them. A format
  /// that was not measured costs what the measured one of the nearest size costs a byte.
  double token_seconds(const ModelConfig& config, TensorType format, std::uint32_t position) const;

 private:
  std::vector<double> shared_;                        // a cost for each feature but bytes
  std::vector<double> byte_;                          // of Q8_0, at each knot
  std::map<TensorType, std::vector<double>> ratios_;  // of another format's to it, at fewer knots
};

}  // namespace retort
