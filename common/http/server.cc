#include <sys/socket.h>

#include <boost/asio/dispatch.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/status.hpp>
#include <boost/beast/http/string_body.hpp>
#include <deque>

#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/utf8.h"
#include "common/http/http.h"
#include "common/http/tls_impl.h"

namespace retort {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;
using boost::system::error_code;

constexpr std::size_t kFilePieceBytes = 256 << 10;

bool split_target(std::string_view target, HttpRequest& request) {
  const std::size_t question = target.find('?');
  const auto path = percent_decode(target.substr(0, question));
  if (!path || path->empty() || path->front() != '/' || !is_utf8(*path)) return false;
  request.path = *path;
  if (question == std::string_view::npos) return true;
  std::string_view query = target.substr(question + 1);
  while (!query.empty()) {
    const std::size_t end = std::min(query.find('&'), query.size());
    const std::string_view pair = query.substr(0, end);
    const std::size_t equals = std::min(pair.find('='), pair.size());
    const auto name = percent_decode(pair.substr(0, equals));
    const auto value = percent_decode(equals < pair.size() ? pair.substr(equals + 1) : "");
    if (!name || !value || !is_utf8(*name) || !is_utf8(*value)) return false;
    request.query[*name] = *value;
    query.remove_prefix(std::min(end + 1, query.size()));
  }
  return true;
}

std::string head(int status, std::string_view content_type, const HttpHeaders& headers, bool keep_alive,
                 std::string_view framing) {
  const auto reason = http::obsolete_reason(static_cast<http::status>(status));
  std::string out = fmt::format("HTTP/1.1 {} {}\r\nContent-Type: {}\r\nConnection: {}\r\n{}", status,
                                std::string_view(reason.data(), reason.size()), content_type,
                                keep_alive ? "keep-alive" : "close", framing);
  for (const auto& [name, value] : headers) {
    if ((name + value).find_first_of("\r\n") != std::string::npos)
      continue;  // never let a value end the header
    out += name + ": " + value + "\r\n";
  }
  return out + "\r\n";
}

}  // namespace

struct HttpServer::Impl : std::enable_shared_from_this<HttpServer::Impl> {
  struct Session;
  struct Responder;

  Impl(asio::io_context& io, HttpLimits limit, Handler h, std::shared_ptr<const TlsServer> t, Refusal r,
       BodyLimit b)
      : reactor(io),
        limits(limit),
        handler(std::move(h)),
        refusal(std::move(r)),
        body_limit(std::move(b)),
        tls(std::move(t)),
        acceptor(io),
        pause(io) {}
  asio::io_context& reactor;
  HttpLimits limits;
  Handler handler;
  Refusal refusal;
  BodyLimit body_limit;
  std::shared_ptr<const TlsServer> tls;
  tcp::acceptor acceptor;
  asio::steady_timer pause;  ///< until the next try where no connection can be taken
  bool refused = false;
  std::map<Session*, std::weak_ptr<Session>> sessions;
  std::map<asio::ip::address, std::size_t> of_address;
  bool stopped = false;

  void accept();
  bool make_room(const asio::ip::address& newcomer);
};

/// One connection. Thread: reactor.
struct HttpServer::Impl::Session : std::enable_shared_from_this<Session> {
  Session(std::shared_ptr<Impl> owner, tcp::socket socket, asio::ip::address from)
      : server(std::move(owner)), stream(std::move(socket)), address(std::move(from)) {}
  ~Session() { leave(); }

  std::shared_ptr<Impl> server;
  beast::tcp_stream stream;
  const asio::ip::address address;
  std::optional<asio::ssl::stream<beast::tcp_stream&>> tls;
  std::chrono::steady_clock::time_point deadline;  ///< of the request that it waits for
  beast::flat_buffer buffer;
  std::optional<http::request_parser<http::string_body>> parser;
  bool first = true, busy = false, unread = false;
  std::size_t taken = 0;  ///< bytes of the body, at most
  // The answer under way.
  std::uint64_t request_number = 0;
  bool keep_alive = false, head_only = false, answered = false, chunked = false, complete = false,
       broken = false;
  std::deque<std::string> output;
  std::size_t output_bytes = 0;
  bool writing = false;
  std::optional<File> file;
  std::uint64_t file_offset = 0, file_left = 0;
  std::function<void()> on_closed;

