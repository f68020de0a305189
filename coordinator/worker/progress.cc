#include "coordinator/worker/progress.h"

#include <fcntl.h>
#include <unistd.h>

namespace retort {

Progress::Progress(const Clock& clock, const std::filesystem::path& file) : clock_(clock) {
  if (!file.empty()) fd_ = ::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

Progress::~Progress() {
  if (fd_ >= 0) ::close(fd_);
}

void Progress::emit(std::string_view event, json::object fields) {
  json::object line{{"time", clock_.unix_millis()}, {"event", event}};
  for (auto& member : fields) line[member.key()] = std::move(member.value());
  const std::string text = json::serialize(line) + "\n";
  [[maybe_unused]] ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
  if (fd_ >= 0) written = ::write(fd_, text.data(), text.size());
}

void Progress::warning(std::string_view message) { emit("warning", {{"message", message}}); }

}  // namespace retort
