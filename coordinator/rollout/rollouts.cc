#include "coordinator/rollout/rollouts.h"

#include <algorithm>
#include <cmath>

#include "common/core/fail_point.h"
#include "common/core/log.h"
#include "common/core/sha256.h"

namespace retort {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLook{1000}, kSoon{100};
constexpr UnixMillis kAbsentMillis = 24ll * 3600 * 1000;  ///< not heard for so long: no stage waits for it
constexpr UnixMillis kJumpMillis = 5000;
constexpr UnixMillis kMemoryMillis = 15 * 60 * 1000;
constexpr std::size_t kKeptRollouts = 100;
constexpr std::chrono::seconds kAskAgain{60}, kJudgeAgain{5};

std::string member_key(const std::string& rollout, const std::string& device) {
  return rollout + "/" + device;
}
std::string event_key(const std::string& rollout, std::uint64_t sequence) {
  return fmt::format("{}/{:016x}", rollout, sequence);
}

TrackState state_of(const RolloutTrack& track) {
  TrackState state = TrackState::kPaused;  // what cannot be read waits for an operator
  track_state_from(track.state, state);
  return state;
}

std::string short_hash(const std::string& artifact) {
  return artifact.empty() ? "nothing" : artifact.substr(0, 12);
}

UnixMillis millis(std::chrono::seconds time) { return milliseconds(time).count(); }

bool treated(const RolloutMember& member) { return !member.holdout && member.state != "left"; }

}  // namespace

std::string rollout_state(const RolloutRecord& record) {
  const auto any = [&](TrackState state) {
    return std::any_of(record.tracks.begin(), record.tracks.end(),
                       [&](const RolloutTrack& track) { return state_of(track) == state; });
  };
  for (const RolloutTrack& track : record.tracks)
    if (!is_final(state_of(track)) && state_of(track) != TrackState::kPaused) return "running";
  for (const TrackState state :
       {TrackState::kPaused, TrackState::kRolledBack, TrackState::kAborted, TrackState::kSuperseded})
    if (any(state)) return std::string(to_string(state));
  return "completed";
}

bool under_way(const RolloutRecord& record) {
  const std::string state = rollout_state(record);
  return state == "running" || state == "paused";
}

Rollouts::Rollouts(boost::asio::io_context& reactor, Store& store, ArtifactStore& artifacts,
                   TelemetryStore& telemetry, DeviceFleet& fleet, const Clock& clock, RandomSource& random,
                   AskTeacher ask_teacher)
    : store_(store),
      artifacts_(artifacts),
      telemetry_(telemetry),
      fleet_(fleet),
      clock_(clock),
      random_(random),
      ask_teacher_(std::move(ask_teacher)),
      rollout_table_(store, "rollouts"),
      member_table_(store, "rollout_members"),
      event_table_(store, "rollout_events"),
      timer_(reactor) {}

Result<void> Rollouts::load() {
  for (RolloutRecord& record : RETORT_TRY(rollout_table_.all())) {
    const json::value body = RETORT_TRY(parse_json(record.spec_json, "rollout " + record.id));
    specs_[record.id] = RETORT_TRY(parse_rollout_spec(*RETORT_TRY(as_object(body, record.id)), record.id));
    const std::string id = record.id;
    members_[id];
    rollouts_.emplace(id, std::move(record));
  }
  std::vector<RolloutMember> members = RETORT_TRY(member_table_.all());
  std::sort(members.begin(), members.end(), [](const auto& a, const auto& b) { return a.told < b.told; });
  for (RolloutMember& member : members) {
    if (rollouts_.count(member.rollout) == 0) continue;
    if (member.told != 0) holding_[member.device] = member.rollout;
    const std::string rollout = member.rollout, device = member.device;
    members_[rollout].insert_or_assign(device, std::move(member));
  }
  return {};
}

void Rollouts::start() {
  started_ = true;
  schedule(milliseconds(0));
}

void Rollouts::schedule(milliseconds pause) {
  timer_.expires_after(pause);
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    soon_ = false;
    stepping_ = true;
    step();
    stepping_ = false;
    schedule(soon_ ? kSoon : kLook);
  });
}

void Rollouts::changed() {
  soon_ = true;
  if (started_ && !stepping_ && timer_.expiry() > std::chrono::steady_clock::now() + kSoon) schedule(kSoon);
}

// Records
// --------------------------------------------------------------------------------------------------

RolloutMember& Rollouts::edit(Change& change, const RolloutMember& member) const {
  return change.members.emplace(member.device, member).first->second;
}

void Rollouts::note(Change& change, const RolloutTrack& track, std::string text) const {
  change.events.push_back({change.record.id, ++change.record.events, clock_.unix_millis(), track.device_class,
                           track.state, std::move(text)});
}

void Rollouts::put(StoreBatch& batch, const Change& change) const {
  rollout_table_.put(batch, change.record.id, change.record);
  for (const auto& [device, member] : change.members)
    member_table_.put(batch, member_key(member.rollout, device), member);
  for (const RolloutEvent& event : change.events)
    event_table_.put(batch, event_key(event.rollout, event.sequence), event);
}

void Rollouts::accept(Change change) {
  for (const RolloutEvent& event : change.events)
    log_info("rollout {}: class {} {}: {}", event.rollout, event.device_class, event.state, event.text);
  for (auto& [device, member] : change.members) {
    if (member.state == "told") holding_[device] = member.rollout;
    members_[change.record.id].insert_or_assign(device, std::move(member));
  }
  const auto known = rollouts_.insert_or_assign(change.record.id, std::move(change.record)).first;
  if (on_change_) on_change_(known->second);
}

