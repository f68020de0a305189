#include "coordinator/rollout/rollouts.h"

#include <set>

#include "common/hf/hf_model.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

using std::chrono::seconds;
using testing::ManualClock;
using testing::TemporaryFolder;

/// A store that a test breaks at the N-th write: before it (nothing is kept) or after it (all is, but nobody
/// hears).
struct BreakingStore final : Store {
  Result<std::optional<std::string>> get(std::string_view table, std::string_view key) const override {
    return inner->get(table, key);
  }
  Result<void> write(const StoreBatch& batch, bool durable = true) override {
    if (broken || --writes_left == 0) {
      if (!broken && after) RETORT_TRY(inner->write(batch, durable));
      broken = true;
      return fail(ErrorCode::kIo, "store", "the disk is gone");
    }
    return inner->write(batch, durable);
  }
  Result<void> sync() override {
    if (broken) return fail(ErrorCode::kIo, "store", "the disk is gone");
    return inner->sync();
  }
  Result<void> scan(std::string_view table, std::string_view prefix, std::string_view start_after,
                    const std::function<bool(std::string_view, std::string_view)>& visit) const override {
    return inner->scan(table, prefix, start_after, visit);
  }
  Result<void> checkpoint(const std::filesystem::path& folder) const override {
    return inner->checkpoint(folder);
  }
  std::unique_ptr<Store> inner = make_memory_store();
  long writes_left = -1;
  bool broken = false, after = false;
};

/// Devices whose behaviour a test sets: they obey as soon as they are told, unless they are bad, deaf or
/// offline.
struct FakeFleet final : DeviceFleet {
  explicit FakeFleet(Store& s) : store(s) {}
  const std::map<std::string, DeviceRecord>& devices() const override { return all; }
  const std::map<std::string, DeviceClass>& classes() const override { return class_list; }
  bool online(const std::string& id) const override { return offline.count(id) == 0; }
  void reconsider(const std::string& id) override {
    DeviceRecord& device = all.at(id);
    const auto assigned = rollouts->assigned(id, device.desired.device_class);
    const std::string artifact = assigned.value_or(class_list.at(device.desired.device_class).artifact);
    if (artifact != device.desired.artifact) desire(device, artifact);
  }
  void renew(const std::string& id) override { desire(all.at(id), all.at(id).desired.artifact); }
  void desire(DeviceRecord& device, const std::string& artifact) {
    ++device.desired.generation;
    device.desired.artifact = artifact;
    obey(device);
  }
  void obey(DeviceRecord& device) {
    if (offline.count(device.id) != 0 || deaf.count(device.id) != 0) return;
    device.status.generation = device.desired.generation;
    if (bad.count(device.desired.artifact) != 0) {
      device.status.error_code = "unavailable", device.status.error = "died in probation";
      return;
    }
    device.status.artifact = device.desired.artifact;
    device.status.error_code.clear(), device.status.error.clear();
  }
  Result<DeviceClass> assign(const std::string& name, const std::string& artifact, StoreBatch batch,
                             const std::function<void()>& written) override {
    batch.put("classes", name, artifact);
    RETORT_TRY(store.write(batch));
    class_list.at(name).artifact = artifact;
    if (written) written();
    for (auto& [id, device] : all)
      if (device.desired.device_class == name) reconsider(id);
    return class_list.at(name);
  }
  Result<void> remove_class(const std::string& name, StoreBatch batch) override {
    batch.erase("classes", name);
    RETORT_TRY(store.write(batch));
    class_list.erase(name);
    return {};
  }
  bool ask_canary(const std::string& id, const wire::Canary& canary) override {
    asked.push_back({id, canary});
    return true;
  }

  Store& store;
  Rollouts* rollouts = nullptr;
  std::map<std::string, DeviceRecord> all;
  std::map<std::string, DeviceClass> class_list;
  std::set<std::string> offline, deaf, bad;
  std::vector<std::pair<std::string, wire::Canary>> asked;
};

class RolloutTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK(artifacts_.clean());
    ASSERT_OK(testing::write_tiny_model(folder_ / "m", ModelFamily::kLlama, 1));
    const auto model = open_hf_model(folder_ / "m");
    ASSERT_OK(model);
    for (const char* name : {"old", "new", "newer", "other"}) {
      ASSERT_OK(write_gguf_model(folder_ / name, model->config, model->tokenizer, weight_sources(*model),
                                 TensorType::kF16, {{"general.name", name}}));
      ArtifactRecord facts;
      facts.evaluation_json = R"({"top1_agreement": 0.7})";
      const auto made = artifacts_.import(folder_ / name, facts);
      ASSERT_OK(made);
      sha_[name] = made->sha256;
    }
    add("small", 10);
    restart();
  }
  void add(const std::string& name, int devices) {
    fleet_.class_list[name].name = name;
    fleet_.class_list[name].artifact = sha_["old"];
    for (int i = 0; i < devices; ++i) {
      DeviceRecord device;
      device.id = fmt::format("dev-{}-{:02}", name, i);
      device.desired = {1, name, sha_["old"]};
      device.status = {"idle", 1, sha_["old"]};
      device.last_seen = clock_.unix_millis();
      device.profile.labels["site"] = i < 2 ? "lab" : "field";
      fleet_.all[device.id] = device;
    }
  }
  /// As after kill -9: all that was not in the store is gone.
  void restart() {
    rollouts_ =
        std::make_unique<Rollouts>(reactor_, *store_, artifacts_, telemetry_, fleet_, clock_, random_,
                                   [this](const RolloutSpec&, const std::string&,
                                          std::function<void(Result<std::string>)> done) { done(teacher_); });
    ASSERT_OK(rollouts_->load());
    for (auto& [name, device_class] : fleet_.class_list)
      if (const auto kept = store_->get("classes", name); kept && *kept) device_class.artifact = **kept;
    fleet_.rollouts = rollouts_.get();
  }
  std::string create(const std::string& more, const std::string& artifact = "new",
                     const std::string& name = "small") {
    const auto body = parse_json(fmt::format(R"({{"classes": {{"{}": "{}"}}{}{}}})", name, sha_[artifact],
                                             more.empty() ? "" : ",", more),
                                 "");
    EXPECT_OK(body);
    const auto made = rollouts_->create(body->get_object());
    EXPECT_OK(made);
    return made ? made->id : "";
  }
  RolloutTrack track(const std::string& id, std::size_t index = 0) {
    return rollouts_->find(id)->tracks.at(index);
  }
  std::string state(const std::string& id, std::size_t index = 0) { return track(id, index).state; }
  void steps(int count = 8) {
    for (int i = 0; i < count; ++i) rollouts_->step();
  }
  void pass(seconds time) {
    clock_.advance(time);
    for (auto& [id, device] : fleet_.all)
      if (fleet_.online(id)) device.last_seen = clock_.unix_millis();
    steps();
  }
  int serving(const std::string& artifact, const std::string& name = "small") {
    int count = 0;
    for (const auto& [id, device] : fleet_.all)
      count += device.desired.device_class == name && device.status.artifact == sha_[artifact] ? 1 : 0;
    return count;
  }
  std::set<std::string> of_state(const std::string& rollout, const std::string& wanted) {
    std::set<std::string> out;
    for (const auto& [id, member] : rollouts_->members(rollout))
      if (member.state == wanted) out.insert(id);
    return out;
  }
  void report(const std::string& device, const char* metric, double value) {
    StoreBatch batch;
    TelemetryStore::put(batch, device, {{clock_.unix_millis() + 1, metric, value}});
    ASSERT_OK(store_->write(batch));
  }

  TemporaryFolder folder_;
  boost::asio::io_context reactor_;
  ManualClock clock_;
  SeededRandom random_{1};
  std::unique_ptr<BreakingStore> store_ = std::make_unique<BreakingStore>();
  std::unique_ptr<TrustRepository> trust_ =
      std::move(*TrustRepository::open(*store_, folder_ / "keys", clock_));
  ArtifactStore artifacts_{folder_ / "blobs", *store_, *trust_, clock_};
  TelemetryStore telemetry_{*store_};
  FakeFleet fleet_{*store_};
  std::map<std::string, std::string> sha_;
  std::unique_ptr<Rollouts> rollouts_;
  Result<std::string> teacher_ = std::string(R"([{"prompt": "a", "answer": " b"}])");
};

