#pragma once

#include <cstddef>
#include <cstdint>

/// What only encoders compute; see kernels.h for what holds for all kernels. Thread: any.
namespace retort::kernels {

/// Floats of scratch that attention_all() takes.
std::size_t attention_all_scratch(std::uint32_t n, std::uint32_t head_dim);

/// Attention of the `n` tokens of a text to one another, for one head: out[i] = Σ_j softmax_j(scale ·
/// q_i·k_j) v_j. q, k, v: the first token's head_dim values, the next tokens' `stride` further; out likewise.
/// `scratch`: attention_all_scratch(n, head_dim) floats, 64-byte aligned. A text's results do not depend on
/// what else is computed.
void attention_all(const float* q, const float* k, const float* v, std::size_t stride, std::uint32_t n,
                   std::uint32_t head_dim, float scale, float* scratch, float* out, std::size_t out_stride);

}  // namespace retort::kernels
