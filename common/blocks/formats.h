#pragma once

#include <cstddef>
#include <span>

/// Inside common/blocks: one pair of functions a format, each in a file of its name. Sizes are checked by
/// encode_row and decode_row.
namespace retort::blocks {

void encode_q4_0(std::span<const float> values, std::byte* out);
void decode_q4_0(const std::byte* bytes, std::span<float> out);

}  // namespace retort::blocks
