#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

/// Inside common/blocks: one pair of functions a format. Sizes are checked by encode_row and decode_row;
/// `weights` (of squared errors) may be empty.
namespace retort::blocks {

void encode_q4_0(std::span<const float> values, std::span<const float> weights, std::byte* out);
void decode_q4_0(const std::byte* bytes, std::span<float> out);
void encode_iq4_nl(std::span<const float> values, std::span<const float> weights, std::byte* out);
void decode_iq4_nl(const std::byte* bytes, std::span<float> out);
void encode_q3_k(std::span<const float> values, std::span<const float> weights, std::byte* out);
void decode_q3_k(const std::byte* bytes, std::span<float> out);
void encode_q4_k(std::span<const float> values, std::span<const float> weights, std::byte* out);
void decode_q4_k(const std::byte* bytes, std::span<float> out);
void encode_q5_k(std::span<const float> values, std::span<const float> weights, std::byte* out);
void decode_q5_k(const std::byte* bytes, std::span<float> out);
void encode_q6_k(std::span<const float> values, std::span<const float> weights, std::byte* out);
void decode_q6_k(const std::byte* bytes, std::span<float> out);

}  // namespace retort::blocks