  void enter() {
    server->sessions[this] = weak_from_this();
    ++server->of_address[address];
  }
  /// Makes room for others: from now on it is not counted any more.
  void leave() {
    if (server->sessions.erase(this) == 0) return;
    const auto count = server->of_address.find(address);
    if (--count->second == 0) server->of_address.erase(count);
  }

  void start() {
    if (!server->tls) return read();
    tls.emplace(stream, server->tls->impl()->context);
    expires_after(server->limits.handshake_timeout);
    tls->async_handshake(asio::ssl::stream_base::server, [self = shared_from_this()](error_code error) {
      if (error || self->broken) return self->close();
      self->read();
    });
  }

  void expires_after(std::chrono::seconds time) {
    deadline = std::chrono::steady_clock::now() + time;
    stream.expires_after(time);
  }

  /// Runs work(stream) on what requests come from and answers go to.
  template <typename Work>
  void on_stream(Work work) {
    if (tls)
      work(*tls);
    else
      work(stream);
  }

  void read() {
    busy = false;
    if (server->stopped && !first) return close();
    parser.emplace();
    parser->header_limit(static_cast<std::uint32_t>(server->limits.header_bytes));
    parser->body_limit(server->limits.body_bytes);
    expires_after(first || buffer.size() > 0 ? server->limits.read_timeout : server->limits.idle_timeout);
    on_stream([this](auto& from) {
      http::async_read_header(
          from, buffer, *parser,
          [self = shared_from_this()](error_code error, std::size_t) { self->on_head(error); });
    });
  }

  /// Who may send how much is known before any of it is read.
  void on_head(error_code error) {
    first = false;
    taken = server->limits.body_bytes;
    if (error || parser->is_done()) return on_read(error);
    if (server->body_limit) {
      HttpRequest head;
      fill(parser->get(), head);
      taken = std::min(taken, server->body_limit(head));
    }
    const bool all = taken != 0 && parser->content_length().value_or(0) <= taken;
    if (!all) return on_read(taken == 0 ? error_code() : http::make_error_code(http::error::body_limit));
    parser->body_limit(taken);
    if (!beast::iequals(parser->get()[http::field::expect], "100-continue")) return read_body();
    on_stream([this](auto& to) {
      asio::async_write(to, asio::buffer(std::string_view("HTTP/1.1 100 Continue\r\n\r\n")),
                        [self = shared_from_this()](error_code failed, std::size_t) {
                          if (failed || self->broken) return self->close();
                          self->read_body();
                        });
    });
  }

  void read_body() {
    on_stream([this](auto& from) {
      http::async_read(from, buffer, *parser,
                       [self = shared_from_this()](error_code error, std::size_t) { self->on_read(error); });
    });
  }

  /// Method, target and header; false: the target is not a valid path.
  template <typename Message>
  bool fill(const Message& message, HttpRequest& request) const {
    request.method = std::string(message.method_string());
    for (const auto& field : message) {
      std::string name(field.name_string());
      for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      request.headers[name] = std::string(field.value());
    }
    request.peer = address.to_string();
    return split_target(std::string_view(message.target().data(), message.target().size()), request);
  }

