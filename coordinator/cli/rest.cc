#include "coordinator/cli/rest.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <thread>

#include "common/core/file.h"
#include "common/http/http.h"

namespace retort::cli {
namespace {

constexpr std::uint64_t kPieceBytes = 4 << 20;           // of a download
constexpr std::uint64_t kUploadLimitBytes = 4ull << 30;  // a dataset is sent as one body

/// What an error answer says, as our Error. Answers of something that is not a coordinator have no problem
/// document; then the status has to do.
Error error_of(const HttpResponse& answer, const std::string& where) {
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
  std::string address;  // the server's, without a final slash
  bool local = false;

  Result<HttpResponse> send(std::string_view method, const std::string& path, std::string_view body,
                            std::string_view content_type, const HttpHeaders& headers = {});
  Result<Version> versioned_answer(std::string_view method, const std::string& path, std::string_view body,
                                   std::string_view content_type, const HttpHeaders& headers = {});
  Result<json::value> json_answer(std::string_view method, const std::string& path, std::string_view body,
                                  std::string_view content_type);
};

Result<HttpResponse> Rest::Impl::send(std::string_view method, const std::string& path, std::string_view body,
                                      std::string_view content_type, const HttpHeaders& headers) {
  HttpCall call;
  call.method = method;
  call.url = address + path;
  call.headers = {{"Accept", "application/json"}};
  if (!connection.token.empty()) call.headers.emplace_back("Authorization", "Bearer " + connection.token);
  call.headers.insert(call.headers.end(), headers.begin(), headers.end());
  if (!content_type.empty()) call.headers.emplace_back("Content-Type", content_type);
  call.body = body;
  call.fingerprint = connection.fingerprint;
  // The import of a teacher copies and converts it before the answer comes.
  call.timeout = std::chrono::minutes(10);
  Result<HttpResponse> answer = http_call(call);
  if (!answer && answer.error().code == ErrorCode::kUnavailable)
    return fail(ErrorCode::kUnavailable, "", "cannot reach the coordinator at {}: {}", connection.server,
                answer.error().message);
  if (!answer && answer.error().code == ErrorCode::kDenied)
    return fail(
        ErrorCode::kDenied, connection.server, "{}. {}", answer.error().message,
        connection.fingerprint.empty()
            ? "If its log shows that fingerprint too, give it with --fingerprint, or --trust-new once"
            : "Somebody may stand between you and it. If its certificate was changed on purpose, take its "
              "line out of ~/.config/retort/fingerprints, or give the new one with --fingerprint");
  return answer;
}

Result<Rest::Version> Rest::Impl::versioned_answer(std::string_view method, const std::string& path,
                                                   std::string_view body, std::string_view content_type,
                                                   const HttpHeaders& headers) {
  const HttpResponse answer = RETORT_TRY(send(method, path, body, content_type, headers));
  if (answer.status < 200 || answer.status > 299) return fail(error_of(answer, path));
  Version out;
  if (const auto etag = answer.headers.find("etag"); etag != answer.headers.end()) out.etag = etag->second;
  if (answer.body.find_first_not_of(" \r\n\t") != std::string::npos)
    out.value = RETORT_TRY(parse_json(answer.body, path));
  return out;
}

Result<json::value> Rest::Impl::json_answer(std::string_view method, const std::string& path,
                                            std::string_view body, std::string_view content_type) {
  return RETORT_TRY(versioned_answer(method, path, body, content_type)).value;
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
  if (!rest.starts_with("http://") && !rest.starts_with("https://"))
    return bad("is not an http or https address");
  rest.remove_prefix(rest.find("//") + 2);
  const auto printable = [](std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f; });
  };
  const std::string_view host = rest.substr(0, rest.find_first_of(":/"));
  if (host.empty() || !printable(connection.server)) return bad("is not an address");
  if (!printable(connection.token))
    return fail(ErrorCode::kInvalid, "token", "a token has no spaces or control characters");
  auto impl = std::make_unique<Impl>();
  impl->local = host == "localhost" || host.starts_with("127.");
  impl->address = connection.server;
  while (impl->address.ends_with('/')) impl->address.pop_back();
  impl->connection = std::move(connection);
  return Rest(std::move(impl));
}

bool Rest::local() const { return impl_->local; }

