// Packed matrices. Groups of 16 rows, a lane each, so that no sum ever has to be added up across lanes:
//   F32, F16, BF16   [group][column][16]
// The formats of blocks stand in tiles of as many groups as one pass over the weights takes at once (W of
// them: kTileGroups, fewer in the last tile), so that it reads memory in order:
//   [tile][block]{[line][W groups][16 rows] four bytes; [scale][W groups][16 rows] F16}
// A block is 32 columns; its values are unsigned. Lines:
//   Q8_0    8: columns 0 … 3, 16 … 19, 4 … 7, 20 … 23, …; q + 128
//   4 bits  4: columns 4 j … 4 j + 3, and those 16 further in the high nibbles;
//           Q4_0 q + 8; IQ4_NL the index; Q4_K q; Q3_K q + 4
//   Q5_K    5: the same, and the fifth bits
//   Q6_K    3 for each half: twelve columns in the low six bits of bytes, four in their high two; q + 32
// Q3_K and Q6_K have a scale for each half of a block, Q4_K and Q5_K a scale and an eighth of a min. Four
// columns of a row fill a 32-bit lane, as the dot products of x86 (VNNI) and ARM want them. An offset comes
// off by starting each block's sum at −offset · Σ q of the activations (made of q8_start), and min · Σ q
// likewise. A row's sum runs over the columns in order whatever the tile, so that neither batch nor split
// changes a bit.
#include "agent/serve/kernels/packed.h"

#include "agent/serve/kernels/own_formats.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "agent/serve/kernels/dispatch.h"
#include "common/blocks/k_quants.h"

#if defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored \
    "-Wmaybe-uninitialized"  // of put()'s buffer, which g++ 12 does not see NEON store to
#endif

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

// A group's 16 rows fill so many vectors, the units of the tiles below.
#undef RETORT_PARTS
#undef RETORT_REGISTERS
#undef RETORT_DOT
#if HWY_TARGET <= HWY_AVX3
#define RETORT_PARTS 1
#elif HWY_TARGET <= HWY_AVX2
#define RETORT_PARTS 2
#else
#define RETORT_PARTS 4
#endif
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
#define RETORT_REGISTERS 32
#else
#define RETORT_REGISTERS 16
#endif
#define RETORT_DOT (HWY_ARCH_X86 || HWY_ARCH_ARM_A64)

/// Groups of a tile: as many as there are registers for their sums.
constexpr std::uint32_t kTileGroups = RETORT_PARTS == 1 && RETORT_REGISTERS == 32 ? 8 : 1;

/// Puts a unit's sums for one token where they belong: `left` rows of it exist.
HWY_INLINE void put(F sum, std::size_t row, std::size_t token, std::size_t left, const Output& out) {
  const Floats d;
  float* const to = out.data + token * out.stride + row;
  const float* const bias = out.bias == nullptr ? nullptr : out.bias + row;
  if (left >= hn::Lanes(d)) {
    if (bias != nullptr) sum = hn::Add(sum, hn::LoadU(d, bias));
    if (out.add) sum = hn::Add(sum, hn::LoadU(d, to));
    hn::StoreU(sum, d, to);
    return;
  }
  HWY_ALIGN float buffer[kGroupRows];
  hn::Store(sum, d, buffer);
  for (std::size_t r = 0; r < left; ++r) {
    float one = buffer[r];
    if (bias != nullptr) one += bias[r];
    to[r] = out.add ? one + to[r] : one;
  }
}

/// Rows of a matrix that exist from a unit's first on; none of the last units of a group may.
HWY_INLINE std::size_t rows_left(std::size_t rows, std::size_t row) { return rows > row ? rows - row : 0; }

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