constexpr const char* kStages =
    R"("stages": [{"count": 1}, {"percent": 50}, {"percent": 100}], "soak_seconds": 60,
  "holdout": {"count": 2})";

TEST_F(RolloutTest, StagesSoakHoldoutAndCompletion) {
  const std::string id = create(kStages);
  steps();
  EXPECT_EQ(state(id), "soaking");
  EXPECT_EQ(serving("new"), 1);
  EXPECT_EQ(of_state(id, "holdout").size(), 2u);
  pass(seconds(59));
  EXPECT_EQ(serving("new"), 1);
  pass(seconds(2));
  EXPECT_EQ(serving("new"), 4) << "half of the eight that are not held out";
  restart();
  pass(seconds(61));
  EXPECT_EQ(serving("new"), 8);
  for (const std::string& held : of_state(id, "holdout"))
    EXPECT_EQ(fleet_.all[held].desired.generation, 1u) << "a holdout is left alone";
  EXPECT_EQ(fleet_.class_list["small"].artifact, sha_["old"]);
  pass(seconds(61));
  EXPECT_EQ(state(id), "completed");
  EXPECT_EQ(serving("new"), 10) << "the holdout too";
  EXPECT_EQ(fleet_.class_list["small"].artifact, sha_["new"]);
  EXPECT_FALSE(rollouts_->assigned("dev-small-00", "small"));
  const auto events = rollouts_->events(id, 0, 100);
  ASSERT_OK(events);
  EXPECT_EQ(events->front().text.substr(0, 8), "created:");
  EXPECT_EQ(events->back().state, "completed");
  EXPECT_EQ(rollouts_->order(id, Rollouts::Order::kPause, "").error().code, ErrorCode::kConflict);
}

TEST_F(RolloutTest, AFailedInstallPausesAtTheFirstStage) {
  fleet_.bad.insert(sha_["new"]);
  const std::string id = create(kStages);
  steps();
  EXPECT_EQ(state(id), "paused");
  EXPECT_NE(track(id).reason.find("gate install: 1 of 1 failed"), std::string::npos) << track(id).reason;
  EXPECT_EQ(serving("old"), 10);
  // Mended, resumed: the device is told once more, with a new generation.
  fleet_.bad.clear();
  ASSERT_OK(rollouts_->order(id, Rollouts::Order::kResume, ""));
  steps();
  EXPECT_EQ(state(id), "soaking");
  EXPECT_EQ(serving("new"), 1);
}

TEST_F(RolloutTest, AFailedInstallRollsBackOneClassWhileAnotherGoesOn) {
  add("large", 3);
  fleet_.bad.insert(sha_["other"]);
  const auto body = parse_json(
      fmt::format(
          R"({{"classes": {{"small": "{}", "large": "{}"}}, "stages": [{{"count": 1}}, {{"percent": 100}}],
        "soak_seconds": 10, "gates": {{"install": {{"max_failed_percent": 0, "on_fail": "rollback"}}}}}})",
          sha_["new"], sha_["other"]),
      "");
  const auto made = rollouts_->create(body->get_object());
  ASSERT_OK(made);
  for (int i = 0; i < 5; ++i) pass(seconds(11));
  EXPECT_EQ(state(made->id, 0), "rolled_back");  // large
  EXPECT_EQ(state(made->id, 1), "completed");
  EXPECT_EQ(serving("old", "large"), 3);
  EXPECT_EQ(serving("new", "small"), 10);
}

