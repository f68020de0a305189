#pragma once

#include <cstddef>
#include <cstdint>

/// fused.h's operations over plain memory, one thread's part of them. `Value` is float or Bf16; all is
/// computed in F32. Thread: any, on memory of its own.
namespace retort::loops {

enum class Bf16 : std::uint16_t {};  ///< bfloat16's bits

/// out = silu(gate) · up
template <typename Value>
void silu_gate(const Value* gate, const Value* up, Value* out, std::size_t n);
/// Its gradients, of out's.
template <typename Value>
void silu_gate_back(const Value* gate, const Value* up, const Value* of_out, Value* of_gate, Value* of_up,
                    std::size_t n);

/// `count` heads of one position, each of `width` values, turned by its angles' cosines and sines [width];
/// backwards where `sign` is -1.
template <typename Value>
void rotate(const Value* x, Value* out, const float* cos, const float* sin, float sign, std::size_t count,
            std::size_t width);

/// Rows over the root of their mean square, times `weight` [width].
template <typename Value>
void rms_norm(const Value* x, const float* weight, Value* out, double epsilon, std::size_t rows,
              std::size_t width);
/// Its gradients, of out's; `of_weight` [width] is added to.
template <typename Value>
void rms_norm_back(const Value* x, const float* weight, const Value* of_out, Value* of_x, float* of_weight,
                   double epsilon, std::size_t rows, std::size_t width);

}  // namespace retort::loops
