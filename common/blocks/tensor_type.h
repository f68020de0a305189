#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "common/core/result.h"

namespace retort {

/// How a tensor's values are stored; numbers are GGUF's (ggml_type), and of formats of our own far above
/// them. Layouts: docs/format.md.
enum class TensorType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ8_0 = 8,
  kQ3K = 11,
  kQ4K = 12,
  kQ5K = 13,
  kQ6K = 14,
  kIq4Nl = 20,
  kBF16 = 30,
  kSparseQ8 = 0x52540001,
  kSparse24Q8 = 0x52540002,
  kCodebook4 = 0x52540003,
  kCodebook8 = 0x52540004,
};

struct TensorTypeInfo {
  TensorType type;
  std::string_view name;       ///< "Q8_0"
  std::uint32_t block_values;  ///< values per block along a row
  std::uint32_t block_bytes;   ///< 0: a matrix is encoded as a whole (common/blocks/matrix.h)
};

/// Nullptr when the number is not one of TensorType.
const TensorTypeInfo* find_tensor_type(std::uint32_t ggml_type);
const TensorTypeInfo& info(TensorType type);
/// By name, either case: "q8_0".
std::optional<TensorType> tensor_type_from(std::string_view name);

/// Whether a matrix is encoded as a whole, not row by row.
inline bool encoded_whole(TensorType type) { return info(type).block_bytes == 0; }

/// Whether `columns` values make a row of the format: a block divides them.
bool fits(TensorType type, std::uint64_t columns);

/// Bytes of one row of `columns` values; nothing when a block does not divide it, when they overflow, and for
/// formats that are encoded as a whole.
std::optional<std::uint64_t> row_bytes(TensorType type, std::uint64_t columns);

/// How a matrix with rows of `columns` is stored when `wanted` is asked for: where its blocks do not divide a
/// row, Q8_0, and where that does not either, F16.
TensorType stored_type(TensorType wanted, std::uint64_t columns);

/// Scalar reference encoder and decoder of one row, of formats whose rows stand by themselves; sizes must
/// match row_bytes (asserted). Q4_0: d = the value furthest from zero / −8. Q3_K … Q6_K, IQ4_NL: scales by
/// least squares over several starts. Q8_0: d = max|x|/127 as F16, q = round-to-nearest(x/d), the same bytes
/// as llama.cpp's reference quantizer.
void encode_row(TensorType type, std::span<const float> values, std::span<std::byte> out);
void decode_row(TensorType type, std::span<const std::byte> bytes, std::span<float> out);

std::uint16_t f32_to_f16(float value);  ///< IEEE 754 binary16, round to nearest even
float f16_to_f32(std::uint16_t bits);
std::uint16_t f32_to_bf16(float value);  ///< round to nearest even
float bf16_to_f32(std::uint16_t bits);

}  // namespace retort