bool Rollouts::commit(Change change) {
  // Which step this is, for tests that kill the coordinator there.
  std::string point = "coordinator.rollout.members";
  if (const auto known = rollouts_.find(change.record.id); known != rollouts_.end())
    for (std::size_t i = 0; i < change.record.tracks.size(); ++i)
      if (change.record.tracks[i].state != known->second.tracks[i].state)
        point = "coordinator.rollout." + change.record.tracks[i].state;
  fail_point(point + ".saving");
  StoreBatch batch;
  put(batch, change);
  if (const Result<void> done = store_.write(batch); !done) {
    log_error("rollout {}: {}; looks again in a second", change.record.id, done.error().describe());
    return false;
  }
  fail_point(point + ".saved");
  accept(std::move(change));
  return true;
}

// What operators ask for
// --------------------------------------------------------------------------------

Result<RolloutSpec> Rollouts::check(const json::object& body) const {
  RolloutSpec spec = RETORT_TRY(parse_rollout_spec(body, "request body"));
  for (auto& [name, artifact] : spec.classes) {
    if (fleet_.classes().count(name) == 0)
      return fail(ErrorCode::kNotFound, "", "there is no class '{}'", name);
    if (!spec.supersede) RETORT_TRY(check_free(name, "end it first, or say \"supersede\": true"));
  }
  return spec;
}

Result<void> Rollouts::check_free(const std::string& device_class, std::string_view what_to_do) const {
  for (const auto& [id, record] : rollouts_)
    for (const RolloutTrack& track : record.tracks)
      if (track.device_class == device_class && !is_final(state_of(track)))
        return fail(ErrorCode::kConflict, "", "rollout {} is {} in class '{}': {}", id, track.state,
                    device_class, what_to_do);
  return {};
}

Result<RolloutRecord> Rollouts::create(const json::object& body) {
  RolloutSpec spec = RETORT_TRY(check(body));
  json::object kept = body;
  Change change;
  RolloutRecord& record = change.record;
  for (auto& [name, artifact] : spec.classes) {
    artifact = RETORT_TRY(artifacts_.find_listed(artifact)).sha256;
    kept["classes"].as_object()[name] = artifact;
    const DeviceClass& device_class = fleet_.classes().at(name);
    if (device_class.artifact == artifact)
      return fail(ErrorCode::kConflict, "", "class '{}' serves {} already", name, short_hash(artifact));
    RolloutTrack& track = record.tracks.emplace_back();
    track.device_class = name;
    track.artifact = artifact;
    track.before = device_class.artifact;
    track.state = to_string(TrackState::kPreparing);
    track.since = clock_.unix_millis();
  }
  record.id = "roll-" + random_.hex(6);
  record.name = spec.name;
  record.created = clock_.unix_millis();
  record.spec_json = json::serialize(kept);
  for (const RolloutTrack& track : record.tracks)
    note(change, track,
         fmt::format("created: {} to {}", short_hash(track.before), short_hash(track.artifact)));
  StoreBatch batch;
  put(batch, change);
  std::vector<Change> others;
  for (const auto& [id, other] : rollouts_) {
    Change ended = begin(other);
    bool any = false;
    for (std::size_t i = 0; i < ended.record.tracks.size(); ++i)
      if (spec.classes.count(ended.record.tracks[i].device_class) != 0)
        any |= apply(ended, i, TrackEvent::kSupersede, "superseded by rollout " + record.id);
    if (!any) continue;
    put(batch, ended);
    others.push_back(std::move(ended));
  }
  fail_point("coordinator.rollout.created.saving");
  RETORT_TRY(store_.write(batch));
  fail_point("coordinator.rollout.created.saved");
  const std::string id = record.id;
  specs_[id] = std::move(spec);
  members_[id];
  for (Change& other : others) accept(std::move(other));
  accept(std::move(change));
  forget_old();
  changed();
  return rollouts_.at(id);
}

void Rollouts::forget_old() {
  std::vector<const RolloutRecord*> ended;
  for (const auto& [id, record] : rollouts_)
    if (std::all_of(record.tracks.begin(), record.tracks.end(),
                    [](const RolloutTrack& track) { return is_final(state_of(track)) && !track.in_force; }))
      ended.push_back(&record);
  if (ended.size() <= kKeptRollouts) return;
  std::sort(ended.begin(), ended.end(), [](const auto* a, const auto* b) { return a->created < b->created; });
  for (std::size_t i = 0; i + kKeptRollouts < ended.size(); ++i) {
    const std::string id = ended[i]->id;
    StoreBatch batch;
    rollout_table_.erase(batch, id);
    for (const auto& [device, member] : members_[id]) member_table_.erase(batch, member_key(id, device));
    for (std::uint64_t sequence = 1; sequence <= ended[i]->events; ++sequence)
      event_table_.erase(batch, event_key(id, sequence));
    if (const Result<void> done = store_.write(batch); !done) {
      log_error("rollout {}: {}", id, done.error().describe());
      return;
    }
    std::erase_if(holding_, [&](const auto& entry) { return entry.second == id; });
    members_.erase(id), specs_.erase(id), rollouts_.erase(id);
  }
}

Result<RolloutRecord> Rollouts::find(const std::string& id) const {
  if (const auto exact = rollouts_.find(id); exact != rollouts_.end()) return exact->second;
  const RolloutRecord* found = nullptr;
  for (const auto& [key, record] : rollouts_) {
    if ((record.name != id || id.empty()) && (id.size() < 8 || !key.starts_with(id))) continue;
    if (found != nullptr)
      return fail(ErrorCode::kConflict, "", "'{}' may be {} or {}: give the whole id", id, found->id, key);
    found = &record;
  }
  if (found == nullptr) return fail(ErrorCode::kNotFound, "", "there is no rollout '{}'", id);
  return *found;
}

