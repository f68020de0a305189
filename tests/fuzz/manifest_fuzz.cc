// A manifest as the link brings it: refused, or of a form whose pieces cover the file.
#include "common/trust/artifact_target.h"
#include "tests/fuzz/fuzz_seeds.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  const std::string hash(64, 'a');
  return {
      *manifest_to_text({hash, 30, "gguf", {{"header", hash, 0, 10}, {"t", hash, 10, 20}}, {{"k", "v"}}})};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto manifest = manifest_from_text(text)) {
    std::uint64_t end = 0;
    for (const ArtifactPiece& piece : manifest->pieces) {
      fuzz::require(piece.offset == end && piece.length > 0);
      end += piece.length;
    }
    fuzz::require(end == manifest->length);
    const auto again = manifest_to_text(*manifest);
    fuzz::require(again && *manifest_from_text(*again) == *manifest);
  }
  if (const auto value = parse_json(text, "fuzz")) (void)canonical_json(*value).has_value();
  return 0;
}
