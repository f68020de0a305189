#pragma once

#include <cstddef>
#include <cstdint>

/// What perceptrons, convolutional networks and encoders do beside matrix products and attention. Maps are
/// [row][column][channel], F32. No function allocates or checks sizes. Thread: any.
namespace retort::kernels {

/// x = max(x, 0); what is not a number becomes 0.
void relu(float* x, std::size_t n);
/// x = tanh(x).
void hyperbolic_tangent(float* x, std::size_t n);
/// x = x Φ(x) [Hendrycks 2016], Φ by [Abramowitz 1964, 7.1.26], within 2e-7 of |x|.
void gelu_erf(float* x, std::size_t n);

/// Windows of size × size positions at every stride-th position, along a map's rows.
struct PoolWindows {
  std::uint32_t size = 0, stride = 0;
};
/// One row of a pooled map: out [out_width][channels] from the rows that begin at `in`, `row_size` values
/// apart. The largest value of each window, or its mean.
void max_pool(const float* in, std::size_t row_size, std::uint32_t channels, PoolWindows windows,
              std::uint32_t out_width, float* out);
void average_pool(const float* in, std::size_t row_size, std::uint32_t channels, PoolWindows windows,
                  std::uint32_t out_width, float* out);

}  // namespace retort::kernels
