#include "agent/serve/http/metrics.h"

#include <fmt/format.h>

namespace retort {

void ServeMetrics::Histogram::observe(double value) {
  for (std::size_t i = 0; i < kBounds.size(); ++i)
    if (value <= kBounds[i]) ++below[i];
  ++count;
  sum += value;
}

void ServeMetrics::Histogram::print(std::string& out, const std::string& name,
                                    const std::string& help) const {
  out += fmt::format("# HELP {0} {1}\n# TYPE {0} histogram\n", name, help);
  for (std::size_t i = 0; i < kBounds.size(); ++i)
    out += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name, kBounds[i], below[i]);
  out += fmt::format("{0}_bucket{{le=\"+Inf\"}} {1}\n{0}_sum {2}\n{0}_count {1}\n", name, count, sum);
}

void ServeMetrics::count_request(int status) {
  const std::lock_guard lock(mutex_);
  ++requests_[status];
}
void ServeMetrics::count_tokens(std::uint64_t prompt, std::uint64_t generated) {
  const std::lock_guard lock(mutex_);
  prompt_tokens_ += prompt;
  generated_tokens_ += generated;
}
void ServeMetrics::observe_first_token(double seconds) {
  const std::lock_guard lock(mutex_);
  first_token_.observe(seconds);
}
void ServeMetrics::observe_token(double seconds) {
  const std::lock_guard lock(mutex_);
  token_.observe(seconds);
}
void ServeMetrics::observe_classification(std::uint64_t inputs, double seconds) {
  const std::lock_guard lock(mutex_);
  inputs_ += inputs;
  classification_.observe(seconds);
}

std::string ServeMetrics::text(std::size_t queue_depth, std::uint64_t resident_bytes) const {
  const std::lock_guard lock(mutex_);
  std::string out =
      "# HELP retort_serve_requests_total Answers by HTTP status.\n# TYPE retort_serve_requests_total "
      "counter\n";
  for (const auto& [status, count] : requests_)
    out += fmt::format("retort_serve_requests_total{{code=\"{}\"}} {}\n", status, count);
  const auto single = [&](const char* name, const char* type, const char* help, std::uint64_t value) {
    out += fmt::format("# HELP {0} {2}\n# TYPE {0} {1}\n{0} {3}\n", name, type, help, value);
  };
  single("retort_serve_prompt_tokens_total", "counter", "Prompt tokens computed or reused.", prompt_tokens_);
  single("retort_serve_generated_tokens_total", "counter", "Tokens generated.", generated_tokens_);
  single("retort_serve_inputs_total", "counter", "Inputs classified.", inputs_);
  single("retort_serve_queue_depth", "gauge", "Requests that wait.", queue_depth);
  single("retort_serve_resident_bytes", "gauge", "Resident memory of this process.", resident_bytes);
  first_token_.print(out, "retort_serve_first_token_seconds",
                     "From the start of a request's computation to its first token.");
  token_.print(out, "retort_serve_token_seconds", "Per generated token after the first.");
  classification_.print(out, "retort_serve_classification_seconds", "Per batch of inputs classified.");
  return out;
}

}  // namespace retort
