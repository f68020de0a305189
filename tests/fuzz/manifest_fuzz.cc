// A signed manifest as the link brings it: refused or, where only unsigned bytes changed, read as it was
// signed.
#include "common/core/json.h"
#include "common/trust/trust.h"
#include "tests/fuzz/fuzz_seeds.h"

using namespace retort;

namespace {
constexpr UnixMillis kNow = 1'800'000'000'000;
const SigningKey& key() {
  static const SigningKey made = make_signing_key();
  return made;
}
const ArtifactManifest& sample() {
  static const std::string hash(64, 'a');
  static const ArtifactManifest made{
      hash, 30, "gguf", {{"header", hash, 0, 10}, {"t", hash, 10, 20}}, {{"k", "v"}}};
  return made;
}
}  // namespace

std::vector<std::string> fuzz_seeds() { return {*sign_manifest(sample(), 1, kNow + 1'000'000, key())}; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto manifest = verify_manifest(text, key().public_key, kNow))
    fuzz::require(*manifest == sample());
  if (const auto value = parse_json(text, "fuzz")) (void)canonical_json(*value).has_value();
  return 0;
}
