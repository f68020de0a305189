#pragma once

#include <filesystem>

#include "common/core/clock.h"
#include "common/core/file.h"
#include "common/core/json.h"

namespace retort {

/// Events as JSON lines, on standard output and appended to DIR/progress.jsonl, one write each. A full disk
/// or a closed pipe never stops the run. Thread: one.
class Progress {
 public:
  Progress(const Clock& clock, const std::filesystem::path& file);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void emit(std::string_view event, json::object fields);
  void warning(std::string_view message);

 private:
  const Clock& clock_;
  int fd_ = -1;
};

}  // namespace retort
