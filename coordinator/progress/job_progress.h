#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/json.h"

namespace retort {

/// What one watches of a job, gathered from its record and the lines of its log. Thread: one.
struct JobProgress {
  std::string id, name, device_class, state;  ///< state: queued, running, succeeded, failed, cancelled
  std::string error_code, error;
  std::string pass;
  std::uint64_t pass_index = 0, pass_count = 0;  ///< index from 0
  std::uint64_t step = 0, steps = 0, tokens = 0, token_budget = 0;
  double tokens_per_second = 0;
  std::string counts = "tokens";  ///< what tokens and token_budget are: or examples
  std::optional<double> loss, seconds_left;
  /// Of the job's whole way, for the bar; passes count alike.
  double fraction() const;
  bool ended() const { return state == "succeeded" || state == "failed" || state == "cancelled"; }
};

/// Takes a job's record as GET /v1/jobs/{id} shows it.
void apply_record(JobProgress& job, const json::object& record);
/// Takes one event of a worker. Returns what deserves a line of its own for the reader (a pass begins, a
/// figure, a file, a warning); empty when there is nothing.
std::string apply_event(JobProgress& job, const json::object& event);
/// Takes one line of progress.jsonl: an event. A line that is no JSON object is skipped.
std::string apply_log_line(JobProgress& job, std::string_view line);
/// Cut after `width` columns, unless that is 0.
/// "job-12ab… small  [####......]  40 %  distil.soft 2/6  step 40/100  loss 2.318  2.9 k tokens/s  45 s left"
std::string progress_line(const JobProgress& job, std::size_t width);

}  // namespace retort
