#include "agent/serve/kernels/kernels.h"

#include "agent/serve/kernels/dispatch.h"
#include "agent/serve/kernels/own_formats.h"
#include "agent/serve/kernels/packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "agent/serve/kernels/kernels.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// After highway.h: it must see the target's attributes.
#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace retort::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::CappedTag<float, 16>;
using F = hn::Vec<Floats>;
using Floats4 = hn::FixedTag<float, 4>;

/// Adds up a vector's 128-bit blocks.
template <class D>
HWY_INLINE hn::Vec<Floats4> sum_blocks([[maybe_unused]] D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) <= 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return sum_blocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

/// The sums of four vectors' lanes, side by side.
HWY_INLINE hn::Vec<Floats4> sum_lanes(F a, F b, F c, F e) {
  const Floats d;
  const hn::RepartitionToWide<Floats> wide;
  const F ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const F ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto ab2 = hn::BitCast(wide, ab), ce2 = hn::BitCast(wide, ce);
  return sum_blocks(d, hn::Add(hn::BitCast(d, hn::InterleaveLower(wide, ab2, ce2)),
                               hn::BitCast(d, hn::InterleaveUpper(wide, ab2, ce2))));
}

HWY_INLINE float sum_lanes(F a) {
  const Floats d;
  return hn::GetLane(hn::SumOfLanes(d, a));
}

/// The first n < Lanes values, zeros behind; reads no further.
HWY_INLINE F load_first(const float* p, std::size_t n) {
  const Floats d;
#if HWY_TARGET <= HWY_AVX2
  return hn::MaskedLoad(hn::FirstN(d, n), d, p);
#else  // there it would be an aligned load of the whole vector
  HWY_ALIGN float buffer[16] = {};
  std::memcpy(buffer, p, n * sizeof(float));
  return hn::Load(d, buffer);
#endif
}

// ---- how each format's rows are read, as vectors of F32 ----
struct RowF32 {
  static constexpr std::size_t kBytes = 4;
  static HWY_INLINE F load(const std::byte* p) {
    return hn::LoadU(Floats(), reinterpret_cast<const float*>(p));
  }
  static HWY_INLINE F load_part(const std::byte* p, std::size_t n) {
    return load_first(reinterpret_cast<const float*>(p), n);
  }
};

template <class Half16>
struct Row16 {
  static constexpr std::size_t kBytes = 2;
  using Narrow = hn::Rebind<Half16, Floats>;
  static HWY_INLINE F load(const std::byte* p) {
    return hn::PromoteTo(Floats(), hn::LoadU(Narrow(), reinterpret_cast<const Half16*>(p)));
  }
  static HWY_INLINE F load_part(const std::byte* p, std::size_t n) {
    HWY_ALIGN std::byte buffer[64] = {};
    std::memcpy(buffer, p, n * 2);
    return load(buffer);
  }
};

HWY_INLINE float f16_scale(const std::byte* p) {
  std::uint16_t bits;
  std::memcpy(&bits, p, 2);
#if defined(__F16C__) || HWY_TARGET <= HWY_AVX2
  return _cvtsh_ss(bits);
#else
  return f16_to_f32(bits);
#endif
}

/// Sums of R matrix rows from `row` on with T activation rows from `token` on, written where they belong.
template <int R, int T>
HWY_INLINE void store_sums(F (&sums)[R][T], std::size_t row, std::size_t token, const Output& out) {
  for (int t = 0; t < T; ++t) {
    float* const to = out.data + (token + t) * out.stride + row;
    if constexpr (R == 4) {
      const Floats4 d4;
      auto four = sum_lanes(sums[0][t], sums[1][t], sums[2][t], sums[3][t]);
      if (out.bias != nullptr) four = hn::Add(four, hn::LoadU(d4, out.bias + row));
      if (out.add) four = hn::Add(four, hn::LoadU(d4, to));
      hn::StoreU(four, d4, to);
    } else {
      // The same tree of additions as in fours, so that a row's result does not depend on where a split
      // falls.
      float sum = hn::GetLane(sum_lanes(sums[0][t], sums[0][t], sums[0][t], sums[0][t]));
      if (out.bias != nullptr) sum += out.bias[row];
      *to = out.add ? sum + *to : sum;
    }
  }
}

template <class Row, int R, int T>
HWY_INLINE void tile(const std::byte* w, std::size_t row_size, const float* x, std::size_t columns,
                     std::size_t row, std::size_t token, const Output& out) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  F sums[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sums[r][t] = hn::Zero(d);
  std::size_t c = 0;
  for (; c + lanes <= columns; c += lanes) {
    F xs[T];
    for (int t = 0; t < T; ++t) xs[t] = hn::LoadU(d, x + t * columns + c);
    for (int r = 0; r < R; ++r) {
      const F ws = Row::load(w + r * row_size + c * Row::kBytes);
      for (int t = 0; t < T; ++t) sums[r][t] = hn::MulAdd(ws, xs[t], sums[r][t]);
    }
  }
  if (c < columns) {
    const std::size_t left = columns - c;
    F xs[T];
    for (int t = 0; t < T; ++t) xs[t] = load_first(x + t * columns + c, left);
    for (int r = 0; r < R; ++r) {
      const F ws = Row::load_part(w + r * row_size + c * Row::kBytes, left);
      for (int t = 0; t < T; ++t) sums[r][t] = hn::MulAdd(ws, xs[t], sums[r][t]);
    }
  }
  store_sums<R, T>(sums, row, token, out);
}

