#pragma once

namespace retort {

/// Settles what makes a process train fast; call it first, before other threads. LibTorch's loops and the
/// BLAS each have threads of their own, which the BLAS reads from the environment when it is loaded: so this
/// sets it and starts the program once more with `argv`. Half of `threads` for loops, all of them for
/// products, and no spinning. A user's OPENBLAS_CORETYPE stays.
void settle_process(int threads, char** argv);

/// All of the threads that settle_process was told for loops while it lives, not half of them: for rounding.
class LoopThreads {
 public:
  LoopThreads();
  ~LoopThreads();
  LoopThreads(const LoopThreads&) = delete;
  LoopThreads& operator=(const LoopThreads&) = delete;

 private:
  int before_;
};

/// Floating-point operations per second of a 512×512 F32 product.
double matrix_product_rate();

}  // namespace retort