const std::map<std::string, RolloutMember>& Rollouts::members(const std::string& rollout) const {
  static const std::map<std::string, RolloutMember> kNone;
  const auto found = members_.find(rollout);
  return found == members_.end() ? kNone : found->second;
}

Result<std::vector<RolloutEvent>> Rollouts::events(const std::string& rollout, std::uint64_t after,
                                                   std::size_t limit) const {
  std::vector<RolloutEvent> out;
  Result<void> bad;
  RETORT_TRY(store_.scan("rollout_events", rollout + "/", after == 0 ? "" : event_key(rollout, after),
                         [&](std::string_view, std::string_view value) {
                           Result<RolloutEvent> event = wire::decode_record<RolloutEvent>(value);
                           if (!event) {
                             bad = fail(event.error());
                             return false;
                           }
                           out.push_back(std::move(*event));
                           return out.size() < limit;
                         }));
  if (!bad) return fail(bad.error());
  return out;
}

bool Rollouts::order_event(const RolloutRecord& record, const RolloutTrack& track, Order order,
                           TrackEvent& event, std::string& reason) const {
  const TrackState state = state_of(track);
  switch (order) {
    case Order::kPause:
      event = TrackEvent::kPause, reason = "paused by an operator";
      break;
    case Order::kAbort:
      event = TrackEvent::kAbort, reason = "aborted by an operator";
      break;
    case Order::kRollBack:
      event = TrackEvent::kRollBack, reason = "rolled back by an operator";
      if (state != TrackState::kAborted) break;
      for (const auto& [id, other] : rollouts_)  // what came after it holds the class now
        for (const RolloutTrack& one : other.tracks)
          if (id != record.id && one.device_class == track.device_class && !is_final(state_of(one)))
            return false;
      if (!track.in_force) return false;
      break;
    case Order::kResume:
    case Order::kForceResume: {
      if (state != TrackState::kPaused) return false;
      const bool failures =
          std::any_of(members(record.id).begin(), members(record.id).end(), [&](const auto& one) {
            return one.second.device_class == track.device_class && treated(one.second) &&
                   one.second.state == "failed";
          });
      const bool preparing = track.paused_from == to_string(TrackState::kPreparing);
      const bool soaking = track.paused_from == to_string(TrackState::kSoaking);
      if (order == Order::kForceResume) {
        event = preparing ? TrackEvent::kReady : passed(record, track);
        reason = "resumed by an operator, past the gates";
        break;
      }
      event = preparing              ? TrackEvent::kResumePreparing
              : soaking && !failures ? TrackEvent::kResumeSoaking
                                     : TrackEvent::kResumeRolling;
      reason =
          failures ? "resumed by an operator; failed devices are told once more" : "resumed by an operator";
      break;
    }
  }
  return find_track_transition(state, event) != nullptr;
}

Result<RolloutRecord> Rollouts::order(const std::string& id, Order order, const std::string& device_class) {
  const RolloutRecord record = RETORT_TRY(find(id));
  bool any = false, known = device_class.empty(), stuck = false;
  for (std::size_t i = 0; i < record.tracks.size(); ++i) {
    const RolloutTrack& track = record.tracks[i];
    if (!device_class.empty() && track.device_class != device_class) continue;
    known = true;
    TrackEvent event = TrackEvent::kPause;
    std::string reason;
    if (!order_event(record, track, order, event, reason)) continue;
    any = true;
    fire(record.id, i, event, std::move(reason));
    stuck |= rollouts_.at(record.id).tracks[i].state == track.state;
  }
  if (!known) return fail(ErrorCode::kNotFound, "", "rollout {} has no class '{}'", record.id, device_class);
  if (stuck) return fail(ErrorCode::kUnavailable, "", "the store cannot be written; try again");
  if (!any) {
    std::string states;
    for (const RolloutTrack& track : record.tracks)
      states +=
          fmt::format("{}{} in class '{}'", states.empty() ? "" : ", ", track.state, track.device_class);
    return fail(ErrorCode::kConflict, "", "rollout {} is {}: this means nothing now", record.id, states);
  }
  return rollouts_.at(record.id);
}

std::vector<Rollouts::Change> Rollouts::end_all(const std::string& device_class, const std::string& reason,
                                                StoreBatch& batch) {
  std::vector<Change> ended;
  for (const auto& [id, record] : rollouts_) {
    Change change = begin(record);
    bool any = false;
    for (std::size_t i = 0; i < change.record.tracks.size(); ++i) {
      RolloutTrack& track = change.record.tracks[i];
      if (track.device_class != device_class) continue;
      any |= track.in_force;
      track.in_force = false;
      any |= apply(change, i, TrackEvent::kSupersede, reason);
    }
    if (!any) continue;
    put(batch, change);
    ended.push_back(std::move(change));
  }
  return ended;
}

Result<void> Rollouts::remove_class(const std::string& name) {
  RETORT_TRY(check_free(name, "end it first"));
  StoreBatch batch;
  std::vector<Change> ended = end_all(name, "the class was removed", batch);
  RETORT_TRY(fleet_.remove_class(name, std::move(batch)));
  for (Change& change : ended) accept(std::move(change));
  return {};
}

Result<DeviceClass> Rollouts::assign(const std::string& name, const std::string& artifact) {
  StoreBatch batch;
  std::vector<Change> ended =
      end_all(name, fmt::format("the class was assigned {}", short_hash(artifact)), batch);
  return fleet_.assign(name, artifact, std::move(batch), [&] {
    for (Change& change : ended) accept(std::move(change));
  });
}

