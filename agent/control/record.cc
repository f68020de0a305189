#include "agent/control/record.h"

#include "common/core/json.h"

namespace retort {
namespace {

json::object student_to_json(const SlotStudent& student) {
  return {{"slot", student.slot}, {"artifact", student.artifact}, {"generation", student.generation}};
}

Result<SlotStudent> student_from_json(const json::object& record, std::string_view key) {
  const json::object& object = *RETORT_TRY(json_object(record, key, "machine"));
  SlotStudent student{RETORT_TRY(json_string(object, "slot", key)),
                      RETORT_TRY(json_string(object, "artifact", key)),
                      RETORT_TRY(json_uint(object, "generation", key))};
  if (!student.slot.empty() && student.slot != "a" && student.slot != "b")
    return fail(ErrorCode::kCorrupt, std::string(key), "no slot \"{}\"", student.slot);
  return student;
}

}  // namespace

std::string record_to_json(const AgentRecord& r) {
  return json::serialize(json::object{{"state", to_string(r.state)},
                                      {"active", student_to_json(r.active)},
                                      {"previous", student_to_json(r.previous)},
                                      {"candidate", student_to_json(r.candidate)},
                                      {"desired_generation", r.desired.generation},
                                      {"desired_class", r.desired.device_class},
                                      {"desired_artifact", r.desired.artifact},
                                      {"reached", r.reached},
                                      {"error_code", r.error_code},
                                      {"error", r.error},
                                      {"attempts", r.attempts},
                                      {"candidate_starts", r.candidate_starts}});
}

Result<AgentRecord> record_from_json(std::string_view text) {
  const json::value value = RETORT_TRY(parse_json(text, "machine"));
  const json::object& o = *RETORT_TRY(as_object(value, "machine"));
  AgentRecord r;
  const std::string state = RETORT_TRY(json_string(o, "state", "machine"));
  if (!state_from(state, r.state)) return fail(ErrorCode::kCorrupt, "machine", "no state \"{}\"", state);
  r.active = RETORT_TRY(student_from_json(o, "active"));
  r.previous = RETORT_TRY(student_from_json(o, "previous"));
  r.candidate = RETORT_TRY(student_from_json(o, "candidate"));
  r.desired = {RETORT_TRY(json_uint(o, "desired_generation", "machine")),
               RETORT_TRY(json_string(o, "desired_class", "machine")),
               RETORT_TRY(json_string(o, "desired_artifact", "machine"))};
  r.reached = RETORT_TRY(json_uint(o, "reached", "machine"));
  r.error_code = RETORT_TRY(json_string(o, "error_code", "machine"));
  r.error = RETORT_TRY(json_string(o, "error", "machine"));
  r.attempts = static_cast<std::uint32_t>(RETORT_TRY(json_uint(o, "attempts", "machine", UINT32_MAX)));
  r.candidate_starts =
      static_cast<std::uint32_t>(RETORT_TRY(json_uint(o, "candidate_starts", "machine", UINT32_MAX)));
  return r;
}

std::string other_slot(std::string_view slot) { return slot == "a" ? "b" : "a"; }

void apply_transition(AgentRecord& r, const Transition& row, Event event) {
  const State from = r.state;
  r.state = row.next;
  switch (row.action) {
    case Action::kPull:
      if (event != Event::kDesired) break;
      r.candidate = {other_slot(r.active.slot), r.desired.artifact, r.desired.generation};
      r.attempts = r.candidate_starts = 0;
      r.error_code.clear(), r.error.clear();
      break;
    case Action::kStage:
      if (r.previous.slot == r.candidate.slot) r.previous = {};  // its files are about to be replaced
      break;
    case Action::kStartCandidate:
      ++r.candidate_starts;
      break;
    case Action::kWatch:
      if (event == Event::kStart) ++r.candidate_starts;
      break;
    case Action::kAccept:
      if (from == State::kCommit) {
        r.previous = r.active;
        r.active = r.candidate;
        r.reached = r.candidate.generation;
      } else {
        r.reached = r.desired.generation;
        r.active.generation = r.desired.generation;
      }
      r.candidate = {};
      r.error_code.clear(), r.error.clear();
      break;
    case Action::kStopServing:
      if (!r.active.slot.empty()) r.previous = r.active;
      r.active = r.candidate = {};
      r.reached = r.desired.generation;
      r.error_code.clear(), r.error.clear();
      break;
    case Action::kRestore:
      if (event != Event::kCrashLoop) break;
      r.candidate = r.active;
      r.active = r.previous;
      r.previous = {};
      break;
    case Action::kRecover:
      r.active = r.previous;
      r.previous = r.candidate = {};
      r.reached = 0;
      break;
    case Action::kGiveUp:
      r.reached = r.candidate.generation;
      r.candidate = {};
      break;
    default:
      break;
  }
}

bool supersedes(const AgentRecord& record, const DesiredState& desired) {
  return desired.generation > record.desired.generation;
}

bool desired_event(const AgentRecord& r, Event& event) {
  if (r.state != State::kIdle && r.state != State::kFetch) return false;
  if (r.desired.generation == 0 || r.desired.generation == r.reached) return false;
  if (r.state == State::kFetch && r.candidate.generation == r.desired.generation &&
      r.candidate.artifact == r.desired.artifact)
    return false;
  event = r.desired.artifact.empty()                ? Event::kDesiredNone
          : r.desired.artifact == r.active.artifact ? Event::kDesiredSame
                                                    : Event::kDesired;
  return true;
}

}  // namespace retort
