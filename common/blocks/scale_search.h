#pragma once

#include <algorithm>
#include <span>

/// Inside common/blocks: what the formats' searches for scales share.
namespace retort::blocks {

/// Nearest whole number (ties to even) in [low, high], both whole and small.
inline float clamped_round(float x, float low, float high) {
  constexpr float kMagic = 12582912;  // 1.5 · 2^23: what is added to it is rounded to whole numbers
  return (std::clamp(x, low, high) + kMagic) - kMagic;
}

/// One run of finite values, and how much the squared error of each counts.
struct Run {
  std::span<const float> x, weight;
};

/// The scale s that makes Σ w (x − s q)² least over q in [−levels, levels − 1], by trying starts about
/// max|x| / levels and least squares for the q that each gives.
float symmetric_scale(Run run, int levels);

}  // namespace retort::blocks
