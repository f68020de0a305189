#include "common/tokenizer/wordpiece.h"

#include <utf8proc.h>

#include <algorithm>
#include <string>

#include "common/tokenizer/unicode_text.h"

namespace retort {
namespace {

constexpr std::int32_t kReplacement = 0xfffd;

bool is_control(std::int32_t c) {
  if (c == '\t' || c == '\n' || c == '\r') return false;
  const auto category = utf8proc_category(c);
  return category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF ||
         category == UTF8PROC_CATEGORY_CO;
}

bool is_bert_punctuation(std::int32_t c) {
  if (c < 128)
    return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) || (c >= 123 && c <= 126);
  const auto category = utf8proc_category(c);
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

/// The blocks of CJK ideographs as BERT's code has them; one begins at 2B920 there, not at 2B820.
bool is_ideograph(std::int32_t c) {
  return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x20000 && c <= 0x2a6df) ||
         (c >= 0x2a700 && c <= 0x2b73f) || (c >= 0x2b740 && c <= 0x2b81f) || (c >= 0x2b920 && c <= 0x2ceaf) ||
         (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

/// Canonical decomposition (NFD) without nonspacing marks.
std::vector<std::int32_t> without_accents(const std::vector<std::int32_t>& points) {
  std::string bytes;
  for (const std::int32_t c : points) bytes += utf8(c);
  const auto* const from = reinterpret_cast<const utf8proc_uint8_t*>(bytes.data());
  const auto size = static_cast<utf8proc_ssize_t>(bytes.size());
  std::vector<std::int32_t> out;
  utf8proc_ssize_t room = utf8proc_decompose(from, size, nullptr, 0, UTF8PROC_DECOMPOSE);
  if (room < 0) return points;  // only when it is longer than memory
  out.resize(static_cast<std::size_t>(room));
  room = utf8proc_decompose(from, size, out.data(), room, UTF8PROC_DECOMPOSE);
  out.resize(static_cast<std::size_t>(std::max<utf8proc_ssize_t>(room, 0)));
  std::erase_if(out, [](std::int32_t c) { return utf8proc_category(c) == UTF8PROC_CATEGORY_MN; });
  return out;
}

/// A word's bytes behind room for kContinues.
class Word {
 public:
  void add(std::int32_t c) {
    if (c < 128)
      bytes_ += static_cast<char>(c);
    else
      bytes_ += utf8(c);
    ++characters_;
  }
  void cut(const WordPiece& options, const Vocabulary& tokens, TokenId unknown, std::vector<TokenId>& out) {
    const std::size_t lead = WordPiece::kContinues.size(), whole = out.size();
    bool known = characters_ <= options.max_word_characters;
    for (std::size_t at = lead; known && at < bytes_.size();) {
      // What is behind `at` has its piece, so that the mark of a continuation may stand there.
      if (at > lead) WordPiece::kContinues.copy(bytes_.data() + at - lead, lead);
      const std::size_t begin = at > lead ? at - lead : at;
      std::size_t end = std::min<std::size_t>(bytes_.size(), begin + options.longest_bytes);
      TokenId id = -1;
      for (; end > at; --end)
        if ((id = tokens.find(std::string_view(bytes_).substr(begin, end - begin))) >= 0) break;
      known = id >= 0;
      if (known) out.push_back(id);
      at = end;
    }
    if (!known) {
      out.resize(whole);
      if (unknown >= 0) out.push_back(unknown);
    }
    bytes_.resize(lead);
    characters_ = 0;
  }
  bool empty() const { return characters_ == 0; }

 private:
  std::string bytes_ = std::string(WordPiece::kContinues.size(), ' ');
  std::uint32_t characters_ = 0;
};

}  // namespace

void WordPiece::encode(std::string_view text, const Vocabulary& tokens, TokenId unknown,
                       std::vector<TokenId>& out) const {
  std::vector<std::int32_t> points;
  points.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    auto [c, length] = code_point(text, at);
    at += length;
    if (c < 0) c = kReplacement;
    if (clean_text) {
      if (c == 0 || c == kReplacement || is_control(c)) continue;
      if (is_space(c)) c = ' ';
    }
    const bool alone = chinese_characters && is_ideograph(c);
    if (alone) points.push_back(' ');
    points.push_back(c);
    if (alone) points.push_back(' ');
  }
  if (strip_accents && std::any_of(points.begin(), points.end(), [](std::int32_t c) { return c >= 128; }))
    points = without_accents(points);
  Word word;
  const auto end_word = [&] {
    if (!word.empty()) word.cut(*this, tokens, unknown, out);
  };
  for (const std::int32_t c : points) {
    const std::int32_t lower = lower_case ? utf8proc_tolower(c) : c;
    if (is_space(lower)) {
      end_word();
      continue;
    }
    const bool alone = is_bert_punctuation(lower);
    if (alone) end_word();
    word.add(lower);
    if (lower_case && c == 0x130) word.add(0x307);  // İ: the one letter whose small form is two characters
    if (alone) end_word();
  }
  end_word();
}

}  // namespace retort
