#pragma once

#include <functional>
#include <memory>
#include <string>

#include "agent/serve/http/metrics.h"
#include "common/core/clock.h"
#include "common/core/json.h"
#include "common/http/http.h"

namespace retort {

/// What every server answers alike, whatever its model computes: /health, /metrics, /v1/models, and errors in
/// OpenAI's form. The routes of the model's kind are added to it. Thread: reactor; answer and refuse: any.
class ServeFront {
 public:
  /// `meta`: what /v1/models tells of the model. `waiting`: requests in the queue.
  ServeFront(std::string name, json::object meta, UnixMillis created, ServeMetrics& metrics,
             std::function<std::size_t()> waiting);
  /// `pattern`: as in HttpRouter.
  void add(std::string method, std::string pattern, HttpServer::Handler handler);
  void handle(HttpRequest request, std::shared_ptr<HttpResponder> responder);
  /// Requests must bear it ("Authorization: Bearer TOKEN"), but for /health; "": none.
  void require_token(const std::string& token);
  /// Known some time after the start.
  void set_artifact(std::string sha256) { artifact_sha256_ = std::move(sha256); }

  const std::string& name() const { return name_; }
  void answer(HttpResponder& responder, const json::value& body);
  void refuse(HttpResponder& responder, int status, const std::string& type, const std::string& message,
              HttpHeaders headers = {});
  /// 400, for a request that could not be read.
  void refuse(HttpResponder& responder, const Error& error);
  /// 429.
  void refuse_full(HttpResponder& responder);

 private:
  bool admits(const HttpRequest& request) const;

  std::string name_, artifact_sha256_, token_sha256_;
  ServeMetrics& metrics_;
  HttpRouter router_;
  std::string paths_;  ///< for the error of an unknown one
};

}  // namespace retort
