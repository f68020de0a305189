#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/model/decode_sample.h"

namespace retort {

/// What an agent measured of its device. A figure that could not be measured is 0 or empty, and `notes` says
/// so.
struct DeviceProfile {
  std::string hostname, architecture;  ///< "x86_64", "aarch64"
  std::string cpu_model;
  std::vector<std::string> isa_features;  ///< as /proc/cpuinfo writes them, the ones that matter to kernels
  std::uint32_t cores = 0;                ///< online
  double cpu_allowance = 0;               ///< cores' worth: cgroup quota, affinity, or the declared budget
  std::uint64_t memory_bytes = 0;         ///< of the machine
  std::uint64_t memory_budget_bytes = 0;  ///< the smallest of machine, cgroup limit and declared budget
  std::uint64_t disk_free_bytes = 0;      ///< where the state folder lies, or the declared budget
  double memory_bandwidth_bytes_per_second = 0;  ///< one thread, read, 64 MiB working set (or what fits)
  double matvec_f32_flops = 0;            ///< one thread, F32 matrix-vector product with the runtime's kernel
  double matvec_q8_0_ops = 0;             ///< the same at Q8_0
  std::vector<std::string> accelerators;  ///< "nvidia: …", "dri: …"; empty: none seen
  std::string energy_meter;               ///< "rapl", "hwmon: …", or "" where there is none
  std::string budget_source;  ///< "cgroup", "declared" or "machine": where the memory budget comes from
  std::map<std::string, std::string> labels;  ///< the operator's, from the agent's command line
  std::vector<std::string> notes;
  std::string agent_version;
  std::int32_t utc_offset_minutes = 0;  ///< the device's local time is UTC and so many minutes
  /// How fast its retort-serve generates, with as many threads as it serves with; empty: not measured yet.
  std::vector<DecodeSample> decode;
  bool operator==(const DeviceProfile&) const = default;
};

/// A class of devices: rules that a profile must meet, and what a student for it may cost.
struct DeviceClass {
  std::string name;
  std::int32_t priority = 0;  ///< the matching class of highest priority wins; ties by name
  /// Rules, all of which must hold; absent ones (0, empty) always do.
  std::uint64_t min_memory_bytes = 0, max_memory_bytes = 0;  ///< of memory_budget_bytes; max 0: no limit
  double min_cpu = 0, max_cpu = 0;                           ///< of cpu_allowance
  std::string architecture;
  std::map<std::string, std::string> labels;
  /// Budgets; 0: none stated.
  std::uint64_t artifact_bytes = 0;        ///< of the student's file
  std::uint64_t serving_memory_bytes = 0;  ///< of retort-serve with it
  double p95_token_seconds = 0;
  /// Desired state: which artifact its devices should serve ("" none), and a number that grows with each
  /// change.
  std::string artifact;
  std::uint64_t generation = 0;
  bool operator==(const DeviceClass&) const = default;
};

bool matches(const DeviceClass& device_class, const DeviceProfile& profile);
/// The class a profile falls into; nullptr when none matches.
const DeviceClass* classify(const std::vector<DeviceClass>& classes, const DeviceProfile& profile);

/// Devices in one place, which share a way to them: those whose label "site" has its name.
struct Site {
  std::string name;
  /// HTTP servers near them that have artifacts too, the first one preferred: URL/<first two>/<sha256>.
  std::vector<std::string> mirrors;
  /// What the coordinator sends them of artifacts, all together; 0: no limit.
  std::uint64_t bytes_per_second = 0;
  std::uint32_t transfers = 0;  ///< devices at a time
  bool operator==(const Site&) const = default;
};
/// The name of a device's site: its label "site", or "default".
std::string site_of(const DeviceProfile& profile);

/// What the coordinator wants of a device. Newer generations supersede older ones.
struct DesiredState {
  std::uint64_t generation = 0;
  std::string device_class;
  std::string artifact;  ///< SHA-256 of the file; empty: serve nothing
  bool operator==(const DesiredState&) const = default;
};

/// What a device says of itself.
struct DeviceStatus {
  std::string state;  ///< agent's state machine: "idle", "fetch", "verify", "stage", "probe", "serve", …
  std::uint64_t generation = 0;  ///< the last desired generation that it reached or gave up on
  std::string artifact;          ///< SHA-256 of what it serves; empty: nothing
  std::string serve_url;
  std::string error_code, error;  ///< why `generation` could not be reached; empty when all is well
  std::uint64_t bytes_done = 0, bytes_total = 0;  ///< of a pull under way
  bool operator==(const DeviceStatus&) const = default;
};

/// One measured value. Names are Prometheus-like with base units: "serve_token_seconds_p50",
/// "agent_pss_bytes".
struct TelemetryPoint {
  UnixMillis time = 0;
  std::string metric;
  double value = 0;
  bool operator==(const TelemetryPoint&) const = default;
};

}  // namespace retort
