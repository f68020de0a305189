#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/core/result.h"

namespace retort {

/// "1.2 MiB", "340 B": powers of 1024, for people.
std::string format_bytes(std::uint64_t bytes);
/// "350K", "64MiB", "1.5G", "4096": powers of 1024 whatever the suffix's spelling. kInvalid otherwise.
Result<std::uint64_t> parse_bytes(std::string_view text);
/// "4.46 M", "260 k", "1.1 B": counts of parameters or tokens, powers of 1000.
std::string format_count(std::uint64_t count);
/// "3 min 20 s", "45 s", "2 h 5 min".
std::string format_seconds(double seconds);

}  // namespace retort
