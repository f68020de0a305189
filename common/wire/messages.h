#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/core/result.h"
#include "common/model/device.h"

namespace retort::wire {

/// The protocol's version; both sides accept their own and its neighbours (schemas/EVOLUTION.md).
inline constexpr std::uint16_t kProtocolVersion = 1;
/// Largest frame either side accepts.
inline constexpr std::size_t kMaxFrameBytes = 2u << 20;
/// Payload bytes of a chunk at most.
inline constexpr std::uint32_t kMaxChunkBytes = 256u << 10;

// Device to coordinator
// -------------------------------------------------------------------------------------------

/// First message of a session by a device that has no identity yet. The CURVE key of the connection becomes
/// its key.
struct Enrol {
  std::string token_secret;
  std::string name;
  DeviceProfile profile;
  std::string hardware_id;  ///< what the device calls itself, for pre-authorised tokens
};
/// First message of a session by an enrolled device. `epoch` of the envelope is new and larger than any
/// before.
struct Hello {
  std::string device_id;
  std::string agent_version;
  DeviceStatus status;
  std::uint64_t generation = 0;  ///< the newest that it was ever assigned
};
struct ProfileUpdate {
  DeviceProfile profile;
};
struct StatusReport {
  DeviceStatus status;
};
/// Jittered; carries the status's digest only, so that an idle device costs little.
struct Heartbeat {
  std::uint64_t generation = 0;
};
/// A file of the trust repository by its name, from `offset`.
struct MetadataRequest {
  std::string name;
  std::uint64_t offset = 0;
};
/// A new CURVE key for this device, over the session of the present one. `proof`: make_key_proof() of
/// common/net/key_proof.h.
struct KeyRotation {
  std::string public_key;
  std::string proof;
};
/// At most kMaxChunkBytes of an artifact, from `offset`. A device keeps at most its credit of these in
/// flight.
struct ChunkRequest {
  std::string artifact;
  std::uint64_t offset = 0;
  std::uint32_t length = 0;
};
/// Batches that a device may have sent and not seen acknowledged.
inline constexpr std::size_t kMaxBatchesInFlight = 8;
/// Deduplicated by (device, batch): batch numbers grow for ever, across epochs, and may leave some out.
struct TelemetryBatch {
  std::uint64_t batch = 0;
  std::uint64_t dropped_before = 0;
  std::vector<TelemetryPoint> points;
  /// The batch in flight before it, 0 if there is none: when that one is not on record, it was lost, and this
  /// one is not taken.
  std::uint64_t follows = 0;
};

/// How often the student's next token was the teacher's.
struct CanaryResult {
  std::string id, artifact;
  std::uint32_t asked = 0, agreed = 0;
};

// Coordinator to device
// -------------------------------------------------------------------------------------------

struct Enrolled {
  std::string device_id;
  std::string root; /* root metadata: trust on first use, inside CURVE */
};
struct Welcome {
  std::uint32_t heartbeat_millis = 0;
  std::uint32_t chunk_credit = 0;
  UnixMillis coordinator_time = 0;
  std::uint64_t telemetry_acknowledged = 0;
};
/// `assignment`: what the state is believed by (common/trust/metadata.h); the rest is for logs.
struct Desired {
  DesiredState desired;
  std::string assignment;
  std::vector<std::string> mirrors;  ///< HTTP addresses that may have the artifact too; believed in nothing
};
/// Bytes of a file of the trust repository; at most kMaxChunkBytes, and none where it ends.
struct Metadata {
  std::string name;
  std::uint64_t offset = 0, total = 0;
  std::string bytes;
};
/// The device is to make itself a new key, and answer with KeyRotation.
struct RotateKey {};
/// The key that a device sent is on record; it comes with it from now on.
struct KeyRotated {
  std::string public_key;
};
struct Chunk {
  std::string artifact;
  std::uint64_t offset = 0;
  std::string bytes;
};
/// What was asked for of this artifact waits for its turn, and the device hears of it again within so many
/// milliseconds.
struct ChunkWait {
  std::string artifact;
  std::uint32_t millis = 0;
};
/// On disk at the coordinator: the device may forget this batch and all before it.
struct TelemetryAck {
  std::uint64_t batch = 0;
};
/// Overload: come back after this long.
struct ComeBack {
  std::uint32_t after_millis = 0;
};

/// Questions for the student that serves `artifact`, with the teacher's answers: greedy, one token each.
/// Texts are from the operator's data, never a user's.
struct Canary {
  struct Question {
    std::string prompt, answer;
  };
  std::string id, artifact;
  std::vector<Question> questions;
};

// Either way
// --------------------------------------------------------------------------------------------------------

/// A request could not be met; `about` names it ("enrol", "chunk <sha256>").
struct Refused {
  std::string about;
  std::string code;
  std::string message;
};
/// Answer to a message kind that the receiver does not know; never a dropped connection.
struct Unsupported {
  std::uint16_t kind = 0;
};

using Payload =
    std::variant<Enrol, Hello, ProfileUpdate, StatusReport, Heartbeat, ChunkRequest, TelemetryBatch, Enrolled,
                 Welcome, Desired, Chunk, TelemetryAck, ComeBack, Refused, Unsupported, Canary, CanaryResult,
                 MetadataRequest, Metadata, KeyRotation, KeyRotated, RotateKey, ChunkWait>;

/// One frame: at least once, deduplicated by (device, epoch, sequence).
struct Envelope {
  std::uint16_t version = kProtocolVersion;
  std::uint64_t epoch = 0;         ///< the device's session; the coordinator echoes it
  std::uint64_t sequence = 0;      ///< from 1 in each direction and epoch
  std::uint64_t acknowledged = 0;  ///< the highest sequence of the other side seen without a gap
  Payload payload;
};

/// Cap'n Proto bytes of an envelope (schemas/envelope.capnp).
std::string encode(const Envelope& envelope);
/// Of untrusted bytes: any alignment, size, nesting and counts are checked. kCorrupt, kOutOfBudget (too
/// large), and for an unknown payload kind an Envelope that holds Unsupported{kind}.
Result<Envelope> decode(std::string_view frame);

}  // namespace retort::wire
