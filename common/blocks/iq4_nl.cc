#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/blocks/formats.h"
#include "common/blocks/k_quants.h"
#include "common/blocks/tensor_type.h"

namespace retort::blocks {
namespace {

/// Scale, then column j below column j + 16 in byte j; value = d kIq4NlValues[q].
struct Block {
  std::uint16_t d;
  std::uint8_t q[16];
};
static_assert(sizeof(Block) == 18);

std::uint8_t nearest(float x) {
  const auto above =
      std::lower_bound(kIq4NlValues.begin(), kIq4NlValues.end(), x,
                       [](std::int8_t value, float wanted) { return static_cast<float>(value) < wanted; });
  if (above == kIq4NlValues.begin()) return 0;
  if (above == kIq4NlValues.end()) return 15;
  const auto i = above - kIq4NlValues.begin();
  return static_cast<std::uint8_t>(x - static_cast<float>(above[-1]) < static_cast<float>(*above) - x ? i - 1
                                                                                                      : i);
}

}  // namespace

void encode_iq4_nl(std::span<const float> all, std::span<const float> weights, std::byte* out) {
  for (std::size_t i = 0; i < all.size(); i += 32, out += sizeof(Block)) {
    float x[32], extreme = 0;
    for (std::size_t j = 0; j < 32; ++j) {
      x[j] = std::isfinite(all[i + j]) ? all[i + j] : 0.0f;
      if (std::fabs(x[j]) > std::fabs(extreme)) extreme = x[j];
    }
    // Scales about the one that puts the value furthest from zero on the table's end, each then moved to
    // where the squared error is least for the values it chose.
    float best_scale = 0, best_gain = 0;
    if (extreme != 0)
      for (int step = -8; step <= 8; ++step) {
        const float inverse =
            (static_cast<float>(kIq4NlValues[0]) + 2.0f * static_cast<float>(step)) / extreme;
        float along = 0, square = 0;
        for (std::size_t j = 0; j < 32; ++j) {
          const auto value = static_cast<float>(kIq4NlValues[nearest(x[j] * inverse)]);
          const float weighted = weights.empty() ? value : weights[i + j] * value;
          along += x[j] * weighted;
          square += value * weighted;
        }
        if (square > 0 && along * along > best_gain * square) {
          best_gain = along * along / square;
          best_scale = along / square;
        }
      }
    Block block;
    block.d = f32_to_f16(best_scale);
    const float d = f16_to_f32(block.d), inverse = d != 0 ? 1 / d : 0;
    for (std::size_t j = 0; j < 16; ++j)
      block.q[j] = static_cast<std::uint8_t>(nearest(x[j] * inverse) | nearest(x[j + 16] * inverse) << 4);
    std::memcpy(out, &block, sizeof block);
  }
}

void decode_iq4_nl(const std::byte* bytes, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); i += 32, bytes += sizeof(Block)) {
    Block block;
    std::memcpy(&block, bytes, sizeof block);
    const float d = f16_to_f32(block.d);
    for (std::size_t j = 0; j < 16; ++j) {
      out[i + j] = d * static_cast<float>(kIq4NlValues[block.q[j] & 15]);
      out[i + 16 + j] = d * static_cast<float>(kIq4NlValues[block.q[j] >> 4]);
    }
  }
}

}  // namespace retort::blocks
