#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "common/core/result.h"

namespace retort {

/// The HTTP servers that the coordinator named, in its order, and which of them are put aside for a while.
/// None is trusted: what they send is checked as any chunk is. Values only; the time is the caller's.
class Mirrors {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr std::chrono::minutes kAside{1}, kAsideAtMost{64};
  static constexpr std::chrono::hours kAsideForLies{24};

  /// What is known of those that stay is kept. At most 8, and those alone that are http:// or https://.
  void set(const std::vector<std::string>& urls);
  /// The first that is not put aside; nothing: the coordinator it is.
  std::optional<std::string> choose(Time now) const;
  void worked(const std::string& url);
  /// Dead, slow, or without the artifact: put aside for a minute, twice as long with each failure in a row.
  void failed(const std::string& url, Time now);
  /// Sent wrong bytes.
  void lied(const std::string& url, Time now);

 private:
  struct Mirror {
    std::string url;
    std::uint32_t failures = 0;
    Time aside_until{};
  };
  Mirror* find(const std::string& url);
  std::vector<Mirror> mirrors_;
};

/// Bytes of an artifact.
struct MirrorRange {
  std::string artifact;  ///< its SHA-256
  std::uint64_t offset = 0, length = 0;
  std::uint64_t artifact_bytes = 0;  ///< of the whole file
};
struct MirrorPace {
  std::chrono::milliseconds window{15'000};  ///< in which so many bytes have to come, or it is too slow
  std::uint64_t bytes_a_second = 16u << 10;
};

/// Reads a range of URL/<first two>/<artifact> by HTTP and hands it to `sink` in order, in chunks of
/// kMaxChunkBytes (the last one may be shorter); the time that `sink` takes is not the mirror's. kCancelled:
/// `sink` or `go_on` returned false. kUnavailable: no answer, too slow, broken off, or one that is not this
/// range (a status other than 206 or, from the artifact's start, 200; a redirect is not followed). Blocking.
/// Thread: any.
Result<void> read_mirror(const std::string& url, const MirrorRange& range,
                         const std::function<bool(std::string chunk)>& sink,
                         const std::function<bool()>& go_on, const MirrorPace& pace = {});

}  // namespace retort
