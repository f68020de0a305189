#pragma once

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <span>

#include "agent/serve/runtime/model.h"
#include "agent/serve/runtime/thread_team.h"
#include "common/core/result.h"

namespace retort {

struct SessionOptions {
  std::uint32_t n_ctx = 0;         ///< tokens kept; 0: the model's own context
  std::uint32_t batch = 32;        ///< prompt tokens computed together
  bool logits_of_all = false;      ///< room for the logits of every token of a batch (evaluation)
  std::uint64_t memory_limit = 0;  ///< 0: none
};

/// What a session will take, known before it takes it.
struct MemoryPlan {
  std::uint64_t weights_mapped_bytes = 0;  ///< shared with every process that maps the same file
  std::uint64_t kv_cache_bytes = 0;        ///< F32
  std::uint64_t activation_bytes = 0;
  std::uint64_t total() const { return weights_mapped_bytes + kv_cache_bytes + activation_bytes; }
};
MemoryPlan plan_memory(const Model& model, const SessionOptions& options, std::uint32_t threads);

/// One stream of tokens through a model: its KV cache and scratch, all in one arena taken at creation;
/// nothing is allocated afterwards. Thread: one.
class Session {
 public:
  /// kOutOfBudget says how much is needed when it is more than the limit.
  static Result<std::unique_ptr<Session>> create(std::shared_ptr<const Model> model, ThreadTeam& team,
                                                 SessionOptions options);

  /// Computes `tokens` after those that are in the cache already, and returns the logits of the last one
  /// [n_vocab], f32, valid until the next call. Empty input, an id outside the vocabulary and a full context
  /// are kInvalid.
  Result<std::span<const float>> evaluate(std::span<const TokenId> tokens);
  /// The same for at most `batch` tokens, with the logits of each: [tokens, n_vocab]. Needs logits_of_all.
  Result<std::span<const float>> evaluate_all(std::span<const TokenId> tokens);

  std::uint32_t position() const { return position_; }
  std::uint32_t n_ctx() const { return options_.n_ctx; }
  std::uint32_t batch() const { return options_.batch; }
  /// Forgets everything from `position` on.
  void rewind(std::uint32_t position) { position_ = std::min(position, position_); }
  const Model& model() const { return *model_; }

 private:
  Session(std::shared_ptr<const Model> model, ThreadTeam& team, SessionOptions options);
  Result<void> check(std::span<const TokenId> tokens) const;
  void forward(std::span<const TokenId> tokens, bool all_logits);
  /// One product of a group that shares its input.
  struct Product {
    const kernels::Matrix& weight;
    const float* bias;  ///< or null
    float* out;         ///< [count, stride]
    std::size_t stride;
  };
  template <typename After>
  void project(std::initializer_list<Product> products, const float* x, std::size_t count,
               const After& after);
  void project(const Product& product, const float* x, std::size_t count);
  void normalize(const float* x, const float* weight, const float* bias, std::size_t count, float* out);
  std::uint32_t chunks(std::uint64_t multiplications) const;
  void store(std::size_t layer, const float* keys, const float* values, std::size_t stride,
             std::size_t count);
  void attention(std::size_t layer, std::size_t count);

  std::shared_ptr<const Model> model_;
  ThreadTeam& team_;
  SessionOptions options_;
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> arena_;
  std::uint32_t position_ = 0;
  // In the arena. B: batch, S: n_ctx rounded up to whole blocks of positions.
  float *hidden_, *normed_;   // [B, n_embd]
  float *query_, *attended_;  // [B, widest n_head * head_dim]
  float *gate_, *up_;         // [B, widest n_ff]; new K and V rows, or gpt2's fused qkv, lie there too
  float* logits_;             // [B or 1, n_vocab]
  float* scores_;             // [threads, S]
  float* rope_;               // [n_ctx, (cos, sin), head_dim / 2]
  std::int16_t* quantized_;   // [B, widest input]
  float* scales_;             // [B, widest input / 32]
  std::vector<float*> keys_, values_;  // per layer [n_head_kv, head_dim, S]: kernels::attention says why
};

}  // namespace retort