TEST_F(RolloutTest, SilencePastTheDeadlineIsFailure) {
  for (const auto& [id, device] : fleet_.all) fleet_.deaf.insert(id);
  const std::string id = create(R"("stages": [{"count": 1}], "install_deadline_seconds": 100)");
  steps();
  pass(seconds(99));
  EXPECT_EQ(state(id), "rolling");
  pass(seconds(2));
  EXPECT_EQ(state(id), "paused");
  const std::string device = *of_state(id, "failed").begin();
  EXPECT_NE(rollouts_->members(id).at(device).error.find("still in state idle"), std::string::npos);
  // It did come, late: no failure any more, and the rollout goes on when it is told to.
  fleet_.deaf.clear();
  fleet_.obey(fleet_.all[device]);
  steps();
  EXPECT_EQ(of_state(id, "updated").size(), 1u);
  ASSERT_OK(rollouts_->order(id, Rollouts::Order::kResume, ""));
  steps();
  EXPECT_EQ(state(id), "soaking");
  // Updated, and then silent.
  fleet_.offline.insert(device);
  pass(seconds(550));
  EXPECT_EQ(state(id), "soaking");
  pass(seconds(51));
  EXPECT_EQ(state(id), "paused");
}

TEST_F(RolloutTest, RollBackOfWhatWasToldIsOrderedAndWaitsForDevices) {
  const std::string id = create(R"("stages": [{"percent": 50}, {"percent": 100}])");
  steps();
  ASSERT_EQ(serving("new"), 5);
  const std::string gone = *of_state(id, "updated").begin();
  fleet_.offline.insert(gone);
  ASSERT_OK(rollouts_->order(id, Rollouts::Order::kRollBack, "small"));
  steps();
  EXPECT_EQ(state(id), "rolling_back");
  EXPECT_EQ(serving("new"), 1);
  restart();
  pass(seconds(3700));
  EXPECT_EQ(state(id), "rolled_back");
  EXPECT_NE(track(id).reason.find("1 have not come back"), std::string::npos) << track(id).reason;
  EXPECT_EQ(fleet_.all[gone].desired.artifact, sha_["old"]) << "what it will be told when it returns";
}

TEST_F(RolloutTest, PauseResumeAbort) {
  const std::string id = create(kStages);
  steps();
  ASSERT_OK(rollouts_->order(id, Rollouts::Order::kPause, ""));
  pass(seconds(1000));
  EXPECT_EQ(state(id), "paused");
  EXPECT_EQ(serving("new"), 1);
  ASSERT_OK(rollouts_->order(id, Rollouts::Order::kResume, ""));
  EXPECT_EQ(state(id), "soaking");
  pass(seconds(30));
  EXPECT_EQ(serving("new"), 1) << "a new soak";
  ASSERT_OK(rollouts_->order(id, Rollouts::Order::kPause, ""));
  ASSERT_OK(rollouts_->order(id, Rollouts::Order::kForceResume, ""));
  steps();
  EXPECT_EQ(serving("new"), 4);
  ASSERT_OK(rollouts_->order(id, Rollouts::Order::kAbort, ""));
  pass(seconds(1000));
  EXPECT_EQ(state(id), "aborted");
  EXPECT_EQ(serving("new"), 4) << "devices keep what they have";
  EXPECT_EQ(fleet_.class_list["small"].artifact, sha_["old"]);
  restart();
  fleet_.reconsider(*of_state(id, "updated").begin());
  EXPECT_EQ(serving("new"), 4);
  ASSERT_OK(rollouts_->order(id, Rollouts::Order::kRollBack, ""));
  steps();
  EXPECT_EQ(state(id), "rolled_back");
  EXPECT_EQ(serving("old"), 10);
}