  void on_read(error_code error) {
    first = false;
    busy = true;
    ++request_number;
    answered = chunked = complete = head_only = false;
    keep_alive = false;
    unread = error || !parser->is_done();
    if (error == http::error::body_limit)
      return refuse(413, fmt::format("the body is larger than {} bytes", taken));
    if (error == http::error::header_limit) return refuse(431, "the header is too large");
    if (error &&
        (error == http::error::end_of_stream || error == asio::error::operation_aborted ||
         error == beast::error::timeout || error.category() == asio::error::get_system_category() ||
         error.category() == asio::error::get_ssl_category() || error == asio::ssl::error::stream_truncated ||
         error == http::error::partial_message || error == asio::error::eof))
      return close();
    if (error) return refuse(400, "not a valid HTTP request: " + error.message());
    stream.expires_never();
    HttpRequest request;
    auto message = parser->release();
    // The parser reads no other coding and would take the body for one of the length that is told beside it.
    const auto codings = message.equal_range(http::field::transfer_encoding);
    for (auto coding = codings.first; coding != codings.second; ++coding)
      if (const std::string name(coding->value()); !beast::iequals(name, "chunked"))
        return refuse(501, fmt::format("the transfer coding '{}' is not supported; 'chunked' is", name));
    if (!fill(message, request)) return refuse(400, "the request's target is not a valid path in UTF-8");
    keep_alive = message.keep_alive() && !unread;
    head_only = request.method == "HEAD";
    request.body = std::move(message.body());
    watch_for_close(request_number);
    server->handler(std::move(request), make_responder());
  }

  std::shared_ptr<HttpResponder> make_responder();

  void refuse(int status, const std::string& why) {
    if (server->refusal) return server->refusal(status, why, make_responder());
    refuse_plainly(status, why);
  }
  void refuse_plainly(int status, const std::string& why) {
    answer_head(status, "text/plain", {}, fmt::format("Content-Length: {}\r\n", why.size() + 1));
    push(why + "\n");
    complete = true;
    flush();
  }

  /// Notices a client that goes away while its answer is being made.
  void watch_for_close(std::uint64_t number) {
    stream.socket().async_wait(tcp::socket::wait_read, [self = shared_from_this(), number](error_code error) {
      if (error || self->broken || self->request_number != number || self->complete) return;
      char byte;
      const ssize_t got = ::recv(self->stream.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
      if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) self->close();
      // got > 0: the next request is there already; it is read when this one is answered.
    });
  }

  void answer_head(int status, std::string_view content_type, const HttpHeaders& headers,
                   std::string_view framing) {
    answered = true;
    push(head(status, content_type, headers, keep_alive && !server->stopped, framing));
  }

  void push(std::string bytes) {
    if (bytes.empty()) return;
    output_bytes += bytes.size();
    output.push_back(std::move(bytes));
  }

  void flush() {
    if (writing || broken) return;
    if (output.empty() && file && file_left > 0) {
      std::string piece(std::min<std::uint64_t>(file_left, kFilePieceBytes), '\0');
      if (!file->read_exact_at(file_offset, piece)) return close();
      file_offset += piece.size();
      file_left -= piece.size();
      push(std::move(piece));
    }
    if (output.empty()) {
      if (!complete || (file && file_left > 0)) return;
      file.reset();
      on_closed = nullptr;
      if (!keep_alive || server->stopped) return close_gently();
      return read();
    }
    writing = true;
    stream.expires_after(std::chrono::seconds(60));
    on_stream([this](auto& to) {
      asio::async_write(to, asio::buffer(output.front()),
                        [self = shared_from_this()](error_code error, std::size_t) {
                          self->writing = false;
                          if (error || self->broken) return self->close();
                          self->stream.expires_never();
                          self->output_bytes -= self->output.front().size();
                          self->output.pop_front();
                          self->flush();
                        });
    });
  }

  /// Ends a complete answer's connection so that the client sees that nothing was cut off.
  void close_gently() {
    if (broken || (!tls && !unread)) return close();
    expires_after(std::chrono::seconds(2));
    if (tls) return tls->async_shutdown([self = shared_from_this()](error_code) { self->close(); });
    // What the client still sends of a request that was refused is read away: closing before would reset the
    // connection, and the answer be lost to it (RFC 9112 §9.6).
    error_code ignored;
    stream.socket().shutdown(tcp::socket::shutdown_send, ignored);
    read_away();
  }
  void read_away() {
    buffer.clear();
    stream.async_read_some(buffer.prepare(64 << 10),
                           [self = shared_from_this()](error_code error, std::size_t) {
                             if (error || self->broken) return self->close();
                             self->read_away();
                           });
  }

