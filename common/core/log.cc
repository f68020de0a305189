#include "common/core/log.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>

#include "common/core/clock.h"

namespace retort {
namespace {

LogLevel level_from_environment() {
  const char* text = std::getenv("RETORT_LOG");
  const std::string_view name = text == nullptr ? "" : text;
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warn") return LogLevel::kWarn;
  if (name == "error") return LogLevel::kError;
  return LogLevel::kInfo;
}

std::atomic<LogLevel>& threshold() {
  static std::atomic<LogLevel> level{level_from_environment()};
  return level;
}

}  // namespace

void set_log_level(LogLevel level) { threshold() = level; }

void log_line(LogLevel level, std::string_view message) {
  if (level < threshold().load()) return;
  constexpr std::string_view kNames[] = {"debug", "info", "warn", "error"};
  constexpr int kPriorities[] = {7, 6, 4, 3};
  static const bool journal = std::getenv("JOURNAL_STREAM") != nullptr;
  const auto index = static_cast<std::size_t>(level);
  std::string line = journal
                         ? fmt::format("<{}>", kPriorities[index])
                         : fmt::format("{} {:5} ", to_rfc3339(SystemClock().unix_millis()), kNames[index]);
  for (const char c : message) {
    if (c == '\n')
      line += "\\n";
    else if (static_cast<unsigned char>(c) < 0x20 && c != '\t')
      line += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    else
      line += c;
  }
  line += '\n';
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace retort
