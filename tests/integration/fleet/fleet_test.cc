#include "coordinator/fleet/fleet.h"

#include <deque>

#include "common/core/utf8.h"
#include "common/hf/hf_model.h"
#include "common/net/key_proof.h"
#include "common/trust/client.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

using testing::TemporaryFolder;

/// A device that speaks the protocol by hand, so that a test can also speak it wrongly.
struct Device {
  Device(boost::asio::io_context& io, const CurveKeys& own, const std::string& server_key,
         const std::string& endpoint)
      : reactor(io), keys(own) {
    auto made = FleetClient::connect(
        io, keys, server_key, endpoint, [this](bool now, std::string_view) { up = now; },
        [this](std::string_view frame) {
          auto envelope = wire::decode(frame);
          ASSERT_OK(envelope);
          if (envelope->epoch == epoch) got.push_back(std::move(*envelope));
        });
    EXPECT_OK(made);
    client = std::move(*made);
  }
  bool wait(const std::function<bool()>& done, int millis = 5000) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(millis);
    while (!done() && std::chrono::steady_clock::now() < end)
      reactor.run_one_for(std::chrono::milliseconds(20));
    return done();
  }
  void send(wire::Payload payload, std::uint64_t with_sequence = 0) {
    ASSERT_TRUE(wait([&] { return up; }));
    wire::Envelope envelope;
    envelope.epoch = epoch;
    envelope.sequence = with_sequence == 0 ? ++sequence : with_sequence;
    envelope.payload = std::move(payload);
    ASSERT_TRUE(client->send(wire::encode(envelope)));
  }
  /// The next message of a kind; others before it are dropped.
  template <typename T>
  std::optional<T> next(int millis = 5000) {
    std::optional<T> found;
    wait(
        [&] {
          while (!got.empty() && !found) {
            if (auto* message = std::get_if<T>(&got.front().payload)) found = std::move(*message);
            got.pop_front();
          }
          return found.has_value();
        },
        millis);
    return found;
  }
  std::string enrol(const std::string& secret, DeviceProfile profile = {}, std::string name = "d") {
    ++epoch, sequence = 0;
    send(wire::Enrol{secret, std::move(name), std::move(profile)});
    const auto enrolled = next<wire::Enrolled>();
    return enrolled ? id = enrolled->device_id : "";
  }
  void hello() {
    ++epoch, sequence = 0;
    send(wire::Hello{id, "test", {}});
  }

  boost::asio::io_context& reactor;
  CurveKeys keys;
  std::unique_ptr<FleetClient> client;
  bool up = false;
  std::uint64_t epoch = 0, sequence = 0;
  std::string id;
  std::deque<wire::Envelope> got;
};

/// A store whose disk can be made to fail.
class FailingStore final : public Store {
 public:
  bool fails = false;
  Result<std::optional<std::string>> get(std::string_view table, std::string_view key) const override {
    return inner_->get(table, key);
  }
  Result<void> write(const StoreBatch& batch, bool durable) override {
    if (fails) return fail(ErrorCode::kOutOfBudget, "store", "the disk is full");
    return inner_->write(batch, durable);
  }
  Result<void> sync() override { return fails ? write({}, true) : Result<void>(); }
  Result<void> scan(std::string_view table, std::string_view prefix, std::string_view start_after,
                    const std::function<bool(std::string_view, std::string_view)>& visit) const override {
    return inner_->scan(table, prefix, start_after, visit);
  }
  Result<void> checkpoint(const std::filesystem::path& folder) const override {
    return inner_->checkpoint(folder);
  }

 private:
  std::unique_ptr<Store> inner_ = make_memory_store();
};

/// The system's clock, ahead by what a test says.
class MovedClock final : public Clock {
 public:
  std::chrono::seconds ahead{0};
  std::chrono::system_clock::time_point now() const override { return system_.now() + ahead; }
  std::chrono::steady_clock::time_point steady_now() const override { return system_.steady_now() + ahead; }

 private:
  SystemClock system_;
};

class FleetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK(artifacts_.clean());
    ASSERT_OK(fleet_.start(keys_, "tcp://127.0.0.1:*"));
    ASSERT_OK(testing::write_tiny_model(folder_ / "m", ModelFamily::kLlama, 1));
    const auto model = open_hf_model(folder_ / "m");
    ASSERT_OK(write_gguf_model(folder_ / "m.gguf", model->config, model->tokenizer, weight_sources(*model),
                               TensorType::kF16, {}));
    const auto imported = artifacts_.import(folder_ / "m.gguf", {});
    ASSERT_OK(imported);
    artifact_ = *imported;
  }
  std::unique_ptr<Device> device() {
    return std::make_unique<Device>(reactor_, make_curve_keys(), keys_.public_key, fleet_.endpoint());
  }

  TemporaryFolder folder_;
  boost::asio::io_context reactor_;
  MovedClock clock_;
  SeededRandom random_{1};
  std::unique_ptr<FailingStore> store_ = std::make_unique<FailingStore>();
  std::unique_ptr<TrustRepository> trust_ =
      std::move(*TrustRepository::open(*store_, folder_ / "keys", clock_));
  ArtifactStore artifacts_{folder_ / "blobs", *store_, *trust_, clock_};
  CurveKeys keys_ = make_curve_keys();
  int uses_ = 0;
  Fleet fleet_{reactor_,
               *store_,
               artifacts_,
               clock_,
               random_,
               {},
               [this](const Fleet::Claim& claim) -> Result<Fleet::Grant> {
                 if (claim.token_secret != "good" && claim.token_secret != "manual")
                   return fail(ErrorCode::kDenied, "", "wrong token");
                 ++uses_;
                 return Fleet::Grant{"t", claim.token_secret == "manual"};
               }};
  ArtifactRecord artifact_;
};

TEST_F(FleetTest, EnrolHelloDesiredPullAndTelemetry) {
  DeviceClass any;
  any.name = "any";
  ASSERT_OK(fleet_.set_class(any));
  const auto d = device();
  ASSERT_NE(d->enrol("good"), "");
  d->hello();
  const auto welcome = d->next<wire::Welcome>();
  ASSERT_TRUE(welcome);
  EXPECT_GT(welcome->chunk_credit, 0u);
  EXPECT_EQ(d->next<wire::Desired>()->desired.device_class, "any");
  ASSERT_OK(fleet_.assign("any", artifact_.sha256));
  const auto desired = d->next<wire::Desired>();
  ASSERT_TRUE(desired);
  EXPECT_EQ(desired->desired.artifact, artifact_.sha256);
  EXPECT_EQ(desired->desired.generation, 2u);

  // What the device verifies: the assignment, and the artifact among the signed targets.
  const auto root = TrustClient::check_first_root(trust_->root_text());
  ASSERT_OK(root);
  EXPECT_EQ(verify_assignment(desired->assignment, *root, d->id, clock_.unix_millis())->artifact,
            artifact_.sha256);
  TrustClient client = std::move(*TrustClient::open({{"root", trust_->root_text()}}));
  client.refresh(clock_.unix_millis());
  while (const auto wanted = client.wanted()) {
    d->send(wire::MetadataRequest{TrustClient::file_name(*wanted), 0});
    if (wanted->role == "root") {
      EXPECT_EQ(d->next<wire::Refused>()->about, "metadata 2.root.json");
      ASSERT_OK(client.absent());
    } else {
      const auto file = d->next<wire::Metadata>();
      ASSERT_TRUE(file && file->bytes.size() == file->total);
      ASSERT_OK(client.provide(file->bytes));
    }
  }
  client.find(artifact_target_name(artifact_.sha256));
  ASSERT_TRUE(client.found());
  d->send(wire::MetadataRequest{manifest_file_name(artifact_.sha256), 5});
  const auto tail = d->next<wire::Metadata>();
  ASSERT_TRUE(tail);
  EXPECT_EQ(tail->bytes.size() + 5, tail->total);
  d->send(wire::MetadataRequest{manifest_file_name(artifact_.sha256), 0});
  const auto verified = manifest_from_text(d->next<wire::Metadata>()->bytes);
  ASSERT_OK(verified);
  std::string bytes;
  while (bytes.size() < verified->length) {
    d->send(wire::ChunkRequest{artifact_.sha256, bytes.size(),
                               static_cast<std::uint32_t>(std::min<std::uint64_t>(
                                   wire::kMaxChunkBytes, verified->length - bytes.size()))});
    const auto chunk = d->next<wire::Chunk>();
    ASSERT_TRUE(chunk);
    bytes += chunk->bytes;
  }
  EXPECT_EQ(bytes, *read_file(folder_ / "m.gguf"));
  d->send(wire::ChunkRequest{artifact_.sha256, verified->length - 1, 100});
  EXPECT_NE(d->next<wire::Refused>()->about.find(artifact_.sha256), std::string::npos);
  d->send(wire::ChunkRequest{artifact_.sha256, 0, wire::kMaxChunkBytes + 1});
  EXPECT_EQ(d->next<wire::Refused>()->code, "invalid");
  d->send(wire::ChunkRequest{std::string(64, 'e'), 0, 10});
  EXPECT_EQ(d->next<wire::Refused>()->code, "not_found");

  d->send(wire::TelemetryBatch{1, 0, {{1000, "x", 1}}});
  EXPECT_EQ(d->next<wire::TelemetryAck>()->batch, 1u);
  d->send(wire::TelemetryBatch{1, 0, {{1000, "x", 99}}});  // sent again because the answer was lost
  EXPECT_EQ(d->next<wire::TelemetryAck>()->batch, 1u);
  const auto rows = TelemetryStore(*store_).query(d->id, "", 0, 10);
  ASSERT_EQ(rows->size(), 1u);
  EXPECT_EQ((*rows)[0].point.value, 1);
  d->hello();
  EXPECT_EQ(d->next<wire::Welcome>()->telemetry_acknowledged, 1u);
}