  void close() {
    if (broken) return;
    broken = true;
    leave();
    error_code ignored;
    stream.socket().shutdown(tcp::socket::shutdown_both, ignored);
    stream.close();
    // What a write under way still reads stays where it is.
    if (!writing) output.clear();
    file.reset();
    if (on_closed) std::exchange(on_closed, nullptr)();
  }
};

struct HttpServer::Impl::Responder : HttpResponder {
  Responder(std::shared_ptr<Session> s, std::uint64_t n)
      : reactor(s->server->reactor), session(std::move(s)), number(n) {}
  ~Responder() override {
    on_reactor([](Session& s) {
      if (s.complete) return;
      if (s.answered) return s.close();  // a stream that was never finished
      s.refuse_plainly(500, "no answer was given");
    });
  }

  template <typename Work>
  void on_reactor(Work work) {
    asio::dispatch(reactor, [s = session, n = number, work = std::move(work)]() mutable {
      if (s->request_number == n && !s->broken) work(*s);
    });
  }

  void send(int status, std::string_view content_type, std::string body, HttpHeaders headers) override {
    on_reactor([status, type = std::string(content_type), body = std::move(body),
                headers = std::move(headers)](Session& s) mutable {
      if (s.answered) return;
      // A 304 has no body, and its length would have to be that of the 200 (RFC 9110 §8.6).
      s.answer_head(status, type, headers,
                    status == 304 ? "" : fmt::format("Content-Length: {}\r\n", body.size()));
      if (!s.head_only && status != 304) s.push(std::move(body));
      s.complete = true;
      s.flush();
    });
  }
  void send_file(int status, std::string_view content_type, const std::filesystem::path& path,
                 std::uint64_t offset, std::uint64_t length, HttpHeaders headers) override {
    on_reactor([=, type = std::string(content_type)](Session& s) {
      if (s.answered) return;
      Result<File> opened = File::open_read(path);
      if (!opened) return s.refuse(404, "the file is gone");
      s.answer_head(status, type, headers, fmt::format("Content-Length: {}\r\n", length));
      if (!s.head_only) {
        s.file.emplace(std::move(*opened));
        s.file_offset = offset;
        s.file_left = length;
      }
      s.complete = true;
      s.flush();
    });
  }
  void start_stream(int status, std::string_view content_type, HttpHeaders headers) override {
    on_reactor([=, type = std::string(content_type)](Session& s) {
      if (s.answered) return;
      s.chunked = true;
      s.answer_head(status, type, headers, "Transfer-Encoding: chunked\r\nCache-Control: no-store\r\n");
      s.flush();
    });
  }
  void write(std::string bytes) override {
    on_reactor([bytes = std::move(bytes)](Session& s) {
      if (!s.chunked || s.complete || bytes.empty() || s.head_only) return;
      if (s.output_bytes > s.server->limits.stream_buffer_bytes) return s.close();
      s.push(fmt::format("{:x}\r\n", bytes.size()) + bytes + "\r\n");
      s.flush();
    });
  }
  void finish() override {
    on_reactor([](Session& s) {
      if (!s.chunked || s.complete) return;
      if (!s.head_only) s.push("0\r\n\r\n");
      s.complete = true;
      s.flush();
    });
  }
  void on_closed(std::function<void()> callback) override {
    asio::dispatch(reactor, [s = session, n = number, callback = std::move(callback)] {
      if (s->broken || s->request_number != n) {
        if (s->broken) callback();
        return;
      }
      s->on_closed = callback;
    });
  }

  asio::io_context& reactor;
  std::shared_ptr<Session> session;
  std::uint64_t number;
};

std::shared_ptr<HttpResponder> HttpServer::Impl::Session::make_responder() {
  return std::make_shared<Responder>(shared_from_this(), request_number);
}

