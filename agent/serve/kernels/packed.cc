// Packed matrices. Groups of 16 rows, a lane each, so that no sum ever has to be added up across lanes:
//   F32, F16, BF16   [group][column][16]
//   Q8_0             [group]{[block of 32][8][16 rows][4 columns] q + 128 as u8; [block][16] scale, F16}
//   Q4_0             [group]{[block of 32][4][16 rows][4] column c | column c + 16 << 4; [block][16] scale,
//   F16}
// The quantized layouts feed VNNI's dot product of four u8 with four s8 per 32-bit lane; the offset (128, 8)
// comes off by starting each block's sum at −offset · Σ q of the activations (their q8_start). A row's sum
// runs over the columns in order whatever the tile, so that neither batch nor split changes a bit.
#include "agent/serve/kernels/packed.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "agent/serve/kernels/packed.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace retort::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::CappedTag<float, kGroupRows>;
using F = hn::Vec<Floats>;

// Vectors that make up a group's 16 rows.
#undef RETORT_PARTS
#undef RETORT_VNNI
#if HWY_TARGET <= HWY_AVX3
#define RETORT_PARTS 1
#elif HWY_TARGET <= HWY_AVX2
#define RETORT_PARTS 2
#else
#define RETORT_PARTS 4
#endif
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
#define RETORT_VNNI 1
#else
#define RETORT_VNNI 0
#endif

/// Puts a group's sums for one token where they belong: `left` rows of it exist.
HWY_INLINE void put(const F* sums, std::size_t row, std::size_t token, std::size_t left, const Output& out) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  float* to = out.data + token * out.stride + row;
  const float* bias = out.bias == nullptr ? nullptr : out.bias + row;
  if (left >= kGroupRows) {
    for (int p = 0; p < RETORT_PARTS; ++p, to += lanes) {
      F sum = sums[p];
      if (bias != nullptr) sum = hn::Add(sum, hn::LoadU(d, bias + p * lanes));
      if (out.add) sum = hn::Add(sum, hn::LoadU(d, to));
      hn::StoreU(sum, d, to);
    }
    return;
  }
  HWY_ALIGN float buffer[kGroupRows];
  for (int p = 0; p < RETORT_PARTS; ++p) hn::Store(sums[p], d, buffer + p * lanes);
  for (std::size_t r = 0; r < left; ++r) {
    float sum = buffer[r];
    if (bias != nullptr) sum += bias[r];
    to[r] = out.add ? sum + to[r] : sum;
  }
}

struct LoadF32 {
  using Value = float;
  static HWY_INLINE F load(const float* p) { return hn::LoadU(Floats(), p); }
};
template <class Half16>
struct Load16 {
  using Value = Half16;
  static HWY_INLINE F load(const Half16* p) {
    return hn::PromoteTo(Floats(), hn::LoadU(hn::Rebind<Half16, Floats>(), p));
  }
};

/// R groups of rows with T tokens.
template <class Load, int R, int T>
HWY_INLINE void tile_float(const typename Load::Value* w, std::size_t group_size, const float* x,
                           std::size_t columns, std::size_t row, std::size_t token, std::size_t rows,
                           const Output& out) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  F sums[R][T][RETORT_PARTS];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t)
      for (int p = 0; p < RETORT_PARTS; ++p) sums[r][t][p] = hn::Zero(d);
  for (std::size_t c = 0; c < columns; ++c) {
    F weights[R][RETORT_PARTS];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < RETORT_PARTS; ++p)
        weights[r][p] = Load::load(w + r * group_size + c * kGroupRows + p * lanes);
    for (int t = 0; t < T; ++t) {
      const F value = hn::Set(d, x[t * columns + c]);
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < RETORT_PARTS; ++p)
          sums[r][t][p] = hn::MulAdd(weights[r][p], value, sums[r][t][p]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t)
      put(sums[r][t], row + r * kGroupRows, token + t, rows - (row + r * kGroupRows), out);
}

