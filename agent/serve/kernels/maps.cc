#include "agent/serve/kernels/maps.h"

#include <algorithm>
#include <cstring>

#include "agent/serve/kernels/dispatch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "agent/serve/kernels/maps.cc"
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

/// x = function(x), the last values through a buffer, so that each is computed alike wherever it stands.
template <class Function>
HWY_INLINE void map(float* x, std::size_t n, Function function) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(function(hn::LoadU(d, x + i)), d, x + i);
  if (i < n) {
    HWY_ALIGN float rest[16] = {};
    std::memcpy(rest, x + i, (n - i) * sizeof(float));
    hn::Store(function(hn::Load(d, rest)), d, rest);
    std::memcpy(x + i, rest, (n - i) * sizeof(float));
  }
}

void Relu(float* x, std::size_t n) {
  map(x, n, [](F v) HWY_ATTR {
    const F zero = hn::Zero(Floats());
    return hn::IfThenElse(hn::Gt(v, zero), v, zero);
  });
}

void HyperbolicTangent(float* x, std::size_t n) {
  map(x, n, [](F v) HWY_ATTR { return hn::Tanh(Floats(), v); });
}

void GeluErf(float* x, std::size_t n) {
  // x Φ(x) = max(x, 0) − |x| (1 − Φ(|x|)), and 1 − Φ(|x|) = ½ erfc(|x| / √2).
  map(x, n, [](F v) HWY_ATTR {
    const Floats d;
    const F size = hn::Abs(v);
    const F t =
        hn::Div(hn::Set(d, 1.0f), hn::MulAdd(size, hn::Set(d, 0.3275911f * 0.70710678f), hn::Set(d, 1.0f)));
    F p = hn::Set(d, 0.5f * 1.061405429f);
    p = hn::MulAdd(p, t, hn::Set(d, 0.5f * -1.453152027f));
    p = hn::MulAdd(p, t, hn::Set(d, 0.5f * 1.421413741f));
    p = hn::MulAdd(p, t, hn::Set(d, 0.5f * -0.284496736f));
    p = hn::MulAdd(p, t, hn::Set(d, 0.5f * 0.254829592f));
    const F tail = hn::Mul(hn::Mul(p, t), hn::Exp(d, hn::Mul(hn::Mul(v, v), hn::Set(d, -0.5f))));
    return hn::NegMulAdd(size, tail, hn::Max(v, hn::Zero(d)));
  });
}

template <bool kMax>
HWY_INLINE void pool(const float* in, std::size_t row_size, std::uint32_t channels, PoolWindows windows,
                     std::uint32_t out_width, float* out) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  const float share = 1.0f / static_cast<float>(windows.size * windows.size);
  for (std::uint32_t x = 0; x < out_width; ++x, out += channels) {
    const float* const corner = in + std::size_t{x} * windows.stride * channels;
    const auto over = [&](std::size_t c, auto load, auto add, auto store) HWY_ATTR {
      auto value = load(corner + c);
      for (std::uint32_t wy = 0; wy < windows.size; ++wy)
        for (std::uint32_t wx = wy == 0 ? 1 : 0; wx < windows.size; ++wx)
          value = add(value, load(corner + wy * row_size + std::size_t{wx} * channels + c));
      store(value, c);
    };
    std::size_t c = 0;
    for (; c + lanes <= channels; c += lanes)
      over(
          c, [&](const float* p) HWY_ATTR { return hn::LoadU(d, p); },
          [](F a, F b) HWY_ATTR { return kMax ? hn::Max(a, b) : hn::Add(a, b); },
          [&](F v, std::size_t at)
              HWY_ATTR { hn::StoreU(kMax ? v : hn::Mul(v, hn::Set(d, share)), d, out + at); });
    for (; c < channels; ++c)
      over(
          c, [](const float* p) { return *p; },
          [](float a, float b) { return kMax ? std::max(a, b) : a + b; },
          [&](float v, std::size_t at) { out[at] = kMax ? v : v * share; });
  }
}

void MaxPool(const float* in, std::size_t row_size, std::uint32_t channels, PoolWindows windows,
             std::uint32_t out_width, float* out) {
  pool<true>(in, row_size, channels, windows, out_width, out);
}
void AveragePool(const float* in, std::size_t row_size, std::uint32_t channels, PoolWindows windows,
                 std::uint32_t out_width, float* out) {
  pool<false>(in, row_size, channels, windows, out_width, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace retort::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace retort::kernels {

RETORT_EXPORT(Relu);
RETORT_EXPORT(HyperbolicTangent);
RETORT_EXPORT(GeluErf);
RETORT_EXPORT(MaxPool);
RETORT_EXPORT(AveragePool);

void relu(float* x, std::size_t n) { RETORT_CALL(Relu)(x, n); }
void hyperbolic_tangent(float* x, std::size_t n) { RETORT_CALL(HyperbolicTangent)(x, n); }
void gelu_erf(float* x, std::size_t n) { RETORT_CALL(GeluErf)(x, n); }
void max_pool(const float* in, std::size_t row_size, std::uint32_t channels, PoolWindows windows,
              std::uint32_t out_width, float* out) {
  RETORT_CALL(MaxPool)(in, row_size, channels, windows, out_width, out);
}
void average_pool(const float* in, std::size_t row_size, std::uint32_t channels, PoolWindows windows,
                  std::uint32_t out_width, float* out) {
  RETORT_CALL(AveragePool)(in, row_size, channels, windows, out_width, out);
}

}  // namespace retort::kernels
#endif
