#pragma once

#include <cstdint>

namespace retort::kernels {

/// As quantize_q8, with a scale that is known before: q = round(x / scale), −127…127, and `scale` for every
/// block. Values beyond 127 scales are cut off. Thread: any.
void quantize_q8_static(const float* x, std::uint32_t columns, float scale, std::int8_t* q, float* scales,
                        std::int32_t* start, std::int32_t* half_start);

}  // namespace retort::kernels
