#include "agent/serve/kernels/encoder.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "agent/serve/kernels/dispatch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "agent/serve/kernels/encoder.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace retort::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::CappedTag<float, 16>;
using F = hn::Vec<Floats>;

/// exp(x) for x ≤ 0, within 2 units in the last place; 0 below −87. 2^(x log2 e), the whole part as an
/// exponent, the rest by a polynomial of degree 6 (Taylor's of exp, |r| ≤ ln 2 / 2).
HWY_INLINE F exp_of_negative(F x) {
  const Floats d;
  const hn::RebindToSigned<Floats> d32;
  const F clamped = hn::Max(x, hn::Set(d, -87.0f));
  const F whole = hn::Round(hn::Mul(clamped, hn::Set(d, 1.44269504f)));
  // ln 2 in two parts, so that the rest is exact.
  F r = hn::NegMulAdd(whole, hn::Set(d, 0.693359375f), clamped);
  r = hn::NegMulAdd(whole, hn::Set(d, -2.12194440e-4f), r);
  F p = hn::Set(d, 1.0f / 720);
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 120));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 24));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 6));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(d32, whole), hn::Set(d32, 127)));
  return hn::IfThenElseZero(hn::Gt(x, hn::Set(d, -87.0f)), hn::Mul(p, hn::BitCast(d, exponent)));
}

// Queries, and vectors of keys or of values' columns, that are computed together: as many sums as stay in
// registers.
#undef RETORT_QUERIES
#if HWY_TARGET <= HWY_AVX3
#define RETORT_QUERIES 8
#else
#define RETORT_QUERIES 4
#endif

/// Sums of products of T rows of `left` with the two vectors of columns at each row of `right`.
template <int T, int V>
HWY_INLINE void products(const float* left, std::size_t left_stride, const float* right,
                         std::size_t right_stride, std::size_t count, F (&sums)[T][V]) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  for (int t = 0; t < T; ++t)
    for (int c = 0; c < V; ++c) sums[t][c] = hn::Zero(d);
  for (std::size_t i = 0; i < count; ++i) {
    F columns[V];
    for (int c = 0; c < V; ++c) columns[c] = hn::LoadU(d, right + i * right_stride + c * lanes);
    for (int t = 0; t < T; ++t) {
      const F value = hn::Set(d, left[t * left_stride + i]);
      for (int c = 0; c < V; ++c) sums[t][c] = hn::MulAdd(value, columns[c], sums[t][c]);
    }
  }
}

/// Widths in whole pairs of the widest vectors, so that no load is in part.
constexpr std::size_t kPair = 32;
constexpr std::size_t whole_pairs(std::size_t n) { return (n + kPair - 1) / kPair * kPair; }

/// T queries of one head. `keys`: [head_dim][positions], `values`: [n][width].
template <int T>
HWY_INLINE void attend(const float* q, std::size_t stride, const float* keys, const float* values,
                       std::size_t n, std::size_t head_dim, float* scores, float* out,
                       std::size_t out_stride) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d), positions = whole_pairs(n), width = whole_pairs(head_dim);
  for (std::size_t p = 0; p < n; p += 2 * lanes) {
    F sums[T][2];
    products<T, 2>(q, stride, keys + p, positions, head_dim, sums);
    for (int t = 0; t < T; ++t)
      for (int c = 0; c < 2; ++c) hn::StoreU(sums[t][c], d, scores + t * positions + p + c * lanes);
  }
  float inverse[T];
  for (int t = 0; t < T; ++t) {
    float* const row = scores + t * positions;
    for (std::size_t j = n; j < (n + lanes - 1) / lanes * lanes; ++j)
      row[j] = -std::numeric_limits<float>::infinity();
    F top = hn::LoadU(d, row);
    for (std::size_t j = lanes; j < n; j += lanes) top = hn::Max(top, hn::LoadU(d, row + j));
    top = hn::MaxOfLanes(d, top);
    F total = hn::Zero(d);
    for (std::size_t j = 0; j < n; j += lanes) {
      const F e = exp_of_negative(hn::Sub(hn::LoadU(d, row + j), top));
      total = hn::Add(total, e);
      hn::StoreU(e, d, row + j);
    }
    inverse[t] = 1.0f / hn::GetLane(hn::SumOfLanes(d, total));
  }
  for (std::size_t c = 0; c < head_dim; c += 2 * lanes) {
    F sums[T][2];
    products<T, 2>(scores, positions, values + c, width, n, sums);
    for (int t = 0; t < T; ++t)
      for (std::size_t part = 0; part < 2; ++part) {
        const F result = hn::Mul(sums[t][part], hn::Set(d, inverse[t]));
        const std::size_t at = c + part * lanes;
        float* const to = out + t * out_stride + at;
        if (at + lanes <= head_dim) {
          hn::StoreU(result, d, to);
        } else if (at < head_dim) {
          HWY_ALIGN float buffer[16];
          hn::Store(result, d, buffer);
          std::memcpy(to, buffer, (head_dim - at) * sizeof(float));
        }
      }
  }
}

void AttentionAll(const float* q, const float* k, const float* v, std::size_t stride, std::uint32_t n,
                  std::uint32_t head_dim, float scale, float* scratch, float* out, std::size_t out_stride) {
  const std::size_t positions = whole_pairs(n), width = whole_pairs(head_dim);
  float* const keys = scratch;
  float* const values = keys + head_dim * positions;
  float* const scores = values + positions * width;
  for (std::uint32_t j = 0; j < n; ++j) {
    for (std::uint32_t i = 0; i < head_dim; ++i) keys[i * positions + j] = scale * k[j * stride + i];
    std::memcpy(values + j * width, v + j * stride, head_dim * sizeof(float));
    std::fill(values + j * width + head_dim, values + (j + 1) * width, 0.0f);
  }
  for (std::uint32_t i = 0; i < head_dim; ++i)
    std::fill(keys + i * positions + n, keys + (i + 1) * positions, 0.0f);
  std::uint32_t t = 0;
  for (; t + RETORT_QUERIES <= n; t += RETORT_QUERIES)
    attend<RETORT_QUERIES>(q + t * stride, stride, keys, values, n, head_dim, scores, out + t * out_stride,
                           out_stride);
  for (; t < n; ++t)
    attend<1>(q + t * stride, stride, keys, values, n, head_dim, scores, out + t * out_stride, out_stride);
}

}  // namespace HWY_NAMESPACE
}  // namespace retort::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace retort::kernels {

RETORT_EXPORT(AttentionAll);

std::size_t attention_all_scratch(std::uint32_t n, std::uint32_t head_dim) {
  const auto whole = [](std::size_t size) { return (size + 31) / 32 * 32; };
  return (head_dim + 8) * whole(n) + whole(n) * whole(head_dim);
}
void attention_all(const float* q, const float* k, const float* v, std::size_t stride, std::uint32_t n,
                   std::uint32_t head_dim, float scale, float* scratch, float* out, std::size_t out_stride) {
  RETORT_CALL(AttentionAll)(q, k, v, stride, n, head_dim, scale, scratch, out, out_stride);
}

}  // namespace retort::kernels
#endif
