#include "coordinator/worker/input_histogram.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace retort {

void InputHistogram::add(std::span<const float> values) {
  for (const float signed_value : values) {
    const double value = std::abs(static_cast<double>(signed_value));
    if (!std::isfinite(value)) continue;
    ++values_;
    largest_ = std::max(largest_, value);
    if (width_ == 0) {
      if (value == 0) {
        ++bins_[0];
        continue;
      }
      width_ = value / (kBins / 2);
    }
    while (value >= width_ * kBins) {
      for (std::size_t i = 0; i < kBins / 2; ++i) bins_[i] = bins_[2 * i] + bins_[2 * i + 1];
      std::fill(bins_.begin() + kBins / 2, bins_.end(), 0);
      width_ *= 2;
    }
    ++bins_[static_cast<std::size_t>(value / width_)];
  }
}

double InputHistogram::threshold(ActivationPass::Method method, double percentile) const {
  using Method = ActivationPass::Method;
  if (largest_ == 0 || method == Method::kMinMax) return largest_;
  const auto upper = [&](std::size_t bins) { return std::min(largest_, width_ * static_cast<double>(bins)); };
  if (method == Method::kPercentile) {
    const double wanted = percentile / 100 * static_cast<double>(values_);
    double sum = 0;
    for (std::size_t i = 0; i < kBins; ++i)
      if ((sum += static_cast<double>(bins_[i])) >= wanted) return upper(i + 1);
    return largest_;
  }
  double best = 0, least = INFINITY;
  const auto used = static_cast<std::size_t>(largest_ / width_) + 1;
  if (method == Method::kMse) {
    for (std::size_t tried = 1; tried <= 256; ++tried) {
      const double clip = largest_ * static_cast<double>(tried) / 256, step = clip / 127;
      double error = 0;
      for (std::size_t i = 0; i < used; ++i) {
        if (bins_[i] == 0) continue;
        const double middle = width_ * (static_cast<double>(i) + 0.5);
        const double lost = middle - std::min(std::round(middle / step), 127.0) * step;
        error += static_cast<double>(bins_[i]) * lost * lost;
      }
      if (error < least) least = error, best = clip;
    }
    return best;
  }
  constexpr std::size_t kLevels = 128;
  if (used <= kLevels) return largest_;
  double above = 0;
  for (std::size_t i = kLevels; i < used; ++i) above += static_cast<double>(bins_[i]);
  for (std::size_t clip = kLevels; clip <= used; ++clip) {
    // The distribution with what lies above put into the last bin, and the same over 128 levels, each spread
    // evenly over its bins that are not empty.
    double divergence = 0, kept = above;
    for (std::size_t i = 0; i < clip; ++i) kept += static_cast<double>(bins_[i]);
    const double rounded_sum = kept - above;
    for (std::size_t level = 0; level < kLevels && rounded_sum > 0; ++level) {
      const std::size_t from = level * clip / kLevels, to = (level + 1) * clip / kLevels;
      double sum = 0, filled = 0;
      for (std::size_t i = from; i < to; ++i) sum += static_cast<double>(bins_[i]), filled += bins_[i] != 0;
      for (std::size_t i = from; i < to; ++i) {
        const double p = (static_cast<double>(bins_[i]) + (i + 1 == clip ? above : 0)) / kept;
        if (p == 0) continue;
        // An empty last bin that only clipped values fall into has no share of the rounded distribution.
        const double q = bins_[i] != 0 ? sum / filled / rounded_sum : 1e-9;
        divergence += p * std::log(p / q);
      }
    }
    if (divergence < least) least = divergence, best = upper(clip);
    if (clip < used) above -= static_cast<double>(bins_[clip]);
  }
  return best;
}

}  // namespace retort
