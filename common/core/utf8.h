#pragma once

#include <string>
#include <string_view>

namespace retort {

/// RFC 3629: no overlong form, no surrogate, nothing above U+10FFFF.
bool is_utf8(std::string_view text);
/// With U+FFFD for what is not UTF-8 (RFC 3629), so that it may stand in JSON. `limit`: bytes of the text
/// that count, less where that would cut a character.
std::string valid_utf8(std::string_view text, std::size_t limit = std::string_view::npos);

}  // namespace retort
