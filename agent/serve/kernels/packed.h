#pragma once

#include "agent/serve/kernels/kernels.h"

/// Inside the kernels: the two ways of multiplying, between which matmul() chooses by Matrix::packed.
namespace retort::kernels {

void matmul_rows(const Matrix& matrix, const Activations& x, std::uint32_t row_begin, std::uint32_t row_end,
                 const Output& out);

}  // namespace retort::kernels
