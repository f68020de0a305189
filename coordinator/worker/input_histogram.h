#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "coordinator/worker/recipe.h"

namespace retort {

/// Absolute values of a matrix's inputs over calibration data, streamed into 2048 bins; when a value lies
/// above them all, two bins become one until it does not. Thread: one.
class InputHistogram {
 public:
  void add(std::span<const float> values);
  std::uint64_t values() const { return values_; }
  double largest() const { return largest_; }
  /// The value at which to clip for 8 bits, −127 … 127; 0 where there were only zeros.
  /// - minmax: the largest.
  /// - percentile: the one that so many per cent do not exceed.
  /// - mse: that with the least mean squared error of rounding and clipping (Banner et al., 1810.05723,
  /// section 2,
  ///   found by search rather than from a distribution).
  /// - kl: that whose rounded distribution has the least KL divergence from the clipped one over 128 levels
  /// (Migacz
  ///   2017, TensorRT, "8-bit Inference", whose bin of zeros we keep as well).
  double threshold(ActivationPass::Method method, double percentile) const;

 private:
  static constexpr std::size_t kBins = 2048;
  std::array<std::uint64_t, kBins> bins_{};
  double width_ = 0;  ///< of a bin
  double largest_ = 0;
  std::uint64_t values_ = 0;
};

}  // namespace retort
