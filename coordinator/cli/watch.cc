#include "coordinator/cli/watch.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

#include "coordinator/progress/job_progress.h"
#include "coordinator/progress/terminal.h"

namespace retort::cli {
namespace {

using std::chrono::steady_clock;

std::atomic<bool> interrupted{false};

struct Watched {
  JobProgress job;
  std::uint64_t offset = 0;
  std::string partial;  ///< the log's last line, while it has no end yet
  std::string printed;  ///< the last plain line
  steady_clock::time_point printed_at{};
};

/// Reads what is new of one job; the lines worth telling go to `tell`.
template <typename Tell>
Result<void> refresh(Rest& rest, Watched& watched, const Tell& tell) {
  const json::value record = RETORT_TRY(rest.get("/v1/jobs/" + watched.job.id));
  // The log is read after the record, to its end, so that nothing is missing when the job has ended.
  std::string text = std::move(watched.partial);
  for (;;) {
    const Rest::Text log =
        RETORT_TRY(rest.get_text(fmt::format("/v1/jobs/{}/logs?offset={}", watched.job.id, watched.offset)));
    text += log.body;
    if (log.next_offset <= watched.offset) break;
    watched.offset = log.next_offset;
  }
  std::size_t start = 0;
  for (std::size_t end; (end = text.find('\n', start)) != std::string::npos; start = end + 1)
    if (const std::string told =
            apply_log_line(watched.job, std::string_view(text).substr(start, end - start));
        !told.empty())
      tell(harmless(fmt::format(
          "{}  {}", watched.job.device_class.empty() ? watched.job.id : watched.job.device_class, told)));
  watched.partial = text.substr(start);
  if (record.is_object()) apply_record(watched.job, record.get_object());
  return {};
}

}  // namespace

Result<int> watch_jobs(Rest& rest, const std::vector<std::string>& ids) {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);

  const bool terminal = ::isatty(STDOUT_FILENO) == 1;
  std::vector<Watched> all(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) all[i].job.id = ids[i];
  std::size_t drawn = 0;  // lines of bars on the screen
  steady_clock::time_point last_answer = steady_clock::now();
  bool away = false;
  for (;;) {
    std::vector<std::string> told;
    Result<void> result;
    for (Watched& watched : all) {
      if (watched.job.ended()) continue;
      result = refresh(rest, watched, [&](std::string line) { told.push_back(std::move(line)); });
      if (!result) break;
    }
    if (!result) {
      // Restarts of the coordinator are part of life; anything else is an answer.
      if (result.error().code != ErrorCode::kUnavailable ||
          steady_clock::now() - last_answer > std::chrono::minutes(2))
        return fail(result.error());
      if (!away) told.push_back("the coordinator does not answer; waiting for it");
      away = true;
    } else {
      if (away) told.push_back("the coordinator answers again");
      away = false;
      last_answer = steady_clock::now();
    }
    if (terminal && drawn > 0) std::printf("\x1b[%zuA\x1b[J", drawn);
    drawn = 0;
    for (const std::string& line : told) std::printf("%s\n", line.c_str());
    for (Watched& watched : all) {
      const std::string line = progress_line(watched.job, terminal ? terminal_width() : 0);
      if (terminal) {
        std::printf("%s\n", line.c_str());
        ++drawn;
      } else if (line != watched.printed &&
                 (watched.job.ended() || watched.printed.empty() ||
                  steady_clock::now() - watched.printed_at > std::chrono::seconds(5))) {
        std::printf("%s\n", line.c_str());
        watched.printed = line;
        watched.printed_at = steady_clock::now();
      }
    }
    std::fflush(stdout);
    if (std::all_of(all.begin(), all.end(), [](const Watched& w) { return w.job.ended(); })) break;
    for (int i = 0; i < 10 && !interrupted; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (interrupted) {
      std::fprintf(stderr, "The jobs go on; to see them again: retort job watch");
      for (const Watched& watched : all) std::fprintf(stderr, " %s", watched.job.id.c_str());
      std::fprintf(stderr, "\n");
      return 130;
    }
  }
  for (const Watched& watched : all)
    if (watched.job.state != "succeeded")
      return watched.job.error_code.empty() ? 1 : exit_code(error_code_from(watched.job.error_code));
  return 0;
}

}  // namespace retort::cli
