#include "agent/serve/runtime/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace retort::kernels_avx2 {

#include "agent/serve/runtime/kernels_body.h"

extern const Kernels kKernels;
const Kernels kKernels = {"avx2", dot_f32, dot_f16, dot_bf16, dot_q8_0, quantize, axpy, sum_of_squares};

}  // namespace retort::kernels_avx2