/// Walks groups, several together for one token (so that enough sums are under way at once), else one group
/// for many tokens; the group stays in the first-level cache while the tokens pass.
template <int kMany, int kManyOfTwo, class Tile>
HWY_INLINE void walk(std::uint32_t begin, std::uint32_t end, std::uint32_t count, Tile tile) {
  const auto of = [](auto value) { return value; };
  std::uint32_t g = begin;
  using std::integral_constant;
  if (count < 4) {
    for (; g + 4 <= end; g += 4) {
      std::uint32_t t = 0;
      if constexpr (RETORT_PARTS == 1)
        for (; t + 2 <= count; t += 2)
          tile(of(integral_constant<int, 4>()), of(integral_constant<int, 2>()), g, t);
      for (; t < count; ++t) tile(of(integral_constant<int, 4>()), of(integral_constant<int, 1>()), g, t);
    }
    for (; g + 2 <= end; g += 2)
      for (std::uint32_t t = 0; t < count; ++t)
        tile(of(integral_constant<int, 2>()), of(integral_constant<int, 1>()), g, t);
  }
  if constexpr (kManyOfTwo > 0)
    if (count >= 4)
      for (; g + 2 <= end; g += 2) {
        const integral_constant<int, 2> two;
        std::uint32_t t = 0;
        for (; t + kManyOfTwo <= count; t += kManyOfTwo)
          tile(two, of(integral_constant<int, kManyOfTwo>()), g, t);
        for (; t + 4 <= count; t += 4) tile(two, of(integral_constant<int, 4>()), g, t);
        for (; t < count; ++t) tile(two, of(integral_constant<int, 1>()), g, t);
      }
  for (; g < end; ++g) {
    std::uint32_t t = 0;
    for (; t + kMany <= count; t += kMany)
      tile(of(integral_constant<int, 1>()), of(integral_constant<int, kMany>()), g, t);
    if constexpr (kMany > 8)
      for (; t + 8 <= count; t += 8)
        tile(of(integral_constant<int, 1>()), of(integral_constant<int, 8>()), g, t);
    if constexpr (kMany > 4)
      for (; t + 4 <= count; t += 4)
        tile(of(integral_constant<int, 1>()), of(integral_constant<int, 4>()), g, t);
    if constexpr (kMany > 2)
      for (; t + 2 <= count; t += 2)
        tile(of(integral_constant<int, 1>()), of(integral_constant<int, 2>()), g, t);
    for (; t < count; ++t) tile(of(integral_constant<int, 1>()), of(integral_constant<int, 1>()), g, t);
  }
}

template <class Load>
void matmul_float(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                  const Output& out) {
  const std::size_t columns = m.columns, group_size = columns * kGroupRows;
  const auto* w = reinterpret_cast<const typename Load::Value*>(m.data);
  walk<RETORT_PARTS == 1   ? 12
       : RETORT_PARTS == 2 ? 4
                           : 2,
       0>(begin, end, x.count, [&](auto r, auto t, std::uint32_t g, std::uint32_t token) HWY_ATTR {
    tile_float<Load, decltype(r)::value, decltype(t)::value>(
        w + g * group_size, group_size, x.f32 + token * columns, columns, g * kGroupRows, token, m.rows, out);
  });
}

