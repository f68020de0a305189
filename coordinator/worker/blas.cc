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

namespace {
int settled_threads = 0;  // 0: nobody has said
}

LoopThreads::LoopThreads() : before_(at::get_num_threads()) {
  if (settled_threads > 0) at::set_num_threads(settled_threads);
}
LoopThreads::~LoopThreads() { at::set_num_threads(before_); }

void settle_process(int threads, char** argv) {
  const std::string blas = std::to_string(threads), loops = std::to_string(std::max(1, threads / 2));
  const char* settled = std::getenv("RETORT_WORKER_THREADS");
  if (settled == nullptr || settled != blas) {
    for (const auto& [name, value] : {std::pair<const char*, std::string>{"RETORT_WORKER_THREADS", blas},
                                      {"OPENBLAS_NUM_THREADS", blas},
                                      {"OMP_NUM_THREADS", loops},
                                      {"OMP_WAIT_POLICY", "passive"}})
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
  settled_threads = threads;
  at::set_num_threads(std::max(1, threads / 2));
  at::globalContext().setFlushDenormal(true);
}

}  // namespace retort
