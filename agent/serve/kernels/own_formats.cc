// Packed where the instruction set has what it takes; groups of 16 rows, a lane each, as in packed.cc:
//   SPARSE_Q8, SPARSE24_Q8 (AVX-512 with VBMI2 and VNNI)
//     u64 value_at[groups + 1], filled up to 64 bytes; [group][block][8] masks of 64 bits: bit 4 r + c for
//     row r and column 4 step + c of the block of 32; [group][block][16] scales, F16; the values, unsigned (q
//     + 128), in the order of their bits; 64 bytes more, for loads that reach beyond. A step expands the
//     values to the 64 places (vpexpandb), 128 where there is none, and goes on as Q8_0 does.
//   CODEBOOK4 (AVX2 and above)
//     [group]{16 entries F32; [pair of columns][16 rows] column 2 j | column 2 j + 1 << 4}: the codebook
//     stays in registers, and a permutation looks 16 rows up at once.
//   CODEBOOK8, and CODEBOOK4 below AVX2: F16, packed as such.
// Not packed, sparse rows are expanded eight columns at a time by a table of shuffles into 8-bit blocks; rows
// of indices are decoded by the reference.
#include "agent/serve/kernels/own_formats.h"

#include "agent/serve/kernels/dispatch.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common/blocks/formats.h"
#include "common/blocks/matrix.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "agent/serve/kernels/own_formats.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace retort::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::CappedTag<float, kGroupRows>;
using F = hn::Vec<Floats>;

#undef RETORT_EXPAND
#undef RETORT_LOOKUP
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
#define RETORT_EXPAND 1
#else
#define RETORT_EXPAND 0
#endif
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
#define RETORT_LOOKUP 1
#else
#define RETORT_LOOKUP 0
#endif

/// Which layouts this instruction set has.
bool PacksSparse() { return RETORT_EXPAND != 0; }
bool PacksCodebook() { return RETORT_LOOKUP != 0; }

/// Sums of a group's rows for one token to where they belong: `left` rows of it exist.
[[maybe_unused]] HWY_INLINE void put(const float* sums, std::size_t row, std::size_t token, std::size_t left,
                                     const Output& out) {
  float* const to = out.data + token * out.stride + row;
  for (std::size_t r = 0; r < std::min<std::size_t>(left, kGroupRows); ++r) {
    const float sum = out.bias == nullptr ? sums[r] : sums[r] + out.bias[row + r];
    to[r] = out.add ? sum + to[r] : sum;
  }
}

/// Eight, four, two, then single tokens for each of the groups [begin, end).
template <class Tile>
[[maybe_unused]] HWY_INLINE void walk(std::uint32_t begin, std::uint32_t end, std::uint32_t count,
                                      Tile tile) {
  for (std::uint32_t g = begin; g < end; ++g) {
    std::uint32_t t = 0;
    for (; t + 8 <= count; t += 8) tile(std::integral_constant<int, 8>(), g, t);
    for (; t + 4 <= count; t += 4) tile(std::integral_constant<int, 4>(), g, t);
    for (; t + 2 <= count; t += 2) tile(std::integral_constant<int, 2>(), g, t);
    for (; t < count; ++t) tile(std::integral_constant<int, 1>(), g, t);
  }
}

#if RETORT_EXPAND
HWY_INLINE __m512i broadcast(const void* p) {
  std::int32_t value;
  std::memcpy(&value, p, 4);
  return _mm512_set1_epi32(value);
}

struct SparseGroup {
  const std::byte *masks, *scales, *values;
};

