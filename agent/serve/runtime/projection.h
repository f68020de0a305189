#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "agent/serve/runtime/arena.h"
#include "agent/serve/runtime/model.h"
#include "agent/serve/runtime/thread_team.h"

/// What sessions of decoders and of encoders have in common: projections of rows of activations, shared by
/// the team.
namespace retort {

/// Rows of a batch, and the team that computes them.
struct Rows {
  ThreadTeam& team;
  std::size_t first = 0, count = 0;
};

/// Calls stage(team, first, last) for ranges of a batch's `units`, tokens or runs of up to four, `tokens` in
/// all. Of few tokens there is one range, and the team shares the rows of each product in it. Many are cut,
/// and each member takes its own through the whole stage with a team of itself: what it computed is still in
/// its cache when it reads it again, and the members meet once a stage instead of at each product.
template <typename Stage>
void share_tokens(ThreadTeam& team, std::size_t tokens, std::size_t units, const Stage& stage) {
  // Every range reads all weights: ranges of fewer tokens cost more than they gain.
  constexpr std::size_t kLeast = 16, kEnough = 64;
  const std::size_t threads = team.size();
  if (threads == 1 || tokens < kLeast * threads) return stage(team, std::size_t{0}, units);
  const std::size_t parts = threads * std::max<std::size_t>(1, tokens / (kEnough * threads));
  team.run(static_cast<std::uint32_t>(parts), [&](std::uint32_t, std::uint32_t part) {
    ThreadTeam alone(1);
    stage(alone, units * part / parts, units * (part + 1) / parts);
  });
}

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

/// The whole projection of `count` rows of x, or of their quantized form, shared by the team: to
/// out [count, rows], or added to it.
void project(ThreadTeam& team, const Model::Projection& projection, const float* x,
             const QuantizedRows& quantized, std::size_t count, float* out, bool add);

/// Quantizes `count` rows of x [count, columns] where the projection that reads them wants it so.
void quantize_for(ThreadTeam& team, const Model::Projection& reader, const float* x, std::size_t count,
                  const QuantizedRows& out);

}  // namespace retort
