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

/// Rows of a packed matrix stand in groups of so many, a lane each.
constexpr std::uint32_t kGroupRows = 16;

/// A weight matrix: as it lies in the file, row-major, each row row_bytes(type, columns) bytes; or packed.
struct Matrix {
  TensorType type = TensorType::kF32;
  std::uint32_t rows = 0, columns = 0;
  const std::byte* data = nullptr;
  bool packed = false;
};

/// Bytes of a matrix in the layout that the instruction set in use multiplies fastest; 0 where that is the
/// file's own. The layout belongs to that instruction set and to packing_version().
std::size_t packed_bytes(TensorType type, std::uint32_t rows, std::uint32_t columns);
/// Writes rows [0, matrix.rows) of a matrix as the rows from `first_row` on of a packed one of `rows` rows,
/// at `out` (64-byte aligned, packed_bytes(type, rows, columns) bytes, zero at first): matrices that share an
/// input can so be stacked into one.
void pack(const Matrix& matrix, std::uint32_t first_row, std::uint32_t rows, std::byte* out);
/// Changes whenever a packed layout does.
std::uint32_t packing_version();

/// What a matrix is multiplied with: `count` rows (one a token) of `columns` values. The q8 parts are read by
/// quantized matrices only (columns is a multiple of 32 there): quantize_q8 of each row.
struct Activations {
  std::uint32_t count = 0, columns = 0;
  const float* f32 = nullptr;                   ///< [count][columns]
  const std::int8_t* q8 = nullptr;              ///< [count][columns], values −127…127
  const float* q8_scale = nullptr;              ///< [count][columns / 32]
  const std::int32_t* q8_start = nullptr;       ///< [count][columns / 32], −8 Σ q of the block
  const std::int32_t* q8_half_start = nullptr;  ///< [count][columns / 16], the same of its halves
};

/// Blocks of 32: scale = max|x| / 127, q = round(x / scale), as llama.cpp does with activations. start = −8 Σ
/// q is what the sums of packed matrices begin with, so that the offset of their unsigned values comes off
/// again.
void quantize_q8(const float* x, std::uint32_t columns, std::int8_t* q, float* scale, std::int32_t* start,
                 std::int32_t* half_start);

/// Where a product goes: data[t * stride + r], for token t and row r.
struct Output {
  float* data = nullptr;
  std::size_t stride = 0;
  const float* bias = nullptr;  ///< [rows], added; may be null
  bool add = false;             ///< to what is there
};

/// matrix row r · activation row t, for r in [row_begin, row_end) and every t. Threads may share one product
/// by splitting the rows; of a packed matrix at multiples of kGroupRows (or its end).
void matmul(const Matrix& matrix, const Activations& x, std::uint32_t row_begin, std::uint32_t row_end,
            const Output& out);

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
/// Rotates the pairs (x[2i], x[2i+1]) of each of `n_head` heads by an angle: GGUF's order for Llama. `table`:
/// for each dimension its pair's cosine [head_dim], then −sine, +sine in turn [head_dim].
void rope(float* x, std::uint32_t n_head, std::uint32_t head_dim, const float* table);
/// The logarithm of the sum of exponentials: log softmax is x[i] minus this.
double log_sum_exp(const float* x, std::size_t n);

/// out = exp(scale (x − top)), top ≥ every x, scale ≥ 0; returns their sum.
double exponentials(const float* x, std::size_t n, float scale, float top, float* out);

/// KL(p ‖ q) in nats of the distributions that two rows of logits stand for; lse_p and lse_q are their
/// log_sum_exp.
double kl_divergence(const float* p, double lse_p, const float* q, double lse_q, std::size_t n);
/// The index of the largest value; the first of equals.
std::size_t best(const float* x, std::size_t n);

/// K and V caches lie in blocks of so many positions, [block][head_dim][kPositionBlock] for each head, and
/// hold F32 or F16.
constexpr std::uint32_t kPositionBlock = 16;
enum class CacheType { kF32, kF16 };
constexpr std::size_t cache_bytes(CacheType type) { return type == CacheType::kF32 ? 4 : 2; }
/// Puts one position of `n_head` heads, x [n_head][head_dim], into caches that begin `head_size` values
/// apart.
void store(CacheType type, const float* x, std::uint32_t n_head, std::uint32_t head_dim,
           std::uint32_t position, std::size_t head_size, void* caches);

/// Attention of `count` queries (at most kAttentionTokens) to one head's keys and values. The first sees
/// positions [0, n), each next one `step` more: 1 for consecutive tokens, 0 for the query heads of one token
/// that share the K and V head. Every value in the caches' blocks is finite (zero at first). q and out: rows
/// `q_stride` and `out_stride` apart. `scores`: scratch of count * score_stride floats, score_stride ≥
/// n + count rounded up to whole blocks. out[d] = Σ_j softmax_j(scale · q·k_j) v_j[d].
constexpr std::uint32_t kAttentionTokens = 4;
void attention(CacheType type, const float* q, std::size_t q_stride, std::uint32_t count, std::uint32_t step,
               const void* k, const void* v, std::uint32_t n, std::uint32_t head_dim, float scale,
               float* scores, std::size_t score_stride, float* out, std::size_t out_stride);

/// The instruction set in use ("AVX3_DL"), for reports.
const char* instruction_set();
/// Those that this build has and this processor runs, the best first.
std::vector<std::string> instruction_sets();
/// Uses one of them from now on, in the whole process (tests; comparing them): false when it is not among
/// them.
bool use_instruction_set(std::string_view name);

}  // namespace retort::kernels