template <int T>
HWY_INLINE void tile_sparse(const SparseGroup& group, const Activations& x, std::size_t row,
                            std::size_t token, std::size_t rows, const Output& out) {
  const std::size_t columns = x.columns, blocks = columns / 32;
  const std::int8_t* const q = x.q8 + token * columns;
  const std::byte* values = group.values;
  const __m512i none = _mm512_set1_epi8(static_cast<char>(128));
  __m512 totals[T];
  for (int t = 0; t < T; ++t) totals[t] = _mm512_setzero_ps();
  for (std::size_t b = 0; b < blocks; ++b) {
    // The unsigned values' offset comes off by starting at −128 Σ q. Even and odd steps apart: two chains.
    __m512i even[T], odd[T];
    for (int t = 0; t < T; ++t) {
      even[t] = _mm512_slli_epi32(broadcast(x.q8_start + (token + t) * blocks + b), 4);
      odd[t] = _mm512_setzero_si512();
    }
    const std::byte* const masks = group.masks + b * 64;
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      std::uint64_t mask;
      std::memcpy(&mask, masks + 8 * j, 8);
      const __m512i w = _mm512_mask_expand_epi8(none, mask, _mm512_loadu_si512(values));
      values += std::popcount(mask);
      for (int t = 0; t < T; ++t) {
        const __m512i a = broadcast(q + t * columns + b * 32 + 4 * j);
        __m512i& sum = j % 2 == 0 ? even[t] : odd[t];
        sum = _mm512_dpbusd_epi32(sum, w, a);
      }
    }
    const __m512 scale =
        _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(group.scales + b * 32)));
    for (int t = 0; t < T; ++t)
      totals[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(even[t], odd[t])),
                                  _mm512_mul_ps(scale, _mm512_set1_ps(x.q8_scale[(token + t) * blocks + b])),
                                  totals[t]);
  }
  alignas(64) float sums[kGroupRows];
  for (int t = 0; t < T; ++t) {
    _mm512_store_ps(sums, totals[t]);
    put(sums, row, token + t, rows - row, out);
  }
}

void MatmulSparse(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                  const Output& out) {
  const std::size_t groups = (m.rows + kGroupRows - 1) / kGroupRows, blocks = m.columns / 32;
  const std::byte* const masks = m.data + (8 * (groups + 1) + 63) / 64 * 64;
  const std::byte* const scales = masks + groups * blocks * 64;
  const std::byte* const values = scales + groups * blocks * 32;
  walk(begin, end, x.count, [&](auto t, std::uint32_t g, std::uint32_t token) HWY_ATTR {
    std::uint64_t at;
    std::memcpy(&at, m.data + 8 * g, 8);
    tile_sparse<decltype(t)::value>({masks + g * blocks * 64, scales + g * blocks * 32, values + at}, x,
                                    g * kGroupRows, token, m.rows, out);
  });
}
#else
void MatmulSparse(const Matrix&, const Activations&, std::uint32_t, std::uint32_t, const Output&) {
  std::abort();  // a sparse matrix was packed for another instruction set
}
#endif

#if RETORT_LOOKUP
#if HWY_TARGET <= HWY_AVX3
struct Codebook {
  __m512 entries;
  explicit HWY_INLINE Codebook(const float* p) : entries(_mm512_load_ps(p)) {}
  using Indices = __m512i;
  static constexpr int kParts = 1;
  static HWY_INLINE Indices load(const std::byte* p, int) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static HWY_INLINE Indices high(Indices i) { return _mm512_srli_epi32(i, 4); }
  HWY_INLINE F look_up(Indices i) const {
    return F{_mm512_permutexvar_ps(i, entries)};
  }  // by the low four bits
};
#else
struct Codebook {
  __m256 low, upper;
  explicit HWY_INLINE Codebook(const float* p) : low(_mm256_load_ps(p)), upper(_mm256_load_ps(p + 8)) {}
  using Indices = __m256i;
  static constexpr int kParts = 2;
  static HWY_INLINE Indices load(const std::byte* p, int part) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * part)));
  }
  static HWY_INLINE Indices high(Indices i) { return _mm256_srli_epi32(i, 4); }
  HWY_INLINE F look_up(Indices i) const {  // by the low three bits, the fourth chooses
    const __m256 fourth = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28));
    return F{_mm256_blendv_ps(_mm256_permutevar8x32_ps(low, i), _mm256_permutevar8x32_ps(upper, i), fourth)};
  }
};
#endif

