#include "coordinator/rollout/track_table.h"

#include <array>

namespace retort {
namespace {

using S = TrackState;
using E = TrackEvent;
using A = TrackAction;

// On disk, with what the action changes in records, before devices hear of it; after a crash they are told
// again.
constexpr TrackTransition kTable[] = {
    {S::kPreparing, E::kReady, S::kRolling, A::kBeginStage},
    {S::kPreparing, E::kGatePause, S::kPaused, A::kNone},
    {S::kPreparing, E::kGateRollBack, S::kRolledBack, A::kEnd},
    {S::kPreparing, E::kPause, S::kPaused, A::kNone},
    {S::kPreparing, E::kAbort, S::kAborted, A::kEnd},
    {S::kPreparing, E::kRollBack, S::kRolledBack, A::kEnd},
    {S::kPreparing, E::kSupersede, S::kSuperseded, A::kEnd},

    {S::kRolling, E::kSettled, S::kSoaking, A::kSoak},
    {S::kRolling, E::kGatePause, S::kPaused, A::kNone},
    {S::kRolling, E::kGateRollBack, S::kRollingBack, A::kGoBack},
    {S::kRolling, E::kPause, S::kPaused, A::kNone},
    {S::kRolling, E::kAbort, S::kAborted, A::kEnd},
    {S::kRolling, E::kRollBack, S::kRollingBack, A::kGoBack},
    {S::kRolling, E::kSupersede, S::kSuperseded, A::kEnd},

    {S::kSoaking, E::kPassed, S::kRolling, A::kBeginStage},
    {S::kSoaking, E::kPassedLast, S::kCompleted, A::kComplete},
    {S::kSoaking, E::kGatePause, S::kPaused, A::kNone},
    {S::kSoaking, E::kGateRollBack, S::kRollingBack, A::kGoBack},
    {S::kSoaking, E::kPause, S::kPaused, A::kNone},
    {S::kSoaking, E::kAbort, S::kAborted, A::kEnd},
    {S::kSoaking, E::kRollBack, S::kRollingBack, A::kGoBack},
    {S::kSoaking, E::kSupersede, S::kSuperseded, A::kEnd},

    {S::kPaused, E::kResumePreparing, S::kPreparing, A::kPrepare},
    {S::kPaused, E::kResumeRolling, S::kRolling, A::kRetry},
    {S::kPaused, E::kResumeSoaking, S::kSoaking, A::kSoak},
    {S::kPaused, E::kReady, S::kRolling, A::kBeginStage},       // resumed past the gates
    {S::kPaused, E::kPassed, S::kRolling, A::kBeginStage},      // likewise
    {S::kPaused, E::kPassedLast, S::kCompleted, A::kComplete},  // likewise
    {S::kPaused, E::kAbort, S::kAborted, A::kEnd},
    {S::kPaused, E::kRollBack, S::kRollingBack, A::kGoBack},
    {S::kPaused, E::kSupersede, S::kSuperseded, A::kEnd},

    {S::kRollingBack, E::kReturned, S::kRolledBack, A::kEnd},
    {S::kRollingBack, E::kSupersede, S::kSuperseded, A::kEnd},

    // An aborted rollout's devices can still be brought back.
    {S::kAborted, E::kRollBack, S::kRollingBack, A::kGoBack},
};

constexpr std::array<std::string_view, kTrackStateCount> kStates = {
    "preparing", "rolling",     "soaking", "paused",    "rolling_back",
    "completed", "rolled_back", "aborted", "superseded"};
constexpr std::array<std::string_view, kTrackEventCount> kEvents = {
    "ready",          "settled",   "passed",           "passed_last",    "gate_pause",
    "gate_roll_back", "pause",     "resume_preparing", "resume_rolling", "resume_soaking",
    "abort",          "roll_back", "returned",         "supersede"};

}  // namespace

const TrackTransition* find_track_transition(TrackState state, TrackEvent event) {
  for (const TrackTransition& row : kTable)
    if (row.state == state && row.event == event) return &row;
  return nullptr;
}

bool is_final(TrackState state) {
  return state == S::kCompleted || state == S::kRolledBack || state == S::kAborted || state == S::kSuperseded;
}

std::string_view to_string(TrackState state) { return kStates[static_cast<std::size_t>(state)]; }
std::string_view to_string(TrackEvent event) { return kEvents[static_cast<std::size_t>(event)]; }

bool track_state_from(std::string_view name, TrackState& state) {
  for (std::size_t i = 0; i < kStates.size(); ++i)
    if (kStates[i] == name) {
      state = static_cast<TrackState>(i);
      return true;
    }
  return false;
}

}  // namespace retort