/// A block of 32 whole numbers with one scale, in each of the quantized formats.
struct RowQ8 {
  static constexpr std::size_t kBytes = 34;
  static HWY_INLINE const std::int8_t* values(const std::byte* block, std::int8_t*) {
    return reinterpret_cast<const std::int8_t*>(block + 2);
  }
};
struct RowQ4 {
  static constexpr std::size_t kBytes = 18;
  static HWY_INLINE const std::int8_t* values(const std::byte* block, std::int8_t* buffer) {
    const hn::FixedTag<std::uint8_t, 16> d;
    const hn::FixedTag<std::int8_t, 16> signed_d;
    const auto both = hn::LoadU(d, reinterpret_cast<const std::uint8_t*>(block + 2));
    const auto eight = hn::Set(signed_d, 8);
    hn::Store(hn::Sub(hn::BitCast(signed_d, hn::And(both, hn::Set(d, 15))), eight), signed_d, buffer);
    hn::Store(hn::Sub(hn::BitCast(signed_d, hn::ShiftRight<4>(both)), eight), signed_d, buffer + 16);
    return buffer;
  }
};

/// Whole-number products block by block, then one multiply-add by both scales.
template <class Row, int R, int T>
HWY_INLINE void tile_q(const std::byte* w, std::size_t row_size, const std::int8_t* x, const float* scales,
                       std::size_t columns, std::size_t row, std::size_t token, const Output& out) {
  const hn::CappedTag<std::int16_t, 32> d16;
  const hn::Rebind<std::int8_t, decltype(d16)> d8;
  const hn::RepartitionToWide<decltype(d16)> d32;
  const Floats d;
  static_assert(hn::MaxLanes(hn::RepartitionToWide<hn::CappedTag<std::int16_t, 32>>()) ==
                hn::MaxLanes(Floats()));
  const std::size_t lanes = hn::Lanes(d16), blocks = columns / 32;
  HWY_ALIGN std::int8_t buffer[32];
  F sums[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sums[r][t] = hn::Zero(d);
  for (std::size_t b = 0; b < blocks; ++b) {
    for (int r = 0; r < R; ++r) {
      const std::byte* block = w + r * row_size + b * Row::kBytes;
      const float scale = f16_scale(block);
      const std::int8_t* q = Row::values(block, buffer);
      hn::Vec<decltype(d32)> sum0[T], sum1[T];
      for (int t = 0; t < T; ++t) sum0[t] = sum1[t] = hn::Zero(d32);
      for (std::size_t i = 0; i < 32; i += lanes) {
        const auto ws = hn::PromoteTo(d16, hn::LoadU(d8, q + i));
        for (int t = 0; t < T; ++t)
          sum0[t] = hn::ReorderWidenMulAccumulate(
              d32, ws, hn::PromoteTo(d16, hn::LoadU(d8, x + t * columns + b * 32 + i)), sum0[t], sum1[t]);
      }
      for (int t = 0; t < T; ++t)
        sums[r][t] = hn::MulAdd(hn::ConvertTo(d, hn::Add(sum0[t], sum1[t])),
                                hn::Set(d, scale * scales[t * blocks + b]), sums[r][t]);
    }
  }
  store_sums<R, T>(sums, row, token, out);
}

/// Walks rows in fours, and below them tokens in fours; a group of rows stays in the first-level cache while
/// the tokens pass.
template <class Tile44, class Tile41, class Tile14, class Tile11>
HWY_INLINE void walk(std::uint32_t begin, std::uint32_t end, std::uint32_t count, Tile44 tile44,
                     Tile41 tile41, Tile14 tile14, Tile11 tile11) {
  std::uint32_t r = begin;
  for (; r + 4 <= end; r += 4) {
    std::uint32_t t = 0;
    for (; t + 4 <= count; t += 4) tile44(r, t);
    for (; t < count; ++t) tile41(r, t);
  }
  for (; r < end; ++r) {
    std::uint32_t t = 0;
    for (; t + 4 <= count; t += 4) tile14(r, t);
    for (; t < count; ++t) tile11(r, t);
  }
}

template <class Row>
void matmul_float(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                  const Output& out) {
  const std::size_t columns = m.columns, row_size = columns * Row::kBytes;
  const auto run = [&](auto rows, auto tokens) {
    return [&](std::uint32_t r, std::uint32_t t) HWY_ATTR {
      tile<Row, decltype(rows)::value, decltype(tokens)::value>(m.data + r * row_size, row_size,
                                                                x.f32 + t * columns, columns, r, t, out);
    };
  };
  const std::integral_constant<int, 4> four;
  const std::integral_constant<int, 1> one;
  walk(begin, end, x.count, run(four, four), run(four, one), run(one, four), run(one, one));
}

template <class Row>
void matmul_q(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
              const Output& out) {
  const std::size_t columns = m.columns, row_size = columns / 32 * Row::kBytes;
  const auto run = [&](auto rows, auto tokens) {
    return [&](std::uint32_t r, std::uint32_t t) HWY_ATTR {
      tile_q<Row, decltype(rows)::value, decltype(tokens)::value>(
          m.data + r * row_size, row_size, x.q8 + t * columns, x.q8_scale + t * (columns / 32), columns, r, t,
          out);
    };
  };
  const std::integral_constant<int, 4> four;
  const std::integral_constant<int, 1> one;
  walk(begin, end, x.count, run(four, four), run(four, one), run(one, four), run(one, one));
}

/// Any other format: each row is decoded by the reference, 256 columns at a time, for a few dozen tokens.
void matmul_decoded(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                    const Output& out) {
  constexpr std::size_t kColumns = 256, kTokens = 32;
  const Floats d;
  const std::size_t lanes = hn::Lanes(d), row_size = *row_bytes(m.type, m.columns);
  HWY_ALIGN float values[kColumns], sums[kTokens][16];
  for (std::uint32_t r = begin; r < end; ++r)
    for (std::size_t token = 0; token < x.count; token += kTokens) {
      const std::size_t tokens = std::min<std::size_t>(kTokens, x.count - token);
      std::memset(sums, 0, sizeof sums);
      for (std::size_t c = 0; c < m.columns; c += kColumns) {
        const std::size_t n = std::min<std::size_t>(kColumns, m.columns - c);
        decode_row(m.type, {m.data + r * row_size + *row_bytes(m.type, c), *row_bytes(m.type, n)},
                   {values, n});
        for (std::size_t t = 0; t < tokens; ++t) {
          const float* const from = x.f32 + (token + t) * m.columns + c;
          F sum = hn::Load(d, sums[t]);
          for (std::size_t i = 0; i < n; i += lanes)  // n is a multiple of 32
            sum = hn::MulAdd(hn::Load(d, values + i), hn::LoadU(d, from + i), sum);
          hn::Store(sum, d, sums[t]);
        }
      }
      for (std::size_t t = 0; t < tokens; ++t) {
        float* const to = out.data + (token + t) * out.stride + r;
        const float sum = sum_lanes(hn::Load(d, sums[t])) + (out.bias == nullptr ? 0.0f : out.bias[r]);
        *to = out.add ? sum + *to : sum;
      }
    }
}

void MatmulRows(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                const Output& out) {
  switch (m.type) {
    case TensorType::kF32:
      return matmul_float<RowF32>(m, x, begin, end, out);
    case TensorType::kF16:
      return matmul_float<Row16<hwy::float16_t>>(m, x, begin, end, out);
    case TensorType::kBF16:
      return matmul_float<Row16<hwy::bfloat16_t>>(m, x, begin, end, out);
    case TensorType::kQ8_0:
      return matmul_q<RowQ8>(m, x, begin, end, out);
    case TensorType::kQ4_0:
      return matmul_q<RowQ4>(m, x, begin, end, out);
    case TensorType::kQ3K:
    case TensorType::kQ4K:
    case TensorType::kQ5K:
    case TensorType::kQ6K:
    case TensorType::kIq4Nl:
      return matmul_decoded(m, x, begin, end, out);
    case TensorType::kSparseQ8:
    case TensorType::kSparse24Q8:
    case TensorType::kCodebook4:
    case TensorType::kCodebook8:
      return matmul_own(m, x, begin, end, out);
  }
}

/// The scale of a block of 8-bit activations: rounded to F16, as llama.cpp keeps it, so that both compute the
/// same; where F16 ends, as it is.
HWY_INLINE float block_scale(float top) {
  const float scale = top / 127.0f;
  if (!(scale >= 0x1p-24f && scale <= 65504.0f)) return scale;
  const hn::CappedTag<float, 1> d;
  return hn::GetLane(
      hn::PromoteTo(d, hn::DemoteTo(hn::Rebind<hwy::float16_t, decltype(d)>(), hn::Set(d, scale))));
}

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
/// A block of 32 in two registers: takes 60 % of the time of the way below.
void QuantizeQ8(const float* x, std::uint32_t columns, std::int8_t* q, float* scale, std::int32_t* start,
                std::int32_t* half_start) {
  const __m128i sign = _mm_set1_epi8(-128);
  for (std::uint32_t b = 0; b < columns; b += 32, ++scale, ++start, half_start += 2) {
    const __m512 low = _mm512_loadu_ps(x + b), high = _mm512_loadu_ps(x + b + 16);
    const float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    *scale = block_scale(top);
    const __m512 inverse = _mm512_set1_ps(top > 0 ? 127.0f / top : 0.0f);
    // What rounds to more than 127 cannot be; what is no number becomes −128.
    const __m128i first = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(low, inverse)));
    const __m128i second = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(high, inverse)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + b), first);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + b + 16), second);
    const auto start_of = [&](__m128i bytes) HWY_ATTR {
      const __m128i sums = _mm_sad_epu8(_mm_xor_si128(bytes, sign), _mm_setzero_si128());
      return -8 * (_mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums))) - 16 * 128);
    };
    half_start[0] = start_of(first);
    half_start[1] = start_of(second);
    *start = half_start[0] + half_start[1];
  }
}
#else
void QuantizeQ8(const float* x, std::uint32_t columns, std::int8_t* q, float* scale, std::int32_t* start,
                std::int32_t* half_start) {
  const Floats d;
  const hn::Rebind<std::int32_t, Floats> d32;
  const hn::Rebind<std::int16_t, Floats> d16;
  const hn::Rebind<std::int8_t, Floats> d8;
  const hn::FixedTag<std::uint8_t, 16> octets;
  const std::size_t lanes = hn::Lanes(d);
  for (std::uint32_t b = 0; b < columns; b += 32, ++scale, ++start, half_start += 2) {
    F largest = hn::Zero(d);
    for (std::size_t i = 0; i < 32; i += lanes) largest = hn::Max(largest, hn::Abs(hn::LoadU(d, x + b + i)));
    const float top = hn::GetLane(hn::MaxOfLanes(d, largest));
    *scale = block_scale(top);
    const F inverse = hn::Set(d, top > 0 ? 127.0f / top : 0.0f);
    for (std::size_t i = 0; i < 32; i += lanes) {
      const auto rounded = hn::NearestInt(hn::Mul(hn::LoadU(d, x + b + i), inverse));
      const auto whole = hn::Min(hn::Max(rounded, hn::Set(d32, -127)), hn::Set(d32, 127));
      hn::StoreU(hn::DemoteTo(d8, hn::DemoteTo(d16, whole)), d8, q + b + i);
    }
    for (std::size_t half = 0; half < 2; ++half) {
      const auto bytes = hn::Xor(hn::LoadU(octets, reinterpret_cast<const std::uint8_t*>(q + b + 16 * half)),
                                 hn::Set(octets, 128));
      const auto sums = hn::SumsOf8(bytes);
      const auto both = hn::Add(sums, hn::Shuffle01(sums));
      half_start[half] = -8 * (static_cast<std::int32_t>(hn::GetLane(both)) - 16 * 128);
    }
    *start = half_start[0] + half_start[1];
  }
}
#endif

