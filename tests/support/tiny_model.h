#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "common/core/result.h"
#include "common/hf/hf_model.h"
#include "common/model/model_config.h"

namespace retort::testing {

struct TinyModelOptions {
  std::uint32_t n_embd = 64, n_layer = 2, n_head = 4, n_head_kv = 2, n_ff = 96, n_ctx = 128, n_vocab = 300;
  bool tied = true;
  /// Of a Llama's layers: their norms' channel 5 is so much larger and the columns that read it are so much
  /// smaller. The model computes what it does with 1.
  float outlier = 1;
  EncoderConfig encoder;                               ///< bert only
  std::function<void(ModelConfig&)> change = nullptr;  ///< what else differs
};

ModelConfig tiny_config(ModelFamily family, const TinyModelOptions& options);

/// Writes a small valid Hugging Face folder with random weights (from `seed`) and a byte-level tokenizer of
/// 300 tokens (or more): "<|endoftext|>", the 256 bytes, 43 merges of common English pairs, then pairs of
/// bytes. A BERT has WordPiece instead: five special tokens, printable ASCII and letters that continue a
/// word, some words and endings, then unused ones.
Result<void> write_tiny_model(const std::filesystem::path& folder, ModelFamily family, std::uint64_t seed,
                              TinyModelOptions options = {});

/// The same, opened, and as the file `gguf` with weights of `type`.
Result<HfModel> write_tiny_gguf(const std::filesystem::path& folder, const std::filesystem::path& gguf,
                                ModelFamily family, std::uint64_t seed, TensorType type,
                                const TinyModelOptions& options = {});

/// The tokenizer.json alone.
std::string tiny_tokenizer_json(std::uint32_t n_vocab = 300);
std::string tiny_wordpiece_json(std::uint32_t n_vocab = 300);

/// A few hundred short, different English-like documents, as JSONL {"text"}; deterministic.
std::string tiny_corpus_jsonl(std::size_t documents, std::uint64_t seed);

}  // namespace retort::testing
