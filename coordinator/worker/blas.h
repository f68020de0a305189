#pragma once

#include <cstdint>
#include <functional>

namespace at {
class Tensor;
}

namespace retort {

/// Settles what makes a process train fast; call it first, before other threads. What the BLAS and the
/// threads' library read from the environment when they are loaded, this sets, and starts the program once
/// more with `argv`. A user's OPENBLAS_CORETYPE stays.
void settle_process(int threads, char** argv);

/// Calls `piece(first, end)` for parts of 0 … n, on all threads, without gradients, in no order. For several
/// operations one after another over a tensor of n rows (or n values), and others as large: a part holds so
/// many values that they stay in a core's cache, so that only the first operation waits for memory. On a GPU
/// one part is all. The error of a call is thrown again.
void in_pieces(const at::Tensor& tensor, std::int64_t n,
               const std::function<void(std::int64_t first, std::int64_t end)>& piece);

/// Floating-point operations per second of a 512×512 F32 product.
double matrix_product_rate();

}  // namespace retort
