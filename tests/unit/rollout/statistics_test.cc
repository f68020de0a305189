#include "coordinator/rollout/statistics.h"

#include <gtest/gtest.h>

#include <vector>

namespace retort {
namespace {

using Values = std::vector<double>;

// Expected values were worked out apart from this code: t densities integrated by Simpson's rule, orders and
// tables enumerated with rational arithmetic.
TEST(Statistics, Welch) {
  const Values a{27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 30.5};
  const Values b{27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4};
  const auto test = welch_test(a, b);
  ASSERT_TRUE(test);
  EXPECT_NEAR(test->t, 2.707777779, 1e-8);
  EXPECT_NEAR(test->degrees, 26.952746503, 1e-8);
  EXPECT_NEAR(test->p, 0.005808096, 1e-8);
  EXPECT_NEAR(welch_test(b, a)->p, 1 - 0.005808096, 1e-8);
  EXPECT_NEAR(welch_test(Values{490.2, 340, 433.9}, Values{3, 4, 1, 2.1})->p, 0.005375781, 1e-8);
  const auto margin = welch_test(Values{1.2, 1.5}, Values{1.0, 1.1}, 0.1);
  EXPECT_NEAR(margin->t, 1.264911064, 1e-8);
  EXPECT_NEAR(margin->p, 0.197935171, 1e-8);
  EXPECT_FALSE(welch_test(Values{1}, Values{1, 2}));
  EXPECT_FALSE(welch_test(Values{1, 1}, Values{2, 2}));
}

TEST(Statistics, MannWhitney) {
  const auto a = mann_whitney_test(Values{1.1, 2.3, 4.5}, Values{0.2, 0.5, 3.0});
  ASSERT_TRUE(a);
  EXPECT_TRUE(a->exact);
  EXPECT_EQ(a->u, 7);
  EXPECT_NEAR(a->p, 0.2, 1e-12);
  EXPECT_NEAR(mann_whitney_test(Values{5, 6, 7}, Values{1, 2, 3})->p, 1.0 / 20, 1e-12);
  EXPECT_NEAR(mann_whitney_test(Values{19, 22, 16, 29, 24}, Values{20, 11, 17, 12})->p, 1.0 / 18, 1e-12);
  EXPECT_NEAR(mann_whitney_test(Values{1, 2}, Values{3, 4, 5})->p, 1, 1e-12);
  const auto ties = mann_whitney_test(Values{1, 2, 2, 3, 5}, Values{1, 1, 2, 2, 2, 0});
  EXPECT_FALSE(ties->exact);
  EXPECT_EQ(ties->u, 23);
  EXPECT_NEAR(ties->p, 0.073428763, 1e-8);
  EXPECT_EQ(mann_whitney_test(Values{1, 1}, Values{1, 1})->p, 1);
  EXPECT_FALSE(mann_whitney_test(Values{}, Values{1}));
}

TEST(Statistics, Fisher) {
  EXPECT_NEAR(*fisher_exact_test(3, 4, 1, 4), 17.0 / 70, 1e-12);  // the lady tasting tea, three cups right
  EXPECT_NEAR(*fisher_exact_test(5, 20, 1, 20), 0.090882091, 1e-9);
  EXPECT_NEAR(*fisher_exact_test(120, 1000, 80, 1000), 0.001782401, 1e-9);
  EXPECT_NEAR(*fisher_exact_test(0, 5, 3, 5), 1, 1e-12);
  EXPECT_FALSE(fisher_exact_test(0, 0, 1, 5));
  EXPECT_FALSE(fisher_exact_test(6, 5, 1, 5));
}

}  // namespace
}  // namespace retort