TEST_F(RolloutTest, ANewerRolloutOrAssignmentSupersedes) {
  const std::string first = create(kStages);
  steps();
  const auto body = parse_json(fmt::format(R"({{"classes": {{"small": "{}"}}}})", sha_["newer"]), "");
  EXPECT_EQ(rollouts_->create(body->get_object()).error().code, ErrorCode::kConflict);
  const std::string second =
      create(R"("supersede": true, "stages": [{"percent": 100}], "soak_seconds": 5)", "newer");
  EXPECT_EQ(state(first), "superseded");
  steps();
  for (int i = 0; i < 3; ++i) pass(seconds(6));
  EXPECT_EQ(state(second), "completed");
  EXPECT_EQ(serving("newer"), 10);
  EXPECT_FALSE(track(first).in_force);
  const std::string third = create(kStages, "new");
  steps();
  EXPECT_EQ(serving("new"), 1);
  ASSERT_OK(rollouts_->assign("small", sha_["other"]));
  EXPECT_EQ(state(third), "superseded");
  EXPECT_EQ(serving("other"), 10);
  EXPECT_EQ(
      rollouts_
          ->create(
              parse_json(fmt::format(R"({{"classes": {{"small": "{}"}}}})", sha_["other"]), "")->get_object())
          .error()
          .code,
      ErrorCode::kConflict)
      << "served already";
}

TEST_F(RolloutTest, WindowsLabelsAndTheDevicesOwnTime) {
  // 2027-01-15 08:00 UTC, a Friday.
  for (auto& [id, device] : fleet_.all) device.profile.utc_offset_minutes = id.ends_with("0") ? -6 * 60 : 0;
  const std::string id = create(R"("stages": [{"labels": {"site": "lab"}}], "soak_seconds": 1,
    "windows": [{"from": "02:00", "to": "03:00", "days": ["fri"], "zone": "device"}])");
  steps();
  EXPECT_EQ(of_state(id, "updated"), std::set<std::string>{"dev-small-00"}) << "02:00 where it is";
  EXPECT_EQ(of_state(id, "waiting"), std::set<std::string>{"dev-small-01"});
  EXPECT_EQ(state(id), "rolling");
}

TEST(Windows, PastMidnightAndDays) {
  const auto at = [](int day, int hour, int minute) {  // day 0: Thursday 1970-01-01
    return (static_cast<UnixMillis>(day) * 1440 + hour * 60 + minute) * 60000;
  };
  const std::vector<MaintenanceWindow> night{{22 * 60, 4 * 60, {4}, false}};  // Thursday night
  EXPECT_FALSE(in_window(night, at(0, 21, 59), 0));
  EXPECT_TRUE(in_window(night, at(0, 22, 0), 0));
  EXPECT_TRUE(in_window(night, at(1, 3, 59), 0));
  EXPECT_FALSE(in_window(night, at(1, 4, 0), 0));
  EXPECT_FALSE(in_window(night, at(1, 23, 0), 0));
  EXPECT_FALSE(in_window(night, at(0, 2, 0), 0)) << "Wednesday's night";
  const std::vector<MaintenanceWindow> local{{60, 120, {}, true}};
  EXPECT_TRUE(in_window(local, at(5, 23, 30), 120));
  EXPECT_FALSE(in_window(local, at(5, 1, 30), 120));
  EXPECT_TRUE(in_window({}, 0, 0));
}