void RmsNorm(const float* x, const float* weight, std::uint32_t n, float eps, float* out) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  F squares = hn::Zero(d);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const F v = hn::LoadU(d, x + i);
    squares = hn::MulAdd(v, v, squares);
  }
  if (i < n) {
    const F v = load_first(x + i, n - i);
    squares = hn::MulAdd(v, v, squares);
  }
  const float scale = 1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(n) + eps);
  const F s = hn::Set(d, scale);
  for (i = 0; i + lanes <= n; i += lanes)
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), s), hn::LoadU(d, weight + i)), d, out + i);
  for (; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void LayerNorm(const float* x, const float* weight, const float* bias, std::uint32_t n, float eps,
               float* out) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  F total = hn::Zero(d);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) total = hn::Add(total, hn::LoadU(d, x + i));
  float sum = sum_lanes(total);
  for (; i < n; ++i) sum += x[i];
  const float mean = sum / static_cast<float>(n);
  const F m = hn::Set(d, mean);
  F squares = hn::Zero(d);
  for (i = 0; i + lanes <= n; i += lanes) {
    const F v = hn::Sub(hn::LoadU(d, x + i), m);
    squares = hn::MulAdd(v, v, squares);
  }
  float square_sum = sum_lanes(squares);
  for (; i < n; ++i) square_sum += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / std::sqrt(square_sum / static_cast<float>(n) + eps);
  const F s = hn::Set(d, scale);
  for (i = 0; i + lanes <= n; i += lanes)
    hn::StoreU(hn::MulAdd(hn::Mul(hn::Sub(hn::LoadU(d, x + i), m), s), hn::LoadU(d, weight + i),
                          hn::LoadU(d, bias + i)),
               d, out + i);
  for (; i < n; ++i) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

