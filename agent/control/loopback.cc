#include "agent/control/loopback.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>

#include "common/core/json.h"

namespace retort {
namespace {

constexpr std::size_t kMaxAnswerBytes = 1u << 20;

}  // namespace

Result<HttpResponse> ask_serve(const std::string& host, std::uint16_t port, std::string_view method,
                               std::string_view target, std::string_view json_body,
                               std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  const std::string name = host == "0.0.0.0" || host == "*"      ? "127.0.0.1"
                           : host == "::"                        ? "[::1]"
                           : host.find(':') != std::string::npos ? "[" + host + "]"
                                                                 : host;
  HttpCall call;
  call.method = method;
  call.url = fmt::format("http://{}:{}{}", name, port, target);
  call.body = json_body;
  if (!json_body.empty()) call.headers.emplace_back("Content-Type", "application/json");
  call.timeout = timeout;
  call.body_limit_bytes = kMaxAnswerBytes;
  call.go_on = [deadline] { return std::chrono::steady_clock::now() < deadline; };
  Result<HttpResponse> answer = http_call(call);
  if (!answer && answer.error().code == ErrorCode::kCancelled)
    return fail(ErrorCode::kUnavailable, call.url, "no answer in time");
  return answer;
}

Result<void> check_health(const std::string& host, std::uint16_t port, const std::string& artifact,
                          std::chrono::milliseconds timeout) {
  const HttpResponse answer = RETORT_TRY(ask_serve(host, port, "GET", "/health", "", timeout));
  const std::string where = fmt::format("http://{}:{}/health", host, port);
  if (answer.status != 200) return fail(ErrorCode::kUnavailable, where, "status {}", answer.status);
  const json::value body = RETORT_TRY(parse_json(answer.body, where));
  const json::object& object = *RETORT_TRY(as_object(body, where));
  if (json_has(object, "artifact_sha256") && !artifact.empty()) {
    const std::string serving = RETORT_TRY(json_string(object, "artifact_sha256", where));
    if (!serving.empty() && serving != artifact)
      return fail(ErrorCode::kConflict, where, "serves artifact {}, not {}", serving, artifact);
  }
  return {};
}

Result<void> check_answer(const std::string& host, std::uint16_t port, std::chrono::milliseconds timeout) {
  const auto ask = [&](std::string_view method, const std::string& target, std::string_view body,
                       const char* list) -> Result<json::array> {
    const HttpResponse answer = RETORT_TRY(ask_serve(host, port, method, target, body, timeout));
    const std::string where = fmt::format("http://{}:{}{}", host, port, target);
    if (answer.status == 429 || answer.status == 503)
      return fail(ErrorCode::kOutOfBudget, where, "it is too busy (status {})", answer.status);
    if (answer.status != 200)
      return fail(ErrorCode::kInvalid, where, "the probe got status {}: {}", answer.status,
                  answer.body.substr(0, 200));
    const json::value told = RETORT_TRY(parse_json(answer.body, where));
    const json::array& found = *RETORT_TRY(json_array(*RETORT_TRY(as_object(told, where)), list, where));
    if (found.empty()) return fail(ErrorCode::kInvalid, where, "the answer to the probe is empty");
    return found;
  };
  const json::array models = RETORT_TRY(ask("GET", "/v1/models", "", "data"));
  const json::object& model = *RETORT_TRY(as_object(models[0], "/v1/models"));
  const json::object& meta = *RETORT_TRY(json_object(model, "meta", "/v1/models"));
  if (json_has(meta, "pooling")) {  // an encoder; its vectors have length 1
    const json::array data = RETORT_TRY(ask("POST", "/v1/embeddings", R"({"input":"The"})", "data"));
    const json::object& entry = *RETORT_TRY(as_object(data[0], "/v1/embeddings"));
    double squares = 0;
    for (const json::value& x : *RETORT_TRY(json_array(entry, "embedding", "/v1/embeddings")))
      squares +=
          x.is_number() ? std::pow(x.to_number<double>(), 2) : std::numeric_limits<double>::quiet_NaN();
    if (std::abs(squares - 1) < 0.01) return {};
    return fail(ErrorCode::kInvalid, "/v1/embeddings", "the probe's vector has length {}, not 1",
                std::sqrt(squares));
  }
  if (!json_has(meta, "input_shape")) {
    RETORT_TRY(
        ask("POST", "/v1/completions", R"({"prompt":"The","max_tokens":4,"temperature":0})", "choices"));
    return {};
  }
  constexpr std::uint64_t kMostValues = 1 << 18;  // as JSON they are still a small request
  std::uint64_t values = 1;
  for (const json::value& d : *RETORT_TRY(json_array(meta, "input_shape", "/v1/models"))) {
    values *=
        d.is_int64() ? static_cast<std::uint64_t>(std::clamp<std::int64_t>(d.get_int64(), 1, 1 << 20)) : 1;
    if (values > kMostValues) return {};
  }
  json::object body{{"input", json::array(values, 0)}};
  RETORT_TRY(ask("POST", "/v1/classify", json::serialize(body), "data"));
  return {};
}

Result<std::string> complete(const std::string& host, std::uint16_t port, std::string_view prompt,
                             std::uint32_t max_tokens, std::chrono::milliseconds timeout) {
  const HttpResponse answer = RETORT_TRY(ask_serve(
      host, port, "POST", "/v1/completions",
      json::serialize(json::object{{"prompt", prompt}, {"max_tokens", max_tokens}, {"temperature", 0}}),
      timeout));
  const std::string where = fmt::format("http://{}:{}/v1/completions", host, port);
  if (answer.status != 200)
    return fail(answer.status == 429 || answer.status == 503 ? ErrorCode::kUnavailable : ErrorCode::kInvalid,
                where, "status {}: {}", answer.status, answer.body.substr(0, 200));
  const json::value body = RETORT_TRY(parse_json(answer.body, where));
  const json::object& object = *RETORT_TRY(as_object(body, where));
  const json::array& choices = *RETORT_TRY(json_array(object, "choices", where));
  if (choices.empty()) return fail(ErrorCode::kInvalid, where, "there is no choice");
  return json_string(*RETORT_TRY(as_object(choices.front(), where)), "text", where);
}

std::optional<RequestCounts> parse_requests(std::string_view metrics) {
  constexpr std::string_view kName = "retort_serve_requests_total{code=\"";
  if (metrics.find("retort_serve_requests_total") == std::string_view::npos) return std::nullopt;
  RequestCounts counts;
  while (!metrics.empty()) {
    std::string_view line = metrics.substr(0, metrics.find('\n'));
    metrics.remove_prefix(std::min(metrics.size(), line.size() + 1));
    if (!line.starts_with(kName)) continue;
    line.remove_prefix(kName.size());
    int status = 0;
    double value = 0;
    const std::size_t space = line.rfind(' ');
    if (space == std::string_view::npos ||
        std::from_chars(line.data(), line.data() + line.size(), status).ec != std::errc() ||
        std::from_chars(line.data() + space + 1, line.data() + line.size(), value).ec != std::errc())
      continue;
    counts.all += value;
    if (status >= 500) counts.errors += value;
  }
  return counts;
}

std::optional<Histogram> parse_histogram(std::string_view metrics, std::string_view name) {
  std::map<double, double> buckets;
  Histogram out;
  bool seen = false;
  while (!metrics.empty()) {
    std::string_view line = metrics.substr(0, metrics.find('\n'));
    metrics.remove_prefix(std::min(metrics.size(), line.size() + 1));
    if (!line.starts_with(name)) continue;
    line.remove_prefix(name.size());
    const std::size_t space = line.rfind(' ');
    if (space == std::string_view::npos) continue;
    double value = 0;
    if (std::from_chars(line.data() + space + 1, line.data() + line.size(), value).ec != std::errc())
      continue;
    if (line.starts_with("_sum")) out.sum += value;
    if (line.starts_with("_count")) out.count += value, seen = true;
    if (!line.starts_with("_bucket")) continue;
    const std::size_t le = line.find("le=\"");
    if (le == std::string_view::npos) continue;
    double bound = std::numeric_limits<double>::infinity();
    if (!line.substr(le + 4).starts_with("+Inf"))
      if (std::from_chars(line.data() + le + 4, line.data() + line.size(), bound).ec != std::errc()) continue;
    buckets[bound] += value;
  }
  if (!seen) return std::nullopt;
  out.buckets.assign(buckets.begin(), buckets.end());
  return out;
}

std::optional<double> quantile_between(const Histogram& before, const Histogram& now, double quantile) {
  const bool restarted = now.count < before.count || before.buckets.size() != now.buckets.size();
  const auto delta = [&](std::size_t i) {
    return now.buckets[i].second - (restarted ? 0 : before.buckets[i].second);
  };
  const double total = now.count - (restarted ? 0 : before.count);
  if (total <= 0 || now.buckets.empty()) return std::nullopt;
  const double wanted = total * quantile;
  double lower_bound = 0, lower_count = 0;
  for (std::size_t i = 0; i < now.buckets.size(); ++i) {
    const double bound = now.buckets[i].first, count = delta(i);
    if (count >= wanted) {
      if (!std::isfinite(bound)) return lower_bound;
      return count <= lower_count
                 ? bound
                 : lower_bound + (bound - lower_bound) * (wanted - lower_count) / (count - lower_count);
    }
    lower_bound = bound, lower_count = count;
  }
  return lower_bound;
}

}  // namespace retort
