#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>

#include "common/core/result.h"
#include "common/core/units.h"

/// The scratch of a session: one piece of memory that is taken at its creation and handed out in parts.
/// Thread: one.
namespace retort {

constexpr std::uint64_t aligned(std::uint64_t bytes) { return (bytes + 63) / 64 * 64; }

/// Zeros; pages that are never touched stay unmapped. Throws std::bad_alloc; see within_memory.
struct FreeArena {
  void operator()(void* memory) const { std::free(memory); }
};
using Arena = std::unique_ptr<void, FreeArena>;
Arena take_arena(std::uint64_t bytes);

/// What `make` returns; kOutOfBudget when it takes an arena and the system does not give so much. `bytes`:
/// what all takes; `where`: the model's file.
template <typename Make>
auto within_memory(const std::string& where, std::uint64_t bytes, const Make& make)
    -> Result<decltype(make())> {
  try {
    return make();
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::kOutOfBudget, where, "needs {}, and the system does not give so much memory",
                format_bytes(bytes));
  }
}

/// Hands out parts of an arena at 64-byte boundaries, one after the other. Its owner has planned their sum:
/// aligned() of each, and 64.
class ArenaCursor {
 public:
  explicit ArenaCursor(const Arena& arena) : at_(aligned(reinterpret_cast<std::uintptr_t>(arena.get()))) {}
  void* take(std::uint64_t bytes) {
    void* const here = reinterpret_cast<void*>(at_);
    at_ += aligned(bytes);
    return here;
  }
  float* floats(std::uint64_t count) { return static_cast<float*>(take(4 * count)); }

 private:
  std::uintptr_t at_;
};

/// Rows of activations, quantized in blocks of 32 columns as quantized matrices want them.
struct QuantizedRows {
  std::int8_t* q = nullptr;
  float* scale = nullptr;
  std::int32_t *start = nullptr, *half_start = nullptr;
  std::size_t width = 0;  ///< columns that it was taken for, in whole blocks

  /// Of an arena, for so many rows.
  static std::uint64_t bytes(std::uint64_t rows, std::uint64_t columns);
  static QuantizedRows take(ArenaCursor& arena, std::uint64_t rows, std::uint64_t columns);
  /// Room for the rows from `first` on, of any number of columns up to `width`: they do not meet rows before
  /// `first`, whatever the columns of those.
  QuantizedRows from(std::size_t first) const;
  /// Columns [first, last), multiples of 32, of row `row` of x [rows, columns]. With the calibrated scale
  /// where there is one, otherwise with each block's largest value.
  void quantize(std::size_t row, const float* x, std::size_t columns, std::size_t first, std::size_t last,
                float calibrated) const;
};

}  // namespace retort
