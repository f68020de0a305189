#include "agent/serve/runtime/arena.h"

#include "agent/serve/kernels/kernels.h"
#include "agent/serve/kernels/static_quantize.h"

namespace retort {

Arena take_arena(std::uint64_t bytes) {
  Arena arena(std::calloc(bytes, 1));
  if (!arena) throw std::bad_alloc();
  return arena;
}

namespace {

std::uint64_t whole_blocks(std::uint64_t columns) { return (columns + 31) / 32 * 32; }

}  // namespace

std::uint64_t QuantizedRows::bytes(std::uint64_t rows, std::uint64_t columns) {
  const std::uint64_t width = whole_blocks(columns), blocks = rows * width / 32;
  return aligned(rows * width) + 2 * aligned(4 * blocks) + aligned(8 * blocks);
}

QuantizedRows QuantizedRows::take(ArenaCursor& arena, std::uint64_t rows, std::uint64_t columns) {
  QuantizedRows out;
  out.width = whole_blocks(columns);
  const std::uint64_t blocks = rows * out.width / 32;
  out.q = static_cast<std::int8_t*>(arena.take(rows * out.width));
  out.scale = arena.floats(blocks);
  out.start = static_cast<std::int32_t*>(arena.take(4 * blocks));
  out.half_start = static_cast<std::int32_t*>(arena.take(8 * blocks));
  return out;
}

QuantizedRows QuantizedRows::from(std::size_t first) const {
  const std::size_t block = first * (width / 32);
  return {q + first * width, scale + block, start + block, half_start + 2 * block, width};
}

void QuantizedRows::quantize(std::size_t row, const float* x, std::size_t columns, std::size_t first,
                             std::size_t last, float calibrated) const {
  const std::size_t block = row * (columns / 32) + first / 32;
  const auto n = static_cast<std::uint32_t>(last - first);
  const float* const from = x + row * columns + first;
  std::int8_t* const to = q + row * columns + first;
  if (calibrated > 0)
    kernels::quantize_q8_static(from, n, calibrated, to, scale + block, start + block,
                                half_start + 2 * block);
  else
    kernels::quantize_q8(from, n, to, scale + block, start + block, half_start + 2 * block);
}

}  // namespace retort
