#include <algorithm>

#include "common/tokenizer/tokenizer_impl.h"
#include "common/tokenizer/unicode_text.h"

namespace retort {

void Tokenizer::Impl::encode_unigram(std::string_view text, bool at_start, std::vector<TokenId>& out) const {
  const std::string_view space = escape_spaces ? kSpace : std::string_view(" ");
  const bool prefix = space_prefix && (at_start || prefix_always);
  if (strip_right)
    for (std::size_t end = 0, at = 0; at <= text.size();) {  // `end`: after the last character that stays
      if (at == text.size()) {
        text = text.substr(0, end);
        break;
      }
      const auto [point, length] = code_point(text, at);
      at += length;
      if (!is_space(point)) end = at;
    }
  if (!merge_spaces) {
    std::string normal;
    if (prefix && !(text.starts_with(' ') || text.starts_with(kSpace))) normal += space;
    for (const char c : text)
      if (c == ' ')
        normal += space;
      else
        normal += c;
    return segment(normal, out);
  }
  const auto is_separator = [&](std::int32_t c) { return c == ' ' || (split_all_space && is_space(c)); };
  std::string normal;
  bool pending = prefix, separated = false;  // a space goes before the next word; white space came before it
  for (std::size_t at = 0; at < text.size();) {
    const auto [point, length] = code_point(text, at);
    if (is_separator(point)) {
      pending = separated = true;
    } else {
      const bool has_space = text.substr(at).starts_with(kSpace) && (split_all_space || !separated);
      if (pending && !has_space) normal += space;
      pending = false;
      normal += text.substr(at, length);
    }
    at += length;
  }
  segment(normal, out);
}

/// `text` with its spaces escaped.
void Tokenizer::Impl::segment(std::string_view text, std::vector<TokenId>& out) const {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = split_pieces ? std::min(text.size(), text.find(kSpace, at + 1)) : text.size();
    const std::string_view word = text.substr(at, end - at);
    for (const Unigram::Part& part : unigram.segment(word)) {
      const std::string_view bytes = word.substr(part.begin, part.end - part.begin);
      const auto byte_token = [&](char c) { return byte_tokens[static_cast<unsigned char>(c)]; };
      if (part.id >= 0)
        out.push_back(part.id);
      else if (byte_fallback &&
               std::all_of(bytes.begin(), bytes.end(), [&](char c) { return byte_token(c) >= 0; }))
        for (const char c : bytes) out.push_back(byte_token(c));
      else if (unknown >= 0)
        out.push_back(unknown);
    }
    at = end;
  }
}

}  // namespace retort
