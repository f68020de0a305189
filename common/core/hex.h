#pragma once

#include <string>
#include <string_view>

#include "common/core/result.h"

namespace retort {

/// Lower-case hexadecimal of raw bytes.
std::string to_hex(std::string_view raw);
/// Raw bytes of a hexadecimal text (either case); kInvalid on odd length or another character.
Result<std::string> from_hex(std::string_view text);

}  // namespace retort
