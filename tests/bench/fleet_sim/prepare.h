#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "common/core/result.h"

namespace retort::sim {

/// Makes a coordinator's folder DATA with one artifact of about each of these sizes; their hashes. No
/// coordinator may run on it.
Result<std::vector<std::string>> prepare_coordinator(const std::filesystem::path& data,
                                                     const std::vector<std::uint64_t>& artifact_bytes);

}  // namespace retort::sim
