#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/core/json.h"
#include "common/core/result.h"

namespace retort::cli {

/// Where the coordinator is and who asks.
struct Connection {
  std::string server;       ///< "http://127.0.0.1:8440", or https
  std::string token;        ///< may be empty: only /health answers then
  std::string fingerprint;  ///< of https; "": what the system's authorities vouch for
};

/// The token: `token`, else the first line of `token_file`, else of `fallback_file` where that exists, else
/// "".
Result<std::string> find_token(const std::string& token, const std::string& token_file,
                               const std::filesystem::path& fallback_file);

/// The certificate that an https server is to have: `given`, else the one that `file` keeps for it, else,
/// with `trust_new`, the one that it shows now, which is then kept. "" where there is none: the system's
/// authorities decide. kDenied where `given` or `trust_new` meets another one that is kept.
Result<std::string> find_fingerprint(const std::string& server, const std::string& given, bool trust_new,
                                     const std::filesystem::path& file);

/// "?a=1&b=x%20y" of the members that are not empty; "" when all are.
std::string query_of(const std::vector<std::pair<std::string, std::string>>& members);
/// Percent-encodes everything but RFC 3986's unreserved characters.
std::string escape_url(std::string_view text);

/// The coordinator's REST interface. An application/problem+json answer becomes its Error; no connection is
/// kUnavailable and names the URL. Thread: one.
class Rest {
 public:
  static Result<Rest> open(Connection connection);
  ~Rest();
  Rest(Rest&&) noexcept;

  Result<json::value> get(const std::string& path);
  /// A thing as it was when it was looked at.
  struct Version {
    json::value value;
    std::string etag;
  };
  /// Nothing where there is none.
  Result<std::optional<Version>> find(const std::string& path);
  /// Changes what was `seen`, or makes what was not there; kConflict where another was quicker.
  Result<Version> put(const std::string& path, const json::value& body, const std::optional<Version>& seen);
  Result<Version> post(const std::string& path, const json::value& body, const Version& seen);
  Result<json::value> post(const std::string& path, const json::value& body);
  Result<json::value> remove(const std::string& path);
  /// Sends a file's bytes.
  Result<json::value> upload(const std::string& path, const std::filesystem::path& file,
                             std::string_view content_type);
  struct Text {
    std::string body;
    std::uint64_t next_offset = 0;
  };
  /// An answer that is not JSON, with its Next-Offset header.
  Result<Text> get_text(const std::string& path);
  /// Into `file` (which appears only when whole), piece by piece by Range.
  Result<void> download(const std::string& path, const std::filesystem::path& file, std::uint64_t bytes,
                        const std::function<void(std::uint64_t done)>& on_progress);
  /// Reads server-sent events until `on_event` returns false, coming back after breaks where it was. kinds:
  /// as /v1/events takes them.
  Result<void> watch(const std::string& kinds,
                     const std::function<bool(const std::string& kind, const std::string& data)>& on_event);
  /// True when the coordinator is on this host, so that both sides see the same files.
  bool local() const;

 private:
  struct Impl;
  explicit Rest(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace retort::cli
