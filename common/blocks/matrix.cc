#include "common/blocks/matrix.h"

#include <cassert>

#include "common/blocks/encoded_matrix.h"
#include "common/blocks/formats.h"

namespace retort {

std::optional<std::uint64_t> matrix_bytes(TensorType type, std::uint64_t rows, std::uint64_t columns,
                                          std::span<const std::byte> data) {
  if (type == TensorType::kSparseQ8) return blocks::sparse_bytes(rows, columns, data);
  if (type == TensorType::kCodebook4 || type == TensorType::kCodebook8)
    return blocks::codebook_bytes(type == TensorType::kCodebook8, rows, columns, data);
  const auto row = row_bytes(type, columns);
  std::uint64_t bytes = 0;
  if (!row || __builtin_mul_overflow(*row, rows, &bytes)) return std::nullopt;
  return bytes;
}

std::uint64_t most_matrix_bytes(TensorType type, std::uint64_t rows, std::uint64_t columns) {
  if (type == TensorType::kSparseQ8) return 4 * (rows + 1) + columns / 32 * 6 * rows + rows * columns;
  if (type == TensorType::kCodebook4) return 4 + (rows + 15) / 16 * 32 + rows * ((columns + 1) / 2);
  if (type == TensorType::kCodebook8) return 4 + 512 + rows * columns;
  return rows * *row_bytes(type, columns);
}

std::optional<std::string> matrix_fault(TensorType type, std::uint64_t rows, std::uint64_t columns,
                                        std::span<const std::byte> data) {
  if (type == TensorType::kSparseQ8) return blocks::sparse_fault(rows, columns, data);
  return std::nullopt;  // any bytes are a matrix of the other formats
}

std::vector<std::byte> encode_matrix(TensorType type, std::uint64_t rows, std::uint64_t columns,
                                     std::span<const float> values, std::span<const float> weights) {
  assert(fits(type, columns) && values.size() == rows * columns);
  assert(weights.empty() || weights.size() == values.size());
  if (type == TensorType::kSparseQ8) return blocks::encode_sparse(rows, columns, values);
  if (type == TensorType::kCodebook4 || type == TensorType::kCodebook8)
    return blocks::encode_codebook(type == TensorType::kCodebook8, rows, columns, values, weights);
  const std::uint64_t bytes = *row_bytes(type, columns);
  std::vector<std::byte> out(rows * bytes);
  for (std::uint64_t r = 0; r < rows; ++r)
    encode_row(type, values.subspan(r * columns, columns), std::span(out).subspan(r * bytes, bytes),
               weights.empty() ? weights : weights.subspan(r * columns, columns));
  return out;
}

void decode_rows(TensorType type, std::uint64_t rows, std::uint64_t columns, std::span<const std::byte> data,
                 std::uint64_t first, std::span<float> out) {
  for (std::uint64_t r = first; !out.empty(); ++r, out = out.subspan(columns)) {
    const std::span<float> row = out.first(columns);
    if (type == TensorType::kSparseQ8) {
      blocks::decode_sparse_row(sparse_view(rows, columns, data.data()), r, row);
    } else if (type == TensorType::kCodebook4 || type == TensorType::kCodebook8) {
      blocks::decode_codebook_row(codebook_view(type, rows, columns, data.data()), r, row);
    } else {
      const std::uint64_t bytes = *row_bytes(type, columns);
      decode_row(type, data.subspan(r * bytes, bytes), row);
    }
  }
}

}  // namespace retort
