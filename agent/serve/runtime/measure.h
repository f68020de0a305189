#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "agent/serve/runtime/thread_team.h"
#include "common/core/result.h"
#include "common/model/decode_sample.h"

namespace retort {

/// The shapes by which a coordinator learns how fast a device generates: small to middling Llamas in Q8_0, to
/// tell apart what a token, a layer, a product and a byte cost, and some of them in the other formats.
std::vector<DecodeSample> decode_shapes();

/// Makes a model of random weights of each shape, generates with it (`time` each, KV cache in F16) and puts
/// the shortest time of a token in. A shape that needs more than `memory_limit` bytes (0: no limit) is left
/// out. Files are made below `folder` and removed. kInvalid: a shape that is no model, or an unknown format.
/// Thread: one; the machine should do nothing else meanwhile.
Result<std::vector<DecodeSample>> measure_decode(std::span<const DecodeSample> shapes, ThreadTeam& team,
                                                 const std::filesystem::path& folder,
                                                 std::chrono::milliseconds time, std::uint64_t memory_limit);

}  // namespace retort
