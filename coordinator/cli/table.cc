#include "coordinator/cli/table.h"

#include <algorithm>

#include "coordinator/progress/terminal.h"

namespace retort::cli {

Table::Table(std::vector<std::string> headings) : headings_(std::move(headings)) {
  for (std::string& heading : headings_) {
    right_.push_back(heading.starts_with('>'));
    if (right_.back()) heading.erase(0, 1);
  }
}

void Table::row(std::vector<std::string> cells) {
  cells.resize(headings_.size());
  for (std::string& cell : cells) cell = harmless(cell);
  rows_.push_back(std::move(cells));
}

std::string Table::text() const {
  std::vector<std::size_t> widths;
  for (std::size_t column = 0; column < headings_.size(); ++column) {
    widths.push_back(display_width(headings_[column]));
    for (const auto& row : rows_) widths[column] = std::max(widths[column], display_width(row[column]));
  }
  std::string out;
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string text;
    for (std::size_t column = 0; column < cells.size(); ++column) {
      const std::string pad(widths[column] - display_width(cells[column]), ' ');
      if (column > 0) text += "  ";
      text += right_[column] ? pad + cells[column] : cells[column] + pad;
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + '\n';
  };
  line(headings_);
  for (const auto& row : rows_) line(row);
  return out;
}

}  // namespace retort::cli
