// Packed matrices. Groups of 16 rows, a lane each, so that no sum ever has to be added up across lanes:
//   F32, F16, BF16   [group][column][16]
// and, where there is VNNI, blocks of 32 columns, their values unsigned, then the blocks' scales in F16:
//   Q8_0             [group]{[block]{[8][16 rows][4 columns] q + 128}; [block][16] scale}
//   4 bits           [group]{[block]{[4][16 rows][4] column c | column c + 16 << 4}; [block][16] scale}
//                    Q4_0 q + 8; IQ4_NL the index; Q4_K q; Q3_K q + 4
//   Q5_K, Q6_K       the same with the fifth bits in 64 more bytes a block, the fifth and sixth in 128 (q +
//   32)
// Q3_K and Q6_K have a scale for each half of a block, Q4_K and Q5_K a scale and an eighth of a min: two [16]
// a block. VNNI multiplies four u8 with four s8 per 32-bit lane; the offset comes off by starting each
// block's sum at −offset · Σ q of the activations (made of q8_start), and min · Σ q likewise. A row's sum
// runs over the columns in order whatever the tile, so that neither batch nor split changes a bit.
#include "agent/serve/kernels/packed.h"

#include "agent/serve/kernels/own_formats.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "common/blocks/k_quants.h"

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
template <int kMany, int kManyOfTwo, int kGroups, class Tile>
HWY_INLINE void walk(std::uint32_t begin, std::uint32_t end, std::uint32_t count, Tile tile) {
  const auto of = [](auto value) { return value; };
  std::uint32_t g = begin;
  using std::integral_constant;
  if (count < 4) {
    for (; g + kGroups <= end; g += kGroups) {
      std::uint32_t t = 0;
      if constexpr (RETORT_PARTS == 1)
        for (; t + 2 <= count; t += 2)
          tile(of(integral_constant<int, kGroups>()), of(integral_constant<int, 2>()), g, t);
      for (; t < count; ++t)
        tile(of(integral_constant<int, kGroups>()), of(integral_constant<int, 1>()), g, t);
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
       0, 4>(begin, end, x.count, [&](auto r, auto t, std::uint32_t g, std::uint32_t token) HWY_ATTR {
    tile_float<Load, decltype(r)::value, decltype(t)::value>(
        w + g * group_size, group_size, x.f32 + token * columns, columns, g * kGroupRows, token, m.rows, out);
  });
}

#if RETORT_VNNI
// Highway 1.0.3 checks the processor for AVX-512 VNNI, but compiles for AVX-VNNI.
#pragma GCC target("avx512vnni")
HWY_INLINE __m512i broadcast(const void* p) {
  int four;
  std::memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}

// How the unsigned values of a block lie in memory: load() gives columns 4 j … 4 j + 3 of 16 rows, and those
// 16 further.
struct Bytes {
  static constexpr std::size_t kBytes = 512;
  static HWY_INLINE void load(const std::byte* w, int j, __m512i& first, __m512i& second) {
    first = _mm512_load_si512(w + 64 * j);
    second = _mm512_load_si512(w + 256 + 64 * j);
  }
};
struct Nibbles {
  static constexpr std::size_t kBytes = 256;
  static HWY_INLINE void load(const std::byte* w, int j, __m512i& first, __m512i& second) {
    const __m512i low = _mm512_set1_epi8(15), both = _mm512_load_si512(w + 64 * j);
    first = _mm512_and_si512(both, low);
    second = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
  }
};
/// 128 more than IQ4_NL's values.
alignas(16) constexpr std::uint8_t kTable[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                 129, 141, 153, 166, 181, 197, 217, 241};
struct Looked {
  static constexpr std::size_t kBytes = 256;
  static HWY_INLINE void load(const std::byte* w, int j, __m512i& first, __m512i& second) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kTable)));
    Nibbles::load(w, j, first, second);
    first = _mm512_shuffle_epi8(table, first);
    second = _mm512_shuffle_epi8(table, second);
  }
};
/// Bit j of the plane's bytes is the fifth of the first columns, bit j + 4 that of the second.
struct FiveBits {
  static constexpr std::size_t kBytes = 320;
  static HWY_INLINE void load(const std::byte* w, int j, __m512i& first, __m512i& second) {
    const __m512i bit = _mm512_set1_epi8(16), plane = _mm512_load_si512(w + 256);
    Nibbles::load(w, j, first, second);
    first =
        _mm512_or_si512(first, _mm512_and_si512(_mm512_slli_epi16(plane, static_cast<unsigned>(4 - j)), bit));
    second =
        _mm512_or_si512(second, _mm512_and_si512(_mm512_srli_epi16(plane, static_cast<unsigned>(j)), bit));
  }
};
/// Bits 2 j and 2 j + 1 of a plane's bytes; one plane for the first columns, one for the second.
struct SixBits {
  static constexpr std::size_t kBytes = 384;
  static HWY_INLINE __m512i high(const std::byte* plane, int j) {
    const __m512i bits = _mm512_set1_epi8(48), all = _mm512_load_si512(plane);
    return _mm512_and_si512(j < 2 ? _mm512_slli_epi16(all, static_cast<unsigned>(4 - 2 * j))
                                  : _mm512_srli_epi16(all, static_cast<unsigned>(2 * j - 4)),
                            bits);
  }
  static HWY_INLINE void load(const std::byte* w, int j, __m512i& first, __m512i& second) {
    Nibbles::load(w, j, first, second);
    first = _mm512_or_si512(first, high(w + 256, j));
    second = _mm512_or_si512(second, high(w + 320, j));
  }
};

