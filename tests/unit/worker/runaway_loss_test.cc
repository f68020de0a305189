#include "coordinator/worker/runaway_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace retort {
namespace {

TEST(RunawayLoss, AsksWhatTellsAModel) {
  EXPECT_EQ(RunawayLoss::batches(2048, 1000), 1u);
  EXPECT_EQ(RunawayLoss::batches(256, 1000), 1u);
  EXPECT_EQ(RunawayLoss::batches(7, 1000), 37u);
  EXPECT_EQ(RunawayLoss::batches(1, 1000), 256u);
  EXPECT_EQ(RunawayLoss::batches(1, 10), 10u) << "a pass has no more";
}

TEST(RunawayLoss, AsksSoonAndSeldom) {
  const auto times = [](std::uint64_t batches, std::uint64_t steps) {
    RunawayLoss loss;
    std::uint64_t count = 0, longest = 0;
    for (std::uint64_t step = 0; step < steps; step = loss.next, ++count) {
      loss.add(step, {3, 3}, batches);
      longest = std::max(longest, loss.next - step);
    }
    EXPECT_LE(longest, std::max<std::uint64_t>(100, 2 * batches));
    return count * batches;
  };
  EXPECT_LE(times(1, 10000), 110u);
  EXPECT_LE(times(256, 10000), 5200u);
}

/// A loss has its parts' units: what it grows by says nothing, and that it grew does.
TEST(RunawayLoss, WorseIsWhereTheLossAndTheLikelihoodAreWorse) {
  for (const double unit : {0.001, 1.0, 1000.0}) {
    RunawayLoss loss;
    loss.add(0, {3 * unit, 4}, 1);
    loss.add(20, {2 * unit, 3}, 1);
    loss.add(40, {2.5 * unit, 3.5}, 1);
    EXPECT_EQ(loss.lowest_nll, 3);
    EXPECT_EQ(loss.risen({1.9 * unit, 9}), 0) << "it learns what it is to, and tells the text worse";
    EXPECT_NEAR(loss.risen({2.1 * unit, 3.4}), 0.4, 1e-9) << "from its best, not from its beginning";
    EXPECT_FALSE(RunawayLoss::gone(loss.risen({100 * unit, 4.4})));
    EXPECT_TRUE(RunawayLoss::gone(loss.risen({2.1 * unit, 5})));
    EXPECT_FALSE(RunawayLoss::gone(loss.risen({2.1 * unit, 1})));
  }
}

TEST(RunawayLoss, WhatIsNoNumberIsGone) {
  RunawayLoss loss;
  loss.add(0, {3, 3}, 1);
  for (const double none : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_TRUE(RunawayLoss::gone(loss.risen({none, 1})));
    EXPECT_TRUE(RunawayLoss::gone(loss.risen({4, none})));
  }
}

}  // namespace
}  // namespace retort
