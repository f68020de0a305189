#pragma once

#include <string_view>

namespace retort {

/// Where a rollout is in one class. On disk by name: never rename one.
enum class TrackState {
  kPreparing,    ///< the canary's answers are got from the teacher, what can be judged beforehand is judged
  kRolling,      ///< the stage's devices are told, as their windows open, and settle
  kSoaking,      ///< they serve for a while; then the gates judge
  kPaused,       ///< by a gate, a deadline or an operator
  kRollingBack,  ///< the devices that were told go back to what their class serves
  kCompleted,    ///< the class's artifact is the new one
  kRolledBack,   ///< the class's artifact is the old one, all that was said and done
  kAborted,      ///< stopped where it was: devices keep what they have
  kSuperseded,   ///< a newer rollout or assignment took its place
};
enum class TrackEvent {
  kReady,            ///< preparation is done, and what was judged beforehand passed
  kSettled,          ///< every device of the stage is updated or has failed
  kPassed,           ///< the gates passed, and there are more stages
  kPassedLast,       ///< … and this was the last one
  kGatePause,        ///< a gate failed, or a deadline passed
  kGateRollBack,     ///< a gate failed that rolls back
  kPause,            ///< an operator's
  kResumePreparing,  ///< an operator's; what the pause interrupted
  kResumeRolling,
  kResumeSoaking,
  kAbort,
  kRollBack,  ///< an operator's
  kReturned,  ///< every device is back, or has failed to come back in time
  kSupersede,
};
enum class TrackAction {
  kNone,
  kPrepare,
  kBeginStage,  ///< choose the next stage's devices
  kRetry,       ///< the stage's devices that failed are told once more
  kSoak,        ///< start the soak's clock
  kGoBack,
  kComplete,  ///< the class's artifact becomes the new one; every override ends
  kEnd,
};

struct TrackTransition {
  TrackState state;
  TrackEvent event;
  TrackState next;
  TrackAction action;
};

/// The row for (state, event); nullptr: it means nothing there (an operator is told so).
const TrackTransition* find_track_transition(TrackState state, TrackEvent event);
bool is_final(TrackState state);

std::string_view to_string(TrackState state);
std::string_view to_string(TrackEvent event);
/// False when the name is unknown.
bool track_state_from(std::string_view name, TrackState& state);

inline constexpr int kTrackStateCount = static_cast<int>(TrackState::kSuperseded) + 1;
inline constexpr int kTrackEventCount = static_cast<int>(TrackEvent::kSupersede) + 1;

}  // namespace retort