Result<json::value> Rest::get(const std::string& path) { return impl_->json_answer("GET", path, "", ""); }
Result<std::optional<Rest::Version>> Rest::find(const std::string& path) {
  Result<Version> found = impl_->versioned_answer("GET", path, "", "");
  if (!found && found.error().code == ErrorCode::kNotFound) return std::optional<Version>();
  return std::optional<Version>(RETORT_TRY(std::move(found)));
}
Result<Rest::Version> Rest::put(const std::string& path, const json::value& body,
                                const std::optional<Version>& seen) {
  const std::pair<std::string, std::string> condition =
      seen ? std::pair("If-Match", seen->etag) : std::pair("If-None-Match", "*");
  return impl_->versioned_answer("PUT", path, json::serialize(body), "application/json", {condition});
}
Result<Rest::Version> Rest::post(const std::string& path, const json::value& body, const Version& seen) {
  return impl_->versioned_answer("POST", path, json::serialize(body), "application/json",
                                 {{"If-Match", seen.etag}});
}
Result<json::value> Rest::post(const std::string& path, const json::value& body) {
  return impl_->json_answer("POST", path, json::serialize(body), "application/json");
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
  HttpResponse answer = RETORT_TRY(impl_->send("GET", path, "", ""));
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
    const HttpResponse answer =
        RETORT_TRY(impl_->send("GET", path, "", "", {{"Range", fmt::format("bytes={}-{}", done, last)}}));
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

Result<void> Rest::watch(const std::string& kinds,
                         const std::function<bool(const std::string&, const std::string&)>& on_event) {
  std::string last_id;
  for (int failures = 0;;) {
    HttpCall call;
    call.url = impl_->address + "/v1/events" + query_of({{"kinds", kinds}});
    call.headers = {{"Accept", "text/event-stream"}};
    if (!impl_->connection.token.empty())
      call.headers.emplace_back("Authorization", "Bearer " + impl_->connection.token);
    if (!last_id.empty()) call.headers.emplace_back("Last-Event-ID", last_id);
    call.fingerprint = impl_->connection.fingerprint;
    call.timeout = std::chrono::minutes(1);  // the coordinator says something every 15 s
    std::string text, kind, data;
    bool more = true;
    call.on_body = [&](std::string_view piece) {
      failures = 0;
      text += piece;
      std::size_t start = 0;
      for (std::size_t end; more && (end = text.find('\n', start)) != std::string::npos; start = end + 1) {
        const std::string_view line = std::string_view(text).substr(start, end - start);
        if (line.starts_with("id: ")) last_id = line.substr(4);
        if (line.starts_with("event: ")) kind = line.substr(7);
        if (line.starts_with("data: ")) data = line.substr(6);
        if (line.empty() && !kind.empty()) {
          more = on_event(kind, data);
          kind.clear();
        }
      }
      text.erase(0, start);
      return more && text.size() < (1 << 20);
    };
    const Result<HttpResponse> answer = http_call(call);
    if (!more) return {};
    if (answer && (answer->status < 200 || answer->status > 299))
      return fail(error_of(*answer, "/v1/events"));
    if (!answer && (answer.error().code != ErrorCode::kUnavailable || ++failures > 30))
      return fail(answer.error());
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
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

Result<std::string> find_fingerprint(const std::string& server, const std::string& given, bool trust_new,
                                     const std::filesystem::path& file) {
  std::string address = server;
  while (address.ends_with('/')) address.pop_back();
  std::string known, text;
  std::error_code ignored;
  if (!file.empty() && std::filesystem::exists(file, ignored)) text = RETORT_TRY(read_file(file, 1 << 20));
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    if (line.starts_with(address + " "))
      known = RETORT_TRY(parse_fingerprint(line.substr(address.size() + 1)));
    at = end + 1;
  }
  const std::string wanted = given.empty() ? std::string() : RETORT_TRY(parse_fingerprint(given));
  if (!trust_new) return wanted.empty() ? known : wanted;
  const std::string seen = RETORT_TRY(https_fingerprint(address));
  const std::string& expected = wanted.empty() ? known : wanted;
  if (!expected.empty() && seen != expected)
    return fail(
        ErrorCode::kDenied, address,
        "its certificate has the fingerprint {}, not {}: somebody may stand between you and it. If it was "
        "changed on purpose, take its line out of {}",
        seen, expected, file.string());
  if (known.empty()) {
    if (file.empty()) return fail(ErrorCode::kInvalid, "--trust-new", "there is no HOME to keep it in");
    RETORT_TRY(make_folders(file.parent_path()));
    RETORT_TRY(write_file_atomic(file, text + address + " " + seen + "\n", 0600));
  }
  return seen;
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
