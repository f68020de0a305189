#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace retort {

/// GPT-2's bytes_to_unicode: printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100
/// and up.
const std::array<std::string, 256>& byte_characters();

/// Inverse of byte_characters over a whole token; nothing when a character is not in the table.
std::optional<std::string> bytes_of(std::string_view token);

/// How byte-level BPE cuts a text into words, each of which is merged by itself. The patterns are those of
/// the tokenizer.json files, followed exactly; an invalid byte is in no class, so that it goes with the
/// signs.
enum class Splitter : std::uint8_t {
  /// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  kGpt2,
  /// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
  /// \s+(?!\S)|\s+
  kLlama3,
  /// The same with \p{N} for \p{N}{1,3}.
  kQwen2,
  /// Each \p{N} by itself, then kGpt2 between them (StarCoder, SmolLM).
  kDigits,
  /// llama.cpp's for files that say "default": runs of [\p{P}$+<=>^~|], kGpt2 between them, then \p{N}+ and
  /// three of [0-9] by themselves.
  kDefault,
};

void split_words(Splitter splitter, std::string_view text, const std::function<void(std::string_view)>& word);

/// What GGUF's tokenizer.ggml.pre and a Split of tokenizer.json name.
struct PreTokenizer {
  Splitter splitter = Splitter::kGpt2;
  bool ignore_merges = false;  ///< a word that is a token is that token, whatever its merges
  bool nfc = false;            ///< the text is brought to NFC first
};
/// By llama.cpp's names for them; nothing for one that we do not do.
std::optional<PreTokenizer> pre_tokenizer_of(std::string_view name);
/// The name under which llama.cpp splits in the same way.
std::string_view name_of(Splitter splitter, bool ignore_merges);
/// The names that pre_tokenizer_of knows, for errors.
std::string pre_tokenizer_names();
/// By the text of a Split's regular expression.
std::optional<Splitter> splitter_of_pattern(std::string_view pattern);

}  // namespace retort
