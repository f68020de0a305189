// fuzz-links: retort_rollout
// Requests for rollouts: JSON from an operator's file, and windows at any time.
#include "coordinator/rollout/spec.h"
#include "tests/fuzz/fuzz_seeds.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  return {
      R"({"classes":{"a":"0123456789"},"stages":[{"count":1},{"percent":5.5,"soak_seconds":1},{"labels":{"x":"y"}}]})",
      R"({"classes":{"a":""},"windows":[{"from":"22:00","to":"04:30","days":["mon","sun"],"zone":"device"}]})",
      R"({"classes":{"a":""},"holdout":{"percent":10},"canary":{"dataset":"d","prompts":3},"gates":{"canary":
        {"min_agreement_percent":50,"alpha":0.1},"token_latency":{"max_increase_percent":5,"test":"mann_whitney"},
        "evaluation":{"metric":"x","min":1}},"supersede":true})"};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto value = parse_json(std::string_view(reinterpret_cast<const char*>(data), size), "");
  if (!value || !value->is_object()) return 0;
  const auto spec = parse_rollout_spec(value->get_object(), "request body");
  if (!spec) return 0;
  for (const UnixMillis now : {UnixMillis{0}, UnixMillis{1800000000000}})
    for (const std::int32_t offset : {0, -720, 840}) (void)in_window(spec->windows, now, offset);
  return 0;
}