std::optional<std::string> Rollouts::assigned(const std::string& device,
                                              const std::string& device_class) const {
  const auto holding = holding_.find(device);
  if (holding == holding_.end()) return std::nullopt;
  const auto& members = members_.at(holding->second);
  const auto member = members.find(device);
  if (member == members.end() || member->second.device_class != device_class || member->second.told == 0 ||
      member->second.state == "left")
    return std::nullopt;
  for (const RolloutTrack& track : rollouts_.at(holding->second).tracks)
    if (track.device_class == device_class && track.in_force) return track.artifact;
  return std::nullopt;
}

void Rollouts::canary_answered(const std::string& device, const wire::CanaryResult& result) {
  const auto record = rollouts_.find(result.id);
  if (record == rollouts_.end()) return;
  const auto member = members_.at(result.id).find(device);
  if (member == members_.at(result.id).end() || result.asked == 0 || result.agreed > result.asked) return;
  const auto& tracks = record->second.tracks;
  if (std::none_of(tracks.begin(), tracks.end(), [&](const RolloutTrack& track) {
        return track.device_class == member->second.device_class &&
               (result.artifact == track.artifact || result.artifact == track.before);
      }))
    return;
  Change change = begin(record->second);
  RolloutMember& edited = edit(change, member->second);
  edited.canary_artifact = result.artifact;
  edited.canary_asked = result.asked;
  edited.canary_agreed = result.agreed;
  if (commit(std::move(change))) changed();
}

// The machine
// ----------------------------------------------------------------------------------------------

bool Rollouts::apply(Change& change, std::size_t index, TrackEvent event, std::string reason) {
  RolloutTrack& track = change.record.tracks[index];
  const TrackTransition* row = find_track_transition(state_of(track), event);
  if (row == nullptr) return false;
  const UnixMillis now = clock_.unix_millis();
  const TrackState from = row->state;
  if (row->next == TrackState::kPaused) track.paused_from = track.state;
  track.state = to_string(row->next);
  track.since = now;
  track.soak_until = 0;
  const RolloutSpec& spec = specs_.at(change.record.id);
  switch (row->action) {
    case TrackAction::kNone:
    case TrackAction::kPrepare:
      break;
    case TrackAction::kBeginStage: {
      track.in_force = true;
      if (event != TrackEvent::kReady) ++track.stage;
      // Stages whose devices earlier ones have chosen already add nothing.
      while (choose(change, track) == 0 && track.stage + 1 < spec.stages.size() &&
             event != TrackEvent::kReady)
        ++track.stage;
      std::size_t chosen = 0;
      for (const auto& [device, member] : change.members)
        chosen += member.device_class == track.device_class && member.state == "waiting" ? 1 : 0;
      reason +=
          fmt::format("; stage {} of {} has {} more devices", track.stage + 1, spec.stages.size(), chosen);
      break;
    }
    case TrackAction::kRetry:
      track.in_force = true;
      for (const auto& [device, known] : members(change.record.id)) {
        if (known.device_class != track.device_class || !treated(known) || known.state != "failed") continue;
        RolloutMember& member = edit(change, known);
        member.state =
            "waiting";  // `told` stays: until it is told once more, it is to serve what it was told
        member.settled = 0;
        member.error_code.clear(), member.error.clear();
      }
      break;
    case TrackAction::kSoak:
      track.soak_until = now + millis(spec.stages[track.stage].soak.value_or(spec.soak));
      break;
    case TrackAction::kGoBack:
      track.in_force = false;
      for (const auto& [device, known] : members(change.record.id)) {
        if (known.device_class != track.device_class || !treated(known)) continue;
        RolloutMember& member = edit(change, known);
        member.state = member.told == 0 ? "returned" : "returning";
        member.settled = member.told == 0 ? now : 0;
        if (member.told != 0) member.told = now;
      }
      break;
    case TrackAction::kComplete:
      track.in_force = false;
      break;
    case TrackAction::kEnd:
      // An aborted or superseded rollout's devices keep what they have, until their class is told something
      // new.
      if (row->next == TrackState::kRolledBack) track.in_force = false;
      break;
  }
  if (from == TrackState::kPaused && row->next != TrackState::kPaused) track.paused_from.clear();
  track.reason = reason;
  note(change, track, std::move(reason));
  return true;
}

void Rollouts::fire(const std::string& id, std::size_t index, TrackEvent event, std::string reason) {
  Change change = begin(rollouts_.at(id));
  if (!apply(change, index, event, std::move(reason))) return;
  const RolloutTrack track = change.record.tracks[index];
  const bool completes = state_of(track) == TrackState::kCompleted;
  if (!completes && state_of(track) != TrackState::kRollingBack) {
    if (commit(std::move(change))) changed();
    return;
  }
  // The class's older rollouts hold nothing any more.
  StoreBatch batch;
  std::vector<Change> all;
  for (const auto& [other, record] : rollouts_) {
    Change released = begin(record);
    bool any = false;
    for (RolloutTrack& one : released.record.tracks)
      if (other != id && one.device_class == track.device_class && one.in_force)
        one.in_force = false, any = true;
    if (!any) continue;
    put(batch, released);
    all.push_back(std::move(released));
  }
  put(batch, change);
  all.push_back(std::move(change));
  const std::string point = "coordinator.rollout." + track.state;
  fail_point(point + ".saving");
  const auto written = [&] {
    fail_point(point + ".saved");
    for (Change& one : all) accept(std::move(one));
  };
  if (completes) {
    if (const auto done = fleet_.assign(track.device_class, track.artifact, std::move(batch), written); !done)
      log_error("rollout {}: {}; tried again in a second", id, done.error().describe());
    return;
  }
  if (const Result<void> done = store_.write(batch); !done)
    return log_error("rollout {}: {}; tried again in a second", id, done.error().describe());
  written();
  std::vector<std::string> devices;
  for (const auto& [device_id, device] : fleet_.devices())
    if (device.desired.device_class == track.device_class) devices.push_back(device_id);
  for (const std::string& device_id : devices) fleet_.reconsider(device_id);
  changed();
}

