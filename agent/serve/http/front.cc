#include "agent/serve/http/front.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "agent/serve/http/engine.h"
#include "common/core/file.h"
#include "common/core/sha256.h"
#include "common/core/utf8.h"

namespace retort {
namespace {

std::uint64_t resident_bytes() {
  const std::string text = read_file("/proc/self/statm", 4096).value_or("");
  const std::size_t space = text.find(' ');
  return space == std::string::npos ? 0 : std::strtoull(text.c_str() + space, nullptr, 10) * 4096;
}

}  // namespace

ServeFront::ServeFront(std::string name, json::object meta, UnixMillis created, ServeMetrics& metrics,
                       std::function<std::size_t()> waiting)
    : name_(valid_utf8(name)), metrics_(metrics) {
  add("GET", "/health", [this](HttpRequest, auto responder) {
    // Not counted: whoever watches over this process asks every few seconds.
    responder->send(200, "application/json",
                    json::serialize(json::object{
                        {"status", "ok"}, {"model", name_}, {"artifact_sha256", artifact_sha256_}}) +
                        "\n");
  });
  add("GET", "/metrics", [this, waiting = std::move(waiting)](HttpRequest, auto responder) {
    responder->send(200, "text/plain; version=0.0.4", metrics_.text(waiting(), resident_bytes()));
  });
  const json::object models{{"object", "list"},
                            {"data", json::array{json::object{{"id", name_},
                                                              {"object", "model"},
                                                              {"created", created / 1000},
                                                              {"owned_by", "retort"},
                                                              {"meta", std::move(meta)}}}}};
  add("GET", "/v1/models", [this, models](HttpRequest, auto responder) { answer(*responder, models); });
  add("GET", "/v1/models/{id}", [this, models](HttpRequest request, auto responder) {
    if (request.parameters.at("id") != name_)
      return refuse(*responder, 404, "invalid_request_error", "the only model here is " + name_);
    answer(*responder, models.at("data").at(0));
  });
}

void ServeFront::add(std::string method, std::string pattern, HttpServer::Handler handler) {
  paths_ += (paths_.empty() ? "" : ", ") + pattern;
  router_.add(std::move(method), std::move(pattern), std::move(handler));
}

void ServeFront::require_token(const std::string& token) {
  token_sha256_ = token.empty() ? "" : sha256_hex(token);
}

/// Hashes are compared: the time tells nothing about the token.
bool ServeFront::admits(const HttpRequest& request) const {
  if (token_sha256_.empty() || request.path == "/health") return true;
  constexpr std::string_view kScheme = "bearer ";
  const std::string& header = request.header("authorization");
  std::string scheme = header.substr(0, kScheme.size());
  std::transform(scheme.begin(), scheme.end(), scheme.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const bool bears = scheme == kScheme;
  const std::string given = sha256_hex(bears ? std::string_view(header).substr(kScheme.size()) : "");
  return same_digest(given, token_sha256_) && bears;
}

void ServeFront::handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) {
  if (!admits(request))
    return refuse(*responder, 401, "authentication_error",
                  "this server wants its token: Authorization: Bearer TOKEN",
                  {{"WWW-Authenticate", "Bearer realm=\"retort-serve\""}});
  router_.dispatch(
      std::move(request), std::move(responder),
      [this](HttpRequest r, auto out) {
        refuse(*out, 404, "invalid_request_error", "there is no " + r.path + "; see " + paths_);
      },
      [this](std::string allow, auto out) {
        refuse(*out, 405, "invalid_request_error", "the method is not allowed here; use " + allow,
               {{"Allow", allow}});
      });
}

void ServeFront::answer(HttpResponder& responder, const json::value& body) {
  metrics_.count_request(200);
  responder.send(200, "application/json", json::serialize(body) + "\n");
}

void ServeFront::refuse(HttpResponder& responder, int status, const std::string& type,
                        const std::string& message, HttpHeaders headers) {
  metrics_.count_request(status);
  responder.send(
      status, "application/json",
      json::serialize(json::object{
          {"error", json::object{{"message", valid_utf8(message)}, {"type", type}, {"code", status}}}}) +
          "\n",
      std::move(headers));
}

void ServeFront::refuse(HttpResponder& responder, const Error& error) {
  refuse(responder, 400, "invalid_request_error",
         error.where == "request" ? error.message : error.describe());
}

void ServeFront::refuse_full(HttpResponder& responder) {
  refuse(responder, 429, "rate_limit_error", "the queue is full; try again soon", {{"Retry-After", "1"}});
}

}  // namespace retort
