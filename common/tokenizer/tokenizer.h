#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/result.h"
#include "common/gguf/gguf.h"

namespace retort {

using TokenId = std::int32_t;

/// Text to token ids and back: SentencePiece-type BPE with byte fallback (GGUF "llama"), byte-level BPE with
/// the splittings of GPT-2, Llama 3, Qwen 2 and SmolLM (GGUF "gpt2"), SentencePiece's unigram model (GGUF
/// "t5"), and BERT's WordPiece (GGUF "bert"). Exact against Hugging Face's and llama.cpp's; docs/format.md
/// says where these two differ. Thread: any.
class Tokenizer {
 public:
  /// From a Hugging Face tokenizer.json (tokenizer_config.json beside it is read when it is there, for
  /// bos/eos). kUnsupported names the model, normalizer or pre-tokenizer that we do not do.
  static Result<Tokenizer> from_huggingface(const std::filesystem::path& tokenizer_json);
  static Result<Tokenizer> from_huggingface_text(std::string_view tokenizer_json,
                                                 std::string_view tokenizer_config, std::string_view where);
  /// From tokenizer.ggml.* metadata.
  static Result<Tokenizer> from_gguf(const GgufFile& file);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  Tokenizer(const Tokenizer&);  ///< cheap: the vocabulary is shared
  Tokenizer& operator=(const Tokenizer&);
  ~Tokenizer();

  /// With `add_special`, what the tokenizer's own template adds (usually bos). Any bytes are accepted;
  /// special tokens written in the text are ordinary text unless `parse_special`.
  std::vector<TokenId> encode(std::string_view text, bool add_special, bool parse_special = false) const;
  /// Bytes, which need not be whole UTF-8 characters at the ends. Special tokens give nothing; ids outside
  /// the vocabulary give nothing.
  std::string decode(std::span<const TokenId> ids) const;
  /// One token's bytes, as it continues a text (a leading space is kept): for streaming.
  std::string piece(TokenId id) const;

  std::uint32_t vocabulary_size() const;
  /// With unused tokens "[PAD<id>]" at the end, up to `size`: embeddings are often rounded up.
  Tokenizer padded(std::uint32_t size) const;
  TokenId bos() const;   ///< -1: none; WordPiece's [CLS]
  TokenId eos() const;   ///< WordPiece's [SEP]
  TokenId mask() const;  ///< stands for a token that a masked language model is to tell; -1: none
  bool is_special(TokenId id) const;
  /// Eos, the end of a turn (tokenizer.ggml.eot_token_id), and control tokens whose text is a usual one for
  /// either, as "<|im_end|>": files often name one end alone where a chat has another.
  bool ends_generation(TokenId id) const;
  /// As the vocabulary writes it; empty outside it.
  std::string_view text(TokenId id) const;
  /// How a conversation becomes a prompt: tokenizer_config.json's or GGUF's chat_template, Jinja; "" where
  /// there is none.
  const std::string& chat_template() const;

  /// Writes tokenizer.ggml.* so that llama.cpp gives the same ids.
  void write_gguf(GgufWriter& writer) const;

 private:
  struct Impl;
  explicit Tokenizer(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

}  // namespace retort
