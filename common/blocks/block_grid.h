#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "common/blocks/tensor_type.h"

namespace retort {

/// What a value of a block format can be before its scale: whole numbers in [low, high], or those of `table`.
struct LevelSet {
  int low = 0, high = 0;
  std::span<const std::int8_t> table;  ///< ascending; empty: every whole number from low to high
  std::int8_t nearest(float x) const;
};

/// The scales that an encoded block has: value i = scale[i] · level − min[i]. For quantizers that choose
/// levels one by one.
struct BlockGrid {
  std::array<float, 256> scale, min;  ///< of the block's values, from the first
};

/// Has scales and levels: not the floating-point types.
bool has_levels(TensorType type);
LevelSet level_set(TensorType type);
/// Of one block (block_bytes) of a type that has levels.
BlockGrid block_grid(TensorType type, std::span<const std::byte> block);
/// Replaces the block's levels (block_values of them) and leaves its scales.
void put_levels(TensorType type, std::span<const std::int8_t> levels, std::span<std::byte> block);

}  // namespace retort
