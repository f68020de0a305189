#pragma once

#include <string>
#include <string_view>

namespace retort {

/// Columns that UTF-8 text takes, one a code point.
std::size_t display_width(std::string_view text);
/// Control characters become '?'.
std::string harmless(std::string_view text);
/// "[#######...............] 30 %"; `fraction` is kept within 0 and 1.
std::string bar(double fraction, std::size_t width);
/// Columns of standard output's terminal, less the last.
std::size_t terminal_width();

}  // namespace retort
