#include "tests/bench/fleet_sim/prepare.h"

#include <algorithm>

#include "common/core/random.h"
#include "common/gguf/gguf.h"
#include "coordinator/artifacts/artifact_store.h"
#include "coordinator/state/state.h"

namespace retort::sim {
namespace {

constexpr std::uint64_t kTensorBytes = 4 << 20;

Result<void> write_artifact(const std::filesystem::path& path, std::uint64_t bytes, std::uint64_t seed) {
  GgufWriter writer;
  writer.set("general.architecture", std::string("none"));
  writer.set("general.name", "artifact " + std::to_string(seed));
  const auto random = std::make_shared<SeededRandom>(seed);
  for (std::uint64_t at = 0, n = 0; at < bytes; at += kTensorBytes, ++n)
    writer.add_tensor("tensor." + std::to_string(n), {std::min(bytes - at, kTensorBytes) / 4},
                      TensorType::kF32, [random](std::span<std::byte> out) -> Result<void> {
                        random->fill(out);
                        return {};
                      });
  return writer.write(path);
}

}  // namespace

Result<std::vector<std::string>> prepare_coordinator(const std::filesystem::path& data,
                                                     const std::vector<std::uint64_t>& artifact_bytes) {
  RETORT_TRY(make_folders(data / "keys"));
  const SystemClock clock;
  const std::unique_ptr<Store> store = RETORT_TRY(open_state(data));
  const std::unique_ptr<TrustRepository> trust =
      RETORT_TRY(TrustRepository::open(*store, data / "keys", clock));
  ArtifactStore artifacts(data / "blobs", *store, *trust, clock);
  RETORT_TRY(artifacts.clean());
  std::vector<std::string> out;
  for (const std::uint64_t bytes : artifact_bytes) {
    const std::filesystem::path file = data / "artifact.gguf";
    RETORT_TRY(write_artifact(file, bytes, out.size() + 1));
    const ArtifactRecord made = RETORT_TRY(artifacts.import(file, {}));
    out.push_back(made.sha256);
    std::filesystem::remove(file);
  }
  return out;
}

}  // namespace retort::sim
