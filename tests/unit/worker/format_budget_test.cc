#include "coordinator/worker/format_budget.h"

#include "common/core/random.h"
#include "tests/support/support.h"

namespace retort {
namespace {

std::pair<std::uint64_t, double> total(const std::vector<std::vector<FormatChoice>>& matrices,
                                       const std::vector<std::size_t>& chosen) {
  std::uint64_t bytes = 0;
  double divergence = 0;
  for (std::size_t m = 0; m < matrices.size(); ++m) {
    bytes += matrices[m][chosen[m]].bytes;
    divergence += matrices[m][chosen[m]].divergence;
  }
  return {bytes, divergence};
}

TEST(FormatBudget, SpendsWhereItSavesMost) {
  // The first matrix gains 0.9 for 100 bytes, the second 0.1: a budget for one step goes to the first.
  const std::vector<std::vector<FormatChoice>> matrices{{{100, 1.0}, {200, 0.1}}, {{100, 0.2}, {200, 0.1}}};
  EXPECT_EQ(choose_formats(matrices, 300), (std::vector<std::size_t>{1, 0}));
  EXPECT_EQ(choose_formats(matrices, 299), (std::vector<std::size_t>{0, 0}));
  EXPECT_EQ(choose_formats(matrices, 400), (std::vector<std::size_t>{1, 1}));
  EXPECT_EQ(choose_formats(matrices, 0), (std::vector<std::size_t>{0, 0}));  // the caller sees the excess
}

TEST(FormatBudget, NearTheBestOfAllCombinations) {
  SeededRandom random(8);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::vector<FormatChoice>> matrices(5);
    for (auto& choices : matrices) {
      const double size = 1 + 9 * random.next_unit(), weight = random.next_unit();
      for (const double bits : {3.4, 4.5, 5.5, 6.6, 8.5})
        choices.push_back({static_cast<std::uint64_t>(1000 * size * bits),
                           weight * std::pow(4, -bits) * (0.5 + random.next_unit())});
    }
    std::uint64_t least = 0, most = 0;
    for (const auto& choices : matrices) least += choices[0].bytes, most += choices[4].bytes;
    const std::uint64_t budget = least + (most - least) / 3;
    double best = 1e9;
    std::vector<std::size_t> all(5);
    for (int code = 0; code < 3125; ++code) {
      for (int m = 0, rest = code; m < 5; ++m, rest /= 5) all[static_cast<std::size_t>(m)] = rest % 5;
      const auto [bytes, divergence] = total(matrices, all);
      if (bytes <= budget) best = std::min(best, divergence);
    }
    const auto [bytes, divergence] = total(matrices, choose_formats(matrices, budget));
    EXPECT_LE(bytes, budget);
    EXPECT_LE(divergence, 1.5 * best);  // with five matrices one step is much of the budget
  }
}

}  // namespace
}  // namespace retort
