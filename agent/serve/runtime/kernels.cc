#include "agent/serve/runtime/kernels.h"

#include <array>
#include <cstdlib>
#include <vector>

namespace retort {

namespace kernels_baseline {
extern const Kernels kKernels;
}
namespace kernels_avx2 {
extern const Kernels kKernels;
}
namespace kernels_avx512 {
extern const Kernels kKernels;
}

std::span<const Kernels* const> available_kernels() {
  static const std::vector<const Kernels*> list = [] {
    std::vector<const Kernels*> out{&kernels_baseline::kKernels};
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2) out.push_back(&kernels_avx2::kKernels);
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni"))
      out.push_back(&kernels_avx512::kKernels);
#endif
    return out;
  }();
  return list;
}

const Kernels& kernels() {
  static const Kernels& chosen = [&]() -> const Kernels& {
    const char* forced = std::getenv("RETORT_KERNELS");
    for (const Kernels* set : available_kernels())
      if (forced != nullptr && set->name == forced) return *set;
    return *available_kernels().back();
  }();
  return chosen;
}

void matmul(const Kernels& k, const Matrix& w, std::uint32_t first_row, std::uint32_t last_row,
            const float* x, const ActivationBlock* quantized, std::size_t count, float* out,
            std::size_t out_stride) {
  const std::size_t n = w.columns;
  for (std::uint32_t r = first_row; r < last_row; ++r) {
    const std::byte* row = w.data + r * w.row_bytes;
    for (std::size_t t = 0; t < count; ++t) {
      float& target = out[t * out_stride + r];
      switch (w.type) {
        case TensorType::kF32:
          target = k.dot_f32(reinterpret_cast<const float*>(row), x + t * n, n);
          break;
        case TensorType::kF16:
          target = k.dot_f16(reinterpret_cast<const std::uint16_t*>(row), x + t * n, n);
          break;
        case TensorType::kBF16:
          target = k.dot_bf16(reinterpret_cast<const std::uint16_t*>(row), x + t * n, n);
          break;
        case TensorType::kQ8_0:
          target = k.dot_q8_0(row, quantized + t * (n / 32), n);
          break;
      }
    }
  }
}

}  // namespace retort
