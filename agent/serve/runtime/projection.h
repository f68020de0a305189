#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "agent/serve/runtime/model.h"
#include "agent/serve/runtime/thread_team.h"

/// What sessions of decoders and of encoders have in common: their arena, their work shared by the team, and
/// projections of rows of activations.
namespace retort {

constexpr std::uint64_t aligned(std::uint64_t bytes) { return (bytes + 63) / 64 * 64; }

/// Hands out 64-byte aligned parts of a piece of memory, one after the other; its owner has summed them up.
class ArenaCursor {
 public:
  explicit ArenaCursor(void* memory) : at_(aligned(reinterpret_cast<std::uintptr_t>(memory))) {}
  void* take(std::uint64_t bytes) {
    void* const here = reinterpret_cast<void*>(at_);
    at_ += aligned(bytes);
    return here;
  }
  float* floats(std::uint64_t count) { return static_cast<float*>(take(4 * count)); }

 private:
  std::uintptr_t at_;
};

/// Rows of activations, quantized as quantized matrices want them.
struct QuantizedRows {
  std::int8_t* q = nullptr;
  float* scale = nullptr;
  std::int32_t *start = nullptr, *half_start = nullptr;

  static std::uint64_t bytes(std::uint64_t rows, std::uint64_t width);
  static QuantizedRows take(ArenaCursor& arena, std::uint64_t rows, std::uint64_t width);
  /// Columns [first, last), multiples of 32, of row `row` of x [rows, columns].
  void quantize(std::size_t row, const float* x, std::size_t columns, std::size_t first,
                std::size_t last) const;
};

/// Calls work(first, last) for ranges of a projection's rows that begin at multiples of `granule`.
/// `products`: how many such projections the work multiplies with.
template <typename Work>
void share_rows(ThreadTeam& team, const Model::Projection& projection, std::uint32_t granule,
                std::size_t count, std::uint32_t products, const Work& work) {
  const std::uint64_t units = (projection.rows + granule - 1) / granule;
  // Few tokens take as long as reading the weights, at some 100 bytes a nanosecond; many, as multiplying,
  // some 250 a nanosecond.
  const std::uint64_t nanoseconds =
      products * (count < 4 ? projection.bytes / units / 100
                            : std::uint64_t{granule} * projection.columns * count / 250);
  team.share(units, std::max<std::uint64_t>(nanoseconds, 1),
             [&](std::uint32_t, std::uint64_t first, std::uint64_t last) {
               work(first * granule, std::min<std::uint64_t>(last * granule, projection.rows));
             });
}

/// Rows [begin, end) of a projection of `count` rows of x [count, columns], or of their quantized form, to
/// out[t * stride + row]; with `add`, added to what is there. Parts whose rows do not begin at a multiple of
/// the group are split by their own rows instead, in proportion.
void multiply(const Model::Projection& projection, const float* x, const QuantizedRows& quantized,
              std::size_t count, std::uint64_t begin, std::uint64_t end, float* out, std::size_t stride,
              bool add);

}  // namespace retort
