#include "agent/serve/runtime/projection.h"

namespace retort {

using kernels::kGroupRows;

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

void project(ThreadTeam& team, const Model::Projection& projection, const float* x,
             const QuantizedRows& quantized, std::size_t count, float* out, bool add) {
  share_rows(team, projection, kGroupRows, count, 1, [&](std::uint64_t first, std::uint64_t last) {
    multiply(projection, x, quantized, count, first, last, out, projection.rows, add);
  });
}

void quantize_for(ThreadTeam& team, const Model::Projection& reader, const float* x, std::size_t count,
                  const QuantizedRows& out) {
  if (!reader.quantized) return;
  const std::size_t n = reader.columns;
  team.share(count, n / 8 + 1, [&](std::uint32_t, std::uint64_t first, std::uint64_t last) {
    for (std::uint64_t t = first; t < last; ++t) out.quantize(t, x, n, 0, n, reader.input_scale);
  });
}

}  // namespace retort
