#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>

#include "common/http/http.h"
#include "common/http/tls_impl.h"

namespace retort {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;

/// An address in its parts.
struct Address {
  bool secure = false;
  std::string authority, host, port, target;
};

Result<Address> parse_address(const std::string& url) {
  Address out;
  std::string_view rest = url;
  out.secure = rest.starts_with("https://");
  if (!out.secure && !rest.starts_with("http://"))
    return fail(ErrorCode::kUnsupported, url, "only http:// and https:// addresses are supported");
  rest.remove_prefix(out.secure ? 8 : 7);
  const std::size_t slash = std::min(rest.find_first_of("/?"), rest.size());
  out.authority = rest.substr(0, slash);
  out.target = rest.substr(slash);
  if (out.target.empty() || out.target[0] != '/') out.target.insert(0, "/");
  std::size_t colon = out.authority.rfind(':');
  if (out.authority.ends_with("]")) colon = std::string::npos;  // IPv6 without a port
  out.host = out.authority.substr(0, colon);
  out.port = colon == std::string::npos ? (out.secure ? "443" : "80") : out.authority.substr(colon + 1);
  if (out.host.starts_with("[") && out.host.ends_with("]"))  // IPv6
    out.host = out.host.substr(1, out.host.size() - 2);
  if (out.host.empty() || out.target.find_first_of(" \r\n") != std::string::npos)
    return fail(ErrorCode::kInvalid, url, "not a valid address");
  return out;
}

constexpr std::size_t kMaxBufferBytes = 1 << 20;
constexpr std::chrono::milliseconds kAskToGoOn{100};

/// Runs the one operation that was started, until it is done or the caller wants no more of it.
template <typename Stream>
void await(const HttpCall& call, asio::io_context& io, Stream& stream) {
  io.restart();
  while (call.go_on && !io.stopped()) {
    io.run_for(kAskToGoOn);
    if (!io.stopped() && !call.go_on()) beast::get_lowest_layer(stream).cancel();
  }
  io.run();
}

ErrorCode code_of(const error_code& error) {
  return error == asio::error::operation_aborted ? ErrorCode::kCancelled : ErrorCode::kUnavailable;
}

/// One call over a connected stream. Each step runs alone on the call's own reactor, so that Beast's timeouts
/// apply to it.
template <typename Stream>
Result<HttpResponse> exchange(const HttpCall& call, const Address& address, asio::io_context& io,
                              Stream& stream) {
  error_code error;
  const auto step = [&](auto start) {
    error = asio::error::operation_aborted;
    if (call.go_on && !call.go_on()) return false;
    beast::get_lowest_layer(stream).expires_after(call.timeout);
    error = asio::error::would_block;
    start([&](error_code e, auto&&...) { error = e; });
    await(call, io, stream);
    return !error;
  };
  const auto broke = [&](std::string_view what) {
    return fail(code_of(error), call.url, "{}: {}", what,
                error == beast::error::timeout ? "no answer in time" : error.message());
  };
  http::request<http::string_body> request;
  request.method_string(call.method);
  request.target(address.target);
  request.version(11);
  request.set(http::field::host, address.authority);
  request.set(http::field::connection, "close");
  for (const auto& [name, value] : call.headers) request.set(name, value);
  request.body() = call.body;
  if (!call.body.empty() || call.method == "POST" || call.method == "PUT") request.prepare_payload();
  if (!step([&](auto done) { http::async_write(stream, request, done); }))
    return broke("cannot send the request");

  beast::flat_buffer buffer(kMaxBufferBytes);  // headers and the lines between chunks are no bottomless pit
  http::response_parser<http::buffer_body> parser;
  parser.body_limit(boost::none);
  if (call.method == "HEAD") parser.skip(true);
  if (!step([&](auto done) { http::async_read_header(stream, buffer, parser, done); }))
    return broke("no answer");
  HttpResponse response;
  response.status = parser.get().result_int();
  for (const auto& field : parser.get()) {
    std::string name(field.name_string());
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    response.headers[name] = std::string(field.value());
  }
  if (call.on_head) RETORT_TRY(call.on_head(response));
  const bool hand_over = call.on_body && response.status / 100 == 2;
  char piece[65536];
  while (!parser.is_done()) {
    parser.get().body().data = piece;
    parser.get().body().size = sizeof piece;
    const bool ok = step([&](auto done) { http::async_read_some(stream, buffer, parser, done); });
    if (!ok && error != http::error::need_buffer) return broke("the answer broke off");
    const std::string_view got(piece, sizeof piece - parser.get().body().size);
    if (hand_over) {
      if (!got.empty() && !call.on_body(got)) return response;
      continue;
    }
    if (response.body.size() + got.size() > call.body_limit_bytes)
      return fail(ErrorCode::kOutOfBudget, call.url, "the answer is larger than {} bytes",
                  call.body_limit_bytes);
    response.body.append(got);
  }
  return response;
}

/// `seen`: the certificate's fingerprint. kDenied where the certificate is not the pinned one, or where
/// nothing is pinned and no authority of the system vouches for it.
Result<HttpResponse> secure_exchange(const HttpCall& call, const Address& address, asio::io_context& io,
                                     beast::tcp_stream& connected, std::string& seen) {
  asio::ssl::context context(asio::ssl::context::tls_client);
  SSL_CTX_set_min_proto_version(context.native_handle(), TLS1_2_VERSION);
  error_code error;
  asio::ssl::stream<beast::tcp_stream&> stream(connected, context);
  stream.set_verify_mode(asio::ssl::verify_peer, error);
  if (call.fingerprint.empty()) context.set_default_verify_paths(error);
  error_code no_address;
  (void)asio::ip::make_address(address.host, no_address);
  if (no_address) SSL_set_tlsext_host_name(stream.native_handle(), address.host.c_str());
  asio::ssl::host_name_verification by_authority(address.host);
  stream.set_verify_callback(
      [&](bool good, asio::ssl::verify_context& at) {
        if (X509_STORE_CTX_get_error_depth(at.native_handle()) == 0)
          seen = certificate_fingerprint(X509_STORE_CTX_get0_cert(at.native_handle()));
        // Pinned: the leaf counts, whoever signed it; what is above it does not matter.
        if (!call.fingerprint.empty())
          return X509_STORE_CTX_get_error_depth(at.native_handle()) > 0 || seen == call.fingerprint;
        return by_authority(good, at);
      },
      error);
  connected.expires_after(call.timeout);
  error = asio::error::would_block;
  stream.async_handshake(asio::ssl::stream_base::client, [&](error_code e) { error = e; });
  await(call, io, stream);
  if (error && !seen.empty() && seen != call.fingerprint)
    return call.fingerprint.empty()
               ? fail(ErrorCode::kDenied, call.url,
                      "no authority of this system vouches for the server's certificate, whose fingerprint "
                      "is {}",
                      seen)
               : fail(ErrorCode::kDenied, call.url,
                      "the server's certificate is not the pinned one: its fingerprint is {}, pinned is {}",
                      seen, call.fingerprint);
  if (error)
    return fail(code_of(error), call.url, "no TLS handshake: {}",
                error == beast::error::timeout ? "no answer in time" : error.message());
  return exchange(call, address, io, stream);
}

Result<HttpResponse> run(const HttpCall& call, std::string& seen) {
  const Address address = RETORT_TRY(parse_address(call.url));
  asio::io_context io;
  beast::tcp_stream stream(io);
  error_code error;
  const auto unreachable = [&](std::string_view what) {
    return fail(code_of(error), call.url, "{}: {}", what,
                error == beast::error::timeout ? "no answer in time" : error.message());
  };
  asio::ip::tcp::resolver resolver(io);
  const auto endpoints = resolver.resolve(address.host, address.port, error);
  if (error) return unreachable("cannot resolve the host");
  stream.expires_after(call.timeout);
  error = asio::error::would_block;
  stream.async_connect(endpoints, [&](error_code e, const asio::ip::tcp::endpoint&) { error = e; });
  await(call, io, stream);
  if (error) return unreachable("cannot connect");
  return address.secure ? secure_exchange(call, address, io, stream, seen)
                        : exchange(call, address, io, stream);
}

}  // namespace

Result<HttpResponse> http_call(const HttpCall& call) {
  std::string seen;
  return run(call, seen);
}

Result<std::string> https_fingerprint(const std::string& url) {
  HttpCall call;
  call.url = url;
  call.timeout = std::chrono::seconds(10);
  std::string seen;
  const Result<HttpResponse> answer = run(call, seen);
  if (!seen.empty()) return seen;
  if (!answer) return fail(answer.error());
  return fail(ErrorCode::kInvalid, url, "is no https address");
}

}  // namespace retort
