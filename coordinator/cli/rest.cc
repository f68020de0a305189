#include "coordinator/cli/rest.h"

#include <algorithm>
#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>

#include <cctype>
#include <charconv>
#include <map>

#include "common/core/file.h"

namespace retort::cli {
namespace {

constexpr std::uint64_t kPieceBytes = 4 << 20;           // of a download
constexpr std::uint64_t kUploadLimitBytes = 4ull << 30;  // a dataset is sent as one body

struct Answer {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
};

/// What an error answer says, as our Error. Answers of something that is not a coordinator have no problem
/// document; then the status has to do.
Error error_of(const Answer& answer, const std::string& where) {
  Error error{ErrorCode::kInternal, fmt::format("the coordinator answered with status {}", answer.status),
              where};
  if (answer.status == 401 || answer.status == 403)
    error.code = ErrorCode::kDenied;
  else if (answer.status == 404)
    error.code = ErrorCode::kNotFound;
  else if (answer.status >= 400 && answer.status < 500)
    error.code = ErrorCode::kInvalid;
  else if (answer.status == 502 || answer.status == 503 || answer.status == 504)
    error.code = ErrorCode::kUnavailable;
  if (const auto problem = parse_json(answer.body, where); problem && problem->is_object()) {
    const json::object& object = problem->get_object();
    if (const auto code = json_string(object, "code", where); code && !code->empty())
      error.code = error_code_from(*code);
    if (const auto detail = json_string(object, "detail", where); detail && !detail->empty())
      error.message = *detail, error.where.clear();
    else if (const auto title = json_string(object, "title", where); title && !title->empty())
      error.message = *title;
  }
  if (answer.status == 401)
    error.message +=
        "; give a valid operator token with --token-file, RETORT_TOKEN or ~/.config/retort/token";
  return error;
}

}  // namespace

struct Rest::Impl {
  Connection connection;
  std::string host, port, prefix;  // prefix: a path in the server's address, without its final slash

  Result<Answer> send(std::string_view method, const std::string& path, std::string_view body,
                      std::string_view content_type, std::string_view range);
  Result<json::value> json_answer(std::string_view method, const std::string& path, std::string_view body,
                                  std::string_view content_type);
};

/// One request over a connection of its own. Asio's exceptions and error codes stop here.
Result<Answer> Rest::Impl::send(std::string_view method, const std::string& path, std::string_view body,
                                std::string_view content_type, std::string_view range) {
  namespace asio = boost::asio;
  using asio::ip::tcp;
  const auto unreachable = [&](const boost::system::error_code& error) {
    return fail(ErrorCode::kUnavailable, "", "cannot reach the coordinator at {}: {}", connection.server,
                error.message());
  };
  asio::io_context context;
  boost::system::error_code error;
  const auto endpoints = tcp::resolver(context).resolve(host, port, error);
  if (error) return unreachable(error);
  tcp::socket socket(context);
  asio::connect(socket, endpoints, error);
  if (error) return unreachable(error);
  std::string head = fmt::format("{} {}{} HTTP/1.0\r\nHost: {}:{}\r\nAccept: application/json\r\n", method,
                                 prefix, path, host, port);
  if (!connection.token.empty()) head += fmt::format("Authorization: Bearer {}\r\n", connection.token);
  if (!range.empty()) head += fmt::format("Range: {}\r\n", range);
  if (!content_type.empty()) head += fmt::format("Content-Type: {}\r\n", content_type);
  head += fmt::format("Content-Length: {}\r\nConnection: close\r\n\r\n", body.size());
  const std::array<asio::const_buffer, 2> out{asio::buffer(head), asio::buffer(body)};
  // A server that refuses a body answers before it has read it: an error here is told only without an answer.
  boost::system::error_code write_error;
  asio::write(socket, out, write_error);
  std::string text;
  asio::read(socket, asio::dynamic_buffer(text, 64u << 20), error);
  const std::size_t end = text.find("\r\n\r\n");
  if (end == std::string::npos) return unreachable(write_error ? write_error : error);
  Answer answer;
  if (!text.starts_with("HTTP/1.") || end < 12)
    return fail(ErrorCode::kInvalid, connection.server, "this is no HTTP server");
  std::from_chars(text.data() + 9, text.data() + 12, answer.status);
  for (std::size_t at = text.find("\r\n") + 2; at < end;) {
    const std::size_t stop = text.find("\r\n", at);
    const std::size_t colon = text.find(':', at);
    if (colon < stop) {
      std::string name = text.substr(at, colon - at);
      std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
      const std::size_t value = text.find_first_not_of(' ', colon + 1);
      answer.headers[name] = text.substr(value, stop - value);
    }
    at = stop + 2;
  }
  answer.body = text.substr(end + 4);
  if (const auto length = answer.headers.find("content-length"); length != answer.headers.end())
    if (std::to_string(answer.body.size()) != length->second)
      return fail(ErrorCode::kUnavailable, connection.server, "the answer broke off after {} bytes",
                  answer.body.size());
  return answer;
}

Result<json::value> Rest::Impl::json_answer(std::string_view method, const std::string& path,
                                            std::string_view body, std::string_view content_type) {
  const Answer answer = RETORT_TRY(send(method, path, body, content_type, ""));
  if (answer.status < 200 || answer.status > 299) return fail(error_of(answer, path));
  if (answer.body.find_first_not_of(" \r\n\t") == std::string::npos) return json::value();
  return parse_json(answer.body, path);
}

Rest::Rest(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Rest::Rest(Rest&&) noexcept = default;
Rest::~Rest() = default;

Result<Rest> Rest::open(Connection connection) {
  const auto bad = [&](std::string_view why) {
    return fail(ErrorCode::kInvalid, "--server", "'{}' {}; write for example http://127.0.0.1:8440",
                connection.server, why);
  };
  std::string_view rest = connection.server;
  if (rest.starts_with("https://")) return bad("wants TLS, which comes later: tunnel to it");
  if (!rest.starts_with("http://")) return bad("is not an http address");
  rest.remove_prefix(7);
  auto impl = std::make_unique<Impl>();
  const std::size_t slash = rest.find('/');
  if (slash != std::string_view::npos) {
    impl->prefix = rest.substr(slash);
    while (impl->prefix.ends_with('/')) impl->prefix.pop_back();
    rest = rest.substr(0, slash);
  }
  const std::size_t colon = rest.rfind(':');
  const std::size_t bracket = rest.rfind(']');
  const bool has_port =
      colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket);
  impl->host = has_port ? rest.substr(0, colon) : rest;
  impl->port = has_port ? std::string(rest.substr(colon + 1)) : "80";
  if (impl->host.starts_with('[') && impl->host.ends_with(']'))
    impl->host = impl->host.substr(1, impl->host.size() - 2);
  const auto printable = [](std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f; });
  };
  if (impl->host.empty() || impl->port.empty() || !printable(connection.server))
    return bad("is not an address");
  if (!printable(connection.token))
    return fail(ErrorCode::kInvalid, "token", "a token has no spaces or control characters");
  impl->connection = std::move(connection);
  return Rest(std::move(impl));
}