TEST_F(FleetTest, TelemetryIsAcknowledgedWhenItIsOnDisk) {
  const auto d = device();
  ASSERT_NE(d->enrol("good"), "");
  d->hello();
  ASSERT_TRUE(d->next<wire::Welcome>());
  const auto rows = [&] { return TelemetryStore(*store_).query(d->id, "", 0, 10)->size(); };
  store_->fails = true;
  d->send(wire::TelemetryBatch{1, 3, {{1000, "x", 1}}});
  EXPECT_FALSE(d->next<wire::TelemetryAck>(300));
  EXPECT_EQ(rows(), 0u);
  EXPECT_EQ(fleet_.counters().telemetry_points, 0u);
  store_->fails = false;
  d->send(wire::TelemetryBatch{1, 3, {{1000, "x", 1}}});
  EXPECT_EQ(d->next<wire::TelemetryAck>()->batch, 1u);
  EXPECT_EQ(rows(), 1u);
  EXPECT_EQ(fleet_.counters().telemetry_points, 1u);
  // Several at a time: one acknowledgement of the last is enough.
  for (std::uint64_t batch = 2; batch <= 5; ++batch)
    d->send(wire::TelemetryBatch{batch, 4, {{static_cast<UnixMillis>(1000 * batch), "x", 1}}});
  std::uint64_t last = 0;
  while (last < 5) {
    const auto ack = d->next<wire::TelemetryAck>();
    ASSERT_TRUE(ack);
    last = ack->batch;
  }
  EXPECT_EQ(rows(), 5u);
  EXPECT_EQ(fleet_.find(d->id)->telemetry_dropped, 4u) << "what it dropped ever, not the sum of what it said";
  // What follows a batch that was lost is not taken: it would hide that one for ever.
  d->send(wire::TelemetryBatch{7, 4, {{7000, "x", 1}}, 6});
  EXPECT_FALSE(d->next<wire::TelemetryAck>(300));
  d->send(wire::TelemetryBatch{6, 4, {{6000, "x", 1}}});
  d->send(wire::TelemetryBatch{7, 4, {{7000, "x", 1}}, 6});
  for (last = 0; last < 7;) {
    const auto ack = d->next<wire::TelemetryAck>();
    ASSERT_TRUE(ack);
    last = ack->batch;
  }
  EXPECT_EQ(rows(), 7u);
  // Another coordinator on this store knows it.
  Fleet next(
      reactor_, *store_, artifacts_, clock_, random_, {},
      [](const Fleet::Claim&) -> Result<Fleet::Grant> { return fail(ErrorCode::kDenied, "", "none"); });
  ASSERT_OK(next.start(keys_, "tcp://127.0.0.1:*"));
  EXPECT_EQ(next.find(d->id)->telemetry_batch, 7u);
  EXPECT_EQ(next.find(d->id)->telemetry_dropped, 4u);
}