template <int T>
HWY_INLINE void tile_codebook(const std::byte* group, const Activations& x, std::size_t row,
                              std::size_t token, std::size_t rows, const Output& out) {
  const Floats d;
  constexpr int kParts = Codebook::kParts;
  const std::size_t columns = x.columns;
  const Codebook book(reinterpret_cast<const float*>(group));
  const std::byte* const indices = group + 64;
  const float* const values = x.f32 + token * columns;
  F even[T][kParts], odd[T][kParts];
  for (int t = 0; t < T; ++t)
    for (int p = 0; p < kParts; ++p) even[t][p] = odd[t][p] = hn::Zero(d);
  std::size_t c = 0;
  for (; c + 2 <= columns; c += 2)
    for (int p = 0; p < kParts; ++p) {
      const Codebook::Indices i = Codebook::load(indices + c / 2 * kGroupRows, p);
      const F first = book.look_up(i), second = book.look_up(Codebook::high(i));
      for (int t = 0; t < T; ++t) {
        even[t][p] = hn::MulAdd(first, hn::Set(d, values[t * columns + c]), even[t][p]);
        odd[t][p] = hn::MulAdd(second, hn::Set(d, values[t * columns + c + 1]), odd[t][p]);
      }
    }
  if (c < columns)
    for (int p = 0; p < kParts; ++p) {
      const F first = book.look_up(Codebook::load(indices + c / 2 * kGroupRows, p));
      for (int t = 0; t < T; ++t)
        even[t][p] = hn::MulAdd(first, hn::Set(d, values[t * columns + c]), even[t][p]);
    }
  HWY_ALIGN float sums[kGroupRows];
  for (int t = 0; t < T; ++t) {
    for (int p = 0; p < kParts; ++p) hn::Store(hn::Add(even[t][p], odd[t][p]), d, sums + p * hn::Lanes(d));
    put(sums, row, token + t, rows - row, out);
  }
}

void MatmulCodebook(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                    const Output& out) {
  const std::size_t group_bytes = (64 + (m.columns + 1) / 2 * kGroupRows + 63) / 64 * 64;
  walk(begin, end, x.count, [&](auto t, std::uint32_t g, std::uint32_t token) HWY_ATTR {
    tile_codebook<decltype(t)::value>(m.data + g * group_bytes, x, g * kGroupRows, token, m.rows, out);
  });
}
#else
void MatmulCodebook(const Matrix&, const Activations&, std::uint32_t, std::uint32_t, const Output&) {
  std::abort();  // a codebook matrix was packed for another instruction set
}
#endif

// ---- as the file has them ----

/// Of each mask of eight columns: where its values, which lie one behind the other, go; 0x80: nowhere.
struct Shuffles {
  alignas(16) std::uint8_t at[256][8];
};
constexpr Shuffles make_shuffles() {
  Shuffles s{};
  for (unsigned mask = 0; mask < 256; ++mask) {
    std::uint8_t next = 0;
    for (unsigned c = 0; c < 8; ++c) s.at[mask][c] = (mask >> c & 1) != 0 ? next++ : 0x80;
  }
  return s;
}
constexpr Shuffles kShuffles = make_shuffles();

/// A block of 32 columns from its mask and values. `room`: at least 8 bytes may be read from any value on.
HWY_INLINE void expand(std::uint32_t mask, const std::int8_t* values, bool room, std::int8_t* q) {
  const hn::FixedTag<std::uint8_t, 8> d8;
  for (int part = 0; part < 4; ++part, mask >>= 8, q += 8) {
    const auto count = static_cast<std::size_t>(std::popcount(mask & 255));
    HWY_ALIGN std::uint8_t some[16] = {};
    std::memcpy(some, values, room ? 8 : count);
    const auto placed = hn::TableLookupBytesOr0(hn::Load(d8, some), hn::LoadU(d8, kShuffles.at[mask & 255]));
    hn::StoreU(placed, d8, reinterpret_cast<std::uint8_t*>(q));
    values += count;
  }
}

/// A block's whole-number product with a token's.
HWY_INLINE std::int32_t dot(const std::int8_t* w, const std::int8_t* x) {
  const hn::CappedTag<std::int16_t, 32> d16;
  const hn::Rebind<std::int8_t, decltype(d16)> d8;
  const hn::RepartitionToWide<decltype(d16)> d32;
  auto sum0 = hn::Zero(d32), sum1 = hn::Zero(d32);
  for (std::size_t i = 0; i < 32; i += hn::Lanes(d16))
    sum0 = hn::ReorderWidenMulAccumulate(d32, hn::PromoteTo(d16, hn::LoadU(d8, w + i)),
                                         hn::PromoteTo(d16, hn::LoadU(d8, x + i)), sum0, sum1);
  return hn::GetLane(hn::SumOfLanes(d32, hn::Add(sum0, sum1)));
}

