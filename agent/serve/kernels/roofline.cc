#include "agent/serve/kernels/roofline.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "agent/serve/kernels/roofline.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace retort::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

std::uint64_t ReadOnce(const std::byte* data, std::size_t bytes) {
  const hn::CappedTag<std::uint64_t, 8> d;
  const std::size_t step = hn::Lanes(d) * 8;
  auto a = hn::Zero(d), b = a, c = a, e = a;
  for (std::size_t i = 0; i + 4 * step <= bytes; i += 4 * step) {
    const auto* p = reinterpret_cast<const std::uint64_t*>(data + i);
    a = hn::Xor(a, hn::LoadU(d, p));
    b = hn::Xor(b, hn::LoadU(d, p + hn::Lanes(d)));
    c = hn::Xor(c, hn::LoadU(d, p + 2 * hn::Lanes(d)));
    e = hn::Xor(e, hn::LoadU(d, p + 3 * hn::Lanes(d)));
  }
  HWY_ALIGN std::uint64_t lanes[8] = {};
  hn::Store(hn::Xor(hn::Xor(a, b), hn::Xor(c, e)), d, lanes);
  std::uint64_t out = 0;
  for (const std::uint64_t lane : lanes) out ^= lane;
  return out;
}

constexpr int kChains = 12;

double MultiplyFloats(std::size_t rounds) {
  const hn::CappedTag<float, 16> d;
  const auto factor = hn::Set(d, 0.999f), term = hn::Set(d, 0.001f);
  hn::Vec<decltype(d)> sums[kChains];
  for (auto& sum : sums) sum = hn::Iota(d, 1.0f);
  for (std::size_t i = 0; i < rounds; ++i)
    for (auto& sum : sums) sum = hn::MulAdd(sum, factor, term);
  auto total = hn::Zero(d);
  for (auto& sum : sums) total = hn::Add(total, sum);
  volatile float kept = hn::GetLane(total);
  (void)kept;
  return 2.0 * kChains * static_cast<double>(hn::Lanes(d)) * static_cast<double>(rounds);
}

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
#pragma GCC target("avx512vnni")  // packed.cc says why
double MultiplyBytes(std::size_t rounds) {
  __m512i sums[kChains], values = _mm512_set1_epi8(3);
  for (auto& sum : sums) sum = values;
  for (std::size_t i = 0; i < rounds; ++i) {
    for (auto& sum : sums) sum = _mm512_dpbusd_epi32(sum, values, values);
    asm volatile("" : "+v"(values));  // or the loop becomes one multiplication
  }
  __m512i total = _mm512_setzero_si512();
  for (auto& sum : sums) total = _mm512_add_epi32(total, sum);
  volatile int kept = _mm512_reduce_add_epi32(total);
  (void)kept;
  return 2.0 * kChains * 64 * static_cast<double>(rounds);
}
#else
double MultiplyBytes(std::size_t rounds) {
  const hn::CappedTag<std::int16_t, 32> d16;
  const hn::RepartitionToWide<decltype(d16)> d32;
  hn::Vec<decltype(d32)> sums[kChains], unused = hn::Zero(d32);
  for (auto& sum : sums) sum = hn::Zero(d32);
  const auto step = hn::Set(d16, 1);
  auto values = hn::Iota(d16, 1);
  for (std::size_t i = 0; i < rounds; ++i) {
    for (auto& sum : sums) sum = hn::ReorderWidenMulAccumulate(d32, values, step, sum, unused);
    values = hn::Add(values, step);
  }
  auto total = unused;
  for (auto& sum : sums) total = hn::Add(total, sum);
  volatile std::int32_t kept = hn::GetLane(total);
  (void)kept;
  return 2.0 * kChains * static_cast<double>(hn::Lanes(d16)) * static_cast<double>(rounds);
}
#endif

}  // namespace HWY_NAMESPACE
}  // namespace retort::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace retort::kernels {

HWY_EXPORT(ReadOnce);
HWY_EXPORT(MultiplyFloats);
HWY_EXPORT(MultiplyBytes);

std::uint64_t read_once(const std::byte* data, std::size_t bytes) {
  return HWY_DYNAMIC_DISPATCH(ReadOnce)(data, bytes);
}
double multiply_in_registers(bool eight_bits, std::size_t rounds) {
  return eight_bits ? HWY_DYNAMIC_DISPATCH(MultiplyBytes)(rounds)
                    : HWY_DYNAMIC_DISPATCH(MultiplyFloats)(rounds);
}

}  // namespace retort::kernels
#endif
