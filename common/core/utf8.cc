#include "common/core/utf8.h"

namespace retort {
namespace {

/// Bytes of the character that begins at `i`; 0: what stands there is none.
std::size_t character_at(std::string_view text, std::size_t i) {
  const auto byte = static_cast<unsigned char>(text[i]);
  const std::size_t length = byte < 0x80                   ? 1
                             : byte >= 0xc2 && byte < 0xe0 ? 2
                             : byte >= 0xe0 && byte < 0xf0 ? 3
                             : byte >= 0xf0 && byte < 0xf5 ? 4
                                                           : 0;
  if (length == 0 || i + length > text.size()) return 0;
  for (std::size_t j = 1; j < length; ++j)
    if ((static_cast<unsigned char>(text[i + j]) & 0xc0) != 0x80) return 0;
  if (length < 3) return length;
  const auto second = static_cast<unsigned char>(text[i + 1]);
  const bool bad = (byte == 0xe0 && second < 0xa0) || (byte == 0xed && second >= 0xa0) ||
                   (byte == 0xf0 && second < 0x90) || (byte == 0xf4 && second >= 0x90);
  return bad ? 0 : length;
}

}  // namespace

bool is_utf8(std::string_view text) {
  for (std::size_t i = 0, length = 0; i < text.size(); i += length)
    if ((length = character_at(text, i)) == 0) return false;
  return true;
}

std::string valid_utf8(std::string_view text, std::size_t limit) {
  if (limit < text.size()) {
    const std::size_t cut = limit;
    while (limit > 0 && cut - limit < 3 && (static_cast<unsigned char>(text[limit]) & 0xc0) == 0x80) --limit;
    text = text.substr(0, limit);
  }
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = character_at(text, i);
    if (length != 0)
      out.append(text.substr(i, length));
    else
      out += "\xef\xbf\xbd";
    i += length != 0 ? length : 1;
  }
  return out;
}

}  // namespace retort
