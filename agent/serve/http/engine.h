#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "agent/serve/http/metrics.h"
#include "agent/serve/runtime/sampler.h"
#include "agent/serve/runtime/session.h"

namespace retort {

struct GenerationRequest {
  std::vector<TokenId> prompt;
  std::uint32_t max_tokens = 16;
  SamplingOptions sampling;
  std::vector<std::string> stop;  ///< generation ends before any of these
};

struct GenerationEnd {
  std::string reason;  ///< "stop", "length", "cancelled", "error"
  std::string error;
  std::uint32_t prompt_tokens = 0, completion_tokens = 0;
};

/// One request as the engine sees it. The callbacks run on the inference thread.
struct Generation {
  GenerationRequest request;
  std::function<void(std::string text)> on_text;  ///< whole UTF-8 characters, never part of a stop string
  std::function<void(const GenerationEnd&)> on_end;
  std::atomic<bool> cancelled{false};
};

/// The inference thread: requests wait in a bounded queue and are answered one after another. The KV cache of
/// the last one is kept, and a prompt that begins the same way continues from it. Thread: any, except where
/// said.
class Engine {
 public:
  Engine(std::unique_ptr<Session> session, std::size_t queue_limit, ServeMetrics& metrics);
  ~Engine();
  /// False when the queue is full.
  bool submit(std::shared_ptr<Generation> generation);
  /// Finishes what is queued, then ends the thread.
  void stop();
  std::size_t waiting() const;
  bool idle() const;

 private:
  void serve();
  void generate(Generation& generation);

  std::unique_ptr<Session> session_;
  ServeMetrics& metrics_;
  const std::size_t queue_limit_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Generation>> queue_;
  bool stopping_ = false, busy_ = false;
  std::vector<TokenId> cached_;  ///< what the KV cache holds; inference thread
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
