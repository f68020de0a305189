#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "common/tokenizer/tokenizer.h"
#include "common/tokenizer/vocabulary.h"

namespace retort {

/// BERT's tokenizer [Devlin 2019]: a text is cleaned and cut into words at white space, punctuation and CJK
/// characters; each word into the longest pieces of the vocabulary from its beginning on [Wu 2016, §4.1].
/// Exact against Hugging Face's BertNormalizer, BertPreTokenizer and WordPiece for characters of Unicode 8,
/// which its tables are of; newer ones have the classes of utf8proc's Unicode here. Thread: any.
struct WordPiece {
  bool clean_text = true;          ///< drops control characters; every white space becomes a space
  bool chinese_characters = true;  ///< each CJK ideograph is a word
  bool strip_accents = true;       ///< canonical decomposition without its nonspacing marks
  bool lower_case = true;
  std::uint32_t max_word_characters = 100;  ///< a longer word is unknown
  std::uint32_t longest_bytes = 0;          ///< of the vocabulary's texts: no longer piece is looked for

  static constexpr std::string_view kContinues = "##";  ///< before a piece that does not begin a word

  /// Bytes that are not UTF-8 count as U+FFFD, which cleaning drops. A word without pieces is `unknown`
  /// (nothing when that is -1).
  void encode(std::string_view text, const Vocabulary& tokens, TokenId unknown,
              std::vector<TokenId>& out) const;
};

}  // namespace retort
