#pragma once

#include <filesystem>

#include "common/core/clock.h"
#include "common/core/file.h"
#include "common/core/json.h"
#include "coordinator/progress/job_progress.h"

namespace retort {

/// Events as JSON lines, on standard output and appended to DIR/progress.jsonl, one write each. A full disk
/// or a closed pipe never stops the run. `terminal`: on standard output what people read instead, with a bar
/// that stays in its line. Thread: one.
class Progress {
 public:
  Progress(const Clock& clock, const std::filesystem::path& file, bool terminal = false);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void emit(std::string_view event, json::object fields);
  void warning(std::string_view message);
  /// The terminal's line is free again, for standard error.
  void clear_bar();

 private:
  void show(const json::object& event);

  const Clock& clock_;
  int fd_ = -1;
  bool terminal_;
  JobProgress job_;
};

}  // namespace retort
