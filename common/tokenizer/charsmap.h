#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/result.h"

namespace retort {

/// SentencePiece's precompiled normalization table ("precompiled_charsmap"): a double-array trie from
/// character sequences to their replacements, most often NFKC with white space and control characters evened
/// out. Every look-up is checked against the table's size. Thread: any.
class CharsMap {
 public:
  CharsMap() = default;
  /// kInvalid: the table's lengths do not fit its bytes. No bytes: nothing is replaced.
  static Result<CharsMap> parse(std::string_view bytes, std::string_view where);

  bool empty() const { return units_.empty(); }
  /// The table as it was read.
  const std::string& bytes() const { return bytes_; }

  /// `by_grapheme` false: as SentencePiece and llama.cpp, the longest sequence that is in the table at each
  /// place. True: as Hugging Face's tokenizers, a grapheme of less than six bytes by the shortest prefix of
  /// it that is in the table (what follows in it is lost), else each of its characters alone. The two differ
  /// on some base letters with combining marks. Invalid bytes stay as they are.
  std::string normalize(std::string_view text, bool by_grapheme) const;

 private:
  /// A prefix of `text` that is in the table: its length (0: none) and the replacement.
  std::pair<std::size_t, std::string_view> prefix(std::string_view text, bool longest) const;

  std::string bytes_;
  std::vector<std::uint32_t> units_;
  std::string_view replacements() const { return std::string_view(bytes_).substr(4 + 4 * units_.size()); }
};

}  // namespace retort