bool Rest::local() const {
  return impl_->host == "localhost" || impl_->host == "::1" || impl_->host.starts_with("127.");
}

Result<json::value> Rest::get(const std::string& path) { return impl_->json_answer("GET", path, "", ""); }
Result<json::value> Rest::post(const std::string& path, const json::value& body) {
  return impl_->json_answer("POST", path, json::serialize(body), "application/json");
}
Result<json::value> Rest::put(const std::string& path, const json::value& body) {
  return impl_->json_answer("PUT", path, json::serialize(body), "application/json");
}
Result<json::value> Rest::remove(const std::string& path) {
  return impl_->json_answer("DELETE", path, "", "");
}

Result<json::value> Rest::upload(const std::string& path, const std::filesystem::path& file,
                                 std::string_view content_type) {
  const std::string body = RETORT_TRY(read_file(file, kUploadLimitBytes));
  return impl_->json_answer("POST", path, body, content_type);
}

Result<Rest::Text> Rest::get_text(const std::string& path) {
  Answer answer = RETORT_TRY(impl_->send("GET", path, "", "", ""));
  if (answer.status < 200 || answer.status > 299) return fail(error_of(answer, path));
  Text text;
  if (const auto next = answer.headers.find("next-offset"); next != answer.headers.end())
    std::from_chars(next->second.data(), next->second.data() + next->second.size(), text.next_offset);
  text.body = std::move(answer.body);
  return text;
}

Result<void> Rest::download(const std::string& path, const std::filesystem::path& file, std::uint64_t bytes,
                            const std::function<void(std::uint64_t done)>& on_progress) {
  const File out = RETORT_TRY(File::open_write(file, true));
  for (std::uint64_t done = 0; done < bytes;) {
    const std::uint64_t last = std::min(done + kPieceBytes, bytes) - 1;
    const Answer answer =
        RETORT_TRY(impl_->send("GET", path, "", "", fmt::format("bytes={}-{}", done, last)));
    if (answer.status < 200 || answer.status > 299) return fail(error_of(answer, path));
    if (answer.status == 206 ? answer.body.size() != last - done + 1 : answer.body.size() != bytes)
      return fail(ErrorCode::kCorrupt, path, "{} bytes came where {} were asked for", answer.body.size(),
                  last - done + 1);
    RETORT_TRY(out.write_all_at(answer.status == 206 ? done : 0, answer.body));
    done = answer.status == 206 ? last + 1 : bytes;
    on_progress(done);
  }
  return {};
}

std::string escape_url(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool plain =
        std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '.' || c == '_' || c == '~';
    if (plain)
      out += c;
    else
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

std::string query_of(const std::vector<std::pair<std::string, std::string>>& members) {
  std::string out;
  for (const auto& [name, value] : members)
    if (!value.empty()) out += (out.empty() ? "?" : "&") + name + "=" + escape_url(value);
  return out;
}

Result<std::string> find_token(const std::string& token, const std::string& token_file,
                               const std::filesystem::path& fallback_file) {
  if (!token.empty()) return token;
  std::filesystem::path file = token_file;
  std::error_code ignored;
  if (file.empty()) {
    if (fallback_file.empty() || !std::filesystem::exists(fallback_file, ignored)) return std::string();
    file = fallback_file;
  }
  const std::string text = RETORT_TRY(read_file(file, 4096));
  std::string line = text.substr(0, text.find('\n'));
  while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
  if (line.empty()) return fail(ErrorCode::kInvalid, file.string(), "there is no token in it");
  return line;
}

}  // namespace retort::cli