TEST_F(RolloutTest, GatesOverMeasurementsAndCanary) {
  const std::string id = create(R"("stages": [{"count": 3}, {"percent": 100}], "soak_seconds": 60,
    "holdout": {"count": 3}, "sample_deadline_seconds": 100, "canary": {"dataset": "text"},
    "gates": {"token_latency": {"max_increase_percent": 20, "on_fail": "rollback"},
              "errors": {"alpha": 0.05, "min_samples": 10}, "energy": {"max_watts": 5},
              "canary": {"min_agreement_percent": 50}, "evaluation": {"metric": "top1_agreement", "min": 0.5}})");
  steps();
  ASSERT_EQ(state(id), "soaking");
  EXPECT_EQ(fleet_.asked.size(), 6u) << "updated devices and the holdout";
  const auto all_report = [&](double slower, int errors) {
    int i = 0;
    for (const auto& [device, member] : rollouts_->members(id)) {
      const double jitter = 1 + 0.01 * ++i;
      report(device, "serve_token_seconds_p95", (member.holdout ? 0.1 : 0.1 * slower) * jitter);
      report(device, "serve_requests", 20);
      report(device, "serve_errors", member.holdout ? 0 : errors);
    }
  };
  all_report(1.1, 0);
  pass(seconds(61));
  EXPECT_EQ(state(id), "soaking") << "nobody has answered the canary";
  for (const auto& [device, canary] : fleet_.asked)
    rollouts_->canary_answered(device, {id, canary.artifact, 10, 8});
  pass(seconds(6));
  EXPECT_EQ(state(id), "soaking") << track(id).reason;
  EXPECT_EQ(track(id).stage, 1u) << track(id).gates_json;
  EXPECT_NE(track(id).gates_json.find("no updated device reported it"), std::string::npos) << "energy";
  clock_.advance(seconds(1));
  all_report(2, 0);
  pass(seconds(61));
  EXPECT_EQ(state(id), "rolled_back") << track(id).gates_json;
  EXPECT_NE(track(id).reason.find("gate token_latency"), std::string::npos) << track(id).reason;
  EXPECT_EQ(serving("old"), 10);
}

TEST_F(RolloutTest, TooFewSamplesPauseInTheEnd) {
  const std::string id =
      create(R"("stages": [{"count": 1}], "soak_seconds": 10, "sample_deadline_seconds": 100,
    "gates": {"errors": {"max_percent": 1}})");
  steps();
  pass(seconds(50));
  EXPECT_EQ(state(id), "soaking");
  pass(seconds(70));
  EXPECT_EQ(state(id), "paused");
  EXPECT_NE(track(id).reason.find("too few samples"), std::string::npos);
}

TEST_F(RolloutTest, WhatCanBeJudgedBeforehandIs) {
  const std::string id = create(R"("gates": {"evaluation": {"metric": "top1_agreement", "min": 0.9}})");
  steps();
  EXPECT_EQ(state(id), "paused");
  EXPECT_EQ(serving("old"), 10);
  ASSERT_OK(rollouts_->order(id, Rollouts::Order::kForceResume, ""));
  steps();
  EXPECT_EQ(state(id), "soaking");
  ASSERT_OK(rollouts_->order(id, Rollouts::Order::kAbort, ""));
  teacher_ = fail(ErrorCode::kConflict, "", "no teacher is served");
  const std::string other = create(R"("supersede": true, "canary": {"dataset": "x"})", "newer");
  steps();
  EXPECT_EQ(state(other), "paused");
  EXPECT_NE(track(other).reason.find("no teacher is served"), std::string::npos);
}

TEST_F(RolloutTest, AJumpOfTheClockEndsNoSoak) {
  const std::string id = create(kStages);
  steps();
  clock_.set_wall(clock_.now() + std::chrono::hours(24 * 365));
  steps();
  EXPECT_EQ(state(id), "soaking");
  EXPECT_EQ(track(id).stage, 0u);
  for (auto& [device, record] : fleet_.all) record.last_seen = clock_.unix_millis();
  pass(seconds(61));
  EXPECT_EQ(track(id).stage, 1u);
}

TEST_F(RolloutTest, KilledAtAnyWriteItEndsAlike) {
  const std::string spec = R"("stages": [{"count": 1}, {"percent": 100}], "soak_seconds": 10,
    "holdout": {"count": 1}, "supersede": true)";
  std::string from = "new", to = "newer";
  for (const bool after : {false, true})
    for (int n = 1; n <= 12; ++n) {
      const std::string id = create(spec, to);
      store_->writes_left = n, store_->after = after, store_->broken = false;
      for (int i = 0; i < 6; ++i) pass(seconds(11));
      const bool was_broken = store_->broken;
      store_->broken = false, store_->writes_left = -1;
      restart();
      for (auto& [device, record] : fleet_.all) fleet_.reconsider(device);  // as their next hello does
      for (int i = 0; i < 4; ++i) pass(seconds(11));
      EXPECT_EQ(state(id), "completed") << n << " " << track(id).reason;
      EXPECT_EQ(serving(to), 10) << n;
      EXPECT_EQ(fleet_.class_list["small"].artifact, sha_[to]) << n;
      EXPECT_TRUE(n > 2 || was_broken);
      std::swap(from, to);
    }
}

