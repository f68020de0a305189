#include "common/blocks/block_grid.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "common/blocks/k_quants.h"
#include "common/blocks/scale_search.h"

namespace retort {
namespace {

float leading_scale(std::span<const std::byte> block) {
  std::uint16_t bits;
  std::memcpy(&bits, block.data(), 2);
  return f16_to_f32(bits);
}

void spread(BlockGrid& grid, const blocks::KBlock& block, std::size_t run) {
  for (std::size_t i = 0; i < 256; ++i)
    grid.scale[i] = block.scale[i / run], grid.min[i] = block.min[i / run];
}

}  // namespace

std::int8_t LevelSet::nearest(float x) const {
  if (table.empty())
    return static_cast<std::int8_t>(
        blocks::clamped_round(x, static_cast<float>(low), static_cast<float>(high)));
  const auto above = std::lower_bound(table.begin(), table.end(), x, [](std::int8_t level, float at) {
    return static_cast<float>(level) < at;
  });
  if (above == table.begin()) return table.front();
  if (above == table.end()) return table.back();
  const std::int8_t below = *(above - 1);
  return x - static_cast<float>(below) < static_cast<float>(*above) - x ? below : *above;
}

bool has_levels(TensorType type) {
  return info(type).block_values > 1 && type < TensorType::kSparseQ8;  // of GGUF's own
}

LevelSet level_set(TensorType type) {
  switch (type) {
    case TensorType::kQ3K:
      return {-4, 3, {}};
    case TensorType::kQ4K:
      return {0, 15, {}};
    case TensorType::kQ5K:
      return {0, 31, {}};
    case TensorType::kQ6K:
      return {-32, 31, {}};
    case TensorType::kQ4_0:
      return {-8, 7, {}};
    case TensorType::kQ8_0:
      return {-127, 127, {}};
    case TensorType::kIq4Nl:
      return {-127, 113, blocks::kIq4NlValues};
    default:
      assert(false);
      return {};
  }
}

BlockGrid block_grid(TensorType type, std::span<const std::byte> block) {
  assert(block.size() == info(type).block_bytes);
  BlockGrid grid{};
  switch (type) {
    case TensorType::kQ3K:
      spread(grid, blocks::read_q3_k(block.data()), 16);
      break;
    case TensorType::kQ4K:
      spread(grid, blocks::read_q4_k(block.data()), 32);
      break;
    case TensorType::kQ5K:
      spread(grid, blocks::read_q5_k(block.data()), 32);
      break;
    case TensorType::kQ6K:
      spread(grid, blocks::read_q6_k(block.data()), 16);
      break;
    case TensorType::kQ4_0:
    case TensorType::kQ8_0:
    case TensorType::kIq4Nl:
      grid.scale.fill(leading_scale(block));
      break;
    default:
      assert(false);
  }
  return grid;
}

void put_levels(TensorType type, std::span<const std::int8_t> levels, std::span<std::byte> block) {
  assert(levels.size() == info(type).block_values && block.size() == info(type).block_bytes);
  const auto pairs = [&](auto code) {  // value i below value i + 16, after the scale
    for (std::size_t i = 0; i < 16; ++i)
      block[2 + i] = static_cast<std::byte>(code(levels[i]) | code(levels[i + 16]) << 4);
  };
  switch (type) {
    case TensorType::kQ3K:
      blocks::put_levels_q3_k(block.data(), levels.first<256>());
      break;
    case TensorType::kQ4K:
      blocks::put_levels_q4_k(block.data(), levels.first<256>());
      break;
    case TensorType::kQ5K:
      blocks::put_levels_q5_k(block.data(), levels.first<256>());
      break;
    case TensorType::kQ6K:
      blocks::put_levels_q6_k(block.data(), levels.first<256>());
      break;
    case TensorType::kQ4_0:
      pairs([](std::int8_t level) { return level + 8; });
      break;
    case TensorType::kIq4Nl:
      pairs([](std::int8_t level) {
        const auto at = std::lower_bound(blocks::kIq4NlValues.begin(), blocks::kIq4NlValues.end(), level);
        return static_cast<int>(at - blocks::kIq4NlValues.begin());
      });
      break;
    case TensorType::kQ8_0:
      std::memcpy(block.data() + 2, levels.data(), 32);
      break;
    default:
      assert(false);
  }
}

}  // namespace retort
