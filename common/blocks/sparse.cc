#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include <fmt/format.h>

#include "common/blocks/formats.h"
#include "common/blocks/matrix.h"

// SPARSE_Q8: u32 values_before[rows + 1], u32 masks[rows][blocks], F16 scales[rows][blocks], i8 values.

namespace retort {
namespace {

template <typename T>
T read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// Bytes before the values; nothing on overflow.
std::optional<std::uint64_t> head_bytes(std::uint64_t rows, std::uint64_t blocks) {
  std::uint64_t cells = 0, bytes = 0;
  if (__builtin_mul_overflow(rows, blocks, &cells) ||
      __builtin_mul_overflow(cells, std::uint64_t{6}, &bytes) ||
      rows >= std::numeric_limits<std::uint64_t>::max() / 8 ||
      __builtin_add_overflow(bytes, 4 * (rows + 1), &bytes))
    return std::nullopt;
  return bytes;
}

/// What a value becomes in a block with such a scale: as in Q8_0.
std::int8_t level(float value, float inverse) {
  const float scaled = std::roundf(value * inverse);
  return static_cast<std::int8_t>(std::isfinite(scaled) ? std::clamp(scaled, -128.0f, 127.0f) : 0.0f);
}

}  // namespace

std::uint32_t SparseView::values_before(std::uint64_t row) const {
  return read<std::uint32_t>(data + 4 * row);
}
std::uint32_t SparseView::mask(std::uint64_t row, std::uint64_t block) const {
  return read<std::uint32_t>(data + 4 * (rows + 1) + 4 * (row * blocks + block));
}
std::uint16_t SparseView::scale(std::uint64_t row, std::uint64_t block) const {
  return read<std::uint16_t>(data + 4 * (rows + 1) + 4 * rows * blocks + 2 * (row * blocks + block));
}
const std::int8_t* SparseView::values(std::uint64_t row) const {
  return reinterpret_cast<const std::int8_t*>(data + 4 * (rows + 1) + 6 * rows * blocks) + values_before(row);
}

SparseView sparse_view(std::uint64_t rows, std::uint64_t columns, const std::byte* data) {
  return {rows, columns / 32, data};
}

namespace blocks {

std::optional<std::uint64_t> sparse_bytes(std::uint64_t rows, std::uint64_t columns,
                                          std::span<const std::byte> data) {
  if (columns == 0 || columns % 32 != 0) return std::nullopt;
  const auto head = head_bytes(rows, columns / 32);
  if (!head || *head > data.size()) return std::nullopt;
  return *head + sparse_view(rows, columns, data.data()).values_before(rows);
}

std::optional<std::string> sparse_fault(std::uint64_t rows, std::uint64_t columns,
                                        std::span<const std::byte> data) {
  const SparseView view = sparse_view(rows, columns, data.data());
  if (view.values_before(0) != 0) return "its first row does not begin with the first value";
  for (std::uint64_t r = 0; r < rows; ++r) {
    std::uint64_t count = 0;
    for (std::uint64_t b = 0; b < view.blocks; ++b)
      count += static_cast<std::uint64_t>(std::popcount(view.mask(r, b)));
    if (view.values_before(r) + count != view.values_before(r + 1))
      return fmt::format("row {} has {} values by its masks, and another number by its head", r, count);
  }
  return std::nullopt;
}

std::vector<std::byte> encode_sparse(std::uint64_t rows, std::uint64_t columns,
                                     std::span<const float> values) {
  const std::uint64_t n = columns / 32, head = *head_bytes(rows, n);
  std::vector<std::byte> out(head);
  std::uint32_t count = 0;
  for (std::uint64_t r = 0; r < rows; ++r)
    for (std::uint64_t b = 0; b < n; ++b) {
      const std::span<const float> block = values.subspan(r * columns + 32 * b, 32);
      float largest = 0;
      for (const float x : block) largest = std::max(largest, std::fabs(x));
      const float d = largest / 127.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
      std::uint32_t mask = 0;
      for (std::size_t c = 0; c < 32; ++c) {
        const std::int8_t q = level(block[c], inverse);
        if (q == 0) continue;
        mask |= std::uint32_t{1} << c;
        out.push_back(static_cast<std::byte>(q));
        ++count;
      }
      const std::uint16_t scale = f32_to_f16(d);
      std::memcpy(out.data() + 4 * (rows + 1) + 4 * (r * n + b), &mask, 4);
      std::memcpy(out.data() + 4 * (rows + 1) + 4 * rows * n + 2 * (r * n + b), &scale, 2);
      std::memcpy(out.data() + 4 * (r + 1), &count, 4);
    }
  return out;
}

void decode_sparse_row(const SparseView& view, std::uint64_t row, std::span<float> out) {
  const std::int8_t* q = view.values(row);
  for (std::uint64_t b = 0; b < view.blocks; ++b) {
    const std::uint32_t mask = view.mask(row, b);
    const float d = f16_to_f32(view.scale(row, b));
    for (std::size_t c = 0; c < 32; ++c)
      out[32 * b + c] = (mask >> c & 1) != 0 ? d * static_cast<float>(*q++) : 0.0f;
  }
}

namespace {

/// SPARSE24_Q8, for 32 values: scale, 4 bytes of places (four bits for each four columns: the first value's
/// place, then the second's), 16 values.
struct Block24 {
  std::uint16_t d;
  std::uint8_t places[4];
  std::int8_t q[16];
};
static_assert(sizeof(Block24) == 22);

}  // namespace

void encode_sparse24(std::span<const float> values, std::span<const float> weights, std::byte* out) {
  for (std::size_t i = 0; i < values.size(); i += 32, out += sizeof(Block24)) {
    std::array<std::uint8_t, 16> place{};
    float largest = 0;
    for (std::size_t g = 0; g < 8; ++g) {
      // The two that count most, the earlier of equals; in order of columns.
      std::array<std::uint8_t, 4> order{0, 1, 2, 3};
      const auto cost = [&](std::uint8_t p) {
        const std::size_t at = i + 4 * g + p;
        const float square = values[at] * values[at] * (weights.empty() ? 1.0f : weights[at]);
        return std::isfinite(square) ? square : 0.0f;
      };
      std::stable_sort(order.begin(), order.end(),
                       [&](std::uint8_t a, std::uint8_t b) { return cost(a) > cost(b); });
      place[2 * g] = std::min(order[0], order[1]);
      place[2 * g + 1] = std::max(order[0], order[1]);
      for (std::size_t k = 2 * g; k < 2 * g + 2; ++k)
        largest = std::max(largest, std::fabs(values[i + 4 * g + place[k]]));
    }
    const float d = largest / 127.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
    Block24 block{};
    block.d = f32_to_f16(d);
    for (std::size_t k = 0; k < 16; ++k) {
      block.places[k / 4] |= static_cast<std::uint8_t>(place[k] << (2 * (k % 4)));
      block.q[k] = level(values[i + 4 * (k / 2) + place[k]], inverse);
    }
    std::memcpy(out, &block, sizeof block);
  }
}

void decode_sparse24_levels(const std::byte* bytes, std::int8_t* q) {
  Block24 block;
  std::memcpy(&block, bytes, sizeof block);
  std::memset(q, 0, 32);
  for (std::size_t k = 0; k < 16; ++k)
    q[4 * (k / 2) + (block.places[k / 4] >> (2 * (k % 4)) & 3)] = block.q[k];
}

void decode_sparse24(const std::byte* bytes, std::span<float> out) {
  std::int8_t q[32];
  for (std::size_t i = 0; i < out.size(); i += 32, bytes += sizeof(Block24)) {
    decode_sparse24_levels(bytes, q);
    const float d = f16_to_f32(read<std::uint16_t>(bytes));
    for (std::size_t c = 0; c < 32; ++c) out[i + c] = d * static_cast<float>(q[c]);
  }
}

}  // namespace blocks
}  // namespace retort
