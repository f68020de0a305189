#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/core/random.h"
#include "common/model/rollout.h"
#include "common/wire/record_table.h"
#include "coordinator/artifacts/artifact_store.h"
#include "coordinator/fleet/device_fleet.h"
#include "coordinator/rollout/gates.h"
#include "coordinator/rollout/spec.h"
#include "coordinator/rollout/track_table.h"
#include "coordinator/telemetry/telemetry_store.h"

namespace retort {

/// Of all its classes: "running", "paused" (none runs, one waits for an operator), or how it ended:
/// "completed" when every class did, else "rolled_back", "aborted" or "superseded", the first of these that
/// one of them is.
std::string rollout_state(const RolloutRecord& record);
/// "running" or "paused".
bool under_way(const RolloutRecord& record);

/// Rollouts: an artifact reaches the devices of one or several classes in stages, each judged by gates; a
/// class goes through the states of track_table.h on its own. Every change is in the store before a device
/// hears of it, and whatever should be true of devices is looked at again at each step, so that a coordinator
/// killed at any point goes on where it was. Thread: reactor.
class Rollouts {
 public:
  /// Gets the canary's questions answered by the teacher, then calls `done` on the reactor with JSON
  /// [{"prompt", "answer"}].
  using AskTeacher = std::function<void(const RolloutSpec& spec, const std::string& artifact,
                                        std::function<void(Result<std::string>)> done)>;

  Rollouts(boost::asio::io_context& reactor, Store& store, ArtifactStore& artifacts,
           TelemetryStore& telemetry, DeviceFleet& fleet, const Clock& clock, RandomSource& random,
           AskTeacher ask_teacher);
  /// Told every rollout that begins or changes, once it is on disk.
  void on_change(std::function<void(const RolloutRecord&)> told) { on_change_ = std::move(told); }
  /// Reads what the store holds; before the fleet is started.
  Result<void> load();
  /// Begins to work, once a second and when changed() is called.
  void start();

  /// Checks and saves it. kInvalid, kNotFound (class, artifact), kConflict (another one is under way in a
  /// class).
  Result<RolloutRecord> create(const json::object& body);
  /// What create() would refuse, without creating anything.
  Result<RolloutSpec> check(const json::object& body) const;
  enum class Order { kPause, kResume, kForceResume, kAbort, kRollBack };
  /// For one class, or all ("") to which the order means something. kConflict: it means nothing now.
  Result<RolloutRecord> order(const std::string& id, Order order, const std::string& device_class);
  /// At once, for all devices of a class: supersedes what is under way there.
  Result<DeviceClass> assign(const std::string& name, const std::string& artifact);
  /// kConflict: one is under way there.
  Result<void> remove_class(const std::string& name);

  const std::map<std::string, RolloutRecord>& all() const { return rollouts_; }
  const RolloutSpec& spec(const std::string& id) const { return specs_.at(id); }
  /// By id, or a prefix of it of at least 8 characters, or the name that one rollout alone has.
  Result<RolloutRecord> find(const std::string& id) const;
  const std::map<std::string, RolloutMember>& members(const std::string& rollout) const;
  Result<std::vector<RolloutEvent>> events(const std::string& rollout, std::uint64_t after,
                                           std::size_t limit) const;

  /// What a device is to serve because of a rollout; nothing: what its class says.
  std::optional<std::string> assigned(const std::string& device, const std::string& device_class) const;
  /// Something about devices changed: looks soon.
  void changed();
  void canary_answered(const std::string& device, const wire::CanaryResult& result);
  /// One look at everything. Public for tests, which have no reactor running.
  void step();

 private:
  /// What one look changes: on disk together, then in memory.
  struct Change {
    RolloutRecord record;
    std::map<std::string, RolloutMember> members;
    std::vector<RolloutEvent> events;
  };
  Change begin(const RolloutRecord& record) const { return {record, {}, {}}; }
  RolloutMember& edit(Change& change, const RolloutMember& member) const;
  void note(Change& change, const RolloutTrack& track, std::string text) const;
  void put(StoreBatch& batch, const Change& change) const;
  void accept(Change change);
  bool commit(Change change);
  /// Ends what is under way or in force in a class; each change is in `batch` too.
  std::vector<Change> end_all(const std::string& device_class, const std::string& reason, StoreBatch& batch);
  /// kConflict: one is under way in the class.
  Result<void> check_free(const std::string& device_class, std::string_view what_to_do) const;

  void step_track(const std::string& id, std::size_t index);
  void observe(Change& change, const RolloutTrack& track);
  void observe_member(Change& change, const RolloutTrack& track, const RolloutMember& member,
                      const DeviceRecord& device);
  void tell(const RolloutTrack& track, const RolloutMember& member, const DeviceRecord& device);
  void ask_canaries(const RolloutRecord& record, const RolloutTrack& track);
  /// Applies the row of the table to the track; false: there is none.
  bool apply(Change& change, std::size_t index, TrackEvent event, std::string reason);
  bool order_event(const RolloutRecord& record, const RolloutTrack& track, Order order, TrackEvent& event,
                   std::string& reason) const;
  std::string class_artifact(const RolloutTrack& track) const;
  void fire(const std::string& id, std::size_t index, TrackEvent event, std::string reason);
  std::size_t choose(Change& change, RolloutTrack& track);
  std::vector<const DeviceRecord*> candidates(const RolloutRecord& record, const RolloutTrack& track,
                                              const Change& change, std::size_t& eligible) const;
  void prepare(const std::string& id, std::size_t index);
  void judge_rolling(const std::string& id, std::size_t index);
  void judge_soak(const std::string& id, std::size_t index);
  /// `measured`: with what devices reported during the soak, which is read from the store.
  GateInput gate_input(const RolloutRecord& record, const RolloutTrack& track, bool measured) const;
  bool fail_now(const std::string& id, std::size_t index, const std::vector<GateResult>& results);
  /// Passes the stage's gates: the next stage that has devices to add, or the end.
  TrackEvent passed(const RolloutRecord& record, const RolloutTrack& track) const;
  void notice_clock_jump();
  void schedule(std::chrono::milliseconds pause);
  void forget_old();

  Store& store_;
  ArtifactStore& artifacts_;
  TelemetryStore& telemetry_;
  DeviceFleet& fleet_;
  const Clock& clock_;
  RandomSource& random_;
  AskTeacher ask_teacher_;
  std::function<void(const RolloutRecord&)> on_change_;
  RecordTable<RolloutRecord> rollout_table_;
  RecordTable<RolloutMember> member_table_;
  RecordTable<RolloutEvent> event_table_;
  std::map<std::string, RolloutRecord> rollouts_;
  std::map<std::string, RolloutSpec> specs_;
  std::map<std::string, std::map<std::string, RolloutMember>> members_;  // by rollout, device
  std::map<std::string, std::string> holding_;  // device to the latest rollout that told it something
  std::set<std::string> asking_teacher_;
  std::map<std::string, std::chrono::steady_clock::time_point> canary_asked_;  // rollout/device
  std::map<std::string, std::pair<UnixMillis, std::chrono::steady_clock::time_point>>
      judged_;  // rollout/track
  std::optional<std::pair<UnixMillis, std::chrono::steady_clock::time_point>> last_look_;
  boost::asio::steady_timer timer_;
  bool started_ = false, stepping_ = false, soon_ = false;
};

}  // namespace retort