TEST_F(FleetTest, ADeviceThatMissedItsDesiredStateIsToldAgain) {
  DeviceClass any;
  any.name = "any";
  ASSERT_OK(fleet_.set_class(any));
  const auto d = device();
  ASSERT_NE(d->enrol("good"), "");
  d->hello();
  const auto told = d->next<wire::Desired>();
  ASSERT_TRUE(told);
  clock_.ahead += std::chrono::seconds(15);
  d->send(wire::Heartbeat{told->desired.generation - 1});
  EXPECT_FALSE(d->next<wire::Desired>(300)) << "it may be at it";
  clock_.ahead += std::chrono::seconds(10);
  d->send(wire::Heartbeat{told->desired.generation - 1});
  EXPECT_EQ(d->next<wire::Desired>()->desired.generation, told->desired.generation);
  d->send(wire::Heartbeat{told->desired.generation});
  EXPECT_FALSE(d->next<wire::Desired>(300));
}

TEST_F(FleetTest, WhatADeviceCallsItselfIsTextOfBoundedLength) {
  DeviceProfile profile;
  profile.hostname = "h\xc3";
  profile.notes = {"\xed\xa0\x80"};
  std::string odd = "a";
  for (int i = 0; i < 200; ++i) odd += "\xc3\xa9";  // é: 256 bytes end in the middle of one
  profile.labels = {{"k\xff", odd}};
  profile.decode.assign(5000, {"Q8_0\xfe", 1, 2, 3, 4, 5, 6, 7, 8, 1});
  const auto d = device();
  const std::string id = d->enrol("good", profile, "evil\xff");
  ASSERT_FALSE(id.empty());
  const DeviceRecord& kept = fleet_.devices().at(id);
  EXPECT_EQ(kept.name, "evil\xef\xbf\xbd");
  EXPECT_EQ(kept.profile.hostname, "h\xef\xbf\xbd");
  EXPECT_EQ(valid_utf8(kept.profile.notes.at(0)), kept.profile.notes.at(0));
  EXPECT_EQ(kept.profile.labels.at("k\xef\xbf\xbd"), odd.substr(0, 255));
  EXPECT_EQ(kept.profile.decode.size(), 256u);
  EXPECT_EQ(kept.profile.decode.at(0).format, "Q8_0\xef\xbf\xbd");
}

TEST_F(FleetTest, EnrolmentIsGuardedAndRepeatable) {
  const auto d = device();
  ++d->epoch;
  d->send(wire::Enrol{"bad", "d", {}});
  EXPECT_EQ(d->next<wire::Refused>()->code, "denied");
  d->send(wire::Hello{"dev-0000000000000000", "t", {}});
  EXPECT_EQ(d->next<wire::Refused>()->about, "hello");
  EXPECT_TRUE(fleet_.devices().empty());
  const std::string id = d->enrol("good");
  EXPECT_EQ(d->enrol("good"), id);
  EXPECT_EQ(uses_, 1);
  const auto other = device();
  ASSERT_NE(other->enrol("good"), id);
  other->id = id;  // somebody else's name
  other->hello();
  EXPECT_EQ(other->next<wire::Refused>()->code, "denied");
}

TEST_F(FleetTest, ReplaysGarbageAndUnknownKindsHarmNothing) {
  const auto d = device();
  ASSERT_NE(d->enrol("good"), "");
  d->hello();
  ASSERT_TRUE(d->next<wire::Welcome>());
  d->send(wire::StatusReport{{"serve", 1, "a"}});
  ASSERT_TRUE(d->wait([&] { return fleet_.find(d->id)->status.state == "serve"; }));
  d->send(wire::StatusReport{{"idle", 1, "b"}}, d->sequence);  // an old sequence number
  ASSERT_TRUE(d->client->send("garbage"));
  ASSERT_TRUE(d->client->send(std::string(4096, '\xff')));
  d->send(wire::TelemetryAck{3});  // a kind that only the coordinator sends
  EXPECT_TRUE(d->next<wire::Unsupported>());
  EXPECT_EQ(fleet_.find(d->id)->status.state, "serve");
  EXPECT_EQ(fleet_.counters().garbage, 2u);
  EXPECT_EQ(fleet_.counters().duplicates, 1u);
  EXPECT_TRUE(fleet_.online(d->id));
}

