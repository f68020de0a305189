#include "coordinator/worker/blas.h"

#include <ATen/Parallel.h>
#include <malloc.h>
#include <torch/types.h>
#include <torch/utils.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <string>

#include "common/process/process.h"

namespace retort {

using at::Tensor;

double matrix_product_rate() {
  torch::NoGradGuard no_grad;
  const Tensor a = at::ones({512, 512}), b = at::ones({512, 512});
  at::mm(a, b);
  double best = 0;
  for (int i = 0; i < 8; ++i) {
    const auto start = std::chrono::steady_clock::now();
    at::mm(a, b);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * 512 * 512 * 512 / took.count());
    if (took.count() > 0.5) break;
  }
  return best;
}

void in_pieces(const Tensor& tensor, std::int64_t n,
               const std::function<void(std::int64_t first, std::int64_t end)>& piece) {
  constexpr std::int64_t kValues = 131072;  // half a MiB in F32
  const std::int64_t each = std::max<std::int64_t>(1, tensor.numel() / std::max<std::int64_t>(1, n));
  const std::int64_t size = std::max<std::int64_t>(1, tensor.is_cpu() ? kValues / each : n);
  at::parallel_for(0, (n + size - 1) / size, 1, [&](std::int64_t begin, std::int64_t end) {
    torch::NoGradGuard no_grad;
    for (std::int64_t i = begin; i < end; ++i) piece(i * size, std::min(n, (i + 1) * size));
  });
}

void settle_process(int threads, char** argv) {
  const std::string wanted = std::to_string(threads);
  const char* settled = std::getenv("RETORT_WORKER_THREADS");
  if (settled == nullptr || settled != wanted) {
    // A thread waits for the next loop for some microseconds, which is how far apart they are, and then
    // sleeps.
    for (const auto& [name, value] : {std::pair<const char*, std::string>{"RETORT_WORKER_THREADS", wanted},
                                      {"OMP_NUM_THREADS", wanted},
                                      {"OMP_WAIT_POLICY", "passive"},
                                      {"GOMP_SPINCOUNT", "10000"}})
      ::setenv(name, value.c_str(), 1);
#if defined(__x86_64__)
    // OpenBLAS 0.3.21 takes an AMD CPU with AVX-512 for a Zen 3 and multiplies half as fast as it could.
    if (__builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
      ::setenv("OPENBLAS_CORETYPE", "SKYLAKEX", 0);
#endif
    ::execv("/proc/self/exe", argv);  // going on without is slower, not wrong
  }
  // A step allocates the same tensors as the one before. By default glibc gives large ones back to the kernel
  // each time, which then clears their pages anew: a third to two thirds of a step.
  keep_freed_memory(1u << 30, std::numeric_limits<int>::max());
  ::mallopt(M_TOP_PAD, 64 << 20);
  at::set_num_threads(threads);
  at::globalContext().setFlushDenormal(true);
}

}  // namespace retort