TEST_F(RolloutTest, NobodyThere) {
  for (const auto& [id, device] : fleet_.all) fleet_.offline.insert(id);
  for (auto& [id, device] : fleet_.all) device.last_seen -= 2 * 24 * 3600 * 1000;
  const std::string waits = create(R"("deadline_seconds": 1000)");
  steps();
  EXPECT_EQ(state(waits), "rolling");
  pass(seconds(1001));
  EXPECT_EQ(state(waits), "paused");
  fleet_.class_list["empty"].name = "empty";
  const std::string empty = create("", "new", "empty");
  steps();
  EXPECT_EQ(state(empty), "completed");
  EXPECT_EQ(fleet_.class_list["empty"].artifact, sha_["new"]);
}

TEST_F(RolloutTest, BadRequests) {
  const auto refused = [&](const std::string& text) {
    const auto body = parse_json(text, "");
    EXPECT_OK(body);
    const auto made = rollouts_->create(body->get_object());
    EXPECT_FALSE(made);
    return made ? std::string() : made.error().describe();
  };
  const std::string classes = R"({"classes": {"small": ")" + sha_["new"] + R"("}, )";
  EXPECT_NE(refused("{}").find("classes"), std::string::npos);
  EXPECT_NE(refused(R"({"classes": {"none": "x"}})").find("there is no class 'none'"), std::string::npos);
  EXPECT_NE(refused(R"({"classes": {"small": "0123456789"}})").find("artifact"), std::string::npos);
  EXPECT_NE(refused(classes + R"("stage": []})").find("did you mean 'stages'"), std::string::npos);
  EXPECT_NE(refused(classes + R"("stages": [{"count": 1, "percent": 5}]})").find("stage 1"),
            std::string::npos);
  EXPECT_NE(refused(classes + R"("stages": [{"percent": 101}]})").find("at most 100"), std::string::npos);
  EXPECT_NE(refused(classes + R"("windows": [{"from": "25:00", "to": "03:00"}]})").find("time of day"),
            std::string::npos);
  EXPECT_NE(refused(classes + R"("gates": {"token_latancy": {}}})").find("did you mean"), std::string::npos);
  EXPECT_NE(refused(classes + R"("gates": {"errors": {}}})").find("judges nothing"), std::string::npos);
  EXPECT_NE(refused(classes + R"("gates": {"canary": {"min_agreement_percent": 5}}})").find("dataset"),
            std::string::npos);
}

TEST(TrackTable, FinalStatesAndEveryPair) {
  int rows = 0;
  for (int s = 0; s < kTrackStateCount; ++s)
    for (int e = 0; e < kTrackEventCount; ++e) {
      const auto state = static_cast<TrackState>(s);
      const auto event = static_cast<TrackEvent>(e);
      const TrackTransition* row = find_track_transition(state, event);
      if (row == nullptr) continue;
      ++rows;
      EXPECT_TRUE(!is_final(state) || event == TrackEvent::kRollBack) << to_string(state);
    }
  EXPECT_EQ(rows, 34);
  // Whatever is under way can be ended and superseded.
  for (int s = 0; s < kTrackStateCount; ++s) {
    const auto state = static_cast<TrackState>(s);
    EXPECT_TRUE(is_final(state) || find_track_transition(state, TrackEvent::kSupersede) != nullptr);
    TrackState again;
    EXPECT_TRUE(track_state_from(to_string(state), again) && again == state);
  }
}

}  // namespace
}  // namespace retort
