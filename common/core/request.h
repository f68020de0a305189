#pragma once

#include "common/core/json.h"

namespace retort {

// What requests are held to beyond being JSON.

/// parse_json(), and kInvalid too where an object has a member twice: one of them would be overlooked.
Result<json::value> parse_json_once(std::string_view text, std::string_view where);

/// kInvalid, naming `key`, unless the text is fit to be shown: at most `most` bytes of UTF-8 without control
/// characters.
Result<void> check_text(std::string_view key, std::string_view text, std::string_view where,
                        std::size_t most = 256);

}  // namespace retort