#if RETORT_VNNI
// Highway 1.0.3 checks the processor for AVX-512 VNNI, but compiles for AVX-VNNI.
#pragma GCC target("avx512vnni")
/// How a block of 32 columns of 16 rows lies in memory. dots(): adds to the T sums of 16 rows the products of
/// the block with T activation rows `stride` bytes apart.
struct BlockQ8 {
  static constexpr std::size_t kBytes = 512;
  static HWY_INLINE __m512i start(__m512i minus_eight_sums) { return _mm512_slli_epi32(minus_eight_sums, 4); }
  template <int R, int T>
  static HWY_INLINE void dots(const std::byte* const (&w)[R], const std::int8_t* x, std::size_t stride,
                              __m512i (&sums)[R][T]) {
    for (int j = 0; j < 8; ++j) {
      __m512i weights[R];
      for (int r = 0; r < R; ++r) weights[r] = _mm512_load_si512(w[r] + 64 * j);
      for (int t = 0; t < T; ++t) {
        const __m512i value = broadcast(x + t * stride + 4 * j);
        for (int r = 0; r < R; ++r) sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], weights[r], value);
      }
    }
  }
  static HWY_INLINE __m512i broadcast(const std::int8_t* p) {
    int four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
};
struct BlockQ4 {
  static constexpr std::size_t kBytes = 256;
  static HWY_INLINE __m512i start(__m512i minus_eight_sums) { return minus_eight_sums; }
  template <int R, int T>
  static HWY_INLINE void dots(const std::byte* const (&w)[R], const std::int8_t* x, std::size_t stride,
                              __m512i (&sums)[R][T]) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int j = 0; j < 4; ++j) {
      __m512i first[R], second[R];
      for (int r = 0; r < R; ++r) {
        const __m512i both = _mm512_load_si512(w[r] + 64 * j);
        first[r] = _mm512_and_si512(both, low);
        second[r] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      }
      for (int t = 0; t < T; ++t) {
        const __m512i a = BlockQ8::broadcast(x + t * stride + 4 * j),
                      b = BlockQ8::broadcast(x + t * stride + 16 + 4 * j);
        for (int r = 0; r < R; ++r) {
          sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], first[r], a);
          sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], second[r], b);
        }
      }
    }
  }
};

template <class Block, int R, int T>
HWY_INLINE void tile_vnni(const std::byte* w, std::size_t group_bytes, const std::int8_t* x,
                          const float* scales, const std::int32_t* starts, std::size_t columns,
                          std::size_t row, std::size_t token, std::size_t rows, const Output& out) {
  const std::size_t blocks = columns / 32;
  __m512 totals[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) totals[r][t] = _mm512_setzero_ps();
  for (std::size_t b = 0; b < blocks; ++b) {
    const std::byte* at[R];
    for (int r = 0; r < R; ++r) at[r] = w + r * group_bytes + b * Block::kBytes;
    __m512i sums[R][T];
    for (int t = 0; t < T; ++t) {
      const __m512i start =
          Block::start(BlockQ8::broadcast(reinterpret_cast<const std::int8_t*>(starts + t * blocks + b)));
      for (int r = 0; r < R; ++r) sums[r][t] = start;
    }
    Block::dots(at, x + b * 32, columns, sums);
    for (int r = 0; r < R; ++r) {
      const __m512 scale = _mm512_cvtph_ps(_mm256_load_si256(
          reinterpret_cast<const __m256i*>(w + r * group_bytes + blocks * Block::kBytes + b * 32)));
      for (int t = 0; t < T; ++t)
        totals[r][t] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][t]),
                            _mm512_mul_ps(scale, _mm512_set1_ps(scales[t * blocks + b])), totals[r][t]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) {
      const F sum{totals[r][t]};
      put(&sum, row + r * kGroupRows, token + t, rows - (row + r * kGroupRows), out);
    }
}

template <class Block>
void matmul_vnni(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                 const Output& out) {
  const std::size_t columns = m.columns, blocks = columns / 32;
  const std::size_t group_bytes = packed_bytes(m.type, kGroupRows, m.columns);
  walk<8, 6>(begin, end, x.count, [&](auto r, auto t, std::uint32_t g, std::uint32_t token) HWY_ATTR {
    tile_vnni<Block, decltype(r)::value, decltype(t)::value>(
        m.data + g * group_bytes, group_bytes, x.q8 + token * columns, x.q8_scale + token * blocks,
        x.q8_start + token * blocks, columns, g * kGroupRows, token, m.rows, out);
  });
}
#endif  // RETORT_VNNI