/// What a block's scales mean.
enum class Scales { kOne, kHalves, kMin };

/// A format: its values, its scales, and how q8_start becomes the start of its sums (shifted left, or right
/// where it is negative).
template <class ItsValues, Scales kItsScales, int kItsShift>
struct Format {
  using Values = ItsValues;
  static constexpr Scales kScales = kItsScales;
  static constexpr std::size_t kScaleBytes = kScales == Scales::kOne ? 32 : 64;
  static constexpr std::size_t kBlockBytes = Values::kBytes + kScaleBytes;
  static HWY_INLINE __m512i start(const std::int32_t* q8_start) {
    const __m512i value = broadcast(q8_start);
    if constexpr (kScales == Scales::kMin) return _mm512_setzero_si512();
    if constexpr (kItsShift > 0) return _mm512_slli_epi32(value, kItsShift);
    if constexpr (kItsShift < 0) return _mm512_srai_epi32(value, -kItsShift);
    return value;
  }
};
using FormatQ8_0 = Format<Bytes, Scales::kOne, 4>;
using FormatQ4_0 = Format<Nibbles, Scales::kOne, 0>;
using FormatIq4Nl = Format<Looked, Scales::kOne, 4>;
using FormatQ3K = Format<Nibbles, Scales::kHalves, -1>;
using FormatQ4K = Format<Nibbles, Scales::kMin, 0>;
using FormatQ5K = Format<FiveBits, Scales::kMin, 0>;
using FormatQ6K = Format<SixBits, Scales::kHalves, 2>;

HWY_INLINE __m512 load_scale(const std::byte* p) {
  return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
}

template <class Format, int R, int T>
HWY_INLINE void tile_vnni(const std::byte* w, std::size_t group_bytes, const Activations& x, std::size_t row,
                          std::size_t token, std::size_t rows, const Output& out) {
  using Values = typename Format::Values;
  constexpr int kSums = Format::kScales == Scales::kHalves ? 2 : 1;
  const std::size_t columns = x.columns, blocks = columns / 32;
  const std::int8_t* const q = x.q8 + token * columns;
  const float* const scales = x.q8_scale + token * blocks;
  const std::int32_t* const starts =
      kSums == 2 ? x.q8_half_start + token * blocks * 2 : x.q8_start + token * blocks;
  __m512 totals[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) totals[r][t] = _mm512_setzero_ps();
  for (std::size_t b = 0; b < blocks; ++b) {
    __m512i sums[kSums][R][T];
    for (int t = 0; t < T; ++t)
      for (int half = 0; half < kSums; ++half) {
        const __m512i start = Format::start(starts + (t * blocks + b) * kSums + half);
        for (int r = 0; r < R; ++r) sums[half][r][t] = start;
      }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      __m512i first[R], second[R];
      for (int r = 0; r < R; ++r)
        Values::load(w + r * group_bytes + b * Values::kBytes, j, first[r], second[r]);
      for (int t = 0; t < T; ++t) {
        const __m512i a = broadcast(q + t * columns + b * 32 + 4 * j),
                      e = broadcast(q + t * columns + b * 32 + 16 + 4 * j);
        for (int r = 0; r < R; ++r) {
          sums[0][r][t] = _mm512_dpbusd_epi32(sums[0][r][t], first[r], a);
          sums[kSums - 1][r][t] = _mm512_dpbusd_epi32(sums[kSums - 1][r][t], second[r], e);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      const std::byte* const at = w + r * group_bytes + blocks * Values::kBytes + b * Format::kScaleBytes;
      const __m512 scale = load_scale(at);
      [[maybe_unused]] __m512 other;
      if constexpr (Format::kScales != Scales::kOne) other = load_scale(at + 32);
      for (int t = 0; t < T; ++t) {
        const __m512 its = _mm512_set1_ps(scales[t * blocks + b]);
        totals[r][t] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[0][r][t]), _mm512_mul_ps(scale, its), totals[r][t]);
        if constexpr (Format::kScales == Scales::kHalves)
          totals[r][t] =
              _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[1][r][t]), _mm512_mul_ps(other, its), totals[r][t]);
        if constexpr (Format::kScales == Scales::kMin)  // −8 Σ q times an eighth of the min
          totals[r][t] = _mm512_fmadd_ps(
              other, _mm512_mul_ps(its, _mm512_cvtepi32_ps(broadcast(starts + t * blocks + b))),
              totals[r][t]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) {
      const F sum{totals[r][t]};
      put(&sum, row + r * kGroupRows, token + t, rows - (row + r * kGroupRows), out);
    }
}

