#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/blocks/formats.h"
#include "common/blocks/scale_search.h"
#include "common/blocks/tensor_type.h"

namespace retort::blocks {
namespace {

/// Scale, then column j below column j + 16 in byte j; value = d (q − 8).
struct Block {
  std::uint16_t d;
  std::uint8_t q[16];
};
static_assert(sizeof(Block) == 18);

}  // namespace

void encode_q4_0(std::span<const float> values, std::span<const float> weights, std::byte* out) {
  for (std::size_t i = 0; i < values.size(); i += 32, out += sizeof(Block)) {
    float x[32], extreme = 0;
    for (std::size_t j = 0; j < 32; ++j) {
      x[j] = std::isfinite(values[i + j]) ? values[i + j] : 0.0f;
      if (std::fabs(x[j]) > std::fabs(extreme)) extreme = x[j];
    }
    // Without weights the value furthest from zero becomes −8 exactly.
    Block block;
    const float d = weights.empty() ? extreme / -8.0f : symmetric_scale({x, weights.subspan(i, 32)}, 8);
    block.d = f32_to_f16(d);
    const float inverse = d != 0 ? 1.0f / d : 0.0f;
    const auto level = [&](float value) {
      const float scaled = value * inverse + 8.5f;
      return static_cast<std::uint8_t>(std::isfinite(scaled) ? std::clamp(scaled, 0.0f, 15.0f) : 8.0f);
    };
    for (std::size_t j = 0; j < 16; ++j)
      block.q[j] = static_cast<std::uint8_t>(level(x[j]) | level(x[j + 16]) << 4);
    std::memcpy(out, &block, sizeof block);
  }
}

void decode_q4_0(const std::byte* bytes, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); i += 32, bytes += sizeof(Block)) {
    Block block;
    std::memcpy(&block, bytes, sizeof block);
    const float d = f16_to_f32(block.d);
    for (std::size_t j = 0; j < 16; ++j) {
      out[i + j] = d * static_cast<float>((block.q[j] & 15) - 8);
      out[i + 16 + j] = d * static_cast<float>((block.q[j] >> 4) - 8);
    }
  }
}

}  // namespace retort::blocks
