#pragma once

#include "agent/serve/kernels/kernels.h"

/// Matrices of Retort's own formats, sparse and with codebooks. Inside the kernels, and for whoever places
/// matrices: these are packed one by one, not stacked, and what they take depends on their contents.
namespace retort::kernels {

bool is_own_format(TensorType type);

/// Bytes of a matrix, valid, as it lies in the file: of every format.
std::uint64_t stored_bytes(const Matrix& matrix);

/// Bytes of a matrix from a file in the layout that the instruction set in use multiplies fastest, of every
/// format; 0 where that is the file's own.
std::size_t packed_bytes(const Matrix& matrix);
/// Packs it to `out` (64-byte aligned, that many bytes, zero at first); `fill` false: it is there already.
/// Returns the packed matrix, whose type may be another: 256 entries are looked up once, into F16.
Matrix pack(const Matrix& matrix, std::byte* out, bool fill);

void matmul_own(const Matrix& matrix, const Activations& x, std::uint32_t row_begin, std::uint32_t row_end,
                const Output& out);

}  // namespace retort::kernels