/// Calls product(block, levels, scale) for each block of a row.
template <class Product>
HWY_INLINE void walk_sparse_row(const Matrix& m, std::uint32_t row, Product product) {
  const std::size_t blocks = m.columns / 32;
  HWY_ALIGN std::int8_t levels[32];
  if (m.type == TensorType::kSparse24Q8) {
    const std::byte* block = m.data + std::size_t{row} * blocks * blocks::kSparse24Bytes;
    for (std::size_t b = 0; b < blocks; ++b, block += blocks::kSparse24Bytes) {
      blocks::decode_sparse24_levels(block, levels);
      std::uint16_t scale;
      std::memcpy(&scale, block, 2);
      product(b, levels, f16_to_f32(scale));
    }
    return;
  }
  const SparseView view = sparse_view(m.rows, m.columns, m.data);
  const std::int8_t* values = view.values(row);
  const std::int8_t* const last = view.values(m.rows);
  for (std::size_t b = 0; b < blocks; ++b) {
    const std::uint32_t mask = view.mask(row, b);
    expand(mask, values, last - values >= 40, levels);
    values += std::popcount(mask);
    product(b, levels, f16_to_f32(view.scale(row, b)));
  }
}

void MatmulSparseRows(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                      const Output& out) {
  constexpr std::size_t kTokens = 32;
  const std::size_t blocks = m.columns / 32;
  for (std::uint32_t r = begin; r < end; ++r)
    for (std::size_t first = 0; first < x.count; first += kTokens) {
      const std::size_t n = std::min<std::size_t>(kTokens, x.count - first);
      float sums[kTokens] = {};
      walk_sparse_row(m, r, [&](std::size_t b, const std::int8_t* levels, float scale) HWY_ATTR {
        for (std::size_t t = 0; t < n; ++t)
          sums[t] += static_cast<float>(dot(levels, x.q8 + (first + t) * m.columns + 32 * b)) *
                     (scale * x.q8_scale[(first + t) * blocks + b]);
      });
      for (std::size_t t = 0; t < n; ++t) {
        float* const to = out.data + (first + t) * out.stride + r;
        const float sum = out.bias == nullptr ? sums[t] : sums[t] + out.bias[r];
        *to = out.add ? sum + *to : sum;
      }
    }
}

