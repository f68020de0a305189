#pragma once

#include <cstdint>

#include "common/core/result.h"

namespace retort::sim {

/// What this machine moves over CURVE with nothing around it: a process that sends `bytes` in messages of
/// `message_bytes` through one ZeroMQ socket, and one that receives them. Bytes a second, from the first
/// message's arrival to the last one's.
Result<double> raw_pair_bytes_per_second(std::uint64_t bytes, std::size_t message_bytes);

}  // namespace retort::sim