/// R units of rows with T tokens.
template <class Load, int R, int T>
HWY_INLINE void tile_float(const Matrix& m, const float* x, std::size_t unit, std::size_t token,
                           const Output& out) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d), columns = m.columns;
  const typename Load::Value* w[R];
  for (int r = 0; r < R; ++r)
    w[r] = reinterpret_cast<const typename Load::Value*>(m.data) +
           (unit + r) / RETORT_PARTS * columns * kGroupRows + (unit + r) % RETORT_PARTS * lanes;
  x += token * columns;
  // Where there are registers for it, columns c, c + kChains, … have sums of their own, so that enough
  // multiplications are under way for one token as well.
  constexpr std::size_t kChains = RETORT_REGISTERS == 32 ? 2 : 1;
  F sums[kChains][R][T];
  for (auto& chain : sums)
    for (auto& row : chain)
      for (F& sum : row) sum = hn::Zero(d);
  const auto multiply = [&](std::size_t c, F(&chain)[R][T]) HWY_ATTR {
    F weights[R];
    for (int r = 0; r < R; ++r) weights[r] = Load::load(w[r] + c * kGroupRows);
    for (int t = 0; t < T; ++t) {
      const F value = hn::Set(d, x[t * columns + c]);
      for (int r = 0; r < R; ++r) chain[r][t] = hn::MulAdd(weights[r], value, chain[r][t]);
    }
  };
  std::size_t c = 0;
  for (; c + kChains <= columns; c += kChains)
    for (std::size_t chain = 0; chain < kChains; ++chain) multiply(c + chain, sums[chain]);
  if (c < columns) multiply(c, sums[0]);
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) {
      F sum = sums[0][r][t];
      if constexpr (kChains == 2) sum = hn::Add(sum, sums[1][r][t]);
      put(sum, (unit + r) * lanes, token + t, rows_left(m.rows, (unit + r) * lanes), out);
    }
}

/// Calls tile(R, T, unit, token) for tiles that cover units [begin, end) and `count` tokens: for few tokens
/// kFew units together (so that enough sums are under way at once), for many kUnits with kTokens, and what is
/// left over one unit with kSingle tokens; the units stay in the first-level cache while the tokens pass.
template <int kFew, int kUnits, int kTokens, int kSingle, class Tile>
HWY_INLINE void walk(std::uint32_t begin, std::uint32_t end, std::uint32_t count, const Tile& tile) {
  using std::integral_constant;
  const integral_constant<int, 1> one;
  const integral_constant<int, 2> two;
  const integral_constant<int, 4> four;
  std::uint32_t u = begin;
  if (count < 4) {
    if constexpr (kFew > 4)
      if (count == 1)
        for (; u + kFew <= end; u += kFew) tile(integral_constant<int, kFew>(), one, u, 0);
    if constexpr (kFew >= 4)
      for (; u + 4 <= end; u += 4) {
        std::uint32_t t = 0;
        if constexpr (RETORT_PARTS == 1)
          for (; t + 2 <= count; t += 2) tile(four, two, u, t);
        for (; t < count; ++t) tile(four, one, u, t);
      }
    for (; u + 2 <= end; u += 2)
      for (std::uint32_t t = 0; t < count; ++t) tile(two, one, u, t);
  } else if constexpr (kUnits > 1) {
    const integral_constant<int, kUnits> units;
    for (; u + kUnits <= end; u += kUnits) {
      std::uint32_t t = 0;
      if constexpr (kTokens > 4)  // eight in twos of four
        for (; t + kTokens <= count && t + 8 != count; t += kTokens)
          tile(units, integral_constant<int, kTokens>(), u, t);
      for (; t + 4 <= count; t += 4) tile(units, four, u, t);
      for (; t + 2 <= count; t += 2) tile(units, two, u, t);
      for (; t < count; ++t) tile(units, one, u, t);
    }
  }
  for (; u < end; ++u) {
    std::uint32_t t = 0;
    for (; t + kSingle <= count; t += kSingle) tile(one, integral_constant<int, kSingle>(), u, t);
    if constexpr (kSingle > 4)
      for (; t + 4 <= count; t += 4) tile(one, four, u, t);
    if constexpr (kSingle > 2)
      for (; t + 2 <= count; t += 2) tile(one, two, u, t);
    for (; t < count; ++t) tile(one, one, u, t);
  }
}

template <class Load>
void matmul_float(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                  const Output& out) {
  constexpr bool kMany = RETORT_REGISTERS == 32;
  walk<kMany ? 8 : 4, RETORT_PARTS == 1 ? 1 : 2, 4, kMany ? 12 : 8>(
      begin * RETORT_PARTS, end * RETORT_PARTS, x.count,
      [&](auto r, auto t, std::uint32_t unit, std::uint32_t token)
          HWY_ATTR { tile_float<Load, decltype(r)::value, decltype(t)::value>(m, x.f32, unit, token, out); });
}

