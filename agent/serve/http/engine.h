#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "agent/serve/grammar/matcher.h"
#include "agent/serve/http/metrics.h"
#include "agent/serve/runtime/sampler.h"
#include "agent/serve/runtime/session.h"

namespace retort {

struct GenerationRequest {
  std::vector<TokenId> prompt;
  std::uint32_t max_tokens = 16;
  SamplingOptions sampling;
  std::vector<std::string> stop;            ///< generation ends before any of these
  std::shared_ptr<grammar::Masks> grammar;  ///< the texts that may be written; null: any
  std::optional<std::uint32_t> logprobs;  ///< tell each token's log probability, and so many of the likeliest
};

/// What a token was chosen from: log probabilities under the model, before temperature and cuts. Tokens are
/// bytes, not always whole characters.
struct TokenLogprob {
  std::string token;
  double logprob = 0;
  std::vector<std::pair<std::string, double>> top;
};

struct GenerationEnd {
  std::string reason;  ///< "stop", "length", "timeout", "cancelled", "error"
  std::string error;
  std::uint32_t prompt_tokens = 0, completion_tokens = 0;
};

/// One request as the engine sees it. The callbacks run on the inference thread.
struct Generation {
  GenerationRequest request;
  /// Whole UTF-8 characters, never part of a stop string; the tokens since the last call, when asked for.
  std::function<void(std::string text, std::vector<TokenLogprob> tokens)> on_text;
  std::function<void(const GenerationEnd&)> on_end;
  std::atomic<bool> cancelled{false};
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
};

/// The inference thread. Requests wait in a bounded queue for one of the session's streams; those that have
/// one are computed together, a token of each and pieces of new prompts in every batch (continuous batching,
/// [Yu 2022], with prompts in chunks, [Agrawal 2023]). A stream keeps the KV cache of its last request, and a
/// prompt that begins as one of them does continues from it. What a request is answered does not depend on
/// what it is computed with. Thread: any, except where said.
class Engine {
 public:
  Engine(std::unique_ptr<Session> session, std::size_t queue_limit, ServeMetrics& metrics);
  ~Engine();
  /// All of them or, when free streams and the queue have no room for all, none: false.
  bool submit(const std::vector<std::shared_ptr<Generation>>& generations);
  /// Finishes what is queued, then ends the thread.
  void stop();
  /// Generations that it can hold, at work and waiting; one request of more is never taken.
  std::size_t most() const;
  std::size_t waiting() const;
  std::size_t running() const;
  bool idle() const;

 private:
  struct Stream;
  void serve();
  bool admit();
  void begin(std::shared_ptr<Generation> generation);
  void step();
  void advance(Stream& stream, std::span<const float> logits);
  void end(Stream& stream, std::string reason);

  std::unique_ptr<Session> session_;
  ServeMetrics& metrics_;
  const std::size_t queue_limit_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Generation>> queue_;
  bool stopping_ = false;
  std::size_t running_ = 0;
  // The inference thread's.
  std::vector<Stream> streams_;
  std::vector<Session::Chunk> chunks_;
  std::vector<Stream*> in_batch_;
  std::uint64_t turn_ = 0;
  std::thread thread_;
};

/// Text that may be given out: complete UTF-8 characters, cut before a stop string, holding back what may yet
/// become one. Pure; for the engine and its tests.
class TextGate {
 public:
  explicit TextGate(std::vector<std::string> stop) : stop_(std::move(stop)) {}
  /// Adds bytes and returns what may go out now. After a stop string `stopped()` is true and nothing more
  /// comes.
  std::string push(std::string_view bytes);
  /// At the end: the rest, an unfinished character replaced by U+FFFD.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stop_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace retort
