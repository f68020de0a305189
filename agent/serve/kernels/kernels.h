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
  /// Part of a packed whole that no cache holds, of kCachedBytes and more: a product with one token then asks
  /// for weights some KB ahead.
  bool far = false;
};
/// Prefetching pays from here on: at 45 and 117 MB it gained 10 to 25 %, at 16 MB it cost 7 %.
constexpr std::uint64_t kCachedBytes = 24 << 20;

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

/// Blocks of 32: scale = max|x| / 127, q = round(x / scale), and the scale then rounded to F16, as llama.cpp
/// does with activations. start = −8 Σ q is what the sums of packed matrices begin with, so that the offset
/// of their unsigned values comes off again.
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
/// The same table over the pairs (x[i], x[i + pairs]), i < pairs: Hugging Face's order, which GGUF keeps for
/// Qwen2.
void rope_halves(float* x, std::uint32_t n_head, std::uint32_t head_dim, std::uint32_t pairs,
                 const float* table);
/// The logarithm of the sum of exponentials: log softmax is x[i] minus this.
double log_sum_exp(const float* x, std::size_t n);

/// out = exp(scale (x − top)), top ≥ every x, scale ≥ 0; returns their sum.
double exponentials(const float* x, std::size_t n, float scale, float top, float* out);

/// KL(p ‖ q) in nats of the distributions that two rows of logits stand for; lse_p and lse_q are their
/// log_sum_exp.
double kl_divergence(const float* p, double lse_p, const float* q, double lse_q, std::size_t n);
/// False where one is infinite or no number: what a broken model computes.
bool all_finite(const float* x, std::size_t n);
/// The index of the largest value; the first of equals.
std::size_t best(const float* x, std::size_t n);

/// K and V caches lie in blocks of so many positions, [block][head_dim][kPositionBlock] for each head, and
/// hold F32, F16 or Q8: whole numbers, and behind a block's values an F32 scale for each of its positions. A
/// head's values of one position are rounded for themselves, as max|x| / 127 wants it, so that what was
/// stored before never changes.
constexpr std::uint32_t kPositionBlock = 16;
enum class CacheType { kF32, kF16, kQ8 };
/// Bytes of a block of one head.
constexpr std::size_t cache_block_bytes(CacheType type, std::uint32_t head_dim) {
  const std::size_t values = std::size_t{head_dim} * kPositionBlock;
  return type == CacheType::kF32   ? 4 * values
         : type == CacheType::kF16 ? 2 * values
                                   : values + 4 * kPositionBlock;
}
constexpr std::uint32_t kAttentionTokens = 4, kScoreRows = 16;
/// Keys or values of `count` (at most kAttentionTokens) consecutive positions: row t, at data + t * stride,
/// holds [heads][dim].
struct Stored {
  const float* data = nullptr;
  std::size_t stride = 0;
  std::uint32_t count = 1, heads = 1, dim = 0;
};
/// Puts them at `position` and those behind it into caches that begin `head_bytes` apart.
void store(const Stored& x, CacheType type, std::uint32_t position, std::size_t head_bytes,
           std::byte* caches);

/// Some neighbouring K and V heads of one stream's caches; every value in their blocks is finite (zero at
/// first).
struct Heads {
  CacheType type = CacheType::kF32;
  const std::byte *keys = nullptr, *values = nullptr;  ///< of the first head
  std::size_t bytes = 0;                               ///< from one head to the next
  std::uint32_t count = 1, dim = 0;
};
/// Queries of each head: query t of head h at data + h * count * dim + t * stride.
struct Queries {
  const float* data = nullptr;
  std::size_t stride = 0;
  std::uint32_t count = 1;  ///< at most kAttentionTokens
};
/// Scratch of kScoreRows rows; stride ≥ the positions seen, rounded up to whole blocks.
struct Scores {
  float* data = nullptr;
  std::size_t stride = 0;
};
/// Where results go, laid out as queries are.
struct Attended {
  float* data = nullptr;
  std::size_t stride = 0;
};
/// Attention of each head's queries, count * heads.count ≤ kScoreRows in all. The first query sees positions
/// [0, n), each next one `step` more: 1 for consecutive tokens, 0 for the query heads of one token that share
/// the K and V head. out[d] = Σ_j softmax_j(scale · q·k_j) v_j[d].
void attention(const Queries& q, const Heads& heads, std::uint32_t n, std::uint32_t step, float scale,
               const Scores& scores, const Attended& out);

/// The instruction set in use ("AVX512_VNNI", "AVX2", "NEON_DOT"), for reports.
const char* instruction_set();
/// Those that this build has and this processor runs, the best first.
std::vector<std::string> instruction_sets();
/// Uses one of them from now on, in the whole process (tests; comparing them): false when it is not among
/// them.
bool use_instruction_set(std::string_view name);

}  // namespace retort::kernels
