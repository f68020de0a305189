#pragma once

#include <string_view>

namespace retort {

/// Where an agent is on the way from "desired" to "served". On disk by name: never rename one.
enum class State {
  kProfile,    ///< no identity; the profile is being measured
  kEnrol,      ///< no identity; the coordinator is being asked for one
  kIdle,       ///< serves what it was last told (or nothing)
  kFetch,      ///< brings the candidate's manifest and missing pieces
  kVerify,     ///< hashes the candidate's whole file
  kStage,      ///< puts file and manifest into the other slot
  kProbe,      ///< starts the candidate and asks it something
  kServe,      ///< the candidate takes over, the old one drains
  kProbation,  ///< the candidate must live for a while
  kCommit,     ///< the candidate becomes the student, the old one the previous
  kRollback,   ///< back to the student before, because of a failure
};
enum class Event {
  kStart,        ///< the agent starts, with this state on disk
  kProfiled,     ///< a profile is there
  kEnrolled,     ///< the coordinator gave an identity
  kDesired,      ///< the coordinator wants an artifact that is not the one served
  kDesiredSame,  ///< … the one that is served: nothing to do but to say so
  kDesiredNone,  ///< … nothing served
  kDone,         ///< the state's work is done
  kRetry,        ///< the state's work failed in a way that may pass; the pause is over
  kFailed,       ///< the state's work failed for good
  kCrashLoop,    ///< the served student crashes again and again, and there is a previous one
  kSlotLost,     ///< the file of the student that should be served is not what was put there
};
enum class Action {
  kNone,
  kMeasureProfile,
  kAskEnrolment,
  kPull,
  kHash,
  kStage,
  kStartCandidate,
  kSwitch,
  kWatch,
  kCommit,
  kRestore,  ///< the student before serves again
  kAccept,   ///< the desired generation is reached
  kStopServing,
  kGiveUp,  ///< the desired generation cannot be reached: say why, keep what serves
  kTellProfile,
  kRecover,  ///< the student before serves, where there is one; what is desired is brought here anew
};

struct Transition {
  State state;
  Event event;
  State next;
  Action action;
};

/// The row for (state, event); nullptr: the event means nothing there and is dropped. A newer desired state
/// that comes in probe or later has no row: it is kept, and comes again as soon as the agent is idle; a probe
/// fails because of it.
const Transition* find_transition(State state, Event event);

std::string_view to_string(State state);
std::string_view to_string(Event event);
std::string_view to_string(Action action);
/// False when the name is unknown.
bool state_from(std::string_view name, State& state);

inline constexpr int kStateCount = static_cast<int>(State::kRollback) + 1;
inline constexpr int kEventCount = static_cast<int>(Event::kSlotLost) + 1;

}  // namespace retort
