#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/blocks/matrix.h"

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

// Of Retort's own formats; SPARSE24_Q8's rows stand by themselves, the others are matrices.
constexpr std::size_t kSparse24Bytes = 22;
void encode_sparse24(std::span<const float> values, std::span<const float> weights, std::byte* out);
void decode_sparse24(const std::byte* bytes, std::span<float> out);
/// The 32 whole numbers of a block.
void decode_sparse24_levels(const std::byte* bytes, std::int8_t* q);
std::optional<std::uint64_t> sparse_bytes(std::uint64_t rows, std::uint64_t columns,
                                          std::span<const std::byte> data);
std::optional<std::string> sparse_fault(std::uint64_t rows, std::uint64_t columns,
                                        std::span<const std::byte> data);
std::vector<std::byte> encode_sparse(std::uint64_t rows, std::uint64_t columns,
                                     std::span<const float> values);
void decode_sparse_row(const SparseView& view, std::uint64_t row, std::span<float> out);
std::optional<std::uint64_t> codebook_bytes(bool wide, std::uint64_t rows, std::uint64_t columns,
                                            std::span<const std::byte> data);
std::vector<std::byte> encode_codebook(bool wide, std::uint64_t rows, std::uint64_t columns,
                                       std::span<const float> values, std::span<const float> weights);
void decode_codebook_row(const CodebookView& view, std::uint64_t row, std::span<float> out);

}  // namespace retort::blocks
