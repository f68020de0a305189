#include "coordinator/worker/input_histogram.h"

#include <cmath>

#include "common/core/random.h"
#include "tests/support/support.h"

namespace retort {
namespace {

using Method = ActivationPass::Method;

/// Laplace values, as activations are said to be, and a few outliers a hundred times as large.
std::vector<float> laplace(std::size_t count, std::size_t outliers) {
  SeededRandom random(3);
  std::vector<float> out;
  for (std::size_t i = 0; i < count; ++i) {
    const double u = (static_cast<double>(random.next_u64() >> 11) + 0.5) * 0x1p-53 - 0.5;
    out.push_back(static_cast<float>(-std::copysign(std::log(1 - 2 * std::abs(u)), u)));
  }
  for (std::size_t i = 0; i < outliers; ++i) out[i * 97] = i % 2 == 0 ? 500.0f : -400.0f;
  return out;
}

double squared_error(const std::vector<float>& values, double clip) {
  double sum = 0;
  for (const float x : values) {
    const double q = std::clamp(std::round(x / (clip / 127)), -127.0, 127.0) * (clip / 127);
    sum += (x - q) * (x - q);
  }
  return sum / static_cast<double>(values.size());
}

TEST(InputHistogram, LargestAndPercentiles) {
  InputHistogram h;
  std::vector<float> values;
  for (int i = 1; i <= 1000; ++i) values.push_back(static_cast<float>(i % 2 == 0 ? i : -i));
  h.add(values);
  EXPECT_EQ(h.threshold(Method::kMinMax, 0), 1000);
  EXPECT_NEAR(h.threshold(Method::kPercentile, 90), 900, 3);
  EXPECT_EQ(h.threshold(Method::kPercentile, 100), 1000);
  InputHistogram nothing;
  nothing.add(std::vector<float>{0, 0, NAN});
  EXPECT_EQ(nothing.threshold(Method::kKl, 0), 0);
  EXPECT_EQ(nothing.values(), 2u);
}

TEST(InputHistogram, MseFindsTheLeastErrorThatASearchOverTheValuesFinds) {
  for (const std::size_t outliers : {0, 4}) {
    const std::vector<float> values = laplace(20000, outliers);
    InputHistogram h;
    h.add(values);
    double least = INFINITY;
    for (int i = 1; i <= 400; ++i) least = std::min(least, squared_error(values, h.largest() * i / 400));
    EXPECT_LT(squared_error(values, h.threshold(Method::kMse, 0)), 1.03 * least);
  }
}

TEST(InputHistogram, KlAndPercentileLeaveOutliersOut) {
  const std::vector<float> values = laplace(200000, 6);
  InputHistogram h;
  h.add(values);
  EXPECT_EQ(h.threshold(Method::kMinMax, 0), 500);
  EXPECT_LT(h.threshold(Method::kKl, 0), 100);
  EXPECT_GT(h.threshold(Method::kKl, 0), 3);
  EXPECT_LT(h.threshold(Method::kPercentile, 99.99), 20);
  // Evenly spread values lose by any clipping.
  InputHistogram even;
  std::vector<float> all;
  for (int i = 0; i < 100000; ++i) all.push_back(static_cast<float>(i) / 100000);
  even.add(all);
  EXPECT_GT(even.threshold(Method::kKl, 0), 0.95);
  EXPECT_GT(even.threshold(Method::kMse, 0), 0.95);
}

}  // namespace
}  // namespace retort
