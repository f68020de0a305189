#include "agent/serve/kernels/static_quantize.h"

#include "agent/serve/kernels/dispatch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "agent/serve/kernels/static_quantize.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace retort::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

void QuantizeQ8Static(const float* x, std::uint32_t columns, float scale, std::int8_t* q, float* scales,
                      std::int32_t* start, std::int32_t* half_start) {
  const hn::CappedTag<float, 16> d;
  const hn::Rebind<std::int32_t, decltype(d)> d32;
  const hn::Rebind<std::int16_t, decltype(d)> d16;
  const hn::Rebind<std::int8_t, decltype(d)> d8;
  const std::size_t lanes = hn::Lanes(d);
  const auto inverse = hn::Set(d, 1.0f / scale), most = hn::Set(d, 127.0f), least = hn::Set(d, -127.0f);
  for (std::uint32_t b = 0; b < columns; b += 32, half_start += 2) {
    *scales++ = scale;
    for (std::size_t half = 0; half < 2; ++half) {
      auto total = hn::Zero(d32);
      for (std::size_t i = 16 * half; i < 16 * half + 16; i += lanes) {
        // Cut off before it is rounded: what a whole number cannot hold has no rounding.
        const auto scaled = hn::Min(hn::Max(hn::Mul(hn::LoadU(d, x + b + i), inverse), least), most);
        const auto whole = hn::NearestInt(scaled);
        total = hn::Add(total, whole);
        hn::StoreU(hn::DemoteTo(d8, hn::DemoteTo(d16, whole)), d8, q + b + i);
      }
      half_start[half] = -8 * hn::GetLane(hn::SumOfLanes(d32, total));
    }
    *start++ = half_start[0] + half_start[1];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace retort::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace retort::kernels {

RETORT_EXPORT(QuantizeQ8Static);

void quantize_q8_static(const float* x, std::uint32_t columns, float scale, std::int8_t* q, float* scales,
                        std::int32_t* start, std::int32_t* half_start) {
  RETORT_CALL(QuantizeQ8Static)(x, columns, scale, q, scales, start, half_start);
}

}  // namespace retort::kernels
#endif
