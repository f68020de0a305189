#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "agent/serve/http/metrics.h"
#include "agent/serve/runtime/encoder.h"

namespace retort {

/// What is wanted of each of a request's texts.
enum class EncodeKind {
  kEmbed,    ///< a vector of length 1, [n_embd]
  kClassify  ///< probabilities, [labels]
};

/// A request's texts, each of 1 to n_ctx tokens of the vocabulary.
struct EncodeCall {
  EncodeKind kind = EncodeKind::kEmbed;
  std::vector<std::vector<TokenId>> texts;
  bool base64 = false;    ///< embeddings as little-endian F32 in base64
  std::size_t top_k = 0;  ///< labels told of each text, the likeliest first; 0: all
};

struct Encoding {
  EncodeCall call;
  /// On the engine's thread, once: a row of finite numbers for each text, or why there are none. Not called
  /// for a cancelled one.
  std::function<void(const EncodeCall& call, Result<std::vector<std::vector<float>>>)> on_end;
  std::function<void()> on_cancelled;  ///< instead of it
  /// What is not done by then is answered with kUnavailable.
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
  std::atomic<bool> cancelled{false};
};

/// The inference thread of an encoder. Requests wait in a bounded queue; texts of several are computed
/// together. What a text is answered does not depend on what it is computed with. Thread: any.
class EncoderEngine {
 public:
  EncoderEngine(std::unique_ptr<EncoderSession> session, std::size_t queue_limit, ServeMetrics& metrics);
  ~EncoderEngine();
  /// False when the queue is full.
  bool submit(std::shared_ptr<Encoding> encoding);
  std::size_t waiting() const;
  bool idle() const;

 private:
  struct Pending {
    std::shared_ptr<Encoding> encoding;
    std::size_t next = 0;  ///< of its texts, not yet computed
    std::vector<std::vector<float>> rows;
    bool finite = true;  ///< all of them
    std::chrono::steady_clock::time_point begun;
  };
  void serve();
  void step(std::vector<std::shared_ptr<Pending>>& batch);

  std::unique_ptr<EncoderSession> session_;
  ServeMetrics& metrics_;
  const std::size_t queue_limit_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Pending>> queue_;
  bool stopping_ = false, running_ = false;
  std::thread thread_;
};

}  // namespace retort
