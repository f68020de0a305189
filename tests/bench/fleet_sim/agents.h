#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace retort::sim {

/// What a shard (a process of many devices) needs to know before its first command.
struct ShardOptions {
  std::string endpoint;        ///< of the fleet link
  std::string server_key;      ///< the coordinator's, Z85
  std::string token_secret;    ///< an enrolment token's
  std::string folder;          ///< pulled artifacts are written here, and removed
  std::size_t first = 0;       ///< number of its first device
  std::size_t labelled = 0;    ///< devices that have the label pull=yes
  std::size_t label_each = 1;  ///< they are the first of every so many, so that all processes have some
  double loss = 0;             ///< share of frames that vanish, each way
  std::chrono::milliseconds delay{0};  ///< of each frame, each way, and up to as much again by chance
  std::uint64_t seed = 1;
};

/// Runs devices until `descriptor` closes. Each has the agent's own link session, client of trust and pull
/// plan, over a CURVE link of its own; what it would keep on disk is in memory, it measures no profile and
/// serves nothing. Commands come as JSON lines on `descriptor`, each is answered with one:
///   {"do": "join", "count": n, "per_second": r}   n devices enrol and open sessions
///   {"do": "want", "artifact": sha256}            from now on it counts who is told so, and who has it whole
///   {"do": "telemetry", "batches": n, "points": p}   each device sends n batches, at most 8 unanswered
///   {"do": "storm"}                               all links are cut and opened again, at once
///   {"do": "silence", "count": n}                 the last n devices fall silent, their links stay open
///   {"do": "churn", "per_second": r}              r devices a second lose their link and come back in 0–10 s
///   {"do": "report"}                              counters
///   {"do": "times", "of": "told"|"done"|"up"}     milliseconds on the monotonic clock, one a device
///   {"do": "silent"}                              ids of the silent devices
/// Thread: the caller's, and libzmq's.
int run_shard(int descriptor, const ShardOptions& options);

}  // namespace retort::sim
