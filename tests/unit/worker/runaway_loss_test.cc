#include "coordinator/worker/runaway_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace retort {
namespace {

/// Training whose batches have each a loss of their own, to which the model's state adds.
struct Course {
  std::uint64_t per_step = 1, steps = 0;
  std::function<double(std::uint64_t step)> batch;  ///< of the model at its best
  std::function<double(std::uint64_t step)> worse;  ///< by how much the model is, before a step
  RunawayLoss loss;
  std::uint64_t asked = 0;
  double now = 0;

  RunawayLoss::BatchLoss asks() {
    return [this](std::uint64_t step) {
      ++asked;
      return batch(step) + now;
    };
  }
  /// The step at which it is found to be gone; `steps` where it is not.
  std::uint64_t run() {
    now = worse(0);
    loss.begin(per_step, steps, asks());
    for (std::uint64_t step = 0; step < steps; ++step) {
      loss.add(step, batch(step) + now);
      now = worse(step + 1);
      if (loss.gone_at(step, asks())) return step;
    }
    return steps;
  }
  double risen_at_the_end() {
    run();
    return loss.risen(asks());
  }
};

std::vector<double> draws(std::uint64_t count, const std::function<double(std::mt19937&)>& one) {
  std::mt19937 random(7);
  std::vector<double> out(count);
  for (double& value : out) value = one(random);
  return out;
}

/// Nothing is learnt and nothing is lost: whatever the batches' losses are, that is no growth.
TEST(RunawayLoss, TakesNoNoiseForGrowth) {
  const auto tokens = [](std::mt19937& random) { return std::gamma_distribution<>(1.2, 2.5)(random); };
  const auto rare = [](std::mt19937& random) {  // 3 % of examples, which a classifier takes for the others
    return std::uniform_real_distribution<>(0, 1)(random) < 0.03 ? 9.0 : 0.01;
  };
  for (const std::function<double(std::mt19937&)>& kind :
       {std::function<double(std::mt19937&)>(tokens), std::function<double(std::mt19937&)>(rare)})
    for (const std::uint64_t per_step : {1, 2, 7, 300}) {
      const std::vector<double> each = draws(20000, kind);
      Course course{per_step, each.size(), [&](std::uint64_t i) { return each[i]; },
                    [](std::uint64_t) { return 0.0; }};
      EXPECT_EQ(course.run(), course.steps) << per_step;
      EXPECT_NEAR(course.loss.risen(course.asks()), 0, 1e-9) << per_step;
      EXPECT_LT(course.asked, each.size() / 2) << "what it costs";
    }
}

TEST(RunawayLoss, FindsWhatGrowsInTheNoise) {
  const std::vector<double> each =
      draws(2000, [](std::mt19937& random) { return std::gamma_distribution<>(1.2, 2.5)(random); });
  for (const std::uint64_t per_step : {1, 7, 300})
    for (const std::uint64_t from : {0, 30, 1000}) {
      Course course{per_step, each.size(), [&](std::uint64_t i) { return each[i]; },
                    [&](std::uint64_t step) { return step > from ? 6.0 : 0.0; }};
      const std::uint64_t found = course.run();
      EXPECT_GE(found, std::max<std::uint64_t>(from, 20)) << per_step << " " << from;
      EXPECT_LE(found, from + (per_step >= 256 ? 30 : 600)) << per_step << " " << from;
    }
}

/// A model that began with nothing is measured by what it had learnt, not by what it began with.
TEST(RunawayLoss, RemembersTheBestOfThePass) {
  Course course{300, 400, [](std::uint64_t) { return 3.0; },
                [](std::uint64_t step) { return step < 200 ? 5 - 0.025 * double(step) : 4.0; }};
  const std::uint64_t found = course.run();
  EXPECT_GE(found, 200u);
  EXPECT_LE(found, 210u);
  EXPECT_NEAR(course.loss.least, 3.025, 1e-6);
  EXPECT_EQ(course.loss.first, 199u);
}

/// The last step's harm is in no loss on the way, a short pass's in few.
TEST(RunawayLoss, ShortPassesAreJudgedByTheirEnd) {
  const auto end = [](std::uint64_t steps, std::function<double(std::uint64_t)> worse) {
    Course course{8, steps, [](std::uint64_t i) { return i % 2 == 0 ? 3.0 : 6.0; }, std::move(worse)};
    EXPECT_EQ(course.run(), steps) << "too early to tell on the way";
    return course.loss.risen(course.asks());
  };
  EXPECT_TRUE(RunawayLoss::gone(end(1, [](std::uint64_t step) { return step > 0 ? 37.0 : 0; })));
  EXPECT_TRUE(RunawayLoss::gone(end(2, [](std::uint64_t step) { return step > 1 ? 4.0 : 0; })));
  EXPECT_TRUE(RunawayLoss::gone(end(15, [](std::uint64_t step) { return step > 0 ? 5.0 : 0; })));
  EXPECT_TRUE(RunawayLoss::gone(end(1, [](std::uint64_t step) { return step > 0 ? std::nan("") : 0; })));
  EXPECT_TRUE(RunawayLoss::gone(
      end(1, [](std::uint64_t step) { return step > 0 ? std::numeric_limits<double>::infinity() : 0; })));
  EXPECT_NEAR(end(10, [](std::uint64_t step) { return step < 9 ? 6.0 : 0; }), 0, 6) << "it has come back";
  EXPECT_LT(end(10, [](std::uint64_t step) { return step > 0 && step < 9 ? 6.0 : 0; }), 0.01);
}

}  // namespace
}  // namespace retort
