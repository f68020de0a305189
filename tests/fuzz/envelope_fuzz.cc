// Frames of the fleet link and stored records: both are Cap'n Proto from elsewhere.
#include "common/wire/messages.h"
#include "common/wire/records.h"
#include "tests/fuzz/fuzz_seeds.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  DeviceProfile profile;
  profile.hostname = "edge";
  profile.isa_features = {"avx2"};
  profile.labels = {{"a", "b"}};
  DeviceRecord device;
  device.profile = profile;
  const wire::TelemetryBatch batch{1, 0, {{1, "x", 2}, {2, "y", 3}}};
  return {wire::encode({1, 1, 1, 0, wire::Enrol{"secret", "name", profile}}),
          wire::encode({1, 1, 2, 0, batch}),
          wire::encode({1, 1, 3, 0, wire::Chunk{"aa", 5, "bytes"}}),
          wire::encode({1, 1, 4, 0, wire::Canary{"roll-1", "aa", {{"prompt", " answer"}}}}),
          wire::encode({1, 1, 5, 0, wire::Desired{{5, "small", "aa"}, "{}", {"http://a", "https://b"}}}),
          wire::encode({1, 1, 6, 0, wire::ChunkWait{"aa", 60000}}),
          wire::encode(Site{"hall", {"http://a"}, 1000, 2}),
          wire::encode(device),
          wire::encode(RolloutRecord{"roll-1", "n", 1, "{}", "[]", {{"small", "aa"}}, 2})};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (const auto envelope = wire::decode(bytes)) (void)wire::encode(*envelope);
  (void)wire::decode_record<DeviceRecord>(bytes).has_value();
  (void)wire::decode_record<JobRecord>(bytes).has_value();
  (void)wire::decode_record<ArtifactRecord>(bytes).has_value();
  (void)wire::decode_record<RolloutRecord>(bytes).has_value();
  (void)wire::decode_record<RolloutMember>(bytes).has_value();
  (void)wire::decode_record<Site>(bytes).has_value();
  return 0;
}
