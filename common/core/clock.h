#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace retort {

/// Milliseconds since the Unix epoch, UTC: how times are stored and sent.
using UnixMillis = std::int64_t;

/// Time as a parameter: pass it in, so that tests can turn it by hand. Thread: any.
class Clock {
 public:
  virtual ~Clock() = default;
  /// Wall clock; may jump.
  virtual std::chrono::system_clock::time_point now() const = 0;
  /// Never goes back; for durations and deadlines.
  virtual std::chrono::steady_clock::time_point steady_now() const = 0;

  UnixMillis unix_millis() const;
};

class SystemClock final : public Clock {
 public:
  std::chrono::system_clock::time_point now() const override { return std::chrono::system_clock::now(); }
  std::chrono::steady_clock::time_point steady_now() const override {
    return std::chrono::steady_clock::now();
  }
};

/// "2026-11-23T14:28:07Z" (RFC 3339, UTC, whole seconds).
std::string to_rfc3339(UnixMillis time);

}  // namespace retort
