#include "common/tokenizer/charsmap.h"

#include <utf8proc.h>

#include <cstring>

#include "common/tokenizer/unicode_text.h"

namespace retort {

Result<CharsMap> CharsMap::parse(std::string_view bytes, std::string_view where) {
  CharsMap out;
  if (bytes.empty()) return out;
  std::uint32_t length = 0;
  if (bytes.size() >= 4) std::memcpy(&length, bytes.data(), 4);  // little-endian, as all machines we run on
  if (bytes.size() < 4 || length == 0 || length % 4 != 0 || length > bytes.size() - 4)
    return fail(ErrorCode::kInvalid, std::string(where), "the precompiled charsmap of {} bytes is damaged",
                bytes.size());
  out.bytes_ = bytes;
  out.units_.resize(length / 4);
  std::memcpy(out.units_.data(), bytes.data() + 4, length);
  return out;
}

std::pair<std::size_t, std::string_view> CharsMap::prefix(std::string_view text, bool longest) const {
  // [Aoe 1989] double array in Darts' packing: bits 0-7 and 31 the label, 8 whether a value follows, 9 the
  // scale of the offset in bits 10-30.
  const auto offset = [](std::uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
  std::pair<std::size_t, std::string_view> found{0, {}};
  std::uint32_t at = offset(units_[0]);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    at ^= c;
    if (c == 0 || at >= units_.size()) break;
    const std::uint32_t unit = units_[at];
    if ((unit & (1u << 31 | 0xff)) != c) break;
    at ^= offset(unit);
    if ((unit >> 8 & 1) == 0) continue;
    if (at >= units_.size()) break;
    const std::uint32_t value = units_[at] & ~(1u << 31);
    const std::string_view all = replacements();
    if (value >= all.size()) break;
    const std::string_view rest = all.substr(value);
    found = {i + 1, rest.substr(0, rest.find('\0'))};
    if (!longest) break;
  }
  return found;
}

std::string CharsMap::normalize(std::string_view text, bool by_grapheme) const {
  if (empty()) return std::string(text);
  std::string out;
  const auto one = [&](std::string_view character) {
    const auto [length, replacement] = prefix(character, false);
    out += length != 0 ? replacement : character;
  };
  for (std::size_t at = 0; at < text.size();) {
    if (!by_grapheme) {
      const auto [length, replacement] = prefix(text.substr(at), true);
      const std::size_t step = length != 0 ? length : code_point(text, at).second;
      out += length != 0 ? replacement : text.substr(at, step);
      at += step;
      continue;
    }
    // The grapheme that begins here (Unicode Standard Annex 29).
    auto [point, length] = code_point(text, at);
    std::size_t end = at + length;
    utf8proc_int32_t state = 0;
    while (point >= 0 && end < text.size()) {
      const auto [next, bytes] = code_point(text, end);
      if (next < 0 || utf8proc_grapheme_break_stateful(point, next, &state)) break;
      point = next;
      end += bytes;
    }
    const std::string_view grapheme = text.substr(at, end - at);
    const auto [replaced, replacement] =
        grapheme.size() < 6 ? prefix(grapheme, false) : std::pair<std::size_t, std::string_view>();
    if (replaced != 0)
      out += replacement;
    else
      for (std::size_t i = 0, step = 0; i < grapheme.size(); i += step) {
        step = code_point(grapheme, i).second;
        one(grapheme.substr(i, step));
      }
    at = end;
  }
  return out;
}

}  // namespace retort
