#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "agent/serve/http/front.h"
#include "agent/serve/http/metrics.h"
#include "agent/serve/runtime/classifier.h"
#include "common/core/json.h"
#include "common/core/result.h"

namespace retort {

/// A body of /v1/classify for a tensor, validated.
struct ClassifyCall {
  std::vector<float> inputs;  ///< [count][the input's values]
  std::size_t count = 0;
  std::size_t top_k = 0;  ///< labels told of each input, the likeliest first; 0: all
  bool bytes = false;     ///< the logits as the model's own bytes as well
};
/// "input": numbers in the model's shape, flat or nested, or a list of such; an object of the features'
/// names; or base64 of little-endian values of type "dtype" ("float32", "uint8", "int8"). At most `most`
/// inputs. The error is for the client.
Result<ClassifyCall> parse_classify(std::string_view body, const ClassifierConfig& config, std::size_t most);

/// What an answer of /v1/classify tells of one input: its likeliest label, and the `top_k` likeliest of them
/// in order (0: all). `shares`: the probability of each label.
json::object classification(std::size_t index, std::span<const std::string> labels,
                            std::span<const float> shares, std::size_t top_k);

/// The thread that classifies. Requests wait in a bounded queue, and as many as fit a batch are computed
/// together. Thread: any, except where said.
class ClassifyEngine {
 public:
  struct Job {
    ClassifyCall call;
    /// On the engine's thread: logits [count][labels], or why there are none.
    std::function<void(std::span<const float> logits, const Error* error)> on_end;
    std::atomic<bool> cancelled{false};
  };
  ClassifyEngine(std::unique_ptr<ClassifierSession> session, std::size_t queue_limit, ServeMetrics& metrics);
  ~ClassifyEngine();
  bool submit(std::shared_ptr<Job> job);  ///< false: the queue is full
  std::size_t waiting() const;
  bool idle() const;

 private:
  void serve();

  std::unique_ptr<ClassifierSession> session_;
  ServeMetrics& metrics_;
  const std::size_t queue_limit_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> queue_;
  std::size_t running_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

/// POST /v1/classify of a classifier of tensors. Thread: reactor; answers come from the engine's thread.
class ClassifyApi {
 public:
  /// `most`: inputs of one request.
  ClassifyApi(ServeFront& front, std::shared_ptr<const Classifier> model, ClassifyEngine& engine,
              std::size_t most);

 private:
  void classify(HttpRequest request, std::shared_ptr<HttpResponder> responder);

  ServeFront& front_;
  std::shared_ptr<const Classifier> model_;
  ClassifyEngine& engine_;
  const std::size_t most_;
};

}  // namespace retort