void AddTo(float* x, const float* y, std::size_t n) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(hn::Add(hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, x + i);
  for (; i < n; ++i) x[i] += y[i];
}

/// x / (1 + exp(−y)). exp's argument is kept where it neither overflows nor loses precision.
HWY_INLINE F times_sigmoid(F x, F y) {
  const Floats d;
  const F e = hn::Exp(d, hn::Min(hn::Max(hn::Neg(y), hn::Set(d, -87.0f)), hn::Set(d, 87.0f)));
  return hn::Div(x, hn::Add(hn::Set(d, 1.0f), e));
}

template <class Function>
HWY_INLINE void map(float* x, const float* y, std::size_t n, Function function) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(function(hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, x + i);
  if (i < n) {
    HWY_ALIGN float result[16];
    hn::Store(function(load_first(x + i, n - i), load_first(y + i, n - i)), d, result);
    std::memcpy(x + i, result, (n - i) * sizeof(float));
  }
}

void SiluMul(float* gate, const float* up, std::size_t n) {
  map(gate, up, n, [](F g, F u) HWY_ATTR { return hn::Mul(times_sigmoid(g, g), u); });
}

void Gelu(float* x, std::size_t n) {
  // 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = √(2/π) (x + 0.044715 x³)
  map(x, x, n, [](F v, F) HWY_ATTR {
    const Floats d;
    const F cubic = hn::MulAdd(hn::Mul(hn::Mul(v, v), v), hn::Set(d, 0.044715f), v);
    return times_sigmoid(v, hn::Mul(cubic, hn::Set(d, 1.5957691216057308f)));
  });
}

void Rope(float* x, std::uint32_t n_head, std::uint32_t head_dim, const float* table) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  const float *cosine = table, *sine = table + head_dim;
  for (std::uint32_t h = 0; h < n_head; ++h, x += head_dim) {
    std::uint32_t i = 0;
    for (; i + lanes <= head_dim; i += lanes) {
      const F v = hn::LoadU(d, x + i);
      hn::StoreU(hn::MulAdd(hn::Reverse2(d, v), hn::LoadU(d, sine + i), hn::Mul(v, hn::LoadU(d, cosine + i))),
                 d, x + i);
    }
    for (; i < head_dim; i += 2) {
      const float a = x[i], b = x[i + 1];
      x[i] = a * cosine[i] + b * sine[i];
      x[i + 1] = b * cosine[i + 1] + a * sine[i + 1];
    }
  }
}

