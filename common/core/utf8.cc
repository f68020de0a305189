#include "common/core/utf8.h"

namespace retort {

std::string valid_utf8(std::string_view text, std::size_t limit) {
  if (limit < text.size()) {
    const std::size_t cut = limit;
    while (limit > 0 && cut - limit < 3 && (static_cast<unsigned char>(text[limit]) & 0xc0) == 0x80) --limit;
    text = text.substr(0, limit);
  }
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    std::size_t length = byte < 0x80                   ? 1
                         : byte >= 0xc2 && byte < 0xe0 ? 2
                         : byte >= 0xe0 && byte < 0xf0 ? 3
                         : byte >= 0xf0 && byte < 0xf5 ? 4
                                                       : 0;
    bool good = length != 0 && i + length <= text.size();
    for (std::size_t j = 1; good && j < length; ++j)
      good = (static_cast<unsigned char>(text[i + j]) & 0xc0) == 0x80;
    if (good && length >= 3) {
      const auto second = static_cast<unsigned char>(text[i + 1]);
      if ((byte == 0xe0 && second < 0xa0) || (byte == 0xed && second >= 0xa0) ||
          (byte == 0xf0 && second < 0x90) || (byte == 0xf4 && second >= 0x90))
        good = false;
    }
    if (good)
      out.append(text.substr(i, length));
    else
      out += "\xef\xbf\xbd", length = 1;
    i += length;
  }
  return out;
}

}  // namespace retort
