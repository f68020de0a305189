#include "coordinator/worker/progress.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include "common/core/units.h"
#include "coordinator/progress/terminal.h"

namespace retort {
namespace {
constexpr std::string_view kClearLine = "\r\x1b[K";

void write_to(int fd, std::string_view text) {
  [[maybe_unused]] const ssize_t written = ::write(fd, text.data(), text.size());
}
}  // namespace

Progress::Progress(const Clock& clock, const std::filesystem::path& file, bool terminal)
    : clock_(clock), terminal_(terminal) {
  job_.state = "running";
  if (!file.empty()) fd_ = ::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

Progress::~Progress() {
  if (fd_ >= 0) ::close(fd_);
}

void Progress::emit(std::string_view event, json::object fields) {
  json::object line{{"time", clock_.unix_millis()}, {"event", event}};
  for (auto& member : fields) line[member.key()] = std::move(member.value());
  const std::string text = json::serialize(line) + "\n";
  if (fd_ >= 0) write_to(fd_, text);
  if (terminal_)
    show(line);
  else
    write_to(STDOUT_FILENO, text);
}

void Progress::show(const json::object& event) {
  const std::string told = harmless(apply_event(job_, event));
  const json::value& kind = event.at("event");
  std::string out(kClearLine);
  if (!told.empty() && kind != "error") out += told + "\n";  // an error is the last that standard error says
  if (kind == "done")
    out += fmt::format("{} in {}\n", std::string_view(event.at("state").as_string()),
                       format_seconds(event.at("seconds").to_number<double>()));
  else if (kind == "progress")
    out += progress_line(job_, terminal_width());
  write_to(STDOUT_FILENO, out);
}

void Progress::clear_bar() {
  if (terminal_) write_to(STDOUT_FILENO, kClearLine);
}

void Progress::warning(std::string_view message) { emit("warning", {{"message", message}}); }

}  // namespace retort
