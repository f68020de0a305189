#pragma once

// What the tokenizer's source files share; nobody else includes it.
#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/tokenizer/tokenizer.h"
#include "common/tokenizer/vocabulary.h"

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
};

struct Tokenizer::Impl {
  Kind kind = Kind::kByteLevel;
  Vocabulary tokens;  ///< as the vocabulary writes them
  std::vector<TokenType> types;
  Merges merges;
  std::array<TokenId, 256> byte_tokens;
  TokenId bos = -1, eos = -1, end_of_turn = -1, unknown = -1;
  std::vector<TokenId> ends;  ///< see ends_generation()
  std::string chat_template;
  bool add_bos = false, add_eos = false, space_prefix = false, escape_spaces = false, fuse_unknown = false;
  std::vector<std::pair<std::string, TokenId>> special;  ///< control and user-defined tokens, longest first
  std::array<bool, 256> special_first{};                 ///< the bytes that one of them begins with
  bool has_user_defined = false;

  /// The bytes that a token stands for; empty for special ones.
  std::string piece(TokenId id) const;
  Result<void> finish(std::string_view where);
  void merge(std::string_view text, std::vector<TokenId> symbols, std::vector<std::uint32_t> starts,
             std::vector<TokenId>& out) const;
  void encode_plain(std::string_view text, bool at_start, std::vector<TokenId>& out) const;
};

}  // namespace retort
