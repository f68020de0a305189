#pragma once

// What the tokenizer's source files share; nobody else includes it.
#include <array>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/tokenizer/byte_level.h"
#include "common/tokenizer/charsmap.h"
#include "common/tokenizer/tokenizer.h"
#include "common/tokenizer/unigram.h"
#include "common/tokenizer/vocabulary.h"
#include "common/tokenizer/wordpiece.h"

namespace retort {

inline constexpr std::string_view kSpace = "\xe2\x96\x81";  // U+2581, SentencePiece's space
inline constexpr std::size_t kMaxVocabulary = 1 << 20;

/// GGUF's token types.
enum class TokenType : std::uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

enum class Kind {
  kSentencePiece,  ///< characters, merged by rank; unknown ones fall back to bytes or <unk>
  kByteLevel,      ///< GPT-2: bytes as printable characters, split into words first
  kUnigram,        ///< SentencePiece's unigram model
  kWordPiece,      ///< BERT: words, cut into the longest pieces
};

/// Tokens that are looked for in a text before the model sees it, and how (Hugging Face's added_tokens).
struct AddedToken {
  std::string content;
  TokenId id = 0;
  bool special = false;                 ///< only where the text may name special tokens
  bool lstrip = false, rstrip = false;  ///< takes the white space on that side with it
  bool single_word = false;             ///< not beside a word character
  bool normalized = false;              ///< looked for in the normalized text
};

class AddedTokens {
 public:
  void add(AddedToken token);
  /// Leftmost, of these the longest. `plain` gets what lies between, never empty, and where it begins.
  void split(std::string_view text, bool with_special,
             const std::function<void(std::string_view, std::size_t)>& plain,
             const std::function<void(TokenId)>& token) const;

 private:
  std::vector<AddedToken> tokens_;  ///< longest first
  std::array<bool, 256> first_{};   ///< the bytes that one of them begins with
  bool all_special_ = true;
};

struct Tokenizer::Impl {
  Kind kind = Kind::kByteLevel;
  Vocabulary tokens;  ///< as the vocabulary writes them
  std::vector<TokenType> types;
  /// Neighbours merge where `merges` has the pair; or, of a SentencePiece vocabulary without merges, where
  /// their concatenation is a token with a rank here, that is not kNoRank: to make the pairs of it at the
  /// start would take most of the time to the first token.
  Merges merges;
  std::vector<std::uint32_t> piece_ranks;
  static constexpr std::uint32_t kNoRank = UINT32_MAX;
  static constexpr std::size_t kLongestPiece = 1024;  ///< bytes
  std::array<TokenId, 256> byte_tokens;
  TokenId bos = -1, eos = -1, end_of_turn = -1, unknown = -1, mask = -1, padding = -1;
  std::vector<TokenId> ends;  ///< see ends_generation()
  std::string chat_template;
  bool add_bos = false, add_eos = false, space_prefix = false, escape_spaces = false, fuse_unknown = false;
  std::map<TokenId, AddedToken> added;      ///< those that differ from what their type alone says
  AddedTokens raw_added, normalized_added;  ///< looked for before and after normalization

  // Byte-level BPE.
  PreTokenizer pre;

  // Unigram.
  std::vector<float> scores;
  Unigram unigram;
  CharsMap charsmap;
  bool byte_fallback = false;
  bool prefix_always = false;    ///< space_prefix after an added token too
  bool by_grapheme = false;      ///< see CharsMap::normalize
  bool merge_spaces = false;     ///< none at the ends, one between words
  bool strip_right = false;      ///< white space of any kind
  bool split_all_space = false;  ///< merge_spaces for all white space, not for U+0020 alone
  bool split_pieces = false;     ///< each piece that begins with U+2581 is segmented by itself

  WordPiece wordpiece;

  /// The bytes that a token stands for; empty for special ones.
  std::string piece(TokenId id) const;
  Result<void> finish(std::string_view where);
  std::string normalize(std::string_view text) const;
  void merge(std::string_view text, std::vector<TokenId> symbols, std::vector<std::uint32_t> starts,
             std::vector<TokenId>& out) const;
  /// Text without added tokens, normalized.
  void encode_plain(std::string_view text, bool at_start, std::vector<TokenId>& out) const;
  void encode_bytes(std::string_view text, std::vector<TokenId>& out) const;
  void encode_pieces(std::string_view text, bool at_start, std::vector<TokenId>& out) const;
  void encode_unigram(std::string_view text, bool at_start, std::vector<TokenId>& out) const;
  void segment(std::string_view text, std::vector<TokenId>& out) const;
};

}  // namespace retort