HWY_INLINE float largest_of(const float* x, std::size_t n) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  float top = -std::numeric_limits<float>::infinity();
  std::size_t i = 0;
  if (n >= lanes) {
    F best = hn::LoadU(d, x);
    for (i = lanes; i + lanes <= n; i += lanes) best = hn::Max(best, hn::LoadU(d, x + i));
    top = hn::GetLane(hn::MaxOfLanes(d, best));
  }
  for (; i < n; ++i) top = std::max(top, x[i]);
  return top;
}

double LogSumExp(const float* x, std::size_t n) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  const float top = largest_of(x, n);
  const F t = hn::Set(d, top);
  double sum = 0;
  std::size_t i = 0;
  // Partial sums of a few hundred terms in F32, added up in F64: a large vocabulary loses nothing.
  while (i + lanes <= n) {
    F part = hn::Zero(d);
    for (std::size_t end = std::min(n, i + 32 * lanes); i + lanes <= end; i += lanes)
      part = hn::Add(part, hn::Exp(d, hn::Max(hn::Sub(hn::LoadU(d, x + i), t), hn::Set(d, -87.0f))));
    sum += static_cast<double>(sum_lanes(part));
  }
  for (; i < n; ++i) sum += std::exp(static_cast<double>(x[i]) - static_cast<double>(top));
  return static_cast<double>(top) + std::log(sum);
}

double Exponentials(const float* x, std::size_t n, float scale, float top, float* out) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  const F t = hn::Set(d, top), s = hn::Set(d, scale), floor = hn::Set(d, -87.0f);
  const auto part_of = [&](F v) HWY_ATTR { return hn::Exp(d, hn::Max(hn::Mul(hn::Sub(v, t), s), floor)); };
  double sum = 0;
  std::size_t i = 0;
  while (i + lanes <= n) {
    F part = hn::Zero(d);
    for (std::size_t end = std::min(n, i + 32 * lanes); i + lanes <= end; i += lanes) {
      const F e = part_of(hn::LoadU(d, x + i));
      hn::StoreU(e, d, out + i);
      part = hn::Add(part, e);
    }
    sum += static_cast<double>(sum_lanes(part));
  }
  for (; i < n; ++i) sum += static_cast<double>(out[i] = std::exp(std::max(scale * (x[i] - top), -87.0f)));
  return sum;
}

double KlDivergence(const float* p, double lse_p, const float* q, double lse_q, std::size_t n) {
  // Σ pᵢ (log pᵢ − log qᵢ) = Σ pᵢ (p's logitᵢ − q's logitᵢ) + lse_q − lse_p
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  const F normalizer = hn::Set(d, static_cast<float>(lse_p));
  double sum = 0;
  std::size_t i = 0;
  while (i + lanes <= n) {
    F part = hn::Zero(d);
    for (std::size_t end = std::min(n, i + 32 * lanes); i + lanes <= end; i += lanes) {
      const F mine = hn::LoadU(d, p + i);
      const F share = hn::Exp(d, hn::Max(hn::Sub(mine, normalizer), hn::Set(d, -87.0f)));
      part = hn::MulAdd(share, hn::Sub(mine, hn::LoadU(d, q + i)), part);
    }
    sum += static_cast<double>(sum_lanes(part));
  }
  for (; i < n; ++i)
    sum +=
        std::exp(static_cast<double>(p[i]) - lse_p) * (static_cast<double>(p[i]) - static_cast<double>(q[i]));
  return sum + lse_q - lse_p;
}

std::size_t Best(const float* x, std::size_t n) {
  const float top = largest_of(x, n);
  for (std::size_t i = 0; i < n; ++i)
    if (x[i] == top) return i;
  return 0;
}

bool AllFinite(const float* x, std::size_t n) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  F sum = hn::Zero(d);  // of x − x: zero, or no number
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const F value = hn::LoadU(d, x + i);
    sum = hn::Add(sum, hn::Sub(value, value));
  }
  float rest = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < n; ++i) rest += x[i] - x[i];
  return rest == 0;
}

// What caches hold: a value of each of kPositionBlock positions, as F32.
struct CacheF32 {
  static constexpr CacheType kType = CacheType::kF32;
  static HWY_INLINE F load(const std::byte* block, std::size_t at) {
    return hn::LoadU(Floats(), reinterpret_cast<const float*>(block) + at);
  }
};
struct CacheF16 {
  static constexpr CacheType kType = CacheType::kF16;
  static HWY_INLINE F load(const std::byte* block, std::size_t at) {
    return hn::PromoteTo(Floats(), hn::LoadU(hn::Rebind<hwy::float16_t, Floats>(),
                                             reinterpret_cast<const hwy::float16_t*>(block) + at));
  }
};
struct CacheQ8 {
  static constexpr CacheType kType = CacheType::kQ8;
  static HWY_INLINE F load(const std::byte* block, std::size_t at) {
    const hn::Rebind<std::int32_t, Floats> d32;
    return hn::ConvertTo(Floats(),
                         hn::PromoteTo(d32, hn::LoadU(hn::Rebind<std::int8_t, Floats>(),
                                                      reinterpret_cast<const std::int8_t*>(block) + at)));
  }
};
/// The positions' scales, behind a Q8 block's values.
HWY_INLINE const float* cache_scales(const std::byte* block, std::uint32_t head_dim) {
  return reinterpret_cast<const float*>(block + std::size_t{head_dim} * kPositionBlock);
}

