#pragma once

#include <array>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace retort {

/// GPT-2's bytes_to_unicode: printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100
/// and up.
const std::array<std::string, 256>& byte_characters();

/// Inverse of byte_characters over a whole token; nothing when a character is not in the table.
std::optional<std::string> bytes_of(std::string_view token);

/// Cuts a text into words, each merged by itself. GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+|
/// ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
void split_gpt2(std::string_view text, const std::function<void(std::string_view)>& word);

}  // namespace retort
