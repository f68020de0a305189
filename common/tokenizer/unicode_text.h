#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace retort {

/// The code point at `at` (below the text's size) and its length in bytes; an invalid byte is itself, one
/// byte long, as a negative number.
std::pair<std::int32_t, std::size_t> code_point(std::string_view text, std::size_t at);
std::string utf8(std::int32_t point);

// Classes of characters as the tokenizers' regular expressions name them; an invalid byte is in none.
bool is_letter(std::int32_t c);       ///< \p{L}
bool is_number(std::int32_t c);       ///< \p{N}
bool is_space(std::int32_t c);        ///< \s: Unicode White_Space
bool is_word(std::int32_t c);         ///< \w: letters, marks, decimal and letter numbers, connectors, joiners
bool is_punctuation(std::int32_t c);  ///< \p{P}

/// Normalization form C (Unicode Standard Annex 15); invalid bytes stay as they are.
std::string normalize_nfc(std::string_view text);

}  // namespace retort
