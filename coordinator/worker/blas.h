#pragma once

#include <cstdint>
#include <functional>

namespace retort {

/// Settles what makes a process train fast; call it first, before other threads. What the BLAS and the
/// threads' library read from the environment when they are loaded, this sets, and starts the program once
/// more with `argv`. A user's OPENBLAS_CORETYPE stays.
void settle_process(int threads, char** argv);

/// Values of a tensor that a core's second-level cache holds with a second one's.
constexpr std::int64_t kPieceValues = 131072;

/// Calls `piece(first, end)` for parts of 0 … n of `size` each (the last may be shorter), on all threads,
/// without gradients, in no order. For loops of several operations over large tensors: with parts of
/// kPieceValues only the first operation waits for memory. The error of a call is thrown again.
void in_pieces(std::int64_t n, std::int64_t size,
               const std::function<void(std::int64_t first, std::int64_t end)>& piece);

/// Floating-point operations per second of a 512×512 F32 product.
double matrix_product_rate();

}  // namespace retort
