#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/core/result.h"
#include "common/http/tls.h"

namespace retort {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;                             ///< "GET"
  std::string path;                               ///< percent-decoded, without the query
  std::map<std::string, std::string> query;       ///< decoded; the last of equal names wins
  std::map<std::string, std::string> headers;     ///< names in lower case
  std::map<std::string, std::string> parameters;  ///< what the router matched: {"id": …}
  std::string body;
  std::string peer;  ///< the client's IP address

  /// "" when it is not there.
  const std::string& header(const std::string& lower_case_name) const;
};

/// The answer to one request: exactly one of send, send_file, or start_stream + write… + finish. If it is
/// dropped unanswered the client gets 500. Thread: any (work is posted to the reactor).
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  virtual void send(int status, std::string_view content_type, std::string body,
                    HttpHeaders headers = {}) = 0;
  /// A range of a file, read piece by piece.
  virtual void send_file(int status, std::string_view content_type, const std::filesystem::path& path,
                         std::uint64_t offset, std::uint64_t length, HttpHeaders headers = {}) = 0;
  virtual void start_stream(int status, std::string_view content_type, HttpHeaders headers = {}) = 0;
  virtual void write(std::string bytes) = 0;
  virtual void finish() = 0;
  /// Called on the reactor when the client leaves before the answer is complete; at once when it has left.
  virtual void on_closed(std::function<void()> callback) = 0;
};

struct HttpLimits {
  std::size_t header_bytes = 16 << 10;
  std::size_t body_bytes = 1 << 20;
  std::size_t connections = 512;               ///< beyond, the one that has waited longest for a request goes
  std::size_t connections_per_address = 256;   ///< likewise among those of one address
  std::chrono::seconds handshake_timeout{10};  ///< TLS
  std::chrono::seconds read_timeout{20};       ///< for a request to arrive whole
  std::chrono::seconds idle_timeout{60};       ///< between requests of a kept connection
  std::size_t stream_buffer_bytes = 8 << 20;   ///< unread stream output before a slow client is cut
};

/// HTTP/1.1 server on an Asio reactor; Beast parses. Connections that wait for a request make room for new
/// ones when there are too many, the one whose time is up first going first, so that clients who send half a
/// request lock nobody out. Thread: reactor.
class HttpServer {
 public:
  using Handler = std::function<void(HttpRequest request, std::shared_ptr<HttpResponder> responder)>;
  /// Answers what is no request that a handler could be given: 400, 413, 431, 501. The connection ends then.
  using Refusal =
      std::function<void(int status, const std::string& why, std::shared_ptr<HttpResponder> responder)>;
  /// How long a body is taken after this head, at most; 0: none, the handler answers from the head alone.
  using BodyLimit = std::function<std::size_t(const HttpRequest& head)>;

  /// Without `refusal` it is plain text. With `tls` the server speaks HTTPS and nothing else. Without
  /// `body_limit` every body may have limits.body_bytes.
  HttpServer(boost::asio::io_context& reactor, HttpLimits limits, Handler handler,
             std::shared_ptr<const TlsServer> tls = nullptr, Refusal refusal = nullptr,
             BodyLimit body_limit = nullptr);
  ~HttpServer();
  /// Binds host:port (0: any) and returns the port. kConflict names the address when it is in use.
  Result<std::uint16_t> listen(const std::string& host, std::uint16_t port);
  /// Takes over a listening TCP socket (systemd's socket activation).
  Result<std::uint16_t> adopt(int listening_fd);
  /// Stops accepting and closes connections that rest between requests; requests under way finish, also those
  /// of connections that were accepted and have not sent their first one yet.
  void stop();
  std::size_t connections() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

/// Method and path pattern to handler; "{name}" matches one path segment and lands in request.parameters.
class HttpRouter {
 public:
  using Handler = HttpServer::Handler;
  void add(std::string method, std::string pattern, Handler handler);
  /// Finds the handler; `not_found` and `not_allowed` (with the Allow header's value) answer otherwise.
  /// HEAD is served by GET's handler: the body is dropped on the way out.
  void dispatch(
      HttpRequest request, std::shared_ptr<HttpResponder> responder, const Handler& not_found,
      const std::function<void(std::string allow, std::shared_ptr<HttpResponder>)>& not_allowed) const;

 private:
  struct Route {
    std::string method;
    std::vector<std::string> segments;
    Handler handler;
  };
  std::vector<Route> routes_;
};

struct HttpResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  ///< names in lower case
  std::string body;
};

struct HttpCall {
  std::string method = "GET", url;  ///< "http://host:port/path?query", or https
  HttpHeaders headers;
  std::string body;
  std::chrono::milliseconds timeout{30000};  ///< for each step: connect, write, the next bytes
  std::size_t body_limit_bytes = 64u << 20;
  /// Of https: the certificate's (parse_fingerprint's form), instead of what the system's authorities say of
  /// it.
  std::string fingerprint;
  /// When set, it is shown status and headers before the body; an error ends the call and is its result.
  std::function<Result<void>(const HttpResponse& head)> on_head;
  /// When set, it is asked several times a second while the call waits; false ends it with kCancelled.
  std::function<bool()> go_on;
  /// When set, body bytes of a 2xx answer go here as they come instead of into `body`; false ends the call.
  std::function<bool(std::string_view)> on_body;
};
/// Blocking client for one call. kUnavailable when the server cannot be reached or breaks off; kDenied when
/// its certificate is not the pinned one, or none that the system's authorities vouch for (the message has
/// its fingerprint). Thread: any.
Result<HttpResponse> http_call(const HttpCall& call);

/// Of the certificate that an https server shows, whoever vouches for it. Blocking. Thread: any.
Result<std::string> https_fingerprint(const std::string& url);

/// Percent-decoding of a path or query component ('+' stays); nothing when an escape is broken or gives NUL.
std::optional<std::string> percent_decode(std::string_view text);

}  // namespace retort