/// T queries of each of `heads` heads, phase by phase, so that one head's waits are filled with another's
/// work; the sums of each are in the same order whatever T is.
template <int T, class Cache>
HWY_INLINE void attend(const Queries& q, const Heads& heads, std::uint32_t n, std::uint32_t step, float scale,
                       const Scores& scores, const Attended& out) {
  constexpr bool kScaled = Cache::kType == CacheType::kQ8;
  const Floats d;
  const std::uint32_t head_dim = heads.dim;
  const std::size_t lanes = hn::Lanes(d), block_bytes = cache_block_bytes(Cache::kType, head_dim);
  const std::size_t blocks = (n + (T - 1) * step + kPositionBlock - 1) / kPositionBlock,
                    end = blocks * kPositionBlock;
  const F s = hn::Set(d, scale);
  for (std::size_t h = 0; h < heads.count; ++h) {
    const float* const queries = q.data + h * T * head_dim;
    for (std::size_t b = 0; b < blocks; ++b) {
      const std::byte* const block = heads.keys + h * heads.bytes + b * block_bytes;
      for (std::size_t part = 0; part < kPositionBlock; part += lanes) {
        F sums[T][2];
        for (int t = 0; t < T; ++t) sums[t][0] = sums[t][1] = hn::Zero(d);
        std::uint32_t i = 0;
        for (; i + 2 <= head_dim; i += 2) {
          const F k0 = Cache::load(block, i * kPositionBlock + part),
                  k1 = Cache::load(block, (i + 1) * kPositionBlock + part);
          for (int t = 0; t < T; ++t) {
            sums[t][0] = hn::MulAdd(hn::Set(d, queries[t * q.stride + i]), k0, sums[t][0]);
            sums[t][1] = hn::MulAdd(hn::Set(d, queries[t * q.stride + i + 1]), k1, sums[t][1]);
          }
        }
        if (i < head_dim)
          for (int t = 0; t < T; ++t)
            sums[t][0] = hn::MulAdd(hn::Set(d, queries[t * q.stride + i]),
                                    Cache::load(block, i * kPositionBlock + part), sums[t][0]);
        F factor = s;
        if constexpr (kScaled) factor = hn::Mul(s, hn::LoadU(d, cache_scales(block, head_dim) + part));
        for (int t = 0; t < T; ++t)
          hn::StoreU(hn::Mul(hn::Add(sums[t][0], sums[t][1]), factor), d,
                     scores.data + (h * T + t) * scores.stride + b * kPositionBlock + part);
      }
    }
  }
  HWY_ALIGN float inverse[kScoreRows];
  for (std::size_t r = 0; r < heads.count * T; ++r) {
    float* const row = scores.data + r * scores.stride;
    const std::size_t mine = n + r % T * step;
    for (std::size_t j = mine; j < end; ++j) row[j] = -std::numeric_limits<float>::infinity();
    F top_lanes = hn::LoadU(d, row);
    for (std::size_t j = lanes; j < end; j += lanes) top_lanes = hn::Max(top_lanes, hn::LoadU(d, row + j));
    const F top = hn::MaxOfLanes(d, top_lanes);
    F total = hn::Zero(d);
    for (std::size_t j = 0; j < end; j += lanes) {
      F e = hn::Exp(d, hn::Max(hn::Sub(hn::LoadU(d, row + j), top), hn::Set(d, -87.0f)));
      if (j + lanes > mine) e = j < mine ? hn::IfThenElseZero(hn::FirstN(d, mine - j), e) : hn::Zero(d);
      total = hn::Add(total, e);
      if constexpr (kScaled)  // of the values that it will be multiplied with
        e = hn::Mul(e, hn::LoadU(d, cache_scales(
                                        heads.values + r / T * heads.bytes + j / kPositionBlock * block_bytes,
                                        head_dim) +
                                        j % kPositionBlock));
      hn::StoreU(e, d, row + j);
    }
    inverse[r] = 1.0f / sum_lanes(total);
  }
  const Floats4 d4;
  for (std::size_t h = 0; h < heads.count; ++h) {
    const std::byte* const values_of = heads.values + h * heads.bytes;
    const float* const shares = scores.data + h * T * scores.stride;
    float* const to = out.data + h * T * head_dim;
    std::uint32_t i = 0;
    for (; i + 4 <= head_dim; i += 4) {
      F sums[T][4];
      for (int t = 0; t < T; ++t)
        for (int e = 0; e < 4; ++e) sums[t][e] = hn::Zero(d);
      for (std::size_t b = 0; b < blocks; ++b) {
        const std::byte* const block = values_of + b * block_bytes;
        for (std::size_t part = 0; part < kPositionBlock; part += lanes) {
          F values[4];
          for (int e = 0; e < 4; ++e) values[e] = Cache::load(block, (i + e) * kPositionBlock + part);
          for (int t = 0; t < T; ++t) {
            const F p = hn::LoadU(d, shares + t * scores.stride + b * kPositionBlock + part);
            for (int e = 0; e < 4; ++e) sums[t][e] = hn::MulAdd(p, values[e], sums[t][e]);
          }
        }
      }
      for (int t = 0; t < T; ++t)
        hn::StoreU(hn::Mul(sum_lanes(sums[t][0], sums[t][1], sums[t][2], sums[t][3]),
                           hn::Set(d4, inverse[h * T + t])),
                   d4, to + t * out.stride + i);
    }
    for (; i < head_dim; ++i)
      for (int t = 0; t < T; ++t) {
        F sum = hn::Zero(d);
        for (std::size_t b = 0; b < blocks; ++b)
          for (std::size_t part = 0; part < kPositionBlock; part += lanes)
            sum = hn::MulAdd(hn::LoadU(d, shares + t * scores.stride + b * kPositionBlock + part),
                             Cache::load(values_of + b * block_bytes, i * kPositionBlock + part), sum);
        to[t * out.stride + i] = sum_lanes(sum) * inverse[h * T + t];
      }
  }
}

