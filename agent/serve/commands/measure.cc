#include "agent/serve/runtime/measure.h"

#include <chrono>
#include <filesystem>
#include <iostream>

#include "agent/serve/commands/commands.h"
#include "common/core/json.h"

namespace retort {

Result<void> measure(const ServeArguments& options) {
  ThreadTeam team(thread_count(options));
  const std::vector<DecodeSample> samples = RETORT_TRY(
      measure_decode(decode_shapes(), team, std::filesystem::temp_directory_path(),
                     std::chrono::milliseconds(options.time_ms), RETORT_TRY(memory_limit(options))));
  if (options.as_json) {
    std::cout << json::serialize(json::object{{"kernels", kernels::instruction_set()},
                                              {"threads", team.size()},
                                              {"decode", to_json(samples)}})
              << "\n";
    return {};
  }
  std::cout << fmt::format("{} kernels, {} threads\n{:<7} {:>6} {:>6} {:>5} {:>10} {:>8} {:>12}\n",
                           kernels::instruction_set(), team.size(), "format", "layers", "hidden", "ffn",
                           "vocabulary", "position", "a token, µs");
  for (const DecodeSample& s : samples)
    std::cout << fmt::format("{:<7} {:>6} {:>6} {:>5} {:>10} {:>8} {:>12.1f}\n", s.format, s.layers, s.hidden,
                             s.ffn, s.vocabulary, s.position, s.seconds * 1e6);
  return {};
}

}  // namespace retort