TEST_F(FleetTest, RevocationCutsALiveSession) {
  const auto d = device();
  ASSERT_NE(d->enrol("good"), "");
  d->hello();
  ASSERT_TRUE(d->next<wire::Welcome>());
  ASSERT_OK(fleet_.revoke(d->id));
  EXPECT_EQ(d->next<wire::Refused>()->code, "revoked");
  EXPECT_FALSE(fleet_.online(d->id));
  d->send(wire::MetadataRequest{"timestamp.json"});
  EXPECT_EQ(d->next<wire::Refused>()->code, "revoked");
}

TEST_F(FleetTest, AssignedOnceMoreIsForThoseThatGaveItUp) {
  ASSERT_OK(fleet_.set_class({.name = "any"}));
  ASSERT_OK(fleet_.assign("any", artifact_.sha256));
  const auto d = device();
  ASSERT_NE(d->enrol("good"), "");
  d->hello();
  const auto told = d->next<wire::Desired>();
  ASSERT_TRUE(told);
  DeviceStatus gave_up;
  gave_up.state = "idle", gave_up.generation = told->desired.generation;
  gave_up.error_code = "unavailable", gave_up.error = "died in probation";
  d->send(wire::StatusReport{gave_up});
  ASSERT_TRUE(d->wait([&] { return fleet_.find(d->id)->status.error_code == "unavailable"; }));
  ASSERT_OK(fleet_.assign("any", artifact_.sha256));
  const auto again = d->next<wire::Desired>();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->desired.artifact, artifact_.sha256);
  EXPECT_GT(again->desired.generation, told->desired.generation);
}