template <class Cache>
void attend_any(const Queries& q, const Heads& heads, std::uint32_t n, std::uint32_t step, float scale,
                const Scores& scores, const Attended& out) {
  if (q.count == 4) return attend<4, Cache>(q, heads, n, step, scale, scores, out);
  if (q.count == 2) return attend<2, Cache>(q, heads, n, step, scale, scores, out);
  if (q.count == 1) return attend<1, Cache>(q, heads, n, step, scale, scores, out);
  Heads one = heads;
  one.count = 1;
  for (std::uint32_t h = 0; h < heads.count; ++h, one.keys += heads.bytes, one.values += heads.bytes)
    for (std::uint32_t t = 0; t < q.count; ++t) {
      const std::size_t at = h * q.count * heads.dim;
      attend<1, Cache>({q.data + at + t * q.stride, q.stride, 1}, one, n + t * step, 0, scale, scores,
                       {out.data + at + t * out.stride, out.stride});
    }
}

void Attention(const Queries& q, const Heads& heads, std::uint32_t n, std::uint32_t step, float scale,
               const Scores& scores, const Attended& out) {
  switch (heads.type) {
    case CacheType::kF32:
      return attend_any<CacheF32>(q, heads, n, step, scale, scores, out);
    case CacheType::kF16:
      return attend_any<CacheF16>(q, heads, n, step, scale, scores, out);
    case CacheType::kQ8:
      return attend_any<CacheQ8>(q, heads, n, step, scale, scores, out);
  }
}

/// Columns of a head's block: narrow(token, values, out) makes what the cache holds of each vector of values,
/// and then the tokens' values of each dimension go side by side.
template <class Value, class Narrow>
HWY_INLINE void put_columns(const Stored& x, const float* head, std::uint32_t position,
                            std::size_t block_bytes, std::byte* cache, const Narrow& narrow) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  Value* to[kAttentionTokens];
  for (std::uint32_t t = 0; t < x.count; ++t)
    to[t] = reinterpret_cast<Value*>(cache + (position + t) / kPositionBlock * block_bytes) +
            (position + t) % kPositionBlock;
  using Bits = hwy::UnsignedFromSize<sizeof(Value)>;
  const hn::Rebind<Bits, Floats> bits;
  static_assert(kAttentionTokens == 4);
  const bool side_by_side = x.count == 4 && position % kPositionBlock <= kPositionBlock - 4;
  HWY_ALIGN Value values[kAttentionTokens][16];
  for (std::uint32_t i = 0; i < x.dim; i += lanes) {
    const std::size_t n = std::min<std::size_t>(lanes, x.dim - i);
    for (std::uint32_t t = 0; t < x.count; ++t) {
      const float* const from = head + t * x.stride + i;
      narrow(t, n == lanes ? hn::LoadU(d, from) : load_first(from, n), values[t]);
    }
    if (side_by_side) {
      HWY_ALIGN Bits turned[kAttentionTokens * 16];
      const auto row = [&](std::size_t t)
                           HWY_ATTR { return hn::Load(bits, reinterpret_cast<const Bits*>(values[t])); };
      hn::StoreInterleaved4(row(0), row(1), row(2), row(3), bits, turned);
      for (std::size_t j = 0; j < n; ++j)
        std::memcpy(to[0] + (i + j) * kPositionBlock, turned + j * kAttentionTokens,
                    kAttentionTokens * sizeof(Value));
      continue;
    }
    for (std::size_t j = 0; j < n; ++j)
      for (std::uint32_t t = 0; t < x.count; ++t) to[t][(i + j) * kPositionBlock] = values[t][j];
  }
}

