#include <algorithm>

#include "common/http/http.h"

namespace retort {
namespace {

std::vector<std::string> split_path(std::string_view path) {
  std::vector<std::string> segments;
  for (std::size_t i = 0; i < path.size();) {
    if (path[i] == '/') {
      ++i;
      continue;
    }
    const std::size_t end = std::min(path.find('/', i), path.size());
    segments.emplace_back(path.substr(i, end - i));
    i = end;
  }
  return segments;
}

}  // namespace

std::optional<std::string> percent_decode(std::string_view text) {
  const auto digit = [](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    const int high = i + 2 < text.size() ? digit(text[i + 1]) : -1;
    const int low = i + 2 < text.size() ? digit(text[i + 2]) : -1;
    if (high < 0 || low < 0 || high * 16 + low == 0) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

const std::string& HttpRequest::header(const std::string& name) const {
  static const std::string none;
  const auto found = headers.find(name);
  return found == headers.end() ? none : found->second;
}

void HttpRouter::add(std::string method, std::string pattern, Handler handler) {
  routes_.push_back({std::move(method), split_path(pattern), std::move(handler)});
}

void HttpRouter::dispatch(
    HttpRequest request, std::shared_ptr<HttpResponder> responder, const Handler& not_found,
    const std::function<void(std::string, std::shared_ptr<HttpResponder>)>& not_allowed) const {
  const std::vector<std::string> segments = split_path(request.path);
  const std::string method = request.method == "HEAD" ? "GET" : request.method;
  std::string allow;
  for (const Route& route : routes_) {
    if (route.segments.size() != segments.size()) continue;
    std::map<std::string, std::string> parameters;
    const bool match = std::equal(segments.begin(), segments.end(), route.segments.begin(),
                                  [&](const std::string& segment, const std::string& pattern) {
                                    if (pattern.size() > 2 && pattern.front() == '{') {
                                      parameters[pattern.substr(1, pattern.size() - 2)] = segment;
                                      return true;
                                    }
                                    return segment == pattern;
                                  });
    if (!match) continue;
    if (route.method == method) {
      request.parameters = std::move(parameters);
      route.handler(std::move(request), std::move(responder));
      return;
    }
    if (allow.find(route.method) == std::string::npos) allow += (allow.empty() ? "" : ", ") + route.method;
  }
  if (allow.empty())
    not_found(std::move(request), std::move(responder));
  else
    not_allowed(std::move(allow), std::move(responder));
}

}  // namespace retort
