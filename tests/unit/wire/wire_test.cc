#include "common/core/random.h"
#include "common/wire/messages.h"
#include "common/wire/records.h"
#include "tests/support/support.h"

namespace retort::wire {
namespace {

DeviceProfile profile() {
  DeviceProfile p;
  p.hostname = "edge-1";
  p.isa_features = {"avx2", "fma"};
  p.cores = 2;
  p.cpu_allowance = 0.5;
  p.memory_budget_bytes = 64 << 20;
  p.labels = {{"site", "a"}, {"rack", "7"}};
  p.notes = {"no meter"};
  p.decode = {{"Q8_0", 4, 256, 8, 2, 32, 768, 4096, 5, 1e-4}, {"Q4_K", 1, 2, 3, 4, 5, 6, 7, 8, 9.5}};
  return p;
}

template <typename T>
T round_trip(T message) {
  const auto back = decode(encode({kProtocolVersion, 7, 8, 9, Payload(message)}));
  EXPECT_OK(back);
  EXPECT_EQ(back->epoch, 7u);
  EXPECT_EQ(back->sequence, 8u);
  EXPECT_EQ(back->acknowledged, 9u);
  return std::get<T>(back->payload);
}

TEST(Envelope, EveryKindRoundTrips) {
  EXPECT_EQ(round_trip(Enrol{"s", "n", profile()}).profile, profile());
  const DeviceStatus status{"fetch", 3, "ab", "http://x", "io", "disk", 5, 9};
  EXPECT_EQ(round_trip(Hello{"dev-1", "0.1", status}).status, status);
  EXPECT_EQ(round_trip(ProfileUpdate{profile()}).profile, profile());
  EXPECT_EQ(round_trip(StatusReport{status}).status, status);
  EXPECT_EQ(round_trip(Heartbeat{4}).generation, 4u);
  EXPECT_EQ(round_trip(MetadataRequest{"timestamp.json", 9}).offset, 9u);
  EXPECT_EQ(round_trip(KeyRotation{"k", std::string("\0p", 2)}).proof.size(), 2u);
  round_trip(RotateKey{});
  EXPECT_EQ(round_trip(KeyRotated{"k"}).public_key, "k");
  EXPECT_EQ(round_trip(ChunkRequest{"aa", 1ull << 40, 77}).offset, 1ull << 40);
  const TelemetryBatch batch{12, 3, {{1000, "x", 1.5}, {1001, "y", -2}}};
  EXPECT_EQ(round_trip(batch).points, batch.points);
  EXPECT_EQ(round_trip(Enrolled{"dev-1", "{}"}).root, "{}");
  EXPECT_EQ(round_trip(Welcome{10000, 4, -5, 6}).coordinator_time, -5);
  EXPECT_EQ(round_trip(Desired{{5, "small", "aa"}}).desired, (DesiredState{5, "small", "aa"}));
  EXPECT_EQ(round_trip(Desired{{5, "small", "aa"}, "{}"}).assignment, "{}");
  EXPECT_EQ(round_trip(Metadata{"1.root.json", 1, 4, std::string("\0{}", 3)}).bytes.size(), 3u);
  EXPECT_EQ(round_trip(Enrol{"s", "n", profile(), "serial 7"}).hardware_id, "serial 7");
  EXPECT_EQ(round_trip(Hello{"dev-1", "0.1", status, 12}).generation, 12u);
  EXPECT_EQ(round_trip(Chunk{"aa", 3, std::string(1000, '\0')}).bytes.size(), 1000u);
  EXPECT_EQ(round_trip(ChunkWait{"aa", 60000}).millis, 60000u);
  EXPECT_EQ(round_trip(Desired{{5, "small", "aa"}, "{}", {"http://a"}}).mirrors.size(), 1u);
  EXPECT_EQ(round_trip(TelemetryAck{99}).batch, 99u);
  EXPECT_EQ(round_trip(ComeBack{500}).after_millis, 500u);
  EXPECT_EQ(round_trip(Refused{"enrol", "denied", "no"}).message, "no");
  EXPECT_EQ(round_trip(Unsupported{44}).kind, 44);
  const Canary canary = round_trip(Canary{"roll-1", "aa", {{"a b", " c"}, {"d", ""}}});
  ASSERT_EQ(canary.questions.size(), 2u);
  EXPECT_EQ(canary.questions[0].answer, " c");
  EXPECT_EQ(round_trip(CanaryResult{"roll-1", "aa", 32, 30}).agreed, 30u);
}

TEST(Envelope, GarbageIsCorruptAndNeverAFault) {
  EXPECT_EQ(decode("").error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(decode("abc").error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(decode(std::string(kMaxFrameBytes + 8, '\0')).error().code, ErrorCode::kOutOfBudget);
  const std::string good = encode({kProtocolVersion, 1, 2, 3, Enrol{"s", "n", profile()}});
  SeededRandom random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string bad = good;
    for (int flips = 0; flips < 4; ++flips)
      bad[random.next_u64() % bad.size()] = static_cast<char>(random.next_u64());
    if (i % 3 == 0) bad.resize(random.next_u64() % bad.size() / 8 * 8);
    (void)decode(bad);  // any result will do, a crash will not
  }
}

TEST(Envelope, AnUnknownKindIsTold) {
  std::string frame = encode({kProtocolVersion, 1, 2, 3, Heartbeat{1}});
  // The union's tag is the 16-bit value at byte 2 of the root struct, which begins after the segment table
  // and pointer.
  frame[16 + 2] = 99;
  const auto out = decode(frame);
  ASSERT_OK(out);
  EXPECT_EQ(std::get<Unsupported>(out->payload).kind, 99);
}

TEST(Records, RoundTrip) {
  DeviceRecord device;
  device.id = "dev-1";
  device.revoked = true;
  device.profile = profile();
  device.desired = {4, "small", "aa"};
  device.telemetry_batch = 9;
  device.pending = device.rotate_key = true;
  device.previous_key = "old", device.token = "t1";
  const auto back = decode_record<DeviceRecord>(encode(device));
  ASSERT_OK(back);
  EXPECT_EQ(back->profile, device.profile);
  EXPECT_EQ(back->desired, device.desired);
  EXPECT_TRUE(back->revoked && back->pending && back->rotate_key);
  EXPECT_EQ(back->previous_key + back->token, "oldt1");
  JobRecord job;
  job.artifacts = {"a", "b"};
  job.cancel_requested = true;
  EXPECT_EQ(decode_record<JobRecord>(encode(job))->artifacts, job.artifacts);
  ArtifactRecord artifact;
  artifact.evaluation_json = "{}";
  EXPECT_EQ(decode_record<ArtifactRecord>(encode(artifact))->evaluation_json, "{}");
  TokenRecord token;
  token.allowed = {"key", "serial 7"};
  token.manual = true;
  EXPECT_EQ(decode_record<TokenRecord>(encode(token))->allowed, token.allowed);
  EXPECT_TRUE(decode_record<TokenRecord>(encode(token))->manual);
  DeviceClass device_class;
  device_class.labels = {{"a", "b"}};
  device_class.min_cpu = 0.25;
  EXPECT_EQ(*decode_record<DeviceClass>(encode(device_class)), device_class);
  const Site site{"hall", {"http://10.0.0.2/retort", "https://cache.example"}, 1ull << 40, 7};
  EXPECT_EQ(*decode_record<Site>(encode(site)), site);
  EXPECT_FALSE(decode_record<TokenRecord>("junk"));
  RolloutRecord rollout;
  rollout.id = "roll-1", rollout.spec_json = "{}", rollout.canary_json = "[]", rollout.events = 7;
  rollout.tracks = {{"small", "aa", "bb", "paused", "soaking", "why", 2, 3, 4, true, "[]"}};
  const auto kept = decode_record<RolloutRecord>(encode(rollout));
  ASSERT_OK(kept);
  EXPECT_EQ(kept->tracks, rollout.tracks);
  EXPECT_EQ(kept->events, 7u);
  const RolloutMember member{"roll-1", "dev-1", "small",   true, 1,    "failed", 5,
                             6,        7,       "corrupt", "x",  "aa", 8,        9};
  EXPECT_EQ(*decode_record<RolloutMember>(encode(member)), member);
  EXPECT_EQ(decode_record<RolloutEvent>(encode(RolloutEvent{"roll-1", 3, 4, "small", "paused", "t"}))->text,
            "t");
}

}  // namespace
}  // namespace retort::wire
