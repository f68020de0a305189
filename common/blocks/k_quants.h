#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

/// The values that IQ4_NL's four bits stand for, times its scale.
namespace retort::blocks {
inline constexpr std::array<std::int8_t, 16> kIq4NlValues{-127, -104, -83, -65, -49, -35, -22, -10,
                                                          1,    13,   25,  38,  53,  69,  89,  113};
}

/// The blocks of 256 values that GGUF calls K-quants, taken apart: for the reference decoders and for
/// packing. Layouts: docs/format.md.
namespace retort::blocks {

/// Sixteen or eight runs of values, each with its scale (and min): value = scale[run] q − min[run].
struct KBlock {
  std::array<std::int8_t, 256> q;
  std::array<float, 16> scale, min;
};
constexpr std::size_t kQ3KBytes = 110, kQ4KBytes = 144, kQ5KBytes = 176, kQ6KBytes = 210;

KBlock read_q3_k(const std::byte* block);  ///< 16 runs of 16, q −4…3, no min
KBlock read_q4_k(const std::byte* block);  ///< 8 runs of 32, q 0…15
KBlock read_q5_k(const std::byte* block);  ///< 8 runs of 32, q 0…31
KBlock read_q6_k(const std::byte* block);  ///< 16 runs of 16, q −32…31, no min

/// Replaces a block's q, in the same numbers, and leaves its scales.
void put_levels_q3_k(std::byte* block, std::span<const std::int8_t, 256> q);
void put_levels_q4_k(std::byte* block, std::span<const std::int8_t, 256> q);
void put_levels_q5_k(std::byte* block, std::span<const std::int8_t, 256> q);
void put_levels_q6_k(std::byte* block, std::span<const std::int8_t, 256> q);

}  // namespace retort::blocks