std::vector<const DeviceRecord*> Rollouts::candidates(const RolloutRecord& record, const RolloutTrack& track,
                                                      const Change& change, std::size_t& eligible) const {
  std::vector<std::pair<std::pair<bool, std::string>, const DeviceRecord*>> order;
  eligible = 0;
  const UnixMillis now = clock_.unix_millis();
  for (const auto& [id, device] : fleet_.devices()) {
    if (device.revoked || device.desired.device_class != track.device_class) continue;
    const RolloutMember* member = nullptr;
    if (const auto edited = change.members.find(id); edited != change.members.end())
      member = &edited->second;
    else if (const auto known = members(record.id).find(id); known != members(record.id).end())
      member = &known->second;
    const bool in =
        member != nullptr && member->state != "left" && member->device_class == track.device_class;
    if (in && member->holdout) continue;
    ++eligible;
    if (in || (!fleet_.online(id) && now - device.last_seen > kAbsentMillis)) continue;
    // The same order for every stage, another for every rollout; those that can be reached first.
    order.push_back({{!fleet_.online(id), sha256_hex(record.id + id)}, &device});
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<const DeviceRecord*> out;
  for (const auto& [key, device] : order) out.push_back(device);
  return out;
}

std::size_t Rollouts::choose(Change& change, RolloutTrack& track) {
  const RolloutSpec& spec = specs_.at(change.record.id);
  std::size_t eligible = 0;
  std::vector<const DeviceRecord*> order = candidates(change.record, track, change, eligible);
  const auto add = [&](const DeviceRecord& device, bool holdout) {
    RolloutMember member;
    member.rollout = change.record.id;
    member.device = device.id;
    member.device_class = track.device_class;
    member.holdout = holdout;
    member.stage = track.stage;
    member.state = holdout ? "holdout" : "waiting";
    change.members.insert_or_assign(device.id, std::move(member));
  };
  bool held = false;
  std::size_t members_now = 0;
  const auto count = [&](const RolloutMember& member) {
    if (member.device_class != track.device_class || member.state == "left") return;
    held |= member.holdout;
    members_now += member.holdout ? 0 : 1;
  };
  for (const auto& [device, member] : members(change.record.id))
    if (change.members.count(device) == 0) count(member);
  for (const auto& [device, member] : change.members) count(member);
  if (!held && members_now == 0 && !order.empty()) {
    // The holdout is chosen once, from the far end; at least one device is left to try the artifact on.
    std::size_t holdout = spec.holdout_count > 0
                              ? spec.holdout_count
                              : static_cast<std::size_t>(std::floor(static_cast<double>(order.size()) *
                                                                    spec.holdout_percent / 100));
    holdout = std::min(holdout, order.size() - 1);
    // Devices that can be reached stand first: a holdout of silent ones would tell nothing.
    std::size_t reachable = 0;
    while (reachable < order.size() && fleet_.online(order[reachable]->id)) ++reachable;
    const std::size_t end = reachable > holdout ? reachable : order.size();
    for (std::size_t i = 0; i < holdout; ++i) add(*order[end - 1 - i], true);
    order.erase(order.begin() + static_cast<std::ptrdiff_t>(end - holdout),
                order.begin() + static_cast<std::ptrdiff_t>(end));
    eligible -= holdout;
  }
  const RolloutStage& stage = spec.stages[track.stage];
  std::size_t wanted = 0, added = 0;
  if (stage.count > 0) wanted = stage.count;
  if (stage.percent > 0)
    wanted = static_cast<std::size_t>(std::ceil(static_cast<double>(eligible) * stage.percent / 100 - 1e-9));
  wanted = wanted > members_now ? wanted - members_now : 0;
  for (const DeviceRecord* device : order) {
    if (stage.labels.empty() ? added >= wanted
                             : !std::all_of(stage.labels.begin(), stage.labels.end(), [&](const auto& label) {
                                 const auto found = device->profile.labels.find(label.first);
                                 return found != device->profile.labels.end() &&
                                        found->second == label.second;
                               }))
      continue;
    add(*device, false);
    ++added;
  }
  return added;
}

TrackEvent Rollouts::passed(const RolloutRecord& record, const RolloutTrack& track) const {
  const RolloutSpec& spec = specs_.at(record.id);
  std::size_t eligible = 0, members_now = 0;
  const Change nothing = begin(record);
  const auto order = candidates(record, track, nothing, eligible);
  for (const auto& [device, member] : members(record.id))
    members_now += member.device_class == track.device_class && treated(member) ? 1 : 0;
  for (std::size_t i = track.stage + 1; i < spec.stages.size() && !order.empty(); ++i) {
    const RolloutStage& stage = spec.stages[i];
    if (!stage.labels.empty()) {
      for (const DeviceRecord* device : order)
        if (std::all_of(stage.labels.begin(), stage.labels.end(), [&](const auto& label) {
              const auto found = device->profile.labels.find(label.first);
              return found != device->profile.labels.end() && found->second == label.second;
            }))
          return TrackEvent::kPassed;
      continue;
    }
    const double wanted = stage.count > 0 ? stage.count : static_cast<double>(eligible) * stage.percent / 100;
    if (wanted > static_cast<double>(members_now) + 1e-9) return TrackEvent::kPassed;
  }
  return TrackEvent::kPassedLast;
}

void Rollouts::notice_clock_jump() {
  const UnixMillis now = clock_.unix_millis();
  const auto steady = clock_.steady_now();
  const auto before = std::exchange(last_look_, std::pair(now, steady));
  if (!before) return;
  const UnixMillis jump =
      (now - before->first) - std::chrono::duration_cast<milliseconds>(steady - before->second).count();
  if (std::abs(jump) < kJumpMillis) return;
  log_warn("rollouts: the clock jumped by {} s; deadlines and soaks go with it", jump / 1000);
  std::vector<Change> moved;
  for (const auto& [id, record] : rollouts_) {
    Change change = begin(record);
    bool any = false;
    for (RolloutTrack& track : change.record.tracks) {
      if (is_final(state_of(track))) continue;
      any = true;
      track.since += jump;
      if (track.soak_until != 0) track.soak_until += jump;
    }
    if (!any) continue;
    for (const auto& [device, member] : members(id))
      if (member.told != 0) edit(change, member).told += jump;
    moved.push_back(std::move(change));
  }
  for (Change& change : moved) commit(std::move(change));
}

void Rollouts::step() {
  notice_clock_jump();
  std::vector<std::pair<std::string, std::size_t>> tracks;
  for (const auto& [id, record] : rollouts_)
    for (std::size_t i = 0; i < record.tracks.size(); ++i)
      if (!is_final(state_of(record.tracks[i]))) tracks.emplace_back(id, i);
  for (const auto& [id, index] : tracks) step_track(id, index);
}

void Rollouts::step_track(const std::string& id, std::size_t index) {
  {
    Change change = begin(rollouts_.at(id));
    observe(change, change.record.tracks[index]);
    if (!change.members.empty() && !commit(std::move(change))) return;
  }
  const RolloutTrack track = rollouts_.at(id).tracks[index];
  // What devices are to do follows from the records alone, and is put right whenever it is not so.
  for (const auto& [device_id, member] : members(id)) {
    const auto device = fleet_.devices().find(device_id);
    if (member.device_class == track.device_class && member.told != 0 && device != fleet_.devices().end())
      tell(track, member, device->second);
  }
  ask_canaries(rollouts_.at(id), track);
  switch (state_of(track)) {
    case TrackState::kPreparing:
      return prepare(id, index);
    case TrackState::kRolling:
      return judge_rolling(id, index);
    case TrackState::kSoaking:
      return judge_soak(id, index);
    case TrackState::kRollingBack: {
      std::size_t returned = 0, failed = 0, open = 0;
      for (const auto& [device, member] : members(id)) {
        if (member.device_class != track.device_class || !treated(member)) continue;
        ++(member.state == "returned" ? returned : member.state == "failed" ? failed : open);
      }
      if (open > 0) return;
      return fire(id, index, TrackEvent::kReturned,
                  fmt::format("{}; {} devices are back{}", track.reason, returned,
                              failed > 0 ? fmt::format(", {} have not come back yet", failed) : ""));
    }
    default:
      return;
  }
}

std::string Rollouts::class_artifact(const RolloutTrack& track) const {
  const auto found = fleet_.classes().find(track.device_class);
  return found == fleet_.classes().end() ? "" : found->second.artifact;
}

void Rollouts::tell(const RolloutTrack& track, const RolloutMember& member, const DeviceRecord& device) {
  const auto holding = holding_.find(device.id);
  if (holding == holding_.end() || holding->second != member.rollout || member.state == "left" ||
      device.desired.device_class != track.device_class)
    return;
  if (device.desired.artifact != (track.in_force ? track.artifact : class_artifact(track)))
    return fleet_.reconsider(device.id);
  if (member.state == "told" && device.desired.generation <= member.after_generation) fleet_.renew(device.id);
}

void Rollouts::observe(Change& change, const RolloutTrack& track) {
  const RolloutSpec& spec = specs_.at(change.record.id);
  const UnixMillis now = clock_.unix_millis();
  for (const auto& [id, member] : members(change.record.id)) {
    if (member.device_class != track.device_class || member.state == "left") continue;
    const auto device = fleet_.devices().find(id);
    if (device == fleet_.devices().end() || device->second.revoked ||
        device->second.desired.device_class != track.device_class) {
      RolloutMember& edited = edit(change, member);
      edited.state = "left";
      edited.settled = now;
      continue;
    }
    if (member.holdout) continue;
    if (member.state == "waiting") {
      if (state_of(track) != TrackState::kRolling ||
          !in_window(spec.windows, now, device->second.profile.utc_offset_minutes) ||
          (!spec.windows.empty() && !fleet_.online(id)))
        continue;
      RolloutMember& edited = edit(change, member);
      edited.state = "told";
      edited.told = now;
      const DesiredState& desired = device->second.desired;
      const bool serves =
          desired.artifact == track.artifact && device->second.status.artifact == track.artifact;
      edited.after_generation = desired.generation - (serves ? 1 : 0);
      continue;
    }
    observe_member(change, track, member, device->second);
  }
}

void Rollouts::observe_member(Change& change, const RolloutTrack& track, const RolloutMember& member,
                              const DeviceRecord& device) {
  const RolloutSpec& spec = specs_.at(change.record.id);
  const UnixMillis now = clock_.unix_millis();
  const DeviceStatus& status = device.status;
  const bool returning = state_of(track) == TrackState::kRollingBack;
  const std::string wanted = returning ? class_artifact(track) : track.artifact;
  const bool told =
      device.desired.artifact == wanted && (returning || device.desired.generation > member.after_generation);
  const bool reached = told && status.generation >= device.desired.generation && status.state == "idle";
  const bool serves = reached && status.artifact == wanted;
  const auto settle = [&](const char* state, std::string code, std::string error) {
    RolloutMember& edited = edit(change, member);
    edited.state = state;
    edited.settled = now;
    edited.error_code = std::move(code);
    edited.error = std::move(error);
    if (edited.state == "failed")
      note(change, track, fmt::format("device {} ({}): {}", device.id, device.name, edited.error));
  };
  const auto silent_for = [&] { return fleet_.online(device.id) ? 0 : (now - device.last_seen) / 1000; };
  if (member.state == "told" || member.state == "returning" || member.state == "failed") {
    if (serves) return settle(returning ? "returned" : "updated", "", "");
    if (member.state == "failed") return;
    if (reached && (!status.error_code.empty() || !status.artifact.empty()))
      return settle("failed", status.error_code.empty() ? "unavailable" : status.error_code,
                    status.error.empty() ? "it serves " + short_hash(status.artifact) : status.error);
    if (now - member.told <= millis(spec.install_deadline)) return;
    const UnixMillis silence = silent_for();
    return settle(
        "failed", "unavailable",
        silence > 0 ? fmt::format("silent for {} s, past its deadline", silence)
                    : fmt::format("still in state {} after {} s", status.state, (now - member.told) / 1000));
  }
  if (member.state != "updated" || returning) return;
  if (!status.artifact.empty() && status.artifact != wanted && status.state == "idle")
    return settle("failed", status.error_code.empty() ? "unavailable" : status.error_code,
                  status.error.empty() ? "it went back to " + short_hash(status.artifact) : status.error);
  if (silent_for() * 1000 > millis(spec.silence))
    return settle("failed", "unavailable", fmt::format("silent for {} s since it was updated", silent_for()));
}

void Rollouts::ask_canaries(const RolloutRecord& record, const RolloutTrack& track) {
  if (record.canary_json.empty() || is_final(state_of(track))) return;
  wire::Canary canary;
  for (const auto& [id, member] : members(record.id)) {
    const bool updated = member.state == "updated", held = member.state == "holdout";
    if (member.device_class != track.device_class || (!updated && !held)) continue;
    const std::string& artifact = updated ? track.artifact : track.before;
    const auto device = fleet_.devices().find(id);
    if (artifact.empty() || member.canary_artifact == artifact || device == fleet_.devices().end() ||
        device->second.status.artifact != artifact)
      continue;
    auto& asked = canary_asked_[member_key(record.id, id)];
    if (asked.time_since_epoch().count() != 0 && clock_.steady_now() - asked < kAskAgain) continue;
    if (canary.questions.empty()) {
      const Result<json::value> parsed = parse_json(record.canary_json, "canary");
      if (!parsed || !parsed->is_array()) return;
      for (const json::value& question : parsed->get_array())
        canary.questions.push_back(
            {std::string(question.at("prompt").as_string()), std::string(question.at("answer").as_string())});
    }
    canary.id = record.id;
    canary.artifact = artifact;
    if (fleet_.ask_canary(id, canary)) asked = clock_.steady_now();
  }
}

// Preparing and judging
// ------------------------------------------------------------------------------------

void Rollouts::prepare(const std::string& id, std::size_t index) {
  const RolloutTrack track = rollouts_.at(id).tracks[index];
  const RolloutSpec& spec = specs_.at(id);
  const Result<ArtifactRecord> artifact = artifacts_.find(track.artifact);
  if (!artifact)
    return fire(
        id, index, TrackEvent::kGatePause,
        fmt::format("artifact {} is gone: {}", short_hash(track.artifact), artifact.error().describe()));
  if (const auto gate = spec.gates.find("evaluation"); gate != spec.gates.end()) {
    const GateResult result = judge_evaluation(gate->second, artifact->evaluation_json);
    if (result.outcome != GateOutcome::kWiden)
      return fire(
          id, index,
          result.outcome == GateOutcome::kRollBack ? TrackEvent::kGateRollBack : TrackEvent::kGatePause,
          "gate evaluation: " + result.text);
  }
  if (!spec.canary_dataset.empty() && rollouts_.at(id).canary_json.empty()) {
    if (!asking_teacher_.insert(id).second) return;
    return ask_teacher_(spec, track.artifact, [this, id, index](Result<std::string> answers) {
      asking_teacher_.erase(id);
      const auto record = rollouts_.find(id);
      if (record == rollouts_.end()) return;
      if (!answers)
        return fire(id, index, TrackEvent::kGatePause,
                    "the teacher's answers to the canary: " + answers.error().describe());
      Change change = begin(record->second);
      change.record.canary_json = std::move(*answers);
      if (commit(std::move(change))) changed();
    });
  }
  fire(id, index, TrackEvent::kReady, "begins");
}

bool Rollouts::fail_now(const std::string& id, std::size_t index, const std::vector<GateResult>& results) {
  const GateResult* worst = nullptr;
  for (const GateResult& result : results)
    if (result.verdict == GateVerdict::kFail &&
        (worst == nullptr ||
         (worst->outcome != GateOutcome::kRollBack && result.outcome == GateOutcome::kRollBack)))
      worst = &result;
  if (worst == nullptr) return false;
  Change change = begin(rollouts_.at(id));
  change.record.tracks[index].gates_json = json::serialize(to_json(results));
  if (!commit(std::move(change))) return true;
  fire(id, index,
       worst->outcome == GateOutcome::kRollBack ? TrackEvent::kGateRollBack : TrackEvent::kGatePause,
       fmt::format("gate {}: {}", worst->gate, worst->text));
  return true;
}

void Rollouts::judge_rolling(const std::string& id, std::size_t index) {
  const RolloutRecord& record = rollouts_.at(id);
  const RolloutTrack& track = record.tracks[index];
  const RolloutSpec& spec = specs_.at(id);
  std::size_t open = 0, all = 0, known = 0;
  for (const auto& [device, member] : members(id)) {
    if (member.device_class != track.device_class || !treated(member)) continue;
    ++all;
    open += member.state == "waiting" || member.state == "told" ? 1 : 0;
  }
  for (const auto& [device_id, device] : fleet_.devices())
    known += !device.revoked && device.desired.device_class == track.device_class ? 1 : 0;
  GateInput input = gate_input(record, track, false);
  const GateResult install = judge({{"install", spec.gates.at("install")}}, input).front();
  if (install.verdict == GateVerdict::kFail) {
    fail_now(id, index, {install});
    return;
  }
  const bool late = clock_.unix_millis() - track.since > millis(spec.deadline);
  if (all == 0 && known > 0) {  // nobody could be reached when the stage began
    Change change = begin(record);
    if (choose(change, change.record.tracks[index]) > 0) {
      commit(std::move(change));
      return changed();
    }
    if (late) fire(id, index, TrackEvent::kGatePause, "no device of the class could be reached in time");
    return;
  }
  if (open > 0) {
    if (late)
      fire(id, index, TrackEvent::kGatePause,
           fmt::format("{} devices have not settled within the stage's deadline of {} s", open,
                       spec.deadline.count()));
    return;
  }
  fire(id, index, TrackEvent::kSettled,
       fmt::format("stage {}: {} devices are updated in all", track.stage + 1, all));
}

GateInput Rollouts::gate_input(const RolloutRecord& record, const RolloutTrack& track, bool measured) const {
  GateInput input;
  const RolloutSpec& spec = specs_.at(record.id);
  for (const auto& [id, member] : members(record.id)) {
    if (member.device_class != track.device_class || member.state == "left") continue;
    DeviceSample sample;
    sample.device = id;
    sample.treated = !member.holdout;
    sample.failed = member.state == "failed";
    if (measured && !sample.failed) {
      // Means over the soak. Only what a gate asks for is read.
      const auto rows = [&](const char* metric) {
        std::vector<double> out;
        if (const auto found = telemetry_.query(sample.device, metric, track.since, 100000))
          for (const TelemetryStore::Row& row : *found) out.push_back(row.point.value);
        return out;
      };
      const auto mean = [&](const char* gate, const char* metric, std::optional<double>& out) {
        if (spec.gates.count(gate) == 0) return;
        double sum = 0;
        const std::vector<double> values = rows(metric);
        for (const double value : values) sum += value;
        if (!values.empty()) out = sum / static_cast<double>(values.size());
      };
      mean("token_latency", "serve_token_seconds_p95", sample.token_p95_seconds);
      mean("first_token_latency", "serve_first_token_seconds_p95", sample.first_token_p95_seconds);
      mean("energy", "device_power_watts", sample.power_watts);
      if (spec.gates.count("memory") != 0) {
        // Told when it moves, of every new process, and every ten minutes: the last one counts.
        const UnixMillis since = std::max(member.settled, track.since - kMemoryMillis);
        if (const auto found = telemetry_.query(id, "serve_pss_bytes", since, 100000);
            found && !found->empty())
          sample.memory_bytes = found->back().point.value;
      }
      if (spec.gates.count("errors") != 0) {
        for (const double value : rows("serve_requests"))
          sample.requests += static_cast<std::uint64_t>(value);
        for (const double value : rows("serve_errors")) sample.errors += static_cast<std::uint64_t>(value);
      }
    }
    auto& canary = member.holdout ? input.canary_old : input.canary_new;
    const std::string& artifact = member.holdout ? track.before : track.artifact;
    if (!canary && !member.canary_artifact.empty() && member.canary_artifact == artifact)
      canary = CanaryCount{member.canary_asked, member.canary_agreed};
    input.devices.push_back(std::move(sample));
  }
  if (const Result<ArtifactRecord> artifact = artifacts_.find(track.artifact))
    input.evaluation_json = artifact->evaluation_json;
  return input;
}

void Rollouts::judge_soak(const std::string& id, std::size_t index) {
  const RolloutRecord& record = rollouts_.at(id);
  const RolloutTrack track = record.tracks[index];
  const RolloutSpec& spec = specs_.at(id);
  const UnixMillis now = clock_.unix_millis();
  const auto& all = members(id);
  if (std::none_of(all.begin(), all.end(), [&](const auto& one) {
        return one.second.device_class == track.device_class && treated(one.second);
      }))
    return fire(id, index, passed(record, track), "the class has no device to tell");
  if (now < track.soak_until) {
    // Only what cannot mend itself is judged before the soak is over.
    std::vector<GateResult> early =
        judge({{"install", spec.gates.at("install")}}, gate_input(record, track, false));
    fail_now(id, index, early);
    return;
  }
  // Waiting for samples, it need not read them all every second.
  auto& [soak, judged] = judged_[fmt::format("{}/{}", id, index)];
  if (soak == track.since && clock_.steady_now() - judged < kJudgeAgain) return;
  soak = track.since, judged = clock_.steady_now();
  const std::vector<GateResult> results = judge(spec.gates, gate_input(record, track, true));
  if (fail_now(id, index, results)) return;
  const GateResult* missing = nullptr;
  for (const GateResult& result : results)
    if (result.verdict == GateVerdict::kInsufficient &&
        (missing == nullptr || result.outcome == GateOutcome::kPause))
      missing = &result;
  const std::string shown = json::serialize(to_json(results));
  if (shown != track.gates_json) {
    Change change = begin(record);
    change.record.tracks[index].gates_json = shown;
    if (!commit(std::move(change))) return;
  }
  if (missing != nullptr) {
    if (now - track.soak_until < millis(spec.sample_deadline)) return;  // more may come
    if (missing->outcome == GateOutcome::kPause)
      return fire(id, index, TrackEvent::kGatePause,
                  fmt::format("gate {}: too few samples to judge: {}", missing->gate, missing->text));
  }
  fire(id, index, passed(rollouts_.at(id), track), fmt::format("stage {} passed its gates", track.stage + 1));
}

}  // namespace retort
