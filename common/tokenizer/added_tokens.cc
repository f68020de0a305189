#include <algorithm>

#include "common/tokenizer/tokenizer_impl.h"
#include "common/tokenizer/unicode_text.h"

namespace retort {
namespace {

/// The last character of `text`, which is not empty.
std::int32_t last_character(std::string_view text) {
  std::size_t at = text.size() - 1;
  while (at > 0 && text.size() - at < 4 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
  const auto [point, length] = code_point(text, at);
  return at + length == text.size() ? point : code_point(text, text.size() - 1).first;
}

}  // namespace

void AddedTokens::add(AddedToken token) {
  if (token.content.empty()) return;
  first_[static_cast<unsigned char>(token.content[0])] = true;
  all_special_ = all_special_ && token.special;
  const auto at = std::upper_bound(
      tokens_.begin(), tokens_.end(), token,
      [](const AddedToken& a, const AddedToken& b) { return a.content.size() > b.content.size(); });
  tokens_.insert(at, std::move(token));
}

void AddedTokens::split(std::string_view text, bool with_special,
                        const std::function<void(std::string_view, std::size_t)>& plain,
                        const std::function<void(TokenId)>& token) const {
  std::size_t from = 0;
  if (!all_special_ || with_special)
    for (std::size_t at = 0; at < text.size();) {
      const AddedToken* hit = nullptr;
      if (first_[static_cast<unsigned char>(text[at])])
        for (const AddedToken& candidate : tokens_)
          if ((with_special || !candidate.special) && text.substr(at).starts_with(candidate.content)) {
            hit = &candidate;
            break;
          }
      if (hit == nullptr) {
        ++at;
        continue;
      }
      std::size_t begin = at, end = at + hit->content.size();
      at = end;
      if (hit->single_word && ((begin > 0 && is_word(last_character(text.substr(0, begin)))) ||
                               (end < text.size() && is_word(code_point(text, end).first))))
        continue;
      if (hit->lstrip)
        while (begin > from && is_space(last_character(text.substr(from, begin - from)))) do
            --begin;
          while (begin > from && (static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80);
      if (hit->rstrip)
        while (end < text.size() && is_space(code_point(text, end).first))
          end += code_point(text, end).second;
      if (begin > from) plain(text.substr(from, begin - from), from);
      token(hit->id);
      from = end;
      at = std::max(at, end);
    }
  if (from < text.size()) plain(text.substr(from), from);
}

}  // namespace retort
