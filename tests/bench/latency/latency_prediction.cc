// How well the coordinator tells a student's speed on a device: measures this machine as an agent does,
// predicts students of shapes and formats that were not measured, and measures them too. Both go on in turns,
// model by model, and the medians of the rounds count, so that what a shared machine does meanwhile falls on
// both alike.
//   bench_latency [--students 40] [--seed 1] [--threads 1] [--time 20] [--rounds 5]
#include <CLI/CLI.hpp>
#include <array>
#include <cmath>
#include <iostream>

#include "agent/serve/runtime/measure.h"
#include "common/core/random.h"
#include "coordinator/tailor/decode_predictor.h"

using namespace retort;

namespace {

struct Options {
  std::uint32_t students = 40, threads = 1;
  std::uint64_t seed = 1;
  std::uint32_t time = 20, rounds = 5;
};

std::vector<DecodeSample> random_students(const Options& options) {
  SeededRandom random(options.seed);
  const auto below = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random.next_u64() % n); };
  constexpr std::array kFormats{"Q8_0", "Q8_0", "F16", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q3_K"};
  std::vector<DecodeSample> out;
  while (out.size() < options.students) {
    DecodeSample s;
    s.format = kFormats[below(kFormats.size())];
    const std::uint32_t step = s.format.ends_with("_K") ? 256 : 64;
    s.hidden = step * (1 + below(step == 256 ? 2 : 9));
    s.head_dim = below(2) == 0 ? 32 : 64;
    s.heads = s.hidden / s.head_dim;
    s.kv_heads = below(2) == 0 ? s.heads : s.heads % 2 == 0 ? s.heads / 2 : 1;
    s.ffn = step * ((s.hidden * (1 + below(3)) + step) / step);
    s.layers = 1 + below(12);
    s.vocabulary = 512 << below(7);
    s.position = below(240);
    const ModelConfig config = decode_config(s, 256);
    if (validate(config, "student") && parameter_count(config) < 60'000'000) out.push_back(s);
  }
  return out;
}

Result<void> run(const Options& options) {
  ThreadTeam team(options.threads);
  const auto folder = std::filesystem::temp_directory_path();
  std::vector<DecodeSample> all = decode_shapes();
  const std::size_t shapes = all.size();
  const std::vector<DecodeSample> students = random_students(options);
  all.insert(all.end(), students.begin(), students.end());
  std::vector<std::vector<double>> seconds(all.size());
  const auto measure = [&](std::size_t i) -> Result<void> {
    const auto measured = RETORT_TRY(measure_decode(std::span(all).subspan(i, 1), team, folder,
                                                    std::chrono::milliseconds(options.time), 0));
    seconds[i].push_back(measured[0].seconds);
    return {};
  };
  for (std::uint32_t round = 0; round < options.rounds; ++round)
    for (std::size_t i = 0; i < std::max(shapes, students.size()); ++i) {
      if (i < shapes) RETORT_TRY(measure(i));
      if (i < students.size()) RETORT_TRY(measure(shapes + i));
    }
  for (std::size_t i = 0; i < all.size(); ++i) {
    std::sort(seconds[i].begin(), seconds[i].end());
    all[i].seconds = seconds[i][seconds[i].size() / 2];
  }
  const std::span<const DecodeSample> samples = std::span(all).first(shapes);
  const auto predictor = DecodePredictor::fit(samples);
  if (!predictor) return fail(ErrorCode::kInternal, "latency", "the measurements say nothing");
  double own = 0;
  std::vector<double> errors;
  for (const DecodeSample& s : samples)
    own = std::max(own, std::abs(predictor->token_seconds(decode_config(s, s.position + 8),
                                                          *tensor_type_from(s.format), s.position) /
                                     s.seconds -
                                 1));
  std::cout << fmt::format(
      "{} models measured, {} threads, medians of {} rounds; the fit is at most {:.0f} % off on them\n\n"
      "| format | layers | hidden | heads / kv | ffn | vocabulary | position | predicted, µs | measured | "
      "off |\n"
      "|---|---|---|---|---|---|---|---|---|---|\n",
      samples.size(), team.size(), options.rounds, 100 * own);
  for (const DecodeSample& s : std::span(all).subspan(shapes)) {
    const double told =
        predictor->token_seconds(decode_config(s, s.position + 8), *tensor_type_from(s.format), s.position);
    errors.push_back(told / s.seconds - 1);
    std::cout << fmt::format(
                     "| {} | {} | {} | {} / {} of {} | {} | {} | {} | {:.1f} | {:.1f} | {:+.0f} % |\n",
                     s.format, s.layers, s.hidden, s.heads, s.kv_heads, s.head_dim, s.ffn, s.vocabulary,
                     s.position, told * 1e6, s.seconds * 1e6, 100 * errors.back())
              << std::flush;
  }
  const auto within = [&](double limit) {
    return 100.0 *
           static_cast<double>(
               std::count_if(errors.begin(), errors.end(), [&](double e) { return std::abs(e) <= limit; })) /
           static_cast<double>(errors.size());
  };
  std::cout << fmt::format("\nwithin 10 %: {:.0f} % of {} students; within 20 %: {:.0f} %\n", within(0.1),
                           errors.size(), within(0.2));
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Predicted against measured speed of students on this machine."};
  Options options;
  app.add_option("--students", options.students, "shapes to predict")->capture_default_str();
  app.add_option("--seed", options.seed, "of the shapes")->capture_default_str();
  app.add_option("--threads", options.threads)->capture_default_str();
  app.add_option("--time", options.time, "milliseconds a model and round")->capture_default_str();
  app.add_option("--rounds", options.rounds, "whose medians count")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (const auto done = run(options); !done) {
    std::cerr << done.error().describe() << "\n";
    return 1;
  }
  return 0;
}
