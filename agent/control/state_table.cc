#include "agent/control/state_table.h"

#include <array>

namespace retort {
namespace {

using S = State;
using E = Event;
using A = Action;

// Persisted before the action runs; so each action must be harmless to repeat (kStart of the same state).
constexpr Transition kTable[] = {
    // getting an identity
    {S::kProfile, E::kStart, S::kProfile, A::kMeasureProfile},
    {S::kProfile, E::kProfiled, S::kEnrol, A::kAskEnrolment},
    {S::kProfile, E::kSlotLost, S::kProfile, A::kRecover},
    {S::kEnrol, E::kStart, S::kProfile, A::kMeasureProfile},
    {S::kEnrol, E::kProfiled, S::kEnrol, A::kAskEnrolment},
    {S::kEnrol, E::kEnrolled, S::kIdle, A::kNone},
    {S::kEnrol, E::kSlotLost, S::kEnrol, A::kRecover},
    // serving what it has
    {S::kIdle, E::kStart, S::kIdle, A::kMeasureProfile},
    {S::kIdle, E::kProfiled, S::kIdle, A::kTellProfile},
    {S::kIdle, E::kDesired, S::kFetch, A::kPull},
    {S::kIdle, E::kDesiredSame, S::kIdle, A::kAccept},
    {S::kIdle, E::kDesiredNone, S::kIdle, A::kStopServing},
    {S::kIdle, E::kCrashLoop, S::kRollback, A::kRestore},
    {S::kIdle, E::kSlotLost, S::kIdle, A::kRecover},
    // bringing a candidate here; a newer desired state supersedes it
    {S::kFetch, E::kStart, S::kFetch, A::kPull},
    {S::kFetch, E::kProfiled, S::kFetch, A::kTellProfile},
    {S::kFetch, E::kDesired, S::kFetch, A::kPull},
    {S::kFetch, E::kDesiredSame, S::kIdle, A::kAccept},
    {S::kFetch, E::kDesiredNone, S::kIdle, A::kStopServing},
    {S::kFetch, E::kDone, S::kVerify, A::kHash},
    {S::kFetch, E::kRetry, S::kFetch, A::kPull},
    {S::kFetch, E::kFailed, S::kIdle, A::kGiveUp},
    {S::kFetch, E::kSlotLost, S::kIdle, A::kRecover},  // and then pulls anew, into the slot that was lost
    {S::kVerify, E::kStart, S::kVerify, A::kHash},
    {S::kVerify, E::kProfiled, S::kVerify, A::kTellProfile},
    {S::kVerify, E::kDone, S::kStage, A::kStage},
    {S::kVerify, E::kRetry, S::kFetch, A::kPull},
    {S::kVerify, E::kFailed, S::kIdle, A::kGiveUp},
    {S::kStage, E::kStart, S::kVerify, A::kHash},  // a power cut may have taken what was verified
    {S::kStage, E::kProfiled, S::kStage, A::kTellProfile},
    {S::kStage, E::kDone, S::kProbe, A::kStartCandidate},
    {S::kStage, E::kRetry, S::kFetch, A::kPull},
    {S::kStage, E::kFailed, S::kIdle, A::kGiveUp},
    // proving it
    {S::kProbe, E::kStart, S::kProbe, A::kStartCandidate},
    {S::kProbe, E::kProfiled, S::kProbe, A::kTellProfile},
    {S::kProbe, E::kDone, S::kServe, A::kSwitch},
    {S::kProbe, E::kRetry, S::kFetch, A::kPull},  // a power cut took what was staged
    {S::kProbe, E::kFailed, S::kRollback, A::kRestore},
    {S::kServe, E::kStart, S::kServe, A::kSwitch},
    {S::kServe, E::kProfiled, S::kServe, A::kTellProfile},
    {S::kServe, E::kDone, S::kProbation, A::kWatch},
    {S::kServe, E::kRetry, S::kFetch, A::kPull},
    {S::kServe, E::kFailed, S::kRollback, A::kRestore},
    {S::kProbation, E::kStart, S::kProbation, A::kWatch},
    {S::kProbation, E::kProfiled, S::kProbation, A::kTellProfile},
    {S::kProbation, E::kDone, S::kCommit, A::kCommit},
    {S::kProbation, E::kRetry, S::kFetch, A::kPull},
    {S::kProbation, E::kFailed, S::kRollback, A::kRestore},
    {S::kCommit, E::kStart, S::kCommit, A::kCommit},
    {S::kCommit, E::kProfiled, S::kCommit, A::kTellProfile},
    {S::kCommit, E::kDone, S::kIdle, A::kAccept},
    {S::kRollback, E::kStart, S::kRollback, A::kRestore},
    {S::kRollback, E::kProfiled, S::kRollback, A::kTellProfile},
    {S::kRollback, E::kDone, S::kIdle, A::kGiveUp},
};

constexpr std::array<std::string_view, kStateCount> kStates = {"profile",   "enrol",  "idle",    "fetch",
                                                               "verify",    "stage",  "probe",   "serve",
                                                               "probation", "commit", "rollback"};
constexpr std::array<std::string_view, kEventCount> kEvents = {
    "start", "profiled", "enrolled", "desired",    "desired_same", "desired_none",
    "done",  "retry",    "failed",   "crash_loop", "slot_lost"};
constexpr std::array<std::string_view, 16> kActions = {
    "none",         "measure_profile", "ask_enrolment",   "pull",
    "hash",         "stage",           "start_candidate", "switch",
    "watch",        "commit",          "restore",         "accept",
    "stop_serving", "give_up",         "tell_profile",    "recover"};

}  // namespace

const Transition* find_transition(State state, Event event) {
  for (const Transition& row : kTable)
    if (row.state == state && row.event == event) return &row;
  return nullptr;
}

std::string_view to_string(State state) { return kStates[static_cast<std::size_t>(state)]; }
std::string_view to_string(Event event) { return kEvents[static_cast<std::size_t>(event)]; }
std::string_view to_string(Action action) { return kActions[static_cast<std::size_t>(action)]; }

bool state_from(std::string_view name, State& state) {
  for (std::size_t i = 0; i < kStates.size(); ++i)
    if (kStates[i] == name) {
      state = static_cast<State>(i);
      return true;
    }
  return false;
}

}  // namespace retort
