#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "agent/control/state_table.h"
#include "common/core/error.h"
#include "common/core/result.h"
#include "common/model/device.h"

namespace retort {

/// A student in a slot.
struct SlotStudent {
  std::string slot;  ///< "a", "b"; empty: none
  std::string artifact;
  std::uint64_t generation = 0;  ///< that asked for it
  bool operator==(const SlotStudent&) const = default;
};

/// All that the state machine must know after a crash. On disk as JSON under the key "machine".
struct AgentRecord {
  State state = State::kProfile;
  SlotStudent active, previous, candidate;
  DesiredState desired;
  std::uint64_t reached = 0;  ///< the last generation that was reached or given up on
  std::string error_code, error;
  std::uint32_t attempts = 0;          ///< failures to bring the candidate here
  std::uint32_t candidate_starts = 0;  ///< a candidate that takes the machine down is not tried for ever
  bool operator==(const AgentRecord&) const = default;
};

std::string record_to_json(const AgentRecord& record);
Result<AgentRecord> record_from_json(std::string_view text);
/// The slot that a new candidate goes to: the one that is not served.
std::string other_slot(std::string_view slot);

/// Changes the record as the row says, before it goes to disk and the action runs.
void apply_transition(AgentRecord& record, const Transition& row, Event event);
/// Which event the desired state means for the record; false: none, for it is reached or under way.
bool desired_event(const AgentRecord& record, Event& event);
/// True when this desired state supersedes the record's: an older generation never comes back [rollback].
bool supersedes(const AgentRecord& record, const DesiredState& desired);

}  // namespace retort