void MatmulPacked(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                  const Output& out) {
  switch (m.type) {
    case TensorType::kF32:
      return matmul_float<LoadF32>(m, x, begin, end, out);
    case TensorType::kF16:
      return matmul_float<Load16<hwy::float16_t>>(m, x, begin, end, out);
    case TensorType::kBF16:
      return matmul_float<Load16<hwy::bfloat16_t>>(m, x, begin, end, out);
#if RETORT_VNNI
    case TensorType::kQ8_0:
      return matmul_vnni<BlockQ8>(m, x, begin, end, out);
    case TensorType::kQ4_0:
      return matmul_vnni<BlockQ4>(m, x, begin, end, out);
#endif
    default:
      HWY_ABORT("a matrix was packed for another instruction set");
  }
}

/// Bytes of a group of rows; 0 where this instruction set has no packed layout of the type.
std::size_t GroupBytes(TensorType type, std::size_t columns) {
  const auto aligned = [](std::size_t bytes) { return (bytes + 63) / 64 * 64; };
  switch (type) {
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16:
      return info(type).block_bytes * columns * kGroupRows;
#if RETORT_VNNI
    case TensorType::kQ8_0:
      return aligned(columns / 32 * (BlockQ8::kBytes + 32));
    case TensorType::kQ4_0:
      return aligned(columns / 32 * (BlockQ4::kBytes + 32));
#endif
    default:
      (void)aligned;
      return 0;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace retort::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace retort::kernels {

HWY_EXPORT(MatmulPacked);
HWY_EXPORT(GroupBytes);

std::size_t packed_bytes(TensorType type, std::uint32_t rows, std::uint32_t columns) {
  return (rows + kGroupRows - 1) / kGroupRows * HWY_DYNAMIC_DISPATCH(GroupBytes)(type, columns);
}

std::uint32_t packing_version() { return 1; }

void pack(const Matrix& matrix, std::uint32_t first_row, [[maybe_unused]] std::uint32_t rows,
          std::byte* out) {
  const std::size_t group_bytes = packed_bytes(matrix.type, kGroupRows, matrix.columns);
  const std::size_t row_size = *row_bytes(matrix.type, matrix.columns), blocks = matrix.columns / 32;
  for (std::uint32_t r = 0; r < matrix.rows; ++r) {
    const std::byte* row = matrix.data + r * row_size;
    const std::size_t lane = (first_row + r) % kGroupRows;
    std::byte* const group = out + (first_row + r) / kGroupRows * group_bytes;
    switch (matrix.type) {
      case TensorType::kF32:
      case TensorType::kF16:
      case TensorType::kBF16: {
        const std::size_t size = info(matrix.type).block_bytes;
        for (std::size_t c = 0; c < matrix.columns; ++c)
          std::memcpy(group + (c * kGroupRows + lane) * size, row + c * size, size);
        break;
      }
      case TensorType::kQ8_0:
        for (std::size_t b = 0; b < blocks; ++b, row += 34) {
          std::memcpy(group + blocks * 512 + b * 32 + lane * 2, row, 2);
          for (std::size_t c = 0; c < 32; ++c)
            group[b * 512 + c / 4 * 64 + lane * 4 + c % 4] = row[2 + c] ^ std::byte{128};
        }
        break;
      case TensorType::kQ4_0:  // the file's own halves: column c below column c + 16
        for (std::size_t b = 0; b < blocks; ++b, row += 18) {
          std::memcpy(group + blocks * 256 + b * 32 + lane * 2, row, 2);
          for (std::size_t c = 0; c < 16; ++c) group[b * 256 + c / 4 * 64 + lane * 4 + c % 4] = row[2 + c];
        }
        break;
    }
  }
}

void matmul(const Matrix& matrix, const Activations& x, std::uint32_t row_begin, std::uint32_t row_end,
            const Output& out) {
  if (!matrix.packed) return matmul_rows(matrix, x, row_begin, row_end, out);
  HWY_DYNAMIC_DISPATCH(MatmulPacked)
  (matrix, x, row_begin / kGroupRows, (row_end + kGroupRows - 1) / kGroupRows, out);
}

}  // namespace retort::kernels
#endif