#if RETORT_DOT
using Octets = hn::CappedTag<std::uint8_t, 4 * kGroupRows>;  // four columns of each of a unit's rows
using O = hn::Vec<Octets>;
using Shorts = hn::CappedTag<std::int16_t, 2 * kGroupRows>;
using S = hn::Vec<Shorts>;
using Ints = hn::Rebind<std::int32_t, Floats>;
using I = hn::Vec<Ints>;

HWY_INLINE O load_octets(const std::byte* p) {
  return hn::LoadU(Octets(), reinterpret_cast<const std::uint8_t*>(p));
}
template <int kBits>
HWY_INLINE O shift_right(O v) {
  return hn::BitCast(Octets(), hn::ShiftRight<kBits>(hn::BitCast(Shorts(), v)));
}
template <int kBits>
HWY_INLINE O shift_left(O v) {
  return hn::BitCast(Octets(), hn::ShiftLeft<kBits>(hn::BitCast(Shorts(), v)));
}
HWY_INLINE O octets(int value) { return hn::Set(Octets(), static_cast<std::uint8_t>(value)); }

// How the unsigned values of a block lie in its lines, which are `stride` bytes apart: load() gives a unit's
// columns 4 j … 4 j + 3, and those 16 further. kLargest bounds them; kAlike: each step takes its own lines,
// in the same way.
struct Bytes {
  static constexpr std::size_t kLines = 8;
  static constexpr int kLargest = 255;
  static constexpr bool kAlike = true;
  template <int j>
  static HWY_INLINE void load(const std::byte* w, std::size_t stride, O& first, O& second) {
    first = load_octets(w + 2 * j * stride);
    second = load_octets(w + (2 * j + 1) * stride);
  }
};
struct Nibbles {
  static constexpr std::size_t kLines = 4;
  static constexpr int kLargest = 15;
  static constexpr bool kAlike = true;
  template <int j>
  static HWY_INLINE void load(const std::byte* w, std::size_t stride, O& first, O& second) {
    const O both = load_octets(w + j * stride);
    first = hn::And(both, octets(15));
    second = hn::And(shift_right<4>(both), octets(15));
  }
};
/// 128 more than IQ4_NL's values.
alignas(16) constexpr std::uint8_t kTable[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                 129, 141, 153, 166, 181, 197, 217, 241};
struct Looked {
  static constexpr std::size_t kLines = 4;
  static constexpr int kLargest = 241;
  static constexpr bool kAlike = true;
  template <int j>
  static HWY_INLINE void load(const std::byte* w, std::size_t stride, O& first, O& second) {
    const O table = hn::LoadDup128(Octets(), kTable);
    Nibbles::load<j>(w, stride, first, second);
    first = hn::TableLookupBytes(table, first);
    second = hn::TableLookupBytes(table, second);
  }
};
/// Bit j of the fifth line's bytes is the fifth of the first columns, bit j + 4 that of the second.
struct FiveBits {
  static constexpr std::size_t kLines = 5;
  static constexpr int kLargest = 31;
  static constexpr bool kAlike = false;
  template <int j>
  static HWY_INLINE void load(const std::byte* w, std::size_t stride, O& first, O& second) {
    const O plane = load_octets(w + 4 * stride);
    Nibbles::load<j>(w, stride, first, second);
    first = hn::OrAnd(first, shift_left<4 - j>(plane), octets(16));
    second = hn::OrAnd(second, shift_right<j>(plane), octets(16));
  }
};
/// For each half of the block three lines: columns 0 … 3, 4 … 7 and 8 … 11 in the low six bits, and two bits
/// each of 12 … 15 in the high two.
struct SixBits {
  static constexpr std::size_t kLines = 6;
  static constexpr int kLargest = 63;
  static constexpr bool kAlike = false;
  template <int j>
  static HWY_INLINE O half(const std::byte* w, std::size_t stride) {
    if constexpr (j < 3) return hn::And(load_octets(w + j * stride), octets(63));
    const O low = hn::And(shift_right<6>(load_octets(w)), octets(3));
    const O middle = hn::OrAnd(low, shift_right<4>(load_octets(w + stride)), octets(12));
    return hn::OrAnd(middle, shift_right<2>(load_octets(w + 2 * stride)), octets(48));
  }
  template <int j>
  static HWY_INLINE void load(const std::byte* w, std::size_t stride, O& first, O& second) {
    first = half<j>(w, stride);
    second = half<j>(w + 3 * stride, stride);
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
  static constexpr int kSums = kScales == Scales::kHalves ? 2 : 1;
  /// Of one group.
  static constexpr std::size_t kBlockBytes = 64 * Values::kLines + (kScales == Scales::kOne ? 32 : 64);
  template <bool kSigned>
  static HWY_INLINE I start(const std::int32_t* q8_start) {
    const Ints d;
    if constexpr (kScales == Scales::kMin || kSigned) return hn::Zero(d);
    const I value = hn::Set(d, *q8_start);
    if constexpr (kItsShift > 0) return hn::ShiftLeft<kItsShift>(value);
    if constexpr (kItsShift < 0) return hn::ShiftRight<-kItsShift>(value);
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

/// Four bytes of activations in each lane.
HWY_INLINE O broadcast(const std::int8_t* p) {
  std::int32_t four;
  std::memcpy(&four, p, 4);
  return hn::BitCast(Octets(), hn::Set(Ints(), four));
}

// The ways to add to each lane the products of four values of a row with four of a token. kSigned: values
// with a sign, so that those that have an offset (of 128) lose it first, and sums start at zero.
// Sum<Values, kAdds>: kAdds products are added between two flushes of the block. kLoops: steps may be
// computed in a loop, as step 0 of what lies further on.

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
/// VNNI multiplies unsigned by signed. In assembly where the target's code may run without it.
struct Vnni {
  static constexpr bool kSigned = false, kLoops = true;
  template <class Values, int kAdds>
  struct Sum {
    using Weights = O;
    static HWY_INLINE O prepare(O w) { return w; }
    I sum;
    HWY_INLINE Sum() {}
    HWY_INLINE void begin(I start) { sum = start; }
    template <int j>
    HWY_INLINE void add(O w, O x) {
#if HWY_TARGET <= HWY_AVX3
      asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(w.raw), "v"(x.raw));
#else
      asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.raw) : "x"(w.raw), "x"(x.raw));
#endif
    }
    template <int j>
    HWY_INLINE void flush() {}
  };
  static HWY_INLINE O activations(const std::int8_t* sixteen, int j) { return broadcast(sixteen + 4 * j); }
};
#endif