/// Row by row, 256 columns looked up at a time.
void MatmulCodebookRows(const Matrix& m, const Activations& x, std::uint32_t begin, std::uint32_t end,
                        const Output& out) {
  constexpr std::size_t kColumns = 256, kTokens = 32;
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  const CodebookView view = codebook_view(m.type, m.rows, m.columns, m.data);
  HWY_ALIGN float values[kColumns + 16], sums[kTokens][16];
  float entries[256];
  for (std::uint32_t r = begin; r < end; ++r) {
    for (std::uint32_t i = 0; i < (view.wide ? 256u : 16u); ++i) entries[i] = f16_to_f32(view.entry(r, i));
    const std::byte* const indices = view.indices(r);
    for (std::size_t first = 0; first < x.count; first += kTokens) {
      const std::size_t tokens = std::min<std::size_t>(kTokens, x.count - first);
      std::memset(sums, 0, sizeof sums);
      float rest[kTokens] = {};
      for (std::size_t c = 0; c < m.columns; c += kColumns) {
        const std::size_t n = std::min<std::size_t>(kColumns, m.columns - c);
        for (std::size_t i = 0; i < n; ++i) {
          const auto byte = std::to_integer<std::uint32_t>(indices[view.wide ? c + i : (c + i) / 2]);
          values[i] = entries[view.wide ? byte : byte >> ((c + i) % 2 == 0 ? 0 : 4) & 15];
        }
        for (std::size_t t = 0; t < tokens; ++t) {
          const float* const from = x.f32 + (first + t) * m.columns + c;
          F sum = hn::Load(d, sums[t]);
          std::size_t i = 0;
          for (; i + lanes <= n; i += lanes)
            sum = hn::MulAdd(hn::Load(d, values + i), hn::LoadU(d, from + i), sum);
          for (; i < n; ++i) rest[t] += values[i] * from[i];
          hn::Store(sum, d, sums[t]);
        }
      }
      for (std::size_t t = 0; t < tokens; ++t) {
        float* const to = out.data + (first + t) * out.stride + r;
        const float sum = hn::GetLane(hn::SumOfLanes(d, hn::Load(d, sums[t]))) + rest[t] +
                          (out.bias == nullptr ? 0.0f : out.bias[r]);
        *to = out.add ? sum + *to : sum;
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace retort::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace retort::kernels {

RETORT_EXPORT(PacksSparse);
RETORT_EXPORT(PacksCodebook);
RETORT_EXPORT(MatmulSparse);
RETORT_EXPORT(MatmulCodebook);
RETORT_EXPORT(MatmulSparseRows);
RETORT_EXPORT(MatmulCodebookRows);

namespace {

constexpr std::uint64_t kEverything = UINT64_MAX / 2;  // a valid matrix says itself where it ends

std::size_t groups_of(std::uint32_t rows) { return (rows + kGroupRows - 1) / kGroupRows; }
std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

bool is_sparse(TensorType type) { return type == TensorType::kSparseQ8 || type == TensorType::kSparse24Q8; }

/// Calls put(column, level + 128) for each value that a block of a row has, in order; its scale, F16.
template <class Put>
std::uint16_t walk_block(const Matrix& m, std::uint32_t row, std::size_t block, Put put) {
  const std::size_t blocks = m.columns / 32;
  std::uint16_t scale;
  if (m.type == TensorType::kSparse24Q8) {
    const std::byte* const from = m.data + (row * blocks + block) * blocks::kSparse24Bytes;
    std::int8_t q[32];
    blocks::decode_sparse24_levels(from, q);
    for (std::uint32_t c = 0; c < 32; ++c)
      if (q[c] != 0) put(c, static_cast<std::uint8_t>(q[c] + 128));
    std::memcpy(&scale, from, 2);
    return scale;
  }
  const SparseView view = sparse_view(m.rows, m.columns, m.data);
  const std::int8_t* values = view.values(row);
  for (std::size_t b = 0; b < block; ++b) values += std::popcount(view.mask(row, b));
  const std::uint32_t mask = view.mask(row, block);
  for (std::uint32_t c = 0; c < 32; ++c)
    if ((mask >> c & 1) != 0) put(c, static_cast<std::uint8_t>(*values++ + 128));
  return view.scale(row, block);
}

std::size_t most_values(const Matrix& m) {
  if (m.type == TensorType::kSparse24Q8) return std::size_t{m.rows} * m.columns / 2;
  return sparse_view(m.rows, m.columns, m.data).values_before(m.rows);
}

void pack_sparse(const Matrix& m, std::byte* out) {
  const std::size_t groups = groups_of(m.rows), blocks = m.columns / 32;
  std::byte* const masks = out + aligned(8 * (groups + 1));
  std::byte* const scales = masks + groups * blocks * 64;
  std::byte* const values = scales + groups * blocks * 32;
  std::uint64_t at = 0;
  for (std::size_t g = 0; g < groups; ++g) {
    std::memcpy(out + 8 * g, &at, 8);
    for (std::size_t b = 0; b < blocks; ++b) {
      std::array<std::uint64_t, 8> mask{};
      std::uint8_t q[kGroupRows][32] = {};
      for (std::uint32_t lane = 0; lane < kGroupRows && g * kGroupRows + lane < m.rows; ++lane) {
        const std::uint16_t scale = walk_block(m, static_cast<std::uint32_t>(g * kGroupRows) + lane, b,
                                               [&](std::uint32_t c, std::uint8_t level) {
                                                 q[lane][c] = level;
                                                 mask[c / 4] |= std::uint64_t{1} << (4 * lane + c % 4);
                                               });
        std::memcpy(scales + (g * blocks + b) * 32 + 2 * lane, &scale, 2);
      }
      for (std::size_t j = 0; j < 8; ++j) {
        std::memcpy(masks + (g * blocks + b) * 64 + 8 * j, &mask[j], 8);
        for (std::uint64_t rest = mask[j]; rest != 0; rest &= rest - 1) {
          const auto bit = static_cast<std::size_t>(std::countr_zero(rest));
          values[at++] = std::byte{q[bit / 4][4 * j + bit % 4]};
        }
      }
    }
  }
  std::memcpy(out + 8 * groups, &at, 8);
}

void pack_codebook(const Matrix& m, std::byte* out) {
  const CodebookView view = codebook_view(m.type, m.rows, m.columns, m.data);
  const std::size_t pairs = (m.columns + 1) / 2, group_bytes = aligned(64 + pairs * kGroupRows);
  for (std::uint32_t r = 0; r < m.rows; ++r) {
    std::byte* const group = out + r / kGroupRows * group_bytes;
    if (r % kGroupRows == 0)  // a codebook's rows are whole groups
      for (std::uint32_t i = 0; i < 16; ++i) {
        const float entry = f16_to_f32(view.entry(r, i));
        std::memcpy(group + 4 * i, &entry, 4);
      }
    for (std::size_t j = 0; j < pairs; ++j) group[64 + j * kGroupRows + r % kGroupRows] = view.indices(r)[j];
  }
}

bool becomes_f16(TensorType type) {
  return type == TensorType::kCodebook8 || (type == TensorType::kCodebook4 && !RETORT_CALL(PacksCodebook)());
}

}  // namespace

bool is_own_format(TensorType type) {
  return is_sparse(type) || type == TensorType::kCodebook4 || type == TensorType::kCodebook8;
}

std::uint64_t stored_bytes(const Matrix& m) {
  return matrix_bytes(m.type, m.rows, m.columns, {m.data, kEverything}).value_or(0);
}

std::size_t packed_bytes(const Matrix& m) {
  if (!is_own_format(m.type)) return packed_bytes(m.type, m.rows, m.columns);
  if (becomes_f16(m.type)) return packed_bytes(TensorType::kF16, m.rows, m.columns);
  if (m.type == TensorType::kCodebook4)
    return groups_of(m.rows) * aligned(64 + (m.columns + 1) / 2 * kGroupRows);
  if (!RETORT_CALL(PacksSparse)()) return 0;
  const std::size_t groups = groups_of(m.rows), blocks = m.columns / 32;
  return aligned(8 * (groups + 1)) + groups * blocks * 96 + most_values(m) + 64;
}

Matrix pack(const Matrix& m, std::byte* out, bool fill) {
  Matrix packed = m;
  packed.packed = true;
  packed.data = out;
  if (becomes_f16(m.type)) {
    packed.type = TensorType::kF16;
    std::vector<float> row(fill ? m.columns : 0);
    std::vector<std::byte> narrow(2 * row.size());
    for (std::uint32_t r = 0; fill && r < m.rows; ++r) {
      decode_rows(m.type, m.rows, m.columns, {m.data, kEverything}, r, row);
      encode_row(TensorType::kF16, row, narrow);
      pack({TensorType::kF16, 1, m.columns, narrow.data()}, r, m.rows, out);
    }
  } else if (fill && is_sparse(m.type)) {
    pack_sparse(m, out);
  } else if (fill && m.type == TensorType::kCodebook4) {
    pack_codebook(m, out);
  } else if (fill) {
    pack(m, 0, m.rows, out);
  }
  return packed;
}

void matmul_own(const Matrix& m, const Activations& x, std::uint32_t row_begin, std::uint32_t row_end,
                const Output& out) {
  const std::uint32_t begin = row_begin / kGroupRows, end = (row_end + kGroupRows - 1) / kGroupRows;
  if (is_sparse(m.type)) {
    if (m.packed) return RETORT_CALL(MatmulSparse)(m, x, begin, end, out);
    return RETORT_CALL(MatmulSparseRows)(m, x, row_begin, row_end, out);
  }
  if (m.packed) return RETORT_CALL(MatmulCodebook)(m, x, begin, end, out);
  RETORT_CALL(MatmulCodebookRows)(m, x, row_begin, row_end, out);
}

}  // namespace retort::kernels
#endif
