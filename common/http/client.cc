#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>

#include "common/http/http.h"

namespace retort {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;

}  // namespace

Result<HttpResponse> http_call(const HttpCall& call) {
  constexpr std::string_view kScheme = "http://";
  std::string_view rest = call.url;
  if (!rest.starts_with(kScheme))
    return fail(ErrorCode::kUnsupported, call.url, "only http:// addresses are supported");
  rest.remove_prefix(kScheme.size());
  const std::size_t slash = std::min(rest.find_first_of("/?"), rest.size());
  const std::string authority(rest.substr(0, slash));
  std::string target(rest.substr(slash));
  if (target.empty() || target[0] != '/') target.insert(0, "/");
  const std::size_t colon = authority.rfind(':');
  const std::string host = authority.substr(0, colon),
                    port = colon == std::string::npos ? "80" : authority.substr(colon + 1);
  if (host.empty() || target.find_first_of(" \r\n") != std::string::npos)
    return fail(ErrorCode::kInvalid, call.url, "not a valid address");

  asio::io_context io;
  beast::tcp_stream stream(io);
  error_code error;
  // Each step runs alone on this call's own reactor, so that Beast's timeouts apply to it.
  const auto step = [&](auto start) {
    stream.expires_after(call.timeout);
    error = asio::error::would_block;
    start([&](error_code e, auto&&...) { error = e; });
    io.restart();
    io.run();
    return !error;
  };
  const auto unreachable = [&](std::string_view what) {
    return fail(ErrorCode::kUnavailable, call.url, "{}: {}", what,
                error == beast::error::timeout ? "no answer in time" : error.message());
  };
  asio::ip::tcp::resolver resolver(io);
  const auto endpoints = resolver.resolve(host, port, error);
  if (error) return unreachable("cannot resolve the host");
  if (!step([&](auto done) {
        stream.async_connect(endpoints, [done](error_code e, const asio::ip::tcp::endpoint&) { done(e); });
      }))
    return unreachable("cannot connect");
  http::request<http::string_body> request;
  request.method_string(call.method);
  request.target(target);
  request.version(11);
  request.set(http::field::host, authority);
  request.set(http::field::connection, "close");
  for (const auto& [name, value] : call.headers) request.set(name, value);
  request.body() = call.body;
  if (!call.body.empty() || call.method == "POST" || call.method == "PUT") request.prepare_payload();
  if (!step([&](auto done) { http::async_write(stream, request, done); }))
    return unreachable("cannot send the request");

  beast::flat_buffer buffer;
  http::response_parser<http::buffer_body> parser;
  parser.body_limit(boost::none);
  if (call.method == "HEAD") parser.skip(true);
  if (!step([&](auto done) { http::async_read_header(stream, buffer, parser, done); }))
    return unreachable("no answer");
  HttpResponse response;
  response.status = parser.get().result_int();
  for (const auto& field : parser.get()) {
    std::string name(field.name_string());
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    response.headers[name] = std::string(field.value());
  }
  const bool hand_over = call.on_body && response.status / 100 == 2;
  char piece[65536];
  while (!parser.is_done()) {
    parser.get().body().data = piece;
    parser.get().body().size = sizeof piece;
    const bool ok = step([&](auto done) { http::async_read_some(stream, buffer, parser, done); });
    if (!ok && error != http::error::need_buffer) return unreachable("the answer broke off");
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

}  // namespace retort
