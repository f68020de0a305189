#include "common/tokenizer/byte_level.h"

#include "common/tokenizer/unicode_text.h"

namespace retort {

const std::array<std::string, 256>& byte_characters() {
  static const std::array<std::string, 256> table = [] {
    std::array<std::string, 256> out;
    std::int32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
      out[static_cast<std::size_t>(b)] = utf8(printable ? b : next++);
    }
    return out;
  }();
  return table;
}

std::optional<std::string> bytes_of(std::string_view token) {
  static const std::array<std::int16_t, 0x180> inverse = [] {
    std::array<std::int16_t, 0x180> out;
    out.fill(-1);
    for (std::size_t b = 0; b < 256; ++b)
      out[static_cast<std::size_t>(code_point(byte_characters()[b], 0).first)] = static_cast<std::int16_t>(b);
    return out;
  }();
  std::string out;
  for (std::size_t i = 0; i < token.size();) {
    const auto [point, length] = code_point(token, i);
    if (point < 0 || point >= static_cast<std::int32_t>(inverse.size()) ||
        inverse[static_cast<std::size_t>(point)] < 0)
      return std::nullopt;
    out += static_cast<char>(inverse[static_cast<std::size_t>(point)]);
    i += length;
  }
  return out;
}

void split_gpt2(std::string_view text, const std::function<void(std::string_view)>& word) {
  std::size_t at = 0;
  while (at < text.size()) {
    if (text[at] == '\'') {
      const std::string_view rest = text.substr(at + 1, 2);
      std::size_t length = 0;
      for (const std::string_view suffix : {"re", "ve", "ll"})
        if (rest == suffix) length = 3;
      if (length == 0 && !rest.empty() && std::string_view("stmd").find(rest[0]) != std::string_view::npos)
        length = 2;
      if (length != 0) {
        word(text.substr(at, length));
        at += length;
        continue;
      }
    }
    const auto [first, first_length] = code_point(text, at);
    std::size_t begin = at;
    if (first == ' ' && at + 1 < text.size() && !is_space(code_point(text, at + 1).first)) begin = at + 1;
    const auto [point, length] = code_point(text, begin);
    if (!is_space(point)) {
      const auto same_class = [point = point](std::int32_t c) {
        if (is_letter(point)) return is_letter(c);
        if (is_number(point)) return is_number(c);
        return !is_space(c) && !is_letter(c) && !is_number(c);
      };
      std::size_t end = begin + length;
      while (end < text.size()) {
        const auto [next, next_length] = code_point(text, end);
        if (!same_class(next)) break;
        end += next_length;
      }
      word(text.substr(at, end - at));
      at = end;
      continue;
    }
    // White space: all of it at the end of the text, otherwise all but the last character (which joins the
    // next word when it is a space, and otherwise stands alone).
    std::size_t end = at, last = at;
    while (end < text.size()) {
      const auto [next, next_length] = code_point(text, end);
      if (!is_space(next)) break;
      last = end;
      end += next_length;
    }
    if (end < text.size() && last > at) end = last;
    word(text.substr(at, end - at));
    at = end;
  }
}

}  // namespace retort
