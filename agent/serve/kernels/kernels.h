#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/blocks/tensor_type.h"

/// The arithmetic of a forward pass: portable SIMD (Highway), the instruction set chosen at run time. No
/// function allocates, and none checks sizes: the graph planned them at load. Sums run in the same order
/// whatever the batch, so that prefill in chunks gives the same bits as token by token. Thread: any.
namespace retort::kernels {

/// A weight matrix as it lies in the file, row-major, each row row_bytes(type, columns) bytes.
struct Matrix {
  TensorType type = TensorType::kF32;
  std::uint32_t rows = 0, columns = 0;
  const std::byte* data = nullptr;
};

/// What a matrix is multiplied with: `count` rows (one a token) of `columns` values. q8 and q8_scale are
/// read by Q8_0 matrices only (columns is a multiple of 32 there): quantize_q8 of each row.
struct Activations {
  std::uint32_t count = 0, columns = 0;
  const float* f32 = nullptr;        ///< [count][columns]
  const std::int16_t* q8 = nullptr;  ///< [count][columns], values −127…127
  const float* q8_scale = nullptr;   ///< [count][columns / 32]
};

/// Blocks of 32: scale = max|x| / 127, q = round(x / scale), as llama.cpp does with activations.
void quantize_q8(const float* x, std::uint32_t columns, std::int16_t* q, float* scale);

/// out[t * out_stride + r] = matrix row r · activation row t (+ bias[r]), for r in [row_begin, row_end) and
/// every t. Threads may share one product by splitting the rows. `bias` may be null.
void matmul(const Matrix& matrix, const Activations& x, std::uint32_t row_begin, std::uint32_t row_end,
            const float* bias, float* out, std::size_t out_stride);

/// out = x / sqrt(mean(x²) + eps) * weight.
void rms_norm(const float* x, const float* weight, std::uint32_t n, float eps, float* out);
/// out = (x − mean) / sqrt(variance + eps) * weight + bias.
void layer_norm(const float* x, const float* weight, const float* bias, std::uint32_t n, float eps,
                float* out);
/// x += y.
void add(float* x, const float* y, std::size_t n);
/// gate = silu(gate) * up.
void silu_mul(float* gate, const float* up, std::size_t n);
/// x = gelu(x), the tanh form (GPT-2's "gelu_new").
void gelu(float* x, std::size_t n);
/// Rotates the pairs (x[2i], x[2i+1]) of each of `n_head` heads by an angle whose cosine and sine are
/// cosine[i], sine[i], i < head_dim / 2: GGUF's order for Llama.
void rope(float* x, std::uint32_t n_head, std::uint32_t head_dim, const float* cosine, const float* sine);
/// The logarithm of the sum of exponentials: log softmax is x[i] minus this.
double log_sum_exp(const float* x, std::size_t n);

/// KL(p ‖ q) in nats of the distributions that two rows of logits stand for; lse_p and lse_q are their
/// log_sum_exp.
double kl_divergence(const float* p, double lse_p, const float* q, double lse_q, std::size_t n);
/// The index of the largest value; the first of equals.
std::size_t best(const float* x, std::size_t n);

/// Positions that a row of the K and V caches is padded to.
constexpr std::uint32_t kPositionBlock = 16;

/// One head's attention for one token over positions [0, n). Caches lie dimension by dimension, so that even
/// narrow heads fill a vector: k and v: [head_dim][stride], stride a multiple of kPositionBlock and ≥ n, and
/// every value in them finite (zero at first). `scores` is scratch of `stride` floats.
/// out[d] = Σ_j softmax_j(scale · q·k_j) v_j[d].
void attention(const float* q, const float* k, const float* v, std::uint32_t n, std::size_t stride,
               std::uint32_t head_dim, float scale, float* scores, float* out);

/// The instruction set in use ("AVX3_DL"), for reports.
const char* instruction_set();
/// Those that this build has and this processor runs, the best first.
std::vector<std::string> instruction_sets();
/// Uses one of them from now on, in the whole process (tests; comparing them): false when it is not among
/// them.
bool use_instruction_set(std::string_view name);

}  // namespace retort::kernels
