#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace retort {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

/// One line on standard error: "<prefix>LEVEL message". Under systemd (JOURNAL_STREAM is set) the prefix is
/// the journal's priority "<6>", otherwise the time. Line breaks inside a message are escaped, so that text
/// from outside cannot forge a line. Thread: any.
void log_line(LogLevel level, std::string_view message);
/// Lines below this level are dropped; default kInfo, RETORT_LOG=debug|info|warn|error sets it at start.
void set_log_level(LogLevel level);

template <typename... Args>
void log_debug(fmt::format_string<Args...> f, Args&&... args) {
  log_line(LogLevel::kDebug, fmt::format(f, std::forward<Args>(args)...));
}
template <typename... Args>
void log_info(fmt::format_string<Args...> f, Args&&... args) {
  log_line(LogLevel::kInfo, fmt::format(f, std::forward<Args>(args)...));
}
template <typename... Args>
void log_warn(fmt::format_string<Args...> f, Args&&... args) {
  log_line(LogLevel::kWarn, fmt::format(f, std::forward<Args>(args)...));
}
template <typename... Args>
void log_error(fmt::format_string<Args...> f, Args&&... args) {
  log_line(LogLevel::kError, fmt::format(f, std::forward<Args>(args)...));
}

}  // namespace retort
