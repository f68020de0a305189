#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/blocks/tensor_type.h"

namespace retort {

/// A matrix row by row: row r is bytes [r·row_bytes, (r+1)·row_bytes). Of the formats that are encoded as a
/// whole (common/blocks/matrix.h) rows that share something stay together, so that they stand in the order of
/// a GGUF file already.
struct EncodedMatrix {
  TensorType type = TensorType::kF32;
  std::uint64_t rows = 0, columns = 0;
  std::vector<std::byte> bytes;
};

/// encode_row where errors do not all count the same: `weights`, as many as values and none negative,
/// multiply the squared errors in the search for scales (Q4_0 searches only when it has some). Formats
/// without a search, Q8_0 among them, take no notice. Empty: encode_row.
void encode_row(TensorType type, std::span<const float> values, std::span<std::byte> out,
                std::span<const float> weights);

}  // namespace retort
