#include "common/blocks/tensor_type.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cctype>
#include <cmath>
#include <cstring>

#include "common/blocks/encoded_matrix.h"
#include "common/blocks/formats.h"

namespace retort {
namespace {

constexpr std::array<TensorTypeInfo, 14> kTypes{{
    {TensorType::kF32, "F32", 1, 4},
    {TensorType::kF16, "F16", 1, 2},
    {TensorType::kQ4_0, "Q4_0", 32, 18},
    {TensorType::kQ8_0, "Q8_0", 32, 34},
    {TensorType::kQ3K, "Q3_K", 256, 110},
    {TensorType::kQ4K, "Q4_K", 256, 144},
    {TensorType::kQ5K, "Q5_K", 256, 176},
    {TensorType::kQ6K, "Q6_K", 256, 210},
    {TensorType::kIq4Nl, "IQ4_NL", 32, 18},
    {TensorType::kBF16, "BF16", 1, 2},
    {TensorType::kSparseQ8, "SPARSE_Q8", 32, 0},
    {TensorType::kSparse24Q8, "SPARSE24_Q8", 32, 22},
    {TensorType::kCodebook4, "CODEBOOK4", 1, 0},
    {TensorType::kCodebook8, "CODEBOOK8", 1, 0},
}};

/// One Q8_0 block: scale, then 32 signed values.
struct BlockQ8_0 {
  std::uint16_t d;
  std::int8_t q[32];
};
static_assert(sizeof(BlockQ8_0) == 34);

void encode_q8_0(std::span<const float> values, std::byte* out) {
  for (std::size_t i = 0; i < values.size(); i += 32, out += sizeof(BlockQ8_0)) {
    float largest = 0;
    for (std::size_t j = 0; j < 32; ++j) largest = std::max(largest, std::fabs(values[i + j]));
    const float d = largest / 127.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
    BlockQ8_0 block;
    block.d = f32_to_f16(d);
    for (std::size_t j = 0; j < 32; ++j) {
      const float scaled = std::roundf(values[i + j] * inverse);
      // NaN and infinities have no meaning here; they become 0 rather than undefined behaviour.
      block.q[j] =
          static_cast<std::int8_t>(std::isfinite(scaled) ? std::clamp(scaled, -128.0f, 127.0f) : 0.0f);
    }
    std::memcpy(out, &block, sizeof block);
  }
}

void decode_q8_0(const std::byte* bytes, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); i += 32, bytes += sizeof(BlockQ8_0)) {
    BlockQ8_0 block;
    std::memcpy(&block, bytes, sizeof block);
    const float d = f16_to_f32(block.d);
    for (std::size_t j = 0; j < 32; ++j) out[i + j] = d * static_cast<float>(block.q[j]);
  }
}

template <typename Convert>
void encode_16(std::span<const float> values, std::byte* out, Convert convert) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t bits = convert(values[i]);
    std::memcpy(out + 2 * i, &bits, 2);
  }
}

template <typename Convert>
void decode_16(const std::byte* bytes, std::span<float> out, Convert convert) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, bytes + 2 * i, 2);
    out[i] = convert(bits);
  }
}

}  // namespace

const TensorTypeInfo* find_tensor_type(std::uint32_t ggml_type) {
  for (const TensorTypeInfo& entry : kTypes)
    if (static_cast<std::uint32_t>(entry.type) == ggml_type) return &entry;
  return nullptr;
}

const TensorTypeInfo& info(TensorType type) {
  const TensorTypeInfo* found = find_tensor_type(static_cast<std::uint32_t>(type));
  assert(found != nullptr);
  return *found;
}

std::optional<TensorType> tensor_type_from(std::string_view name) {
  const auto same = [](char a, char b) {
    return std::toupper(static_cast<unsigned char>(a)) == std::toupper(static_cast<unsigned char>(b));
  };
  for (const TensorTypeInfo& entry : kTypes)
    if (std::equal(name.begin(), name.end(), entry.name.begin(), entry.name.end(), same)) return entry.type;
  return std::nullopt;
}

bool fits(TensorType type, std::uint64_t columns) { return columns % info(type).block_values == 0; }

