#include "common/core/clock.h"

#include <fmt/chrono.h>

namespace retort {

UnixMillis Clock::unix_millis() const {
  return std::chrono::duration_cast<std::chrono::milliseconds>(now().time_since_epoch()).count();
}

std::string to_rfc3339(UnixMillis time) {
  const std::time_t seconds = static_cast<std::time_t>(time / 1000);
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(seconds));
}

}  // namespace retort
