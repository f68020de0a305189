#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/core/result.h"
#include "common/http/http.h"

namespace retort {

/// One request to retort-serve on this machine, blocking, at most `timeout` in all and 1 MiB of answer.
/// Thread: any but the reactor.
Result<HttpResponse> ask_serve(const std::string& host, std::uint16_t port, std::string_view method,
                               std::string_view target, std::string_view json_body,
                               std::chrono::milliseconds timeout);

/// /health answers 200, and for this artifact where it says so.
Result<void> check_health(const std::string& host, std::uint16_t port, const std::string& artifact,
                          std::chrono::milliseconds timeout);
/// Asks for what the model is there for, which /v1/models tells: four tokens, a vector of an encoder, or the
/// class of an input of zeros of a classifier of tensors. There must be an answer, in finite time.
/// kOutOfBudget: it says that it is too busy.
Result<void> check_answer(const std::string& host, std::uint16_t port, std::chrono::milliseconds timeout);
/// What the model writes after a prompt, greedily. kUnavailable: it did not answer, or is too busy to.
Result<std::string> complete(const std::string& host, std::uint16_t port, std::string_view prompt,
                             std::uint32_t max_tokens, std::chrono::milliseconds timeout);
/// The answers that /metrics' text counts: all, and those with a status of 500 or more.
struct RequestCounts {
  double all = 0, errors = 0;
};
std::optional<RequestCounts> parse_requests(std::string_view metrics);

/// A Prometheus histogram of /metrics' text, summed over its label sets.
struct Histogram {
  std::vector<std::pair<double, double>> buckets;  ///< upper bound, cumulative count; ascending
  double sum = 0, count = 0;
};
std::optional<Histogram> parse_histogram(std::string_view metrics, std::string_view name);
/// The quantile of what came between two scrapes, interpolated inside its bucket; nothing when nothing came.
std::optional<double> quantile_between(const Histogram& before, const Histogram& now, double quantile);

}  // namespace retort
