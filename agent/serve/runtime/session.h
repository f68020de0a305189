#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "agent/serve/runtime/arena.h"
#include "agent/serve/runtime/model.h"
#include "agent/serve/runtime/projection.h"
#include "agent/serve/runtime/thread_team.h"
#include "common/core/result.h"

namespace retort {

struct SessionOptions {
  std::uint32_t n_ctx = 0;    ///< tokens kept of each stream; 0: the model's own context
  std::uint32_t streams = 1;  ///< sequences with a KV cache each
  std::uint32_t batch = 128;  ///< tokens computed together, of all streams
  kernels::CacheType cache = kernels::CacheType::kF32;  ///< what K and V are kept in
  bool logits_of_all = false;      ///< room for the logits of every token of a batch (evaluation)
  std::uint64_t memory_limit = 0;  ///< 0: none
};

/// What a session will take, known before it takes it.
struct MemoryPlan {
  std::uint64_t weights_mapped_bytes = 0;  ///< shared with every process that maps the same files
  std::uint64_t weights_packed_bytes = 0;  ///< this process's own; 0 where the cache's file is mapped
  std::uint64_t kv_cache_bytes = 0;
  std::uint64_t activation_bytes = 0;
  std::uint64_t total() const {
    return weights_mapped_bytes + weights_packed_bytes + kv_cache_bytes + activation_bytes;
  }
};
MemoryPlan plan_memory(const Model& model, const SessionOptions& options, std::uint32_t threads);

/// Streams of tokens through a model: their KV caches and the scratch, all in one arena taken at creation;
/// nothing is allocated afterwards. A stream's results do not depend on what it is batched with, nor on the
/// threads, to the bit. Thread: one.
class Session {
 public:
  /// kOutOfBudget says how much is needed when it is more than the limit.
  static Result<std::unique_ptr<Session>> create(std::shared_ptr<const Model> model, ThreadTeam& team,
                                                 SessionOptions options);

  /// Tokens of one stream, after those that its cache holds already.
  struct Chunk {
    std::uint32_t stream = 0;
    std::span<const TokenId> tokens;
    bool wants_logits = true;  ///< of its last token
  };
  /// Computes chunks of different streams together, `batch` tokens at most in all. Returns the logits
  /// [n_vocab] of the last token of each chunk that wants them, in order, valid until the next call. Empty
  /// input, an id outside the vocabulary, a full context and a stream named twice are kInvalid, with nothing
  /// computed.
  Result<std::span<const float>> step(std::span<const Chunk> chunks);

  /// Computes any number of tokens of stream 0, batch by batch, and returns the logits of the last.
  Result<std::span<const float>> evaluate(std::span<const TokenId> tokens);
  /// At most `batch` tokens of stream 0 with the logits of each: [tokens, n_vocab]. Needs logits_of_all.
  Result<std::span<const float>> evaluate_all(std::span<const TokenId> tokens);

  std::uint32_t position(std::uint32_t stream = 0) const { return position_[stream]; }
  std::uint32_t n_ctx() const { return options_.n_ctx; }
  std::uint32_t batch() const { return options_.batch; }
  std::uint32_t streams() const { return options_.streams; }
  /// Forgets everything of a stream from `position` on.
  void rewind(std::uint32_t position, std::uint32_t stream = 0) {
    position_[stream] = std::min(position, position_[stream]);
  }
  /// Makes stream `to` begin with the first `count` positions of stream `from`.
  void copy(std::uint32_t from, std::uint32_t to, std::uint32_t count);
  const Model& model() const { return *model_; }

 private:
  Session(std::shared_ptr<const Model> model, ThreadTeam& team, SessionOptions options);
  Result<void> check(std::span<const Chunk> chunks) const;
  void forward(std::span<const Chunk> chunks, bool all_logits);

  /// At most kAttentionTokens consecutive tokens of one stream.
  struct Run {
    std::uint32_t row = 0, count = 0, stream = 0, position = 0;
  };
  void normalize(const Rows& rows, const float* weight, const float* bias, bool quantized, float scale);
  void embed(std::span<const Chunk> chunks);
  void before_attention(std::size_t layer, const Rows& rows, std::size_t first_run, std::size_t last_run);
  void attend(std::size_t layer);
  void after_attention(std::size_t layer, const Rows& rows);
  void prefetch_cache(std::uint32_t stream, std::size_t layer) const;
  void turn_and_store(std::size_t layer, std::size_t run);
  std::byte* cache(std::uint32_t stream, std::size_t layer, bool values, std::size_t head) const;

  std::shared_ptr<const Model> model_;
  ThreadTeam& team_;
  SessionOptions options_;
  Arena arena_;
  std::vector<std::uint32_t> position_;  // of each stream
  std::vector<Run> runs_;                // of the batch under way
  std::size_t n_runs_ = 0;
  const RopeRates rope_rates_;
  std::uint32_t rope_filled_ = 0;
  // In the arena. B: batch, S: n_ctx rounded up to whole blocks of positions.
  float *hidden_, *normed_;      // [B, n_embd]
  float* qkv_;                   // [B, widest (n_head + 2 n_head_kv) head_dim]: queries, keys, values
  float* attended_;              // [B, widest n_head * head_dim]
  float *gate_, *up_;            // [B, widest n_ff]
  float* logits_;                // [B or streams, n_vocab]
  float* scores_;                // [threads, kScoreRows, S + kPositionBlock]
  float* rope_;                  // [n_ctx, 2 head_dim], as kernels::rope wants it; filled as far as needed
  QuantizedRows input_, inner_;  // [B, widest of n_embd and n_head * head_dim]; [B, widest n_ff]
  std::byte* cache_;  // [streams, layers, K and V, n_head_kv, S / 16], blocks as the kernels have them
  std::vector<std::uint64_t> layer_at_;  // bytes before a layer's K in a stream's cache
  std::uint64_t stream_bytes_ = 0;       // of a stream's cache
};

}  // namespace retort