void HttpServer::Impl::accept() {
  acceptor.async_accept([self = shared_from_this()](error_code error, tcp::socket socket) {
    if (error == asio::error::operation_aborted || (error && self->stopped)) return;
    error_code gone;
    const tcp::endpoint from = error ? tcp::endpoint() : socket.remote_endpoint(gone);
    if (error) {  // out of descriptors, most likely
      if (!std::exchange(self->refused, true))
        log_warn("accept: {}; tried again until it works", error.message());
      self->pause.expires_after(std::chrono::milliseconds(100));
      self->pause.async_wait([self](error_code) {
        if (!self->stopped) self->accept();
      });
      return;
    }
    self->refused = false;
    if (!gone && self->make_room(from.address())) {
      error_code ignored;
      socket.set_option(tcp::no_delay(true), ignored);
      const auto session = std::make_shared<Session>(self, std::move(socket), from.address());
      session->enter();
      session->start();
    }  // where all connections are busy, the new one is closed at once
    if (!self->stopped) self->accept();
  });
}

bool HttpServer::Impl::make_room(const asio::ip::address& newcomer) {
  const auto own = of_address.find(newcomer);
  const bool crowd = own != of_address.end() && own->second >= limits.connections_per_address;
  if (!crowd && sessions.size() < limits.connections) return true;
  std::shared_ptr<Session> first;
  for (const auto& [raw, weak] : sessions) {
    const auto session = weak.lock();
    if (!session || session->busy || (crowd && session->address != newcomer)) continue;
    if (!first || session->deadline < first->deadline) first = session;
  }
  if (!first) return false;
  first->close();
  return true;
}

HttpServer::HttpServer(asio::io_context& reactor, HttpLimits limits, Handler handler,
                       std::shared_ptr<const TlsServer> tls, Refusal refusal, BodyLimit body_limit)
    : impl_(std::make_shared<Impl>(reactor, limits, std::move(handler), std::move(tls), std::move(refusal),
                                   std::move(body_limit))) {}

HttpServer::~HttpServer() {
  stop();
  const auto sessions = impl_->sessions;
  for (const auto& [raw, weak] : sessions)
    if (const auto session = weak.lock()) session->close();
}

Result<std::uint16_t> HttpServer::listen(const std::string& host, std::uint16_t port) {
  const std::string where = fmt::format("{}:{}", host, port);
  error_code error;
  const auto address = asio::ip::make_address(host == "localhost" ? "127.0.0.1" : host, error);
  if (error) return fail(ErrorCode::kInvalid, where, "'{}' is not an IP address", host);
  const tcp::endpoint endpoint(address, port);
  impl_->acceptor.open(endpoint.protocol(), error);
  if (!error) impl_->acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) impl_->acceptor.bind(endpoint, error);
  if (!error) impl_->acceptor.listen(512, error);
  if (error == asio::error::address_in_use)
    return fail(ErrorCode::kConflict, where,
                "the port is in use by another program; choose another, or 0 for any free one");
  if (error) return fail(ErrorCode::kIo, where, "cannot listen: {}", error.message());
  impl_->accept();
  return impl_->acceptor.local_endpoint().port();
}

Result<std::uint16_t> HttpServer::adopt(int listening_fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getsockname(listening_fd, reinterpret_cast<sockaddr*>(&address), &length) != 0)
    return fail_errno(fmt::format("descriptor {}", listening_fd), "not a socket");
  error_code error;
  impl_->acceptor.assign(address.ss_family == AF_INET6 ? tcp::v6() : tcp::v4(), listening_fd, error);
  if (error)
    return fail(ErrorCode::kIo, fmt::format("descriptor {}", listening_fd), "cannot adopt: {}",
                error.message());
  impl_->accept();
  return impl_->acceptor.local_endpoint().port();
}

void HttpServer::stop() {
  impl_->stopped = true;
  error_code ignored;
  impl_->acceptor.close(ignored);
  const auto sessions = impl_->sessions;
  for (const auto& [raw, weak] : sessions)
    if (const auto session = weak.lock(); session && !session->busy && !session->first) session->close();
}

std::size_t HttpServer::connections() const { return impl_->sessions.size(); }

}  // namespace retort