TEST_F(FleetTest, AForgottenDeviceMayEnrolAsANewOne) {
  const auto d = device();
  ASSERT_NE(d->enrol("good"), "");
  d->hello();
  ASSERT_TRUE(d->next<wire::Welcome>());
  EXPECT_EQ(fleet_.forget(d->id).error().code, ErrorCode::kConflict);
  ASSERT_OK(fleet_.revoke(d->id));
  EXPECT_EQ(d->next<wire::Refused>()->code, "revoked");
  ASSERT_OK(fleet_.forget(d->id));
  EXPECT_EQ(fleet_.find(d->id).error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(*store_->get("devices", d->id));
  d->hello();
  EXPECT_EQ(d->next<wire::Refused>()->code, "denied");
  EXPECT_EQ(d->enrol("bad"), "");
  EXPECT_NE(d->enrol("good"), "");
  EXPECT_EQ(uses_, 2);
  d->hello();
  EXPECT_TRUE(d->next<wire::Welcome>());
}

TEST_F(FleetTest, RevocationInMidTransferTakesEffectWithinASecond) {
  const auto d = device();
  ASSERT_NE(d->enrol("good"), "");
  d->hello();
  ASSERT_TRUE(d->next<wire::Welcome>());
  for (int i = 0; i < 20; ++i) d->send(wire::ChunkRequest{artifact_.sha256, 0, 100});
  ASSERT_TRUE(d->next<wire::Chunk>());
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_OK(fleet_.revoke(d->id));
  ASSERT_TRUE(d->wait([&] {
    return std::any_of(d->got.begin(), d->got.end(), [](const wire::Envelope& e) {
      const auto* refused = std::get_if<wire::Refused>(&e.payload);
      return refused != nullptr && refused->code == "revoked";
    });
  }));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
  const std::uint64_t chunks = fleet_.counters().chunks;
  d->got.clear();
  for (int i = 0; i < 5; ++i) d->send(wire::ChunkRequest{artifact_.sha256, 0, 100});
  EXPECT_EQ(d->next<wire::Refused>()->code, "revoked");
  EXPECT_EQ(fleet_.counters().chunks, chunks) << "nothing is sent to it any more";
  // And its key does not come in again.
  d->client.reset();
  d->up = false;
  auto again = FleetClient::connect(
      reactor_, d->keys, keys_.public_key, fleet_.endpoint(), [&](bool up, std::string_view) { d->up = up; },
      [](std::string_view) {});
  ASSERT_OK(again);
  EXPECT_FALSE(d->wait([&] { return d->up; }, 500));
}

TEST_F(FleetTest, DevicesAreToldTheMirrorsOfTheirSite) {
  DeviceClass any;
  any.name = "any";
  ASSERT_OK(fleet_.set_class(any));
  ASSERT_OK(fleet_.set_site({"hall", {"http://10.0.0.2"}, 0, 0}));
  DeviceProfile in_hall;
  in_hall.labels = {{"site", "hall"}};
  const auto d = device(), elsewhere = device();
  ASSERT_NE(d->enrol("good", in_hall), "");
  ASSERT_NE(elsewhere->enrol("good"), "");
  using Urls = std::vector<std::string>;
  d->hello(), elsewhere->hello();
  EXPECT_EQ(d->next<wire::Desired>()->mirrors, Urls{"http://10.0.0.2"});
  EXPECT_EQ(elsewhere->next<wire::Desired>()->mirrors, Urls{});
  // A change is told at once, to those of the site; so is a device's move.
  ASSERT_OK(fleet_.set_site({"hall", {"http://10.0.0.3", "https://far.example"}, 0, 0}));
  EXPECT_EQ(d->next<wire::Desired>()->mirrors, (Urls{"http://10.0.0.3", "https://far.example"}));
  ASSERT_OK(fleet_.set_site({"default", {"http://10.9.9.9"}, 0, 0}));
  EXPECT_EQ(elsewhere->next<wire::Desired>()->mirrors, Urls{"http://10.9.9.9"});
  elsewhere->send(wire::ProfileUpdate{in_hall});
  EXPECT_EQ(elsewhere->next<wire::Desired>()->mirrors.size(), 2u);
  ASSERT_OK(fleet_.remove_site("hall"));
  EXPECT_EQ(d->next<wire::Desired>()->mirrors, Urls{});
  EXPECT_EQ(fleet_.remove_site("hall").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(RecordTable<Site>(*store_, "sites").all()->size(), 1u);
}

/// A device that pulls the whole artifact, four chunks in flight.
struct Puller {
  static constexpr std::uint32_t kChunk = 16 << 10;
  void ask(std::uint64_t size) {
    for (; in_flight < 4 && asked < size; ++in_flight) {
      const auto length = static_cast<std::uint32_t>(std::min<std::uint64_t>(kChunk, size - asked));
      device->send(wire::ChunkRequest{artifact, asked, length});
      asked += length;
    }
  }
  void take(std::uint64_t size) {
    for (; !device->got.empty(); device->got.pop_front()) {
      const auto* chunk = std::get_if<wire::Chunk>(&device->got.front().payload);
      if (chunk == nullptr) continue;
      ASSERT_EQ(chunk->offset, bytes.size());
      bytes += chunk->bytes;
      --in_flight;
    }
    ask(size);
  }
  std::unique_ptr<Device> device;
  std::string artifact, bytes;
  std::uint64_t asked = 0, in_flight = 0;
};

TEST_F(FleetTest, ASitesRateHoldsAndAllItsDevicesFinish) {
  DeviceProfile in_hall;
  in_hall.labels = {{"site", "hall"}};
  const std::string file = *read_file(folder_ / "m.gguf");
  std::vector<Puller> pullers(5);
  for (Puller& puller : pullers) {
    puller.device = device();
    puller.artifact = artifact_.sha256;
    // The last one is of another site, and is not slowed down.
    ASSERT_NE(puller.device->enrol("good", &puller == &pullers.back() ? DeviceProfile() : in_hall), "");
    puller.device->hello();
    ASSERT_TRUE(puller.device->next<wire::Welcome>());
  }
  const std::uint64_t rate = file.size() * 4 / 2;  // two seconds for all four
  ASSERT_OK(fleet_.set_site({"hall", {}, rate, 0}));
  const std::uint64_t sent_before = fleet_.counters().chunk_bytes;
  const auto begin = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  double other_site = 0;
  std::size_t finished = 0;
  while (finished < pullers.size() && seconds() < 30) {
    reactor_.run_one_for(std::chrono::milliseconds(5));
    finished = 0;
    std::uint64_t limited = 0;
    for (Puller& puller : pullers) {
      puller.take(file.size());
      finished += puller.bytes.size() == file.size();
      if (&puller != &pullers.back()) limited += puller.bytes.size();
    }
    ASSERT_LE(static_cast<double>(limited), static_cast<double>(rate) * seconds() + Puller::kChunk);
    if (other_site == 0 && pullers.back().bytes.size() == file.size()) other_site = seconds();
  }
  for (const Puller& puller : pullers) EXPECT_EQ(puller.bytes, file);
  EXPECT_LT(other_site, 1);
  EXPECT_LT(seconds(), 8) << "two seconds are right; the rest is for a busy machine";
  EXPECT_EQ(fleet_.counters().chunk_bytes - sent_before, 5 * file.size());
  // Five devices, one read of each block.
  const std::uint64_t blocks = (file.size() + ArtifactReader::kBlockBytes - 1) / ArtifactReader::kBlockBytes;
  EXPECT_EQ(fleet_.artifact_reads(), blocks);
  EXPECT_EQ(fleet_.transfers_waiting(), 0u);
}

TEST_F(FleetTest, WhoHasNoPlaceHearsThatItWaitsAndGetsOne) {
  ASSERT_OK(fleet_.set_site({"default", {}, 0, 1}));
  const auto first = device(), second = device();
  for (Device* d : {first.get(), second.get()}) {
    ASSERT_NE(d->enrol("good"), "");
    d->hello();
    ASSERT_TRUE(d->next<wire::Welcome>());
    d->send(wire::ChunkRequest{artifact_.sha256, 0, 1000});
    ASSERT_TRUE(d == second.get() || d->next<wire::Chunk>());
  }
  ASSERT_TRUE(second->wait([&] { return fleet_.transfers_waiting() == 1; }));
  clock_.ahead += TransferQueue::kTellAfter;
  first->send(wire::ChunkRequest{artifact_.sha256, 1000, 1000});
  ASSERT_TRUE(first->next<wire::Chunk>());
  const auto wait = second->next<wire::ChunkWait>();
  ASSERT_TRUE(wait);
  EXPECT_EQ(wait->artifact, artifact_.sha256);
  EXPECT_GT(wait->millis, 2'000u * TransferQueue::kTellAgain.count());
  EXPECT_EQ(fleet_.transfers_waiting(), 1u);
  // The first one says that it is through.
  DeviceStatus done;
  done.state = "verify";
  first->send(wire::StatusReport{done});
  EXPECT_TRUE(second->next<wire::Chunk>());
  // Without a limit, what waits is sent at once.
  first->send(wire::ChunkRequest{artifact_.sha256, 0, 1000});
  ASSERT_TRUE(first->wait([&] { return fleet_.transfers_waiting() == 1; }));
  ASSERT_OK(fleet_.remove_site("default"));
  EXPECT_TRUE(first->next<wire::Chunk>());
}

TEST_F(FleetTest, DevicesThatWaitAreAcceptedOrRejectedByHand) {
  DeviceClass any;
  any.name = "any";
  ASSERT_OK(fleet_.set_class(any));
  const auto d = device();
  const auto ask = [&] {
    ++d->epoch, d->sequence = 0;
    d->send(wire::Enrol{"manual", "d", {}});
  };
  ask();
  EXPECT_EQ(d->next<wire::Refused>()->code, "pending");
  ASSERT_EQ(fleet_.devices().size(), 1u);
  d->id = fleet_.devices().begin()->first;
  EXPECT_TRUE(fleet_.find(d->id)->pending);
  EXPECT_EQ(fleet_.find(d->id)->desired.generation, 0u) << "a device that waits is in no class";
  d->hello();  // as if it were in
  EXPECT_EQ(d->next<wire::Refused>()->code, "pending");
  ask();
  EXPECT_EQ(d->next<wire::Refused>()->code, "pending");
  EXPECT_EQ(uses_, 1) << "asking again costs nothing";
  ASSERT_OK(fleet_.accept(d->id));
  const auto enrolled = d->next<wire::Enrolled>();
  ASSERT_TRUE(enrolled) << "told at once";
  EXPECT_OK(TrustClient::check_first_root(enrolled->root));
  EXPECT_EQ(fleet_.accept(d->id).error().code, ErrorCode::kConflict);
  d->hello();
  EXPECT_EQ(d->next<wire::Desired>()->desired.device_class, "any");

  const auto other = device();
  ++other->epoch;
  other->send(wire::Enrol{"manual", "o", {}});
  EXPECT_EQ(other->next<wire::Refused>()->code, "pending");
  ASSERT_OK(fleet_.revoke(fleet_.devices().begin()->first == d->id ? fleet_.devices().rbegin()->first
                                                                   : fleet_.devices().begin()->first));
  ++other->epoch, other->sequence = 0;
  other->send(wire::Enrol{"manual", "o", {}});
  EXPECT_EQ(other->next<wire::Refused>()->code, "revoked");
}

TEST_F(FleetTest, ADeviceChangesItsKey) {
  const auto d = device();
  ASSERT_NE(d->enrol("good"), "");
  d->hello();
  ASSERT_TRUE(d->next<wire::Welcome>());
  const auto stranger = device();
  ASSERT_NE(stranger->enrol("good"), "");
  ASSERT_OK(fleet_.rotate_key(d->id));
  ASSERT_TRUE(d->next<wire::RotateKey>());
  d->hello();  // a lost link: asked again
  ASSERT_TRUE(d->next<wire::RotateKey>());
  const CurveKeys fresh = make_curve_keys();
  const auto proof_of = [&](const CurveKeys& keys, const std::string& id) {
    return *make_key_proof(keys, keys_.public_key, id);
  };
  // Keys that it cannot show to be its own, and somebody else's.
  d->send(wire::KeyRotation{fresh.public_key, ""});
  EXPECT_EQ(d->next<wire::Refused>()->code, "denied");
  d->send(wire::KeyRotation{fresh.public_key, proof_of(fresh, stranger->id)});
  EXPECT_EQ(d->next<wire::Refused>()->code, "denied");
  d->send(wire::KeyRotation{stranger->keys.public_key, proof_of(stranger->keys, d->id)});
  EXPECT_EQ(d->next<wire::Refused>()->code, "denied");
  for (int i = 0; i < 2; ++i) {  // the answer may be lost
    d->send(wire::KeyRotation{fresh.public_key, proof_of(fresh, d->id)});
    EXPECT_EQ(d->next<wire::KeyRotated>()->public_key, fresh.public_key);
  }
  EXPECT_EQ(fleet_.find(d->id)->previous_key, d->keys.public_key);
  d->hello();  // killed before it changed: the old key is still good, and it is asked again
  ASSERT_TRUE(d->next<wire::RotateKey>());

  Device renewed(reactor_, fresh, keys_.public_key, fleet_.endpoint());
  renewed.id = d->id, renewed.epoch = d->epoch;
  renewed.hello();
  ASSERT_TRUE(renewed.next<wire::Welcome>());
  EXPECT_EQ(fleet_.find(d->id)->previous_key, "");
  EXPECT_FALSE(fleet_.find(d->id)->rotate_key);
  d->hello();
  EXPECT_EQ(d->next<wire::Refused>()->code, "denied") << "the old key is a stranger's now";
}

TEST_F(FleetTest, ARestoredStoreGoesOnAboveWhatDevicesHaveSeen) {
  DeviceClass any;
  any.name = "any";
  ASSERT_OK(fleet_.set_class(any));
  const auto d = device();
  ASSERT_NE(d->enrol("good"), "");
  ++d->epoch, d->sequence = 0;
  d->send(wire::Hello{d->id, "test", {}, 40});
  const auto desired = d->next<wire::Desired>();
  ASSERT_TRUE(desired);
  EXPECT_GT(desired->desired.generation, 40u);
}

TEST_F(FleetTest, ProfilesMoveDevicesBetweenClasses) {
  DeviceClass small, large;
  small.name = "small", small.max_memory_bytes = 100;
  large.name = "large", large.min_memory_bytes = 101;
  ASSERT_OK(fleet_.set_class(small));
  ASSERT_OK(fleet_.set_class(large));
  const auto d = device();
  DeviceProfile profile;
  profile.memory_budget_bytes = 50;
  ASSERT_NE(d->enrol("good", profile), "");
  d->hello();
  EXPECT_EQ(d->next<wire::Desired>()->desired.device_class, "small");
  profile.memory_budget_bytes = 500;
  d->send(wire::ProfileUpdate{profile});
  EXPECT_EQ(d->next<wire::Desired>()->desired.device_class, "large");
  EXPECT_EQ(fleet_.assign("none", "").error().code, ErrorCode::kNotFound);
}

}  // namespace
}  // namespace retort