#if HWY_ARCH_ARM_A64
/// ARMv8.2's dot product, of four signed bytes each; one lane of x holds the columns of step j.
struct ArmDot {
  static constexpr bool kSigned = true, kLoops = false;
  template <class Values, int kAdds>
  struct Sum {
    using Weights = O;
    static HWY_INLINE O prepare(O w) {
      if constexpr (Values::kLargest > 127) return hn::Xor(w, octets(128));
      return w;
    }
    I sum;
    HWY_INLINE Sum() {}
    HWY_INLINE void begin(I start) { sum = start; }
    template <int j>
    HWY_INLINE void add(O w, O x) {
#define RETORT_SDOT(LANE)                                                      \
  asm(".arch armv8.2-a+crypto+dotprod\n\tsdot %0.4s, %1.16b, %2.4b[" #LANE "]" \
      : "+w"(sum.raw)                                                          \
      : "w"(w.raw), "w"(x.raw))
      if constexpr (j == 0) RETORT_SDOT(0);
      if constexpr (j == 1) RETORT_SDOT(1);
      if constexpr (j == 2) RETORT_SDOT(2);
      if constexpr (j == 3) RETORT_SDOT(3);
#undef RETORT_SDOT
    }
    template <int j>
    HWY_INLINE void flush() {}
  };
  static HWY_INLINE O activations(const std::int8_t* sixteen, int) {
    return hn::LoadU(Octets(), reinterpret_cast<const std::uint8_t*>(sixteen));
  }
};
#endif

#if !HWY_ARCH_X86 || HWY_TARGET > HWY_AVX3
/// Without a dot product: products of 8 bits, added in pairs to 16, as many as fit, and then to 32.
struct Pairs {
  static constexpr bool kSigned = true, kLoops = false;
  template <class Values, int kAdds>
  struct Sum {
    static constexpr bool kFull = Values::kLargest > 127;
    static constexpr int kFit = kFull ? 1 : 32767 / (2 * 127 * Values::kLargest);
    static_assert(kFit >= 1);
    /// Steps j between two flushes; 0: after each product.
    static constexpr int kSteps = kFit >= 4 * kAdds ? 4 : kFit >= 2 * kAdds ? 2 : kFit >= kAdds ? 1 : 0;
    struct Weights {
      O size, sign;
      HWY_INLINE Weights() {}
      HWY_INLINE Weights(O its_size, O its_sign) : size(its_size), sign(its_sign) {}
    };
    I sum;
    S pairs;
    HWY_INLINE Sum() {}