std::optional<std::uint64_t> row_bytes(TensorType type, std::uint64_t columns) {
  const TensorTypeInfo& entry = info(type);
  std::uint64_t bytes = 0;
  if (entry.block_bytes == 0 || columns % entry.block_values != 0 ||
      __builtin_mul_overflow(columns / entry.block_values, std::uint64_t{entry.block_bytes}, &bytes))
    return std::nullopt;
  return bytes;
}

TensorType stored_type(TensorType wanted, std::uint64_t columns) {
  for (const TensorType type : {wanted, TensorType::kQ8_0})
    if (fits(type, columns)) return type;
  return TensorType::kF16;
}

void encode_row(TensorType type, std::span<const float> values, std::span<std::byte> out) {
  encode_row(type, values, out, {});
}

void encode_row(TensorType type, std::span<const float> values, std::span<std::byte> out,
                std::span<const float> weights) {
  assert(row_bytes(type, values.size()) == out.size());
  assert(weights.empty() || weights.size() == values.size());
  switch (type) {
    case TensorType::kF32:
      std::memcpy(out.data(), values.data(), out.size());
      return;
    case TensorType::kF16:
      encode_16(values, out.data(), f32_to_f16);
      return;
    case TensorType::kBF16:
      encode_16(values, out.data(), f32_to_bf16);
      return;
    case TensorType::kQ4_0:
      blocks::encode_q4_0(values, weights, out.data());
      return;
    case TensorType::kQ3K:
      blocks::encode_q3_k(values, weights, out.data());
      return;
    case TensorType::kQ4K:
      blocks::encode_q4_k(values, weights, out.data());
      return;
    case TensorType::kQ5K:
      blocks::encode_q5_k(values, weights, out.data());
      return;
    case TensorType::kQ6K:
      blocks::encode_q6_k(values, weights, out.data());
      return;
    case TensorType::kIq4Nl:
      blocks::encode_iq4_nl(values, weights, out.data());
      return;
    case TensorType::kQ8_0:
      encode_q8_0(values, out.data());
      return;
    case TensorType::kSparse24Q8:
      blocks::encode_sparse24(values, weights, out.data());
      return;
    case TensorType::kSparseQ8:
    case TensorType::kCodebook4:
    case TensorType::kCodebook8:
      assert(false);  // row_bytes has told that there is no such row
      return;
  }
}

void decode_row(TensorType type, std::span<const std::byte> bytes, std::span<float> out) {
  assert(row_bytes(type, out.size()) == bytes.size());
  switch (type) {
    case TensorType::kF32:
      std::memcpy(out.data(), bytes.data(), bytes.size());
      return;
    case TensorType::kF16:
      decode_16(bytes.data(), out, f16_to_f32);
      return;
    case TensorType::kBF16:
      decode_16(bytes.data(), out, bf16_to_f32);
      return;
    case TensorType::kQ4_0:
      blocks::decode_q4_0(bytes.data(), out);
      return;
    case TensorType::kQ3K:
      blocks::decode_q3_k(bytes.data(), out);
      return;
    case TensorType::kQ4K:
      blocks::decode_q4_k(bytes.data(), out);
      return;
    case TensorType::kQ5K:
      blocks::decode_q5_k(bytes.data(), out);
      return;
    case TensorType::kQ6K:
      blocks::decode_q6_k(bytes.data(), out);
      return;
    case TensorType::kIq4Nl:
      blocks::decode_iq4_nl(bytes.data(), out);
      return;
    case TensorType::kQ8_0:
      decode_q8_0(bytes.data(), out);
      return;
    case TensorType::kSparse24Q8:
      blocks::decode_sparse24(bytes.data(), out);
      return;
    case TensorType::kSparseQ8:
    case TensorType::kCodebook4:
    case TensorType::kCodebook8:
      assert(false);  // row_bytes has told that there is no such row
      return;
  }
}

std::uint16_t f32_to_f16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);  // NaN, made quiet
  if (magnitude >= 0x47800000u)
    return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65536 and above: infinity
  if (magnitude < 0x38800000u) {  // below the smallest normal: let the FPU round into place
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

float f16_to_f32(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent == 0) {
    const float value = static_cast<float>(fraction) * 0x1.0p-24f;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

std::uint16_t f32_to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float bf16_to_f32(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

}  // namespace retort
