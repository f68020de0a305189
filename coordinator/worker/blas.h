#pragma once

namespace retort {

/// Threads of LibTorch's own loops (the BLAS takes its number from the environment); call it first.
void set_loop_threads(int threads);

/// Floating-point operations per second of a 512×512 F32 product.
double matrix_product_rate();

}  // namespace retort
