#include <gtest/gtest.h>

#include <map>
#include <set>

#include "agent/control/record.h"
#include "agent/control/state_table.h"
#include "tests/support/support.h"

namespace retort {
namespace {

// The whole machine: a line a state, a word an event, in the order of Event:
//   start profiled enrolled desired desired_same desired_none done retry failed crash_loop slot_lost
// Each word is next:action, or "-" where the event is dropped.
constexpr const char* kExpected[] = {
    "profile   profile:measure_profile enrol:ask_enrolment - - - - - - - - profile:recover",
    "enrol     profile:measure_profile enrol:ask_enrolment idle:none - - - - - - - enrol:recover",
    "idle      idle:measure_profile idle:tell_profile - fetch:pull idle:accept idle:stop_serving - - - "
    "rollback:restore idle:recover",
    "fetch     fetch:pull fetch:tell_profile - fetch:pull idle:accept idle:stop_serving verify:hash "
    "fetch:pull idle:give_up - idle:recover",
    "verify    verify:hash verify:tell_profile - - - - stage:stage fetch:pull idle:give_up - -",
    "stage     verify:hash stage:tell_profile - - - - probe:start_candidate fetch:pull idle:give_up - -",
    "probe     probe:start_candidate probe:tell_profile - - - - serve:switch fetch:pull rollback:restore - -",
    "serve     serve:switch serve:tell_profile - - - - probation:watch fetch:pull rollback:restore - -",
    "probation probation:watch probation:tell_profile - - - - commit:commit fetch:pull rollback:restore - -",
    "commit    commit:commit commit:tell_profile - - - - idle:accept - - - -",
    "rollback  rollback:restore rollback:tell_profile - - - - idle:give_up - - - -",
};

TEST(StateTable, EveryStateAndEventIsListed) {
  ASSERT_EQ(std::size(kExpected), static_cast<std::size_t>(kStateCount));
  for (const std::string_view line : kExpected) {
    std::vector<std::string> words;
    for (std::size_t i = 0; i < line.size();) {
      const std::size_t end = std::min(line.find(' ', i), line.size());
      if (end > i) words.emplace_back(line.substr(i, end - i));
      i = end + 1;
    }
    ASSERT_EQ(words.size(), static_cast<std::size_t>(kEventCount) + 1) << line;
    State state{};
    ASSERT_TRUE(state_from(words[0], state)) << line;
    for (int event = 0; event < kEventCount; ++event) {
      const Transition* row = find_transition(state, static_cast<Event>(event));
      const std::string found =
          row == nullptr ? "-"
                         : std::string(to_string(row->next)) + ":" + std::string(to_string(row->action));
      EXPECT_EQ(found, words[static_cast<std::size_t>(event) + 1])
          << words[0] << " + " << to_string(static_cast<Event>(event));
    }
  }
}

TEST(StateTable, ARestartRepeatsTheStatesWork) {
  for (int s = 0; s < kStateCount; ++s) {
    const Transition* row = find_transition(static_cast<State>(s), Event::kStart);
    ASSERT_NE(row, nullptr);
    // Enrolment begins elsewhere, for the profile it carries is not kept, and staging, which wants a verified
    // file.
    if (static_cast<State>(s) != State::kEnrol && static_cast<State>(s) != State::kStage) {
      EXPECT_EQ(row->next, row->state);
    }
    EXPECT_NE(row->action, Action::kNone);
  }
}

AgentRecord serving() {
  AgentRecord r;
  r.state = State::kIdle;
  r.active = {"a", "old", 3};
  r.desired = {3, "small", "old"};
  r.reached = 3;
  return r;
}

void go(AgentRecord& r, Event event) {
  const Transition* row = find_transition(r.state, event);
  ASSERT_NE(row, nullptr) << to_string(r.state) << " + " << to_string(event);
  apply_transition(r, *row, event);
}

TEST(Record, AWholeUpdate) {
  AgentRecord r = serving();
  Event event;
  EXPECT_FALSE(desired_event(r, event));
  r.desired = {4, "small", "new"};
  ASSERT_TRUE(desired_event(r, event));
  EXPECT_EQ(event, Event::kDesired);
  go(r, event);
  EXPECT_EQ(r.state, State::kFetch);
  EXPECT_EQ(r.candidate, (SlotStudent{"b", "new", 4}));
  EXPECT_FALSE(desired_event(r, event)) << "the same desired state again changes nothing";
  for (int i = 0; i < 6; ++i) go(r, Event::kDone);  // verify stage probe serve probation commit
  EXPECT_EQ(r.state, State::kCommit);
  EXPECT_EQ(r.active.artifact, "old") << "not before it is committed";
  go(r, Event::kDone);
  EXPECT_EQ(r.state, State::kIdle);
  EXPECT_EQ(r.active, (SlotStudent{"b", "new", 4}));
  EXPECT_EQ(r.previous, (SlotStudent{"a", "old", 3}));
  EXPECT_EQ(r.candidate, SlotStudent());
  EXPECT_EQ(r.reached, 4u);
}

TEST(Record, EveryFailureKeepsTheOldStudent) {
  for (int steps = 0; steps <= 5; ++steps) {
    AgentRecord r = serving();
    r.desired = {4, "small", "new"};
    go(r, Event::kDesired);
    for (int i = 0; i < steps; ++i) go(r, Event::kDone);
    r.error_code = "corrupt";
    go(r, Event::kFailed);
    if (r.state == State::kRollback) go(r, Event::kDone);
    EXPECT_EQ(r.state, State::kIdle);
    EXPECT_EQ(r.active, (SlotStudent{"a", "old", 3}));
    EXPECT_EQ(r.reached, 4u);
    EXPECT_EQ(r.error_code, "corrupt");
    Event event;
    EXPECT_FALSE(desired_event(r, event)) << "what was given up on is not tried again";
    r.desired.generation = 5;
    EXPECT_TRUE(desired_event(r, event)) << "until a new generation asks for it";
  }
}

TEST(Record, ANewerDesiredStateSupersedesAPull) {
  AgentRecord r = serving();
  r.desired = {4, "small", "new"};
  go(r, Event::kDesired);
  EXPECT_FALSE(supersedes(r, {4, "small", "other"}));
  EXPECT_FALSE(supersedes(r, {2, "small", "other"}));
  ASSERT_TRUE(supersedes(r, {5, "small", "newer"}));
  EXPECT_FALSE(supersedes(r, {1, "large", "other"})) << "generations are the device's, whatever its class";
  r.desired = {5, "small", "newer"};
  Event event;
  ASSERT_TRUE(desired_event(r, event));
  go(r, event);
  EXPECT_EQ(r.candidate, (SlotStudent{"b", "newer", 5}));
  r.desired = {6, "small", "old"};
  ASSERT_TRUE(desired_event(r, event));
  EXPECT_EQ(event, Event::kDesiredSame);
  go(r, event);
  EXPECT_EQ(r.state, State::kIdle);
  EXPECT_EQ(r.reached, 6u);
  r.desired = {7, "small", ""};
  ASSERT_TRUE(desired_event(r, event));
  EXPECT_EQ(event, Event::kDesiredNone);
  go(r, event);
  EXPECT_EQ(r.active, SlotStudent());
}

TEST(Record, ACrashLoopGoesBack) {
  AgentRecord r = serving();
  r.previous = {"b", "older", 2};
  go(r, Event::kCrashLoop);
  EXPECT_EQ(r.active, (SlotStudent{"b", "older", 2}));
  EXPECT_EQ(r.candidate.artifact, "old");
  go(r, Event::kDone);
  EXPECT_EQ(r.state, State::kIdle);
  EXPECT_EQ(r.reached, 3u);
}

TEST(Record, ALostStudentIsBroughtAgainWhileTheOneBeforeServes) {
  AgentRecord r = serving();
  r.previous = {"b", "older", 2};
  go(r, Event::kSlotLost);
  EXPECT_EQ(r.active, (SlotStudent{"b", "older", 2}));
  EXPECT_EQ(r.previous, SlotStudent());
  Event event;
  ASSERT_TRUE(desired_event(r, event));
  EXPECT_EQ(event, Event::kDesired);
  go(r, Event::kSlotLost);
  EXPECT_EQ(r.active, SlotStudent()) << "that one was lost too";
  ASSERT_TRUE(desired_event(r, event));
  go(r, event);
  EXPECT_EQ(r.candidate, (SlotStudent{"a", "old", 3}));
}

TEST(Record, JsonRoundTripAndJunk) {
  AgentRecord r = serving();
  r.candidate = {"b", "new", 9};
  r.error = "x: \"y\"";
  r.attempts = 2;
  const auto back = record_from_json(record_to_json(r));
  ASSERT_OK(back);
  EXPECT_EQ(*back, r);
  EXPECT_FALSE(record_from_json(""));
  EXPECT_FALSE(record_from_json("{}"));
  std::string text = record_to_json(r);
  text.replace(text.find("\"idle\""), 6, "\"lost\"");
  EXPECT_EQ(record_from_json(text).error().code, ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace retort
