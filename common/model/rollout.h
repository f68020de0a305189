#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/core/clock.h"

/// What the coordinator keeps about rollouts; common/wire/records.h turns them into bytes and back.
namespace retort {

/// A rollout in one class of devices. States are in coordinator/rollout/track_table.h; on disk by name.
struct RolloutTrack {
  std::string device_class;
  std::string artifact;  ///< where the class goes to
  std::string before;    ///< what the class was to serve when the rollout began; "": nothing
  std::string state;
  std::string paused_from;    ///< the state that a pause interrupted
  std::string reason;         ///< why it is in this state, for people
  std::uint32_t stage = 0;    ///< from 0
  UnixMillis since = 0;       ///< when it entered the state
  UnixMillis soak_until = 0;  ///< while soaking: when the gates judge
  bool in_force = false;      ///< its devices are to serve `artifact`, whatever their class says
  std::string gates_json;     ///< the last judgement, as REST shows it; "": none yet
  bool operator==(const RolloutTrack&) const = default;
};

struct RolloutRecord {
  std::string id, name;
  UnixMillis created = 0;
  std::string spec_json;    ///< as it was asked for, checked
  std::string canary_json;  ///< prompts with the teacher's answers; "": none (yet)
  std::vector<RolloutTrack> tracks;
  std::uint64_t events = 0;  ///< so many were noted
};

/// A device that a rollout has chosen.
struct RolloutMember {
  std::string rollout, device, device_class;
  bool holdout = false;                ///< stays on what it has, to be compared with
  std::uint32_t stage = 0;             ///< that chose it
  std::string state;                   ///< "holdout", "waiting", "told", "updated", "failed", "returning",
                                       ///< "returned", "left" (its class, or revoked)
  UnixMillis told = 0, settled = 0;    ///< told: its deadline counts from here
  std::uint64_t after_generation = 0;  ///< it was told with a desired generation above this one
  std::string error_code, error;
  std::string canary_artifact;  ///< that the canary's answers are of; "": no answer yet
  std::uint32_t canary_asked = 0, canary_agreed = 0;
  bool operator==(const RolloutMember&) const = default;
};

struct RolloutEvent {
  std::string rollout;
  std::uint64_t sequence = 0;  ///< from 1
  UnixMillis time = 0;
  std::string device_class, state, text;
};

}  // namespace retort
