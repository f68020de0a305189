#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "common/blocks/tensor_type.h"

namespace retort {

/// A matrix as the file holds it: rows of `columns` values, one row after another.
struct Matrix {
  TensorType type = TensorType::kF32;
  const std::byte* data = nullptr;
  std::uint32_t rows = 0, columns = 0;
  std::uint64_t row_bytes = 0;
};

/// 32 activations as 8-bit integers: value = scale * q. The partner of a Q8_0 block in a dot product.
struct ActivationBlock {
  float scale;
  std::int8_t q[32];
};

/// The arithmetic of one instruction set. Plain functions over caller's memory; no allocation, no errors.
/// Thread: any.
struct Kernels {
  std::string_view name;  ///< "avx512-vnni", "avx2", "baseline"
  float (*dot_f32)(const float* a, const float* b, std::size_t n);
  float (*dot_f16)(const std::uint16_t* a, const float* b, std::size_t n);
  float (*dot_bf16)(const std::uint16_t* a, const float* b, std::size_t n);
  /// n is a multiple of 32; `a` are Q8_0 blocks of 34 bytes.
  float (*dot_q8_0)(const std::byte* a, const ActivationBlock* b, std::size_t n);
  void (*quantize)(const float* x, ActivationBlock* out, std::size_t n);
  /// y += scale * x
  void (*axpy)(float* y, const float* x, float scale, std::size_t n);
  float (*sum_of_squares)(const float* x, std::size_t n);
};

/// The fastest that this processor runs; RETORT_KERNELS=baseline|avx2|avx512-vnni forces one (for tests).
const Kernels& kernels();
/// Every set that this processor runs, the baseline first.
std::span<const Kernels* const> available_kernels();

/// out[t * out_stride + r] = dot(row r of w, x[t]), for r in [first_row, last_row) and t in [0, count).
/// `x`: [count, columns] f32; `quantized`: the same as blocks [count, columns / 32], needed when w is Q8_0.
void matmul(const Kernels& k, const Matrix& w, std::uint32_t first_row, std::uint32_t last_row,
            const float* x, const ActivationBlock* quantized, std::size_t count, float* out,
            std::size_t out_stride);

}  // namespace retort