    static HWY_INLINE Weights prepare(O w) {
      if constexpr (!kFull) return {w, w};
      const O whole = hn::Xor(w, octets(128));
#if HWY_ARCH_X86
      const hn::RebindToSigned<Octets> d;
      return {hn::BitCast(Octets(), hn::Abs(hn::BitCast(d, whole))), whole};
#else
      return {whole, whole};
#endif
    }
    HWY_INLINE void begin(I start) {
      sum = start;
      pairs = hn::Zero(Shorts());
    }
    static HWY_INLINE S multiply(const Weights& w, O x) {
#if !HWY_ARCH_X86
      const int8x16_t a = vreinterpretq_s8_u8(w.size.raw), b = vreinterpretq_s8_u8(x.raw);
      return S(vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b)));
#elif HWY_TARGET <= HWY_AVX2
      if constexpr (kFull) x = O{_mm256_sign_epi8(x.raw, w.sign.raw)};
      return S{_mm256_maddubs_epi16(w.size.raw, x.raw)};
#else
      if constexpr (kFull) x = O{_mm_sign_epi8(x.raw, w.sign.raw)};
      return S{_mm_maddubs_epi16(w.size.raw, x.raw)};
#endif
    }
    HWY_INLINE void widen(S products) {
#if !HWY_ARCH_X86
      sum = I(vpadalq_s16(sum.raw, products.raw));
#elif HWY_TARGET <= HWY_AVX2
      sum = hn::Add(sum, I{_mm256_madd_epi16(products.raw, _mm256_set1_epi16(1))});
#else
      sum = hn::Add(sum, I{_mm_madd_epi16(products.raw, _mm_set1_epi16(1))});
#endif
    }
    template <int j>
    HWY_INLINE void add(const Weights& w, O x) {
      const S products = multiply(w, x);
      if constexpr (kSteps == 0)
        widen(products);
      else
        pairs = hn::Add(pairs, products);
    }
    template <int j>
    HWY_INLINE void flush() {
      if constexpr (kSteps != 0 && (j + 1) % (kSteps == 0 ? 1 : kSteps) == 0) {
        widen(pairs);
        pairs = hn::Zero(Shorts());
      }
    }
  };
  static HWY_INLINE O activations(const std::int8_t* sixteen, int j) { return broadcast(sixteen + 4 * j); }
};
#endif

HWY_INLINE F load_scale(const std::byte* p) {
  return hn::PromoteTo(
      Floats(), hn::Load(hn::Rebind<hwy::float16_t, Floats>(), reinterpret_cast<const hwy::float16_t*>(p)));
}

/// Step j of a block: its four columns and those 16 further, of R units and T tokens. w: the first unit's
/// lines; x: the first token's block.
template <class Dot, class Format, int j, int R, int T, class Sum>
HWY_INLINE void step(const std::byte* w, std::size_t stride, const std::int8_t* x, std::size_t columns,
                     Sum (&sums)[Format::kSums][R][T]) {
  using Values = typename Format::Values;
  typename Sum::Weights first[R], second[R];
  for (int r = 0; r < R; ++r) {
    O a, b;
    Values::template load<j>(w + r * sizeof(float) * hn::Lanes(Floats()), stride, a, b);
    first[r] = Sum::prepare(a);
    second[r] = Sum::prepare(b);
  }
  for (int t = 0; t < T; ++t) {
    const O a = Dot::activations(x + t * columns, j), b = Dot::activations(x + t * columns + 16, j);
    for (int r = 0; r < R; ++r) {
      sums[0][r][t].template add<j>(first[r], a);
      sums[Format::kSums - 1][r][t].template add<j>(second[r], b);
      for (auto& sum : sums) sum[r][t].template flush<j>();
    }
  }
}

/// A tile's weights from one of its units on.
struct TileUnits {
  const std::byte *lines, *scales;  ///< of the unit's first block
  std::size_t stride;     ///< from one line of a group to the next: 64 bytes for each group of the tile
  bool far;               ///< Matrix::far
  std::size_t row, left;  ///< the unit's first row, and how many of the matrix there are from it on
};

