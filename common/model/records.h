#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/model/device.h"

/// What the coordinator keeps about each thing; common/wire/records.h turns them into bytes and back.
namespace retort {

struct DeviceRecord {
  std::string id, name, public_key;
  UnixMillis enrolled = 0, last_seen = 0;
  bool revoked = false;
  std::uint64_t epoch = 0;              ///< of its latest session
  std::uint64_t telemetry_batch = 0;    ///< the last one on disk
  std::uint64_t telemetry_dropped = 0;  ///< points that the device had to drop
  DeviceProfile profile;
  DeviceStatus status;
  DesiredState desired;
  bool pending = false;      ///< waits for an operator's accept
  bool rotate_key = false;   ///< is to make itself a new key
  std::string previous_key;  ///< good until the device has come with the new one
  std::string token;         ///< id of the token that it came with
};

struct TeacherRecord {
  std::string id, name;
  UnixMillis imported = 0;
  std::string family;
  std::uint64_t parameters = 0, bytes = 0;
  std::uint32_t vocabulary = 0, context = 0;
};

struct DatasetRecord {
  std::string id, name;
  UnixMillis imported = 0;
  std::uint64_t documents = 0, bytes = 0;
};

struct ArtifactRecord {
  std::string sha256, name;
  UnixMillis created = 0;
  std::uint64_t bytes = 0, parameters = 0;
  double bits_per_weight = 0;
  std::string format, label, job, device_class, teacher;
  std::string evaluation_json;  ///< "" where it was not evaluated
};

struct JobRecord {
  std::string id, name, state;  ///< queued, running, succeeded, failed, cancelled
  std::string device_class, teacher;
  bool assign = true;
  UnixMillis created = 0, started = 0, finished = 0;
  std::uint32_t starts = 0;
  bool cancel_requested = false;
  std::string error_code, error;
  std::vector<std::string> artifacts;
  std::string plan_json;
  std::string rollout_json;  ///< "": what it makes is assigned at once, if at all
};

struct TokenRecord {
  std::string id, kind, name, secret_sha256;
  UnixMillis created = 0, expires = 0;  ///< expires 0: never
  std::int64_t uses_left = -1;          ///< -1: without limit
  /// Device keys (Z85) or hardware ids that may use it; none: any.
  std::vector<std::string> allowed;
  bool manual = false;  ///< devices that come with it wait for an accept
};

/// The answer to a request that had an Idempotency-Key, to be given again.
struct IdempotencyRecord {
  std::string fingerprint;  ///< SHA-256 of method, target and body
  UnixMillis created = 0;
  std::uint16_t status = 0;
  std::string body;  ///< "" where it held a secret
};

}  // namespace retort
