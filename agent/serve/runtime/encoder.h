#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "agent/serve/runtime/model.h"
#include "agent/serve/runtime/projection.h"
#include "agent/serve/runtime/session.h"
#include "agent/serve/runtime/thread_team.h"
#include "common/core/result.h"

namespace retort {

struct EncoderOptions {
  std::uint32_t n_ctx = 0;         ///< tokens of the longest text; 0: the model's own context
  std::uint32_t batch = 512;       ///< tokens computed together, of all texts; at least n_ctx
  std::uint32_t texts = 32;        ///< texts computed together
  std::uint64_t memory_limit = 0;  ///< 0: none
};
MemoryPlan plan_encoder_memory(const Model& model, const EncoderOptions& options, std::uint32_t threads);

/// A model of the BERT family [Devlin 2019] over texts, several at a time, without padding. All memory is one
/// arena taken at creation; nothing is allocated afterwards. A text's results do not depend on what it is
/// computed with, nor on the threads, to the bit. Thread: one.
class EncoderSession {
 public:
  /// kOutOfBudget says how much is needed when it is more than the limit.
  static Result<std::unique_ptr<EncoderSession>> create(std::shared_ptr<const Model> model, ThreadTeam& team,
                                                        EncoderOptions options);
  using Text = std::span<const TokenId>;

  // Each computes texts of 1 to n_ctx tokens, at most texts() of them and batch() tokens in all; what it
  // returns is valid until the next call. Other input and ids outside the vocabulary are kInvalid, with
  // nothing computed, and kUnsupported what the model has no head for.

  /// The last layer's states, [tokens of all texts, n_embd].
  Result<std::span<const float>> states(std::span<const Text> texts);
  /// A vector for each text, [texts, n_embd], of Euclidean length 1: the states' mean, or the first token's
  /// where the model's pooling is so. A model that does not say is pooled by mean, as sentence-transformers
  /// does.
  Result<std::span<const float>> embed(std::span<const Text> texts);
  /// The classification head's logits, [texts, labels].
  Result<std::span<const float>> classify(std::span<const Text> texts);
  /// The masked-LM head's logits at one text's `positions` (at most texts() of them), [positions, n_vocab].
  Result<std::span<const float>> predict(Text text, std::span<const std::uint32_t> positions);

  std::uint32_t n_ctx() const { return options_.n_ctx; }
  std::uint32_t batch() const { return options_.batch; }
  std::uint32_t texts() const { return options_.texts; }
  const Model& model() const { return *model_; }

 private:
  EncoderSession(std::shared_ptr<const Model> model, ThreadTeam& team, EncoderOptions options);
  Result<void> check(std::span<const Text> texts) const;
  void forward(std::span<const Text> texts);
  void embed_tokens(std::span<const Text> texts);
  void before_attention(std::size_t layer, const Rows& rows);
  void attend(std::size_t layer);
  void after_attention(std::size_t layer, const Rows& rows);
  void normalize(const Rows& rows, const float* weight, const float* bias, const Model::Projection* reader);
  void activate(float* x, std::size_t n) const;
  void dense(const Model::Projection& projection, const float* x, std::size_t count, float* out);

  std::shared_ptr<const Model> model_;
  ThreadTeam& team_;
  EncoderOptions options_;
  Arena arena_;
  struct Run {
    std::uint32_t row = 0, count = 0;
  };
  std::vector<Run> runs_;  // of each text of the batch under way
  std::size_t n_runs_ = 0;
  // In the arena. B: batch, R: texts.
  float* hidden_;                 // [B, n_embd]
  float* qkv_;                    // [B, widest 3 n_head head_dim]: queries, keys, values
  float* attended_;               // [B, widest n_head head_dim]
  float* inner_;                  // [B, widest n_ff]
  float* scratch_;                // [threads, scratch_size_]
  float *pooled_, *head_;         // [R, n_embd]
  float* logits_;                 // [R, labels or n_vocab]
  QuantizedRows input_, middle_;  // [B, widest of n_embd and n_head head_dim]; [B, widest n_ff]
  std::size_t scratch_size_ = 0;
};

}  // namespace retort
