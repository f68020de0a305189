#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace retort::cli {

/// A table for a terminal. Thread: one.
class Table {
 public:
  /// A heading that starts with '>' makes its column right-aligned (numbers).
  explicit Table(std::vector<std::string> headings);
  /// Cells beyond the headings are dropped, missing ones are empty. Text from outside is made harmless: a
  /// control character becomes '?', so that a device's name cannot drive the terminal.
  void row(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  /// Two spaces between columns, no trailing spaces, every line ends with a line break.
  std::string text() const;

 private:
  std::vector<std::string> headings_;
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace retort::cli