template <class Dot, class Format, int R, int T>
HWY_INLINE void tile_dot(const TileUnits& units, const Activations& x, std::size_t token, const Output& out) {
  using Values = typename Format::Values;
  constexpr int kSums = Format::kSums;
  using Sum = typename Dot::template Sum<Values, 2 / kSums>;
  constexpr bool kSigned = Dot::kSigned && Values::kLargest > 127;
  const Floats d;
  const Ints d32;
  const std::size_t columns = x.columns, blocks = columns / 32, lanes = hn::Lanes(d), stride = units.stride;
  const std::size_t block_bytes = Format::kBlockBytes * stride / 64;
  constexpr std::size_t kWholeBytes = Format::kBlockBytes * R / RETORT_PARTS, kAhead = 4096;
  const std::int8_t* q = x.q8 + token * columns;
  const float* const scales = x.q8_scale + token * blocks;
  const std::int32_t* const starts =
      kSums == 2 ? x.q8_half_start + token * blocks * 2 : x.q8_start + token * blocks;
  const std::byte *w = units.lines, *w_scales = units.scales;
  F totals[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) totals[r][t] = hn::Zero(d);
  for (std::size_t b = 0; b < blocks; ++b, w += block_bytes, w_scales += block_bytes, q += 32) {
    Sum sums[kSums][R][T];
    for (int t = 0; t < T; ++t)
      for (int half = 0; half < kSums; ++half) {
        const I start = Format::template start<kSigned>(starts + (t * blocks + b) * kSums + half);
        for (int r = 0; r < R; ++r) sums[half][r][t].begin(start);
      }
    if constexpr (Dot::kLoops && Values::kAlike && T == 1) {
      // A loop for the sake of the processor's prefetcher, which learns from each load's own addresses: few
      // loads that go over the tile in small steps are read a fifth faster from memory than many in large
      // ones.
      const std::byte* line = w;
      const std::int8_t* four = q;
#pragma GCC unroll 1
      for (int j = 0; j < 4; ++j, line += Values::kLines / 4 * stride, four += 4) {
        if (units.far)
          for (std::size_t at = 0; at < kWholeBytes / 4; at += 64)
            __builtin_prefetch(w + kAhead + j * (kWholeBytes / 4) + at);
        step<Dot, Format, 0>(line, stride, four, columns, sums);
      }
    } else {
      step<Dot, Format, 0>(w, stride, q, columns, sums);
      step<Dot, Format, 1>(w, stride, q, columns, sums);
      step<Dot, Format, 2>(w, stride, q, columns, sums);
      step<Dot, Format, 3>(w, stride, q, columns, sums);
    }
    for (int r = 0; r < R; ++r) {
      const F scale = load_scale(w_scales + 2 * lanes * r);
      [[maybe_unused]] F other;
      if constexpr (Format::kScales != Scales::kOne)
        other = load_scale(w_scales + stride / 2 + 2 * lanes * r);
      for (int t = 0; t < T; ++t) {
        const F its = hn::Set(d, scales[t * blocks + b]);
        totals[r][t] = hn::MulAdd(hn::ConvertTo(d, sums[0][r][t].sum), hn::Mul(scale, its), totals[r][t]);
        if constexpr (Format::kScales == Scales::kHalves)
          totals[r][t] = hn::MulAdd(hn::ConvertTo(d, sums[1][r][t].sum), hn::Mul(other, its), totals[r][t]);
        if constexpr (Format::kScales == Scales::kMin)  // −8 Σ q times an eighth of the min
          totals[r][t] = hn::MulAdd(
              other, hn::Mul(its, hn::ConvertTo(d, hn::Set(d32, starts[t * blocks + b]))), totals[r][t]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t)
      put(totals[r][t], units.row + r * lanes, token + t, units.left > r * lanes ? units.left - r * lanes : 0,
          out);
}

template <class Dot, class Format>
void matmul_format(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                   const Output& out) {
  constexpr bool kMany = RETORT_REGISTERS == 32, kOne = Format::kScales == Scales::kOne;
  constexpr int kTokens = RETORT_PARTS == 1 && Format::kSums == 1 ? 6 : 4;
  const std::size_t group_bytes = m.columns / 32 * Format::kBlockBytes, lanes = hn::Lanes(Floats());
  const std::uint32_t groups = (m.rows + kGroupRows - 1) / kGroupRows;
  for (std::uint32_t first = begin / kTileGroups * kTileGroups; first < end; first += kTileGroups) {
    const std::uint32_t width = std::min(kTileGroups, groups - first);
    const std::byte* const tile = m.data + first * group_bytes;
    const std::size_t stride = 64 * width;
    walk<kTileGroups == 8 ? 8
         : kMany && kOne  ? 4
                          : 2,
         kMany ? 2 : 1, kTokens, kMany && Format::kSums == 1 ? 8 : 4>(
        (std::max(begin, first) - first) * RETORT_PARTS,
        (std::min(end, first + width) - first) * RETORT_PARTS, x.count,
        [&](auto r, auto t, std::uint32_t unit, std::uint32_t token) HWY_ATTR {
          const std::size_t row = first * kGroupRows + unit * lanes;
          const TileUnits units{tile + unit * 4 * lanes,
                                tile + Format::Values::kLines * stride + unit * 2 * lanes,
                                stride,
                                m.far,
                                row,
                                rows_left(m.rows, row)};
          tile_dot<Dot, Format, decltype(r)::value, decltype(t)::value>(units, x, token, out);
        });
  }
}

template <class Dot>
void matmul_dot(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                const Output& out) {
  switch (m.type) {
    case TensorType::kQ8_0:
      return matmul_format<Dot, FormatQ8_0>(m, x, begin, end, out);
    case TensorType::kQ4_0:
      return matmul_format<Dot, FormatQ4_0>(m, x, begin, end, out);
    case TensorType::kIq4Nl:
      return matmul_format<Dot, FormatIq4Nl>(m, x, begin, end, out);
    case TensorType::kQ3K:
      return matmul_format<Dot, FormatQ3K>(m, x, begin, end, out);
    case TensorType::kQ4K:
      return matmul_format<Dot, FormatQ4K>(m, x, begin, end, out);
    case TensorType::kQ5K:
      return matmul_format<Dot, FormatQ5K>(m, x, begin, end, out);
    case TensorType::kQ6K:
      return matmul_format<Dot, FormatQ6K>(m, x, begin, end, out);
    default:
      std::abort();  // a matrix was packed for another instruction set
  }
}
#endif  // RETORT_DOT

void MatmulPacked(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                  const Output& out) {
  switch (m.type) {
    case TensorType::kF32:
      return matmul_float<LoadF32>(m, x, begin, end, out);
    case TensorType::kF16:
      return matmul_float<Load16<hwy::float16_t>>(m, x, begin, end, out);
    case TensorType::kBF16:
      return matmul_float<Load16<hwy::bfloat16_t>>(m, x, begin, end, out);
#if RETORT_DOT
    default:
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
      return matmul_dot<Vnni>(m, x, begin, end, out);
#else
#if HWY_ARCH_ARM_A64
      if (instruction_set_in_use().dot_product) return matmul_dot<ArmDot>(m, x, begin, end, out);
#elif HWY_TARGET <= HWY_AVX2
      if (instruction_set_in_use().dot_product) return matmul_dot<Vnni>(m, x, begin, end, out);
#endif
      return matmul_dot<Pairs>(m, x, begin, end, out);
#endif
#else
    default:
      std::abort();  // a matrix was packed for another instruction set
#endif
  }
}

/// Bytes of a group of rows, before the matrix is rounded up to whole lines of the cache; 0 where this
/// instruction set has no packed layout of the type.
std::size_t GroupBytes(TensorType type, std::size_t columns) {
  switch (type) {
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16:
      return info(type).block_bytes * columns * kGroupRows;
#if RETORT_DOT
    case TensorType::kQ8_0:
      return columns / 32 * FormatQ8_0::kBlockBytes;
    case TensorType::kQ4_0:
      return columns / 32 * FormatQ4_0::kBlockBytes;
    case TensorType::kIq4Nl:
      return columns / 32 * FormatIq4Nl::kBlockBytes;
    case TensorType::kQ3K:
      return columns / 32 * FormatQ3K::kBlockBytes;
    case TensorType::kQ4K:
      return columns / 32 * FormatQ4K::kBlockBytes;
    case TensorType::kQ5K:
      return columns / 32 * FormatQ5K::kBlockBytes;
    case TensorType::kQ6K:
      return columns / 32 * FormatQ6K::kBlockBytes;
#endif
    default:
      return 0;
  }
}
std::uint32_t TileGroups() { return kTileGroups; }

}  // namespace HWY_NAMESPACE
}  // namespace retort::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace retort::kernels {

RETORT_EXPORT(MatmulPacked);
RETORT_EXPORT(GroupBytes);
RETORT_EXPORT(TileGroups);

std::size_t packed_bytes(TensorType type, std::uint32_t rows, std::uint32_t columns) {
  return ((rows + kGroupRows - 1) / kGroupRows * RETORT_CALL(GroupBytes)(type, columns) + 63) / 64 * 64;
}

std::uint32_t packing_version() { return 4; }

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

/// Writes the values of one row's block into the block's lines, `stride` bytes apart; `at` are the row's four
/// bytes in the first. Bits are added to zeros.
void put_values(TensorType type, const std::uint8_t* q, std::byte* at, std::size_t stride) {
  const auto add = [&](std::size_t line, std::size_t byte, unsigned bits) {
    at[line * stride + byte] |= static_cast<std::byte>(bits);
  };
  for (std::size_t c = 0; c < 16; ++c) {
    const std::size_t j = c / 4, byte = c % 4;
    const unsigned first = q[c], second = q[c + 16];
    if (type == TensorType::kQ8_0) {
      add(2 * j, byte, first);
      add(2 * j + 1, byte, second);
    } else if (type == TensorType::kQ6K) {
      for (std::size_t half = 0; half < 2; ++half) {
        const unsigned value = half == 0 ? first : second;
        if (j < 3)
          add(3 * half + j, byte, value);
        else
          for (std::size_t line = 0; line < 3; ++line)
            add(3 * half + line, byte, (value >> 2 * line & 3) << 6);
      }
    } else {
      add(j, byte, (first & 15) | (second & 15) << 4);
      if (type == TensorType::kQ5K) add(4, byte, (first >> 4) << j | (second >> 4) << (j + 4));
    }
  }
}

}  // namespace

