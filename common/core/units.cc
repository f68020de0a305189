#include "common/core/units.h"

#include <array>
#include <cctype>
#include <charconv>
#include <cmath>

namespace retort {

std::string format_bytes(std::uint64_t bytes) {
  constexpr std::array<std::string_view, 5> kSuffixes{"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < kSuffixes.size()) {
    value /= 1024;
    ++unit;
  }
  if (unit == 0) return fmt::format("{} B", bytes);
  return fmt::format("{:.{}f} {}", value, value < 100 ? 1 : 0, kSuffixes[unit]);
}

Result<std::uint64_t> parse_bytes(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const auto bad = [&] {
    return fail(ErrorCode::kInvalid, "", "'{}' is not a size; write for example 4096, 350K, 64M or 1.5G",
                text);
  };
  if (error != std::errc() || !std::isfinite(value) || value < 0) return bad();
  std::string suffix;
  for (const char* p = end; p != text.data() + text.size(); ++p)
    if (*p != ' ') suffix += static_cast<char>(std::toupper(static_cast<unsigned char>(*p)));
  int power = 0;
  if (suffix.empty() || suffix == "B")
    power = 0;
  else if (suffix == "K" || suffix == "KB" || suffix == "KIB")
    power = 1;
  else if (suffix == "M" || suffix == "MB" || suffix == "MIB")
    power = 2;
  else if (suffix == "G" || suffix == "GB" || suffix == "GIB")
    power = 3;
  else if (suffix == "T" || suffix == "TB" || suffix == "TIB")
    power = 4;
  else
    return bad();
  value *= std::pow(1024.0, power);
  if (value > 9.0e18) return bad();
  return static_cast<std::uint64_t>(std::llround(value));
}

std::string format_count(std::uint64_t count) {
  const double value = static_cast<double>(count);
  if (value >= 1e9) return fmt::format("{:.2f} B", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.2f} M", value / 1e6);
  if (value >= 1e3) return fmt::format("{:.1f} k", value / 1e3);
  return std::to_string(count);
}

std::string format_seconds(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto whole = static_cast<std::uint64_t>(std::llround(seconds));
  if (whole >= 3600) return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
  if (whole >= 60) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} s", whole);
}

}  // namespace retort
