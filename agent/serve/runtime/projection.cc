#include "agent/serve/runtime/projection.h"

namespace retort {

using kernels::kGroupRows;

std::uint64_t QuantizedRows::bytes(std::uint64_t rows, std::uint64_t width) {
  const std::uint64_t blocks = rows * ((width + 31) / 32);
  return aligned(rows * width) + 2 * aligned(4 * blocks) + aligned(8 * blocks);
}

QuantizedRows QuantizedRows::take(ArenaCursor& arena, std::uint64_t rows, std::uint64_t width) {
  const std::uint64_t blocks = rows * ((width + 31) / 32);
  QuantizedRows out;
  out.q = static_cast<std::int8_t*>(arena.take(rows * width));
  out.scale = arena.floats(blocks);
  out.start = static_cast<std::int32_t*>(arena.take(4 * blocks));
  out.half_start = static_cast<std::int32_t*>(arena.take(8 * blocks));
  return out;
}

void QuantizedRows::quantize(std::size_t row, const float* x, std::size_t columns, std::size_t first,
                             std::size_t last) const {
  const std::size_t block = row * (columns / 32) + first / 32;
  kernels::quantize_q8(x + row * columns + first, static_cast<std::uint32_t>(last - first),
                       q + row * columns + first, scale + block, start + block, half_start + 2 * block);
}

void multiply(const Model::Projection& projection, const float* x, const QuantizedRows& quantized,
              std::size_t count, std::uint64_t begin, std::uint64_t end, float* out, std::size_t stride,
              bool add) {
  const kernels::Activations input{static_cast<std::uint32_t>(count),
                                   projection.columns,
                                   x,
                                   quantized.q,
                                   quantized.scale,
                                   quantized.start,
                                   quantized.half_start};
  for (const Model::Projection::Part& part : projection.parts) {
    const std::uint64_t rows = part.matrix.rows, groups = (rows + kGroupRows - 1) / kGroupRows;
    std::uint64_t first = begin, last = end;
    if (projection.parts.size() > 1) {
      first = groups * begin / projection.rows * kGroupRows;
      last = std::min<std::uint64_t>(rows, groups * end / projection.rows * kGroupRows);
    }
    if (first >= last) continue;
    kernels::matmul(
        part.matrix, input, static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(last),
        {out + part.first, stride, projection.bias == nullptr ? nullptr : projection.bias + part.first, add});
  }
}

}  // namespace retort