void pack(const Matrix& matrix, std::uint32_t first_row, std::uint32_t rows, std::byte* out) {
  const TensorType type = matrix.type;
  const std::size_t row_size = *row_bytes(type, matrix.columns);
  const std::size_t group_bytes = RETORT_CALL(GroupBytes)(type, matrix.columns);
  const std::size_t tile_groups = RETORT_CALL(TileGroups)(), groups = (rows + kGroupRows - 1) / kGroupRows;
  const bool two = type == TensorType::kQ3K || type == TensorType::kQ4K || type == TensorType::kQ5K ||
                   type == TensorType::kQ6K;
  for (std::uint32_t r = 0; r < matrix.rows; ++r) {
    const std::byte* const row = matrix.data + r * row_size;
    const std::size_t lane = (first_row + r) % kGroupRows, group = (first_row + r) / kGroupRows;
    if (info(type).block_values == 1) {
      const std::size_t size = info(type).block_bytes;
      for (std::size_t c = 0; c < matrix.columns; ++c)
        std::memcpy(out + group * group_bytes + (c * kGroupRows + lane) * size, row + c * size, size);
      continue;
    }
    const std::size_t first = group / tile_groups * tile_groups,
                      width = std::min(tile_groups, groups - first);
    const std::size_t stride = 64 * width, lane_in_tile = (group - first) * kGroupRows + lane;
    const std::size_t block_bytes = group_bytes / (matrix.columns / 32),
                      lines = (block_bytes - (two ? 64 : 32)) / 64;
    unpack_row(type, row, matrix.columns, [&](std::size_t b, const Unpacked& block) {
      std::byte* const at = out + first * group_bytes + b * block_bytes * width;
      put_values(type, block.q, at + 4 * lane_in_tile, stride);
      std::byte* const scales = at + lines * stride;
      std::memcpy(scales + 2 * lane_in_tile, &block.scale[0], 2);
      if (two) std::memcpy(scales + stride / 2 + 2 * lane_in_tile, &block.scale[1], 2);
    });
  }
}

void matmul(const Matrix& matrix, const Activations& x, std::uint32_t row_begin, std::uint32_t row_end,
            const Output& out) {
  if (is_own_format(matrix.type)) return matmul_own(matrix, x, row_begin, row_end, out);
  if (!matrix.packed) return matmul_rows(matrix, x, row_begin, row_end, out);
  RETORT_CALL(MatmulPacked)
  (matrix, x, row_begin / kGroupRows, (row_end + kGroupRows - 1) / kGroupRows, out);
}

}  // namespace retort::kernels
#endif