template <class Format>
void matmul_vnni(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                 const Output& out) {
  const std::size_t group_bytes = packed_bytes(m.type, kGroupRows, m.columns);
  walk<8, Format::kScales == Scales::kHalves ? 4 : 6, Format::kScales == Scales::kOne ? 4 : 2>(
      begin, end, x.count, [&](auto r, auto t, std::uint32_t g, std::uint32_t token) HWY_ATTR {
        tile_vnni<Format, decltype(r)::value, decltype(t)::value>(m.data + g * group_bytes, group_bytes, x,
                                                                  g * kGroupRows, token, m.rows, out);
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
      return matmul_vnni<FormatQ8_0>(m, x, begin, end, out);
    case TensorType::kQ4_0:
      return matmul_vnni<FormatQ4_0>(m, x, begin, end, out);
    case TensorType::kIq4Nl:
      return matmul_vnni<FormatIq4Nl>(m, x, begin, end, out);
    case TensorType::kQ3K:
      return matmul_vnni<FormatQ3K>(m, x, begin, end, out);
    case TensorType::kQ4K:
      return matmul_vnni<FormatQ4K>(m, x, begin, end, out);
    case TensorType::kQ5K:
      return matmul_vnni<FormatQ5K>(m, x, begin, end, out);
    case TensorType::kQ6K:
      return matmul_vnni<FormatQ6K>(m, x, begin, end, out);
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
      return aligned(columns / 32 * FormatQ8_0::kBlockBytes);
    case TensorType::kQ4_0:
      return aligned(columns / 32 * FormatQ4_0::kBlockBytes);
    case TensorType::kIq4Nl:
      return aligned(columns / 32 * FormatIq4Nl::kBlockBytes);
    case TensorType::kQ3K:
      return aligned(columns / 32 * FormatQ3K::kBlockBytes);
    case TensorType::kQ4K:
      return aligned(columns / 32 * FormatQ4K::kBlockBytes);
    case TensorType::kQ5K:
      return aligned(columns / 32 * FormatQ5K::kBlockBytes);
    case TensorType::kQ6K:
      return aligned(columns / 32 * FormatQ6K::kBlockBytes);
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

std::uint32_t packing_version() { return 2; }

namespace {

/// One row's block of 32 columns, unpacked: unsigned values and the scales that go with them.
struct Unpacked {
  std::uint8_t q[32];
  std::uint16_t
      scale[2];  ///< F16: the block's, or those of its halves, or its scale and an eighth of its min
};

/// Calls put(block, unpacked) for each block of a row of a quantized type.
template <typename Put>
void unpack_row(TensorType type, const std::byte* row, std::size_t columns, Put put) {
  Unpacked out{};
  const auto small = [&](std::size_t bytes, auto value) {  // a scale, then the values
    for (std::size_t b = 0; b < columns / 32; ++b, row += bytes) {
      std::memcpy(out.scale, row, 2);
      for (std::size_t c = 0; c < 32; ++c) out.q[c] = value(row + 2, c);
      put(b, out);
    }
  };
  const auto nibble = [](const std::byte* q, std::size_t c) {
    return static_cast<std::uint8_t>(std::to_integer<unsigned>(q[c % 16]) >> (c < 16 ? 0 : 4) & 15);
  };
  const auto large = [&](std::size_t bytes, auto read, int offset, std::size_t run) {
    for (std::size_t b = 0; b < columns / 32; b += 8, row += bytes) {
      const blocks::KBlock block = read(row);
      for (std::size_t part = 0; part < 8; ++part) {
        for (std::size_t c = 0; c < 32; ++c)
          out.q[c] = static_cast<std::uint8_t>(block.q[32 * part + c] + offset);
        out.scale[0] = f32_to_f16(block.scale[run == 16 ? 2 * part : part]);
        out.scale[1] = f32_to_f16(run == 16 ? block.scale[2 * part + 1] : block.min[part] / 8);
        put(b + part, out);
      }
    }
  };
  switch (type) {
    case TensorType::kQ8_0:
      return small(34, [](const std::byte* q, std::size_t c) {
        return std::to_integer<std::uint8_t>(q[c] ^ std::byte{128});
      });
    case TensorType::kQ4_0:
    case TensorType::kIq4Nl:
      return small(18, nibble);
    case TensorType::kQ3K:
      return large(blocks::kQ3KBytes, blocks::read_q3_k, 4, 16);
    case TensorType::kQ4K:
      return large(blocks::kQ4KBytes, blocks::read_q4_k, 0, 32);
    case TensorType::kQ5K:
      return large(blocks::kQ5KBytes, blocks::read_q5_k, 0, 32);
    case TensorType::kQ6K:
      return large(blocks::kQ6KBytes, blocks::read_q6_k, 32, 16);
    default:
      return;
  }
}

/// Writes the values of one row's block where its lane has them.
void put_values(TensorType type, const std::uint8_t* q, std::size_t lane, std::byte* block) {
  const auto at = [&](std::size_t c) { return c / 4 * 64 + lane * 4 + c % 4; };
  if (type == TensorType::kQ8_0) {
    for (std::size_t c = 0; c < 32; ++c) block[at(c)] = std::byte{q[c]};
    return;
  }
  for (std::size_t c = 0; c < 16; ++c) {
    const std::size_t j = c / 4, byte = lane * 4 + c % 4;  // of its plane's register
    const unsigned first = q[c], second = q[c + 16];
    block[at(c)] = static_cast<std::byte>((first & 15) | (second & 15) << 4);
    if (type == TensorType::kQ5K)
      block[256 + byte] |= static_cast<std::byte>((first >> 4) << j | (second >> 4) << (j + 4));
    if (type == TensorType::kQ6K) {
      block[256 + byte] |= static_cast<std::byte>((first >> 4) << (2 * j));
      block[320 + byte] |= static_cast<std::byte>((second >> 4) << (2 * j));
    }
  }
}

}  // namespace

void pack(const Matrix& matrix, std::uint32_t first_row, [[maybe_unused]] std::uint32_t rows,
          std::byte* out) {
  const TensorType type = matrix.type;
  const std::size_t group_bytes = packed_bytes(type, kGroupRows, matrix.columns);
  const std::size_t row_size = *row_bytes(type, matrix.columns), all = matrix.columns / 32;
  const bool two = type == TensorType::kQ3K || type == TensorType::kQ4K || type == TensorType::kQ5K ||
                   type == TensorType::kQ6K;
  const std::size_t value_bytes = type == TensorType::kQ8_0  ? 512
                                  : type == TensorType::kQ6K ? 384
                                  : type == TensorType::kQ5K ? 320
                                                             : 256;
  for (std::uint32_t r = 0; r < matrix.rows; ++r) {
    const std::byte* const row = matrix.data + r * row_size;
    const std::size_t lane = (first_row + r) % kGroupRows;
    std::byte* const group = out + (first_row + r) / kGroupRows * group_bytes;
    if (info(type).block_values == 1) {
      const std::size_t size = info(type).block_bytes;
      for (std::size_t c = 0; c < matrix.columns; ++c)
        std::memcpy(group + (c * kGroupRows + lane) * size, row + c * size, size);
      continue;
    }
    unpack_row(type, row, matrix.columns, [&](std::size_t b, const Unpacked& block) {
      put_values(type, block.q, lane, group + b * value_bytes);
      std::byte* const scales = group + all * value_bytes + b * (two ? 64 : 32);
      std::memcpy(scales + lane * 2, &block.scale[0], 2);
      if (two) std::memcpy(scales + 32 + lane * 2, &block.scale[1], 2);
    });
  }
}

void matmul(const Matrix& matrix, const Activations& x, std::uint32_t row_begin, std::uint32_t row_end,
            const Output& out) {
  if (is_own_format(matrix.type)) return matmul_own(matrix, x, row_begin, row_end, out);
  if (!matrix.packed) return matmul_rows(matrix, x, row_begin, row_end, out);
  HWY_DYNAMIC_DISPATCH(MatmulPacked)
  (matrix, x, row_begin / kGroupRows, (row_end + kGroupRows - 1) / kGroupRows, out);
}

}  // namespace retort::kernels
#endif
