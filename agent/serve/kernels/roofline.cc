#include "agent/serve/kernels/roofline.h"

#include "agent/serve/kernels/dispatch.h"

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

/// In the instructions that packed matrices are multiplied with: a dot product of bytes where it is in use.
double MultiplyBytes(std::size_t rounds) {
  const hn::CappedTag<std::int16_t, 32> d16;
  const hn::RepartitionToWide<decltype(d16)> d32;
  hn::Vec<decltype(d32)> sums[kChains], unused = hn::Zero(d32);
  for (auto& sum : sums) sum = hn::Zero(d32);
  double products = static_cast<double>(hn::Lanes(d16));
  bool done = false;
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2) || HWY_ARCH_ARM_A64
#if HWY_ARCH_ARM_A64
#define RETORT_DOT(N) "sdot %" #N ".4s, %12.16b, %12.16b\n\t"
#define RETORT_REGISTER "w"
#elif HWY_TARGET <= HWY_AVX3
#define RETORT_DOT(N) "vpdpbusd %12, %12, %" #N "\n\t"
#define RETORT_REGISTER "v"
#else
#define RETORT_DOT(N) "%{vex%} vpdpbusd %12, %12, %" #N "\n\t"
#define RETORT_REGISTER "x"
#endif
  if (instruction_set_in_use().dot_product) {
    const auto threes = hn::Set(d32, 0x03030303);
    // One statement: an array that single ones write to is stored after each of them.
    auto s0 = sums[0].raw, s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0, s8 = s0, s9 = s0,
         s10 = s0, s11 = s0;
    for (std::size_t i = 0; i < rounds; ++i)
      asm volatile(
#if HWY_ARCH_ARM_A64
          ".arch armv8.2-a+crypto+dotprod\n\t"
#endif
          RETORT_DOT(0) RETORT_DOT(1) RETORT_DOT(2) RETORT_DOT(3) RETORT_DOT(4) RETORT_DOT(5) RETORT_DOT(6)
              RETORT_DOT(7) RETORT_DOT(8) RETORT_DOT(9) RETORT_DOT(10) RETORT_DOT(11)
          : "+" RETORT_REGISTER(s0), "+" RETORT_REGISTER(s1), "+" RETORT_REGISTER(s2),
            "+" RETORT_REGISTER(s3), "+" RETORT_REGISTER(s4), "+" RETORT_REGISTER(s5),
            "+" RETORT_REGISTER(s6), "+" RETORT_REGISTER(s7), "+" RETORT_REGISTER(s8),
            "+" RETORT_REGISTER(s9), "+" RETORT_REGISTER(s10), "+" RETORT_REGISTER(s11)
          : RETORT_REGISTER(threes.raw));
    sums[0].raw = s0;
    products *= 2;
    done = true;
  }
#undef RETORT_DOT
#undef RETORT_REGISTER
#endif
  if (!done) {
    const auto step = hn::Set(d16, 1);
    auto values = hn::Iota(d16, 1);
    for (std::size_t i = 0; i < rounds; ++i) {
      for (auto& sum : sums) sum = hn::ReorderWidenMulAccumulate(d32, values, step, sum, unused);
      values = hn::Add(values, step);
    }
  }
  auto total = unused;
  for (auto& sum : sums) total = hn::Add(total, sum);
  volatile std::int32_t kept = hn::GetLane(total);
  (void)kept;
  return 2.0 * kChains * products * static_cast<double>(rounds);
}

}  // namespace HWY_NAMESPACE
}  // namespace retort::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace retort::kernels {

RETORT_EXPORT(ReadOnce);
RETORT_EXPORT(MultiplyFloats);
RETORT_EXPORT(MultiplyBytes);

std::uint64_t read_once(const std::byte* data, std::size_t bytes) {
  return RETORT_CALL(ReadOnce)(data, bytes);
}
double multiply_in_registers(bool eight_bits, std::size_t rounds) {
  return eight_bits ? RETORT_CALL(MultiplyBytes)(rounds) : RETORT_CALL(MultiplyFloats)(rounds);
}

}  // namespace retort::kernels
#endif
