#pragma once

#include <torch/types.h>

/// Operations of a layer that LibTorch has only in several, each of which reads and writes all of its
/// tensors: here one loop (fused_loops.h) does all, there and back, computed in F32 and rounded once. So on a
/// CPU, for F32 and bfloat16; elsewhere they are LibTorch's several. Their gradients have gradients there
/// alone.
namespace retort {

/// SwiGLU's gate (Shazeer, 2002.05202): silu(gate) · up, of one shape and type.
at::Tensor silu_gate(const at::Tensor& gate, const at::Tensor& up);

/// Rotary positions (Su et al., 2104.09864, section 3.2.2, of pairs of a feature and the one half a head
/// further): x [batch, seq, heads, D] by the angles whose cosines and sines are [seq, 1, D], both halves
/// alike.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

/// x [..., width] over the root of its mean square (Zhang and Sennrich, 1910.07467, equation 4), times a
/// weight [width].
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

}  // namespace retort
