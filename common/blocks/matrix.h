#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/blocks/tensor_type.h"

namespace retort {

/// Whole matrices, of every format: those whose rows stand by themselves (encode_row) and those that are
/// encoded as a whole. Layouts: docs/format.md.

/// Bytes of a matrix that begins at `data`; of a sparse one its own head tells them. Nothing when the format
/// does not fit, the size overflows, or the head is not there or contradicts itself.
std::optional<std::uint64_t> matrix_bytes(TensorType type, std::uint64_t rows, std::uint64_t columns,
                                          std::span<const std::byte> data);

/// The most bytes that a matrix of so many rows and columns may take; of a sparse one with all its values.
std::uint64_t most_matrix_bytes(TensorType type, std::uint64_t rows, std::uint64_t columns);

/// What is wrong in a matrix from outside that a reader would trip over (matrix_bytes has been asked before);
/// nothing where all is well.
std::optional<std::string> matrix_fault(TensorType type, std::uint64_t rows, std::uint64_t columns,
                                        std::span<const std::byte> data);

/// Scalar reference encoder: values are [rows][columns], the format fits. `weights`: as in encode_row, for
/// each value.
/// SPARSE_Q8: Q8_0's scales and values; those that are or become 0 are left out.
/// SPARSE24_Q8: the two of four with the largest w·x².
/// CODEBOOK4, CODEBOOK8: k-means of each group of rows (16; all of them), weighted Lloyd [Lloyd 1982] from
/// k-means++ [Arthur 2007], over the sorted values.
std::vector<std::byte> encode_matrix(TensorType type, std::uint64_t rows, std::uint64_t columns,
                                     std::span<const float> values, std::span<const float> weights = {});

/// Rows [first, first + out.size() / columns) of a valid matrix.
void decode_rows(TensorType type, std::uint64_t rows, std::uint64_t columns, std::span<const std::byte> data,
                 std::uint64_t first, std::span<float> out);

/// A SPARSE_Q8 matrix, valid, as its parts lie in the bytes (any alignment).
struct SparseView {
  std::uint64_t rows = 0, blocks = 0;  ///< blocks of 32 columns in a row
  const std::byte* data = nullptr;

  std::uint32_t values_before(std::uint64_t row) const;  ///< row ≤ rows
  std::uint32_t mask(std::uint64_t row,
                     std::uint64_t block) const;  ///< bit c: column 32·block + c has a value
  std::uint16_t scale(std::uint64_t row, std::uint64_t block) const;  ///< F16
  const std::int8_t* values(std::uint64_t row) const;                 ///< of the row, in order of columns
};
SparseView sparse_view(std::uint64_t rows, std::uint64_t columns, const std::byte* data);

/// A CODEBOOK4 or CODEBOOK8 matrix, valid.
struct CodebookView {
  std::uint64_t rows = 0, columns = 0, group_rows = 0;
  bool wide = false;  ///< CODEBOOK8
  const std::byte* data = nullptr;

  std::uint16_t entry(std::uint64_t row, std::uint32_t index) const;  ///< F16
  const std::byte* indices(
      std::uint64_t row) const;  ///< a byte a column, or column 2j below 2j + 1 in byte j
};
CodebookView codebook_view(TensorType type, std::uint64_t rows, std::uint64_t columns, const std::byte* data);

}  // namespace retort
