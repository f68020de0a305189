#include "agent/update/mirrors.h"

#include <algorithm>

#include "common/http/http.h"
#include "common/wire/messages.h"

namespace retort {
namespace {

constexpr std::size_t kMaxMirrors = 8;
constexpr std::chrono::seconds kStepTimeout{10};

/// The answer has to be the range that was asked for. What its bytes are is for their hashes to say.
Result<void> check_head(const HttpResponse& head, const MirrorRange& range, const std::string& url) {
  const auto header = [&](const char* name) {
    const auto found = head.headers.find(name);
    return found == head.headers.end() ? std::string() : found->second;
  };
  if (head.status == 200 && range.offset == 0) return {};  // a server without ranges: what is wanted of it
  if (head.status == 200) return fail(ErrorCode::kUnavailable, url, "it does not serve ranges of a file");
  if (head.status != 206) return fail(ErrorCode::kUnavailable, url, "status {}", head.status);
  const std::string begins = fmt::format("bytes {}-", range.offset);
  const std::string ends = fmt::format("/{}", range.artifact_bytes);
  const std::string got = header("content-range");
  if (!got.starts_with(begins) || !got.ends_with(ends))
    return fail(ErrorCode::kUnavailable, url, "asked for {}…{}, it answers with '{}'", begins, ends,
                got.substr(0, 100));
  return {};
}

}  // namespace

void Mirrors::set(const std::vector<std::string>& urls) {
  std::vector<Mirror> next;
  for (const std::string& url : urls) {
    if (next.size() == kMaxMirrors) break;
    if (!url.starts_with("http://") && !url.starts_with("https://")) continue;
    const Mirror* known = find(url);
    next.push_back(known != nullptr ? *known : Mirror{url});
  }
  mirrors_ = std::move(next);
}

std::optional<std::string> Mirrors::choose(Time now) const {
  for (const Mirror& mirror : mirrors_)
    if (mirror.failures == 0 || now >= mirror.aside_until) return mirror.url;
  return std::nullopt;
}

Mirrors::Mirror* Mirrors::find(const std::string& url) {
  const auto found =
      std::find_if(mirrors_.begin(), mirrors_.end(), [&](const Mirror& m) { return m.url == url; });
  return found == mirrors_.end() ? nullptr : &*found;
}

void Mirrors::worked(const std::string& url) {
  if (Mirror* mirror = find(url)) mirror->failures = 0;
}

void Mirrors::failed(const std::string& url, Time now) {
  Mirror* mirror = find(url);
  if (mirror == nullptr) return;
  const auto aside =
      std::min<std::chrono::minutes>(kAsideAtMost, kAside * (1 << std::min(mirror->failures, 6u)));
  ++mirror->failures;
  mirror->aside_until = std::max(mirror->aside_until, now + aside);
}

void Mirrors::lied(const std::string& url, Time now) {
  Mirror* mirror = find(url);
  if (mirror == nullptr) return;
  ++mirror->failures;
  mirror->aside_until = now + kAsideForLies;
}

Result<void> read_mirror(const std::string& url, const MirrorRange& range,
                         const std::function<bool(std::string chunk)>& sink,
                         const std::function<bool()>& go_on, const MirrorPace& pace) {
  using Steady = std::chrono::steady_clock;
  std::uint64_t done = 0, in_window = 0;
  auto window_began = Steady::now();
  bool slow = false, wanted = true;
  const auto fast_enough = [&] {
    const auto passed = std::chrono::duration_cast<std::chrono::milliseconds>(Steady::now() - window_began);
    if (passed < pace.window) return true;
    slow = in_window * 1000 < pace.bytes_a_second * static_cast<std::uint64_t>(passed.count());
    window_began = Steady::now();
    in_window = 0;
    return !slow;
  };
  std::string chunk;
  const auto hand_over = [&] {
    const auto before = Steady::now();
    wanted = sink(std::move(chunk));
    window_began += Steady::now() - before;
    chunk.clear();
    return wanted;
  };
  HttpCall call;
  call.url = fmt::format("{}/{}/{}", url, range.artifact.substr(0, 2), range.artifact);
  call.headers = {{"Range", fmt::format("bytes={}-{}", range.offset, range.offset + range.length - 1)}};
  call.timeout = kStepTimeout;
  call.go_on = [&] { return (wanted = wanted && go_on()) && fast_enough(); };
  call.on_head = [&](const HttpResponse& head) { return check_head(head, range, call.url); };
  call.on_body = [&](std::string_view bytes) {
    bytes = bytes.substr(0, range.length - done);  // never more than was asked for [endless data]
    done += bytes.size();
    in_window += bytes.size();
    while (!bytes.empty()) {
      const std::size_t some = std::min<std::size_t>(bytes.size(), wire::kMaxChunkBytes - chunk.size());
      chunk.append(bytes.substr(0, some));
      bytes.remove_prefix(some);
      if (chunk.size() == wire::kMaxChunkBytes && !hand_over()) return false;
    }
    return done < range.length && fast_enough();
  };
  const Result<HttpResponse> answer = http_call(call);
  if (!wanted) return fail(ErrorCode::kCancelled, call.url, "no longer wanted");
  // What came before a break is good for as much as it is.
  if (!chunk.empty() && !hand_over()) return fail(ErrorCode::kCancelled, call.url, "no longer wanted");
  if (done == range.length) return {};
  if (slow)
    return fail(ErrorCode::kUnavailable, call.url, "too slow: less than {} bytes a second",
                pace.bytes_a_second);
  if (!answer) return fail(answer.error());
  return fail(ErrorCode::kUnavailable, call.url, "{} bytes came where {} were asked for", done, range.length);
}

}  // namespace retort
