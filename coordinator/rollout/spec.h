#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/core/json.h"

namespace retort {

/// How many devices of each class a stage brings the rollout to, counting those of earlier stages.
struct RolloutStage {
  std::uint32_t count = 0;                    ///< devices; 0: not stated
  double percent = 0;                         ///< of the class's devices that are not held out; 0: not stated
  std::map<std::string, std::string> labels;  ///< devices with all of these; empty: not stated
  std::optional<std::chrono::seconds> soak;   ///< in place of the rollout's
};

/// When devices may be told: from one minute of the day to another (past midnight when `to` is not later).
struct MaintenanceWindow {
  std::uint32_t from_minute = 0, to_minute = 0;
  std::vector<std::uint32_t> days;  ///< 0 Sunday … 6 Saturday, of the day it begins; empty: every day
  bool device_time = false;         ///< in each device's local time; else UTC
};
/// True when `now` lies in one of the windows, or there are none.
bool in_window(const std::vector<MaintenanceWindow>& windows, UnixMillis now,
               std::int32_t utc_offset_minutes);

enum class GateOutcome { kPause, kRollBack, kWiden };

/// One gate. What is not stated is not judged.
struct RolloutGate {
  std::optional<double> max, min;              ///< limits of the value, in the gate's unit
  std::optional<double> max_increase_percent;  ///< over the holdout
  std::optional<double> alpha;                 ///< level of the test against the holdout
  bool mann_whitney = false;                   ///< else Welch's t
  std::uint32_t min_devices = 2;               ///< a side, for a test over devices
  std::uint32_t min_samples = 20;              ///< a side, for a test over requests or questions
  std::string metric;                          ///< "evaluation" only: a member of the artifact's evaluation
  GateOutcome on_fail = GateOutcome::kPause, on_insufficient = GateOutcome::kPause;
};

/// Names of gates: "install", "token_latency", "first_token_latency", "errors", "memory", "energy", "canary",
/// "evaluation".
using RolloutGates = std::map<std::string, RolloutGate>;

/// What an operator asks for; docs/rollouts.md explains the members.
struct RolloutSpec {
  std::string name;
  std::map<std::string, std::string> classes;  ///< class: artifact
  std::vector<RolloutStage> stages;
  std::uint32_t holdout_count = 0;
  double holdout_percent = 0;
  std::chrono::seconds soak{600};
  std::chrono::seconds install_deadline{3600};  ///< from being told to being updated
  std::chrono::seconds silence{600};           ///< an updated device that is not heard for so long has failed
  std::chrono::seconds sample_deadline{3600};  ///< after a soak: how long gates wait for enough samples
  std::chrono::seconds deadline{14 * 86400};   ///< of a stage, its windows included
  std::vector<MaintenanceWindow> windows;
  RolloutGates gates;
  std::string canary_dataset;  ///< empty: no canary
  std::uint32_t canary_prompts = 32;
  bool supersede = false;
};

/// kInvalid names the member. Artifacts and classes are not looked up here.
Result<RolloutSpec> parse_rollout_spec(const json::object& body, std::string_view where);

}  // namespace retort
