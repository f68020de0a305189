#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace retort {

/// The bytes that a text in base64 (RFC 4648 §4, with or without its padding) stands for; nothing where it is
/// none: another character, a length that cannot be, bits left over that are not zero.
std::optional<std::vector<std::byte>> decode_base64(std::string_view text);
/// With its padding.
std::string encode_base64(std::span<const std::byte> bytes);

}  // namespace retort
