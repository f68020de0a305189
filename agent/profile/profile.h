#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/json.h"
#include "common/core/result.h"
#include "common/model/device.h"

namespace retort {

/// What the operator declares on the agent's command line; 0: not declared. A declared budget can only lower
/// what the machine and its cgroup allow.
struct DeclaredBudgets {
  std::uint64_t memory_bytes = 0;
  double cpu_threads = 0;
  std::uint64_t disk_bytes = 0;
};

struct ProfileOptions {
  DeclaredBudgets budgets;
  std::filesystem::path state_folder = ".";         ///< whose file system's free space counts
  std::chrono::milliseconds time_per_measure{100};  ///< for each of the three measurements
  std::map<std::string, std::string> labels;
  std::string version;
  /// retort-serve, which is asked how fast it generates (some seconds on all allowed threads); empty: it is
  /// not.
  std::filesystem::path serve_binary;
};

/// Looks at this machine and measures it; takes about three times `time_per_measure` on one core, and what
/// `serve_binary` takes. Never fails: what cannot be had is 0 or empty and noted. Thread: any, but alone, or
/// the figures are too low.
DeviceProfile measure_profile(const ProfileOptions& options);

/// Local time is UTC and so many minutes, now.
std::int32_t utc_offset_minutes();

/// Power as the machine's meter has it: RAPL's packages (energy between two calls) or hwmon's inputs (now).
/// Thread: one at a time.
class PowerMeter {
 public:
  /// Watts since the call before, or now; nothing: no meter that may be read, or the first call.
  std::optional<double> watts(std::chrono::steady_clock::time_point now);

 private:
  std::optional<std::pair<double, std::chrono::steady_clock::time_point>> before_;  ///< joules, when
};

/// CPU model of /proc/cpuinfo's text: x86's "model name", ARM's "Model", or implementer and part.
std::string parse_cpu_model(std::string_view cpuinfo);
/// The features that matter to kernels, of "flags" (x86) or "Features" (ARM), sorted.
std::vector<std::string> parse_isa_features(std::string_view cpuinfo);
/// MemTotal of /proc/meminfo's text in bytes; 0 when it is not there.
std::uint64_t parse_memory_total(std::string_view meminfo);
/// "nvidia: MODEL" from the text of /proc/driver/nvidia/gpus/*/information.
std::string parse_nvidia_information(std::string_view information);

json::value profile_to_json(const DeviceProfile& profile);
/// kInvalid names the member that is wrong.
Result<DeviceProfile> profile_from_json(const json::value& value, std::string_view where);

/// True when a coordinator should hear of it: anything but the measured speeds differs, or one of those by
/// more than a third.
bool worth_telling(const DeviceProfile& before, const DeviceProfile& now);

}  // namespace retort
