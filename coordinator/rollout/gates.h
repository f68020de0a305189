#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/core/json.h"
#include "coordinator/rollout/spec.h"

namespace retort {

/// What one device showed during a soak. A value that nobody measured is absent.
struct DeviceSample {
  std::string device;
  bool treated = true;  ///< on the new artifact; else held out
  bool failed = false;  ///< to install, to live through probation, or to be heard
  /// Means over the soak; latencies of the device's own p95 of each report.
  std::optional<double> token_p95_seconds, first_token_p95_seconds, memory_bytes, power_watts;
  std::uint64_t requests = 0, errors = 0;
};

/// Answers of one artifact to the canary's questions; one device's, for all devices with an artifact answer
/// alike.
struct CanaryCount {
  std::uint32_t asked = 0, agreed = 0;
};

struct GateInput {
  std::vector<DeviceSample> devices;
  std::optional<CanaryCount> canary_new, canary_old;
  std::string evaluation_json;  ///< of the new artifact
};

enum class GateVerdict { kPass, kFail, kInsufficient, kNotMeasured };
std::string_view to_string(GateVerdict verdict);

struct GateResult {
  std::string gate;
  GateVerdict verdict = GateVerdict::kPass;
  std::string text;                           ///< the figures that it was judged by
  GateOutcome outcome = GateOutcome::kWiden;  ///< what its verdict asks for
};

/// Judges every gate of `gates` (docs/rollouts.md has the rules). "energy" without a meter is not measured,
/// which stops nothing. Thread: any.
std::vector<GateResult> judge(const RolloutGates& gates, const GateInput& input);
/// The gate that needs no device: "evaluation".
GateResult judge_evaluation(const RolloutGate& gate, const std::string& evaluation_json);

json::array to_json(const std::vector<GateResult>& results);

}  // namespace retort