void Store(const Stored& x, CacheType type, std::uint32_t position, std::size_t head_bytes,
           std::byte* caches) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d), block_bytes = cache_block_bytes(type, x.dim);
  for (std::uint32_t h = 0; h < x.heads; ++h, caches += head_bytes) {
    const float* const head = x.data + h * x.dim;
    if (type == CacheType::kF32) {
      put_columns<float>(x, head, position, block_bytes, caches,
                         [](std::uint32_t, F v, float* out) HWY_ATTR { hn::StoreU(v, Floats(), out); });
    } else if (type == CacheType::kF16) {
      put_columns<hwy::float16_t>(x, head, position, block_bytes, caches,
                                  [](std::uint32_t, F v, hwy::float16_t* out) HWY_ATTR {
                                    const hn::Rebind<hwy::float16_t, Floats> d16;
                                    hn::StoreU(hn::DemoteTo(d16, v), d16, out);
                                  });
    } else {
      float inverse[kAttentionTokens];
      for (std::uint32_t t = 0; t < x.count; ++t) {
        const float* const mine = head + t * x.stride;
        F largest = hn::Zero(d);
        for (std::uint32_t i = 0; i < x.dim; i += lanes)
          largest = hn::Max(largest, hn::Abs(i + lanes <= x.dim ? hn::LoadU(d, mine + i)
                                                                : load_first(mine + i, x.dim - i)));
        const float top = hn::GetLane(hn::MaxOfLanes(d, largest)), scale = top / 127.0f;
        inverse[t] = top > 0 ? 127.0f / top : 0.0f;
        std::byte* const block = caches + (position + t) / kPositionBlock * block_bytes;
        std::memcpy(
            block + (std::size_t{x.dim} * kPositionBlock + (position + t) % kPositionBlock * sizeof scale),
            &scale, sizeof scale);
      }
      put_columns<std::int8_t>(
          x, head, position, block_bytes, caches, [&](std::uint32_t t, F v, std::int8_t* out) HWY_ATTR {
            const hn::Rebind<std::int32_t, Floats> d32;
            const hn::Rebind<std::int8_t, Floats> d8;
            const auto whole = hn::NearestInt(hn::Mul(v, hn::Set(Floats(), inverse[t])));
            hn::StoreU(hn::DemoteTo(d8, hn::Min(hn::Max(whole, hn::Set(d32, -127)), hn::Set(d32, 127))), d8,
                       out);
          });
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace retort::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace retort::kernels {

RETORT_EXPORT(MatmulRows);
RETORT_EXPORT(QuantizeQ8);
RETORT_EXPORT(RmsNorm);
RETORT_EXPORT(LayerNorm);
RETORT_EXPORT(AddTo);
RETORT_EXPORT(SiluMul);
RETORT_EXPORT(Gelu);
RETORT_EXPORT(Rope);
RETORT_EXPORT(LogSumExp);
RETORT_EXPORT(Exponentials);
RETORT_EXPORT(KlDivergence);
RETORT_EXPORT(Best);
RETORT_EXPORT(AllFinite);
RETORT_EXPORT(Attention);
RETORT_EXPORT(Store);

void matmul_rows(const Matrix& matrix, const Activations& x, std::uint32_t row_begin, std::uint32_t row_end,
                 const Output& out) {
  RETORT_CALL(MatmulRows)(matrix, x, row_begin, row_end, out);
}
void quantize_q8(const float* x, std::uint32_t columns, std::int8_t* q, float* scale, std::int32_t* start,
                 std::int32_t* half_start) {
  RETORT_CALL(QuantizeQ8)(x, columns, q, scale, start, half_start);
}
void rms_norm(const float* x, const float* weight, std::uint32_t n, float eps, float* out) {
  RETORT_CALL(RmsNorm)(x, weight, n, eps, out);
}
void layer_norm(const float* x, const float* weight, const float* bias, std::uint32_t n, float eps,
                float* out) {
  RETORT_CALL(LayerNorm)(x, weight, bias, n, eps, out);
}
void add(float* x, const float* y, std::size_t n) { RETORT_CALL(AddTo)(x, y, n); }
void silu_mul(float* gate, const float* up, std::size_t n) { RETORT_CALL(SiluMul)(gate, up, n); }
void gelu(float* x, std::size_t n) { RETORT_CALL(Gelu)(x, n); }
void rope(float* x, std::uint32_t n_head, std::uint32_t head_dim, const float* table) {
  RETORT_CALL(Rope)(x, n_head, head_dim, table);
}
void rope_halves(float* x, std::uint32_t n_head, std::uint32_t head_dim, std::uint32_t pairs,
                 const float* table) {
  for (std::uint32_t head = 0; head < n_head; ++head, x += head_dim)
    for (std::uint32_t i = 0; i < pairs; ++i) {
      const float a = x[i], b = x[i + pairs], cosine = table[2 * i], sine = table[head_dim + 2 * i + 1];
      x[i] = a * cosine - b * sine;
      x[i + pairs] = b * cosine + a * sine;
    }
}
double log_sum_exp(const float* x, std::size_t n) { return RETORT_CALL(LogSumExp)(x, n); }
double exponentials(const float* x, std::size_t n, float scale, float top, float* out) {
  return RETORT_CALL(Exponentials)(x, n, scale, top, out);
}
double kl_divergence(const float* p, double lse_p, const float* q, double lse_q, std::size_t n) {
  return RETORT_CALL(KlDivergence)(p, lse_p, q, lse_q, n);
}
std::size_t best(const float* x, std::size_t n) { return RETORT_CALL(Best)(x, n); }
bool all_finite(const float* x, std::size_t n) { return RETORT_CALL(AllFinite)(x, n); }
void attention(const Queries& q, const Heads& heads, std::uint32_t n, std::uint32_t step, float scale,
               const Scores& scores, const Attended& out) {
  RETORT_CALL(Attention)(q, heads, n, step, scale, scores, out);
}
void store(const Stored& x, CacheType type, std::uint32_t position, std::size_t head_bytes,
           std::byte* caches) {
  RETORT_CALL(Store)(x, type, position, head_bytes, caches);
}

}  // namespace retort::kernels
#endif
