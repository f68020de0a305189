#include "coordinator/worker/fused_loops.h"

#include <bit>
#include <cmath>

#define RETORT_INLINE __attribute__((always_inline))

namespace retort::loops {
namespace {

// The compiler makes vectors of the loops below (CMakeLists.txt has its options), once for each of these.
#if defined(__x86_64__)
template <typename Loop>
__attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,fma,avx2"))) void with_avx512(Loop loop) {
  loop();
}
template <typename Loop>
__attribute__((target("avx2,fma"))) void with_avx2(Loop loop) {
  loop();
}
#endif

/// Runs a loop in the best instructions that the CPU has.
template <typename Loop>
void run(Loop loop) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("x86-64-v4")) return with_avx512(loop);
  if (__builtin_cpu_supports("x86-64-v3")) return with_avx2(loop);
#endif
  loop();
}

RETORT_INLINE inline float load(float x) { return x; }
RETORT_INLINE inline float load(Bf16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x) << 16); }
RETORT_INLINE inline void store(float x, float& to) { to = x; }
/// To the nearest, of two the even one; what is no number stays none.
RETORT_INLINE inline void store(float x, Bf16& to) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  to = static_cast<Bf16>((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

/// e^x as 2^n e^r with |r| ≤ ln 2 / 2 and r's Taylor series; to some 2 ulp, for |x| ≤ 87. NaN for NaN.
RETORT_INLINE inline float exponential(float x) {
  constexpr float kRound = 12582912;  // 1.5 · 2^23: added to a number, it leaves its integer in the last bits
  const float shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float e = 1.0f / 5040;
  e = e * r + 1.0f / 720;
  e = e * r + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1;
  e = e * r + 1;
  return e * std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) << 23) + 0x3F800000);
}

RETORT_INLINE inline float sigmoid(float x) {
  const float above = x < -87 ? -87.0f : x, kept = above > 87 ? 87.0f : above;
  return 1 / (1 + exponential(-kept));
}

/// One over the root of a row's mean square.
template <typename Value>
RETORT_INLINE inline float scale_of(const Value* x, double epsilon, std::size_t width) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::size_t i = 0; i < width; ++i) squares += load(x[i]) * load(x[i]);
  return static_cast<float>(1 /
                            std::sqrt(static_cast<double>(squares) / static_cast<double>(width) + epsilon));
}

}  // namespace

template <typename Value>
void silu_gate(const Value* gate, const Value* up, Value* out, std::size_t n) {
  run([=]() RETORT_INLINE {
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) {
      const float g = load(gate[i]);
      store(g * sigmoid(g) * load(up[i]), out[i]);
    }
  });
}

template <typename Value>
void silu_gate_back(const Value* gate, const Value* up, const Value* of_out, Value* of_gate, Value* of_up,
                    std::size_t n) {
  run([=]() RETORT_INLINE {
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) {
      const float g = load(gate[i]), u = load(up[i]), o = load(of_out[i]), s = sigmoid(g), silu = g * s;
      store(o * silu, of_up[i]);
      store(o * u * (s + silu * (1 - s)), of_gate[i]);  // d silu(g)/dg = σ + gσ(1 − σ)
    }
  });
}

template <typename Value>
void rotate(const Value* x, Value* out, const float* cos, const float* sin, float sign, std::size_t count,
            std::size_t width) {
  run([=]() RETORT_INLINE {
    const std::size_t half = width / 2;
    for (std::size_t head = 0; head < count * width; head += width)
#pragma omp simd
      for (std::size_t i = 0; i < half; ++i) {
        const float a = load(x[head + i]), b = load(x[head + i + half]), c = cos[i], s = sign * sin[i];
        store(a * c - b * s, out[head + i]);
        store(b * c + a * s, out[head + i + half]);
      }
  });
}

template <typename Value>
void rms_norm(const Value* x, const float* weight, Value* out, double epsilon, std::size_t rows,
              std::size_t width) {
  run([=]() RETORT_INLINE {
    for (std::size_t row = 0; row < rows * width; row += width) {
      const float r = scale_of(x + row, epsilon, width);
#pragma omp simd
      for (std::size_t i = 0; i < width; ++i) store(load(x[row + i]) * r * weight[i], out[row + i]);
    }
  });
}

template <typename Value>
void rms_norm_back(const Value* x, const float* weight, const Value* of_out, Value* of_x, float* of_weight,
                   double epsilon, std::size_t rows, std::size_t width) {
  run([=]() RETORT_INLINE {
    for (std::size_t row = 0; row < rows * width; row += width) {
      const float r = scale_of(x + row, epsilon, width);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::size_t i = 0; i < width; ++i) sum += load(of_out[row + i]) * weight[i] * load(x[row + i]);
      const float mean = sum * r / static_cast<float>(width);
#pragma omp simd
      for (std::size_t i = 0; i < width; ++i) {  // d/dx of x r is r (1 - x̂ mean(x̂ ·))
        const float normed = load(x[row + i]) * r, o = load(of_out[row + i]);
        of_weight[i] += o * normed;
        store(r * (o * weight[i] - normed * mean), of_x[row + i]);
      }
    }
  });
}

#define RETORT_LOOPS(Value)                                                                                  \
  template void silu_gate(const Value*, const Value*, Value*, std::size_t);                                  \
  template void silu_gate_back(const Value*, const Value*, const Value*, Value*, Value*, std::size_t);       \
  template void rotate(const Value*, Value*, const float*, const float*, float, std::size_t, std::size_t);   \
  template void rms_norm(const Value*, const float*, Value*, double, std::size_t, std::size_t);              \
  template void rms_norm_back(const Value*, const float*, const Value*, Value*, float*, double, std::size_t, \
                              std::size_t);
RETORT_LOOPS(float)
RETORT_LOOPS(Bf16)
#undef RETORT_LOOPS

}  // namespace retort::loops
