#include "coordinator/tailor/decode_predictor.h"

#include "agent/serve/runtime/measure.h"
#include "common/core/random.h"
#include "coordinator/tailor/tailor.h"
#include "tests/support/support.h"

namespace retort {
namespace {

/// A device of our own making: what a token costs there, in seconds. Bytes cost more where they are many.
double made_up(const DecodeSample& s, double bits) {
  const double width = s.heads * s.head_dim, products = 4.0 * s.hidden * width + 3.0 * s.hidden * s.ffn;
  const double bytes = bits / 8 * (s.layers * products + 1.0 * s.vocabulary * s.hidden);
  const double rows = s.layers * (4.0 * width + 2.0 * s.ffn + s.hidden) + s.vocabulary;
  const double byte = 25e-12 + 60e-12 * bytes / (bytes + 6e6) + 10e-12 * (8.5 - bits) / 8.5;
  return 1e-6 + 2e-6 * s.layers + 2e-9 * rows + bytes * byte + 1e-10 * s.layers * width * (s.position + 1);
}

double bits_of(const std::string& format) {
  const TensorTypeInfo& type = info(*tensor_type_from(format));
  return 8.0 * type.block_bytes / type.block_values;
}

std::vector<DecodeSample> measured(double slower = 1) {
  std::vector<DecodeSample> samples = decode_shapes();
  for (DecodeSample& s : samples) s.seconds = slower * made_up(s, bits_of(s.format));
  return samples;
}

TEST(DecodePredictor, StudentsThatWereNotMeasuredAreToldWithinTenPercent) {
  const auto predictor = DecodePredictor::fit(measured());
  ASSERT_TRUE(predictor);
  SeededRandom random(3);
  int within = 0, all = 0;
  for (const char* format : {"Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q3_K", "F16"})
    for (int i = 0; i < 20; ++i) {
      DecodeSample s{format,
                     1 + static_cast<std::uint32_t>((random.next_u64() % 10)),
                     256,
                     8,
                     8,
                     32,
                     256 * (1 + static_cast<std::uint32_t>((random.next_u64() % 4))),
                     1024 * (1 + static_cast<std::uint32_t>((random.next_u64() % 16))),
                     0,
                     0};
      s.position = static_cast<std::uint32_t>((random.next_u64() % 200));
      const double real = made_up(s, bits_of(format));
      const double told =
          predictor->token_seconds(decode_config(s, 256), *tensor_type_from(format), s.position);
      ++all, within += std::abs(told / real - 1) < 0.1;
    }
  EXPECT_GE(within, all * 9 / 10);
}

TEST(DecodePredictor, MoreOfAnythingIsNeverFaster) {
  const auto predictor = DecodePredictor::fit(measured());
  ASSERT_TRUE(predictor);
  DecodeSample s{"Q8_0", 4, 256, 8, 8, 32, 768, 4096, 0, 0};
  const auto told = [&](const DecodeSample& shape, TensorType type = TensorType::kQ8_0) {
    return predictor->token_seconds(decode_config(shape, 512), type, shape.position);
  };
  const double base = told(s);
  DecodeSample deeper = s, wider = s, longer = s;
  deeper.layers = 5, wider.ffn = 1024, longer.position = 400;
  EXPECT_GT(told(deeper), base);
  EXPECT_GT(told(wider), base);
  EXPECT_GT(told(longer), base);
  // A format that no device measures is as its nearest neighbour.
  EXPECT_GT(told(s, TensorType::kF32), told(s, TensorType::kF16));
  EXPECT_NEAR(told(s, TensorType::kIq4Nl) / told(s, TensorType::kQ4_0), 1, 0.2);
}

TEST(DecodePredictor, TooFewOrImpossibleSamplesSayNothing) {
  EXPECT_FALSE(DecodePredictor::fit({}));
  std::vector<DecodeSample> samples = measured();
  EXPECT_FALSE(DecodePredictor::fit(std::span(samples).first(5)));
  for (DecodeSample& s : samples) s.seconds = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(DecodePredictor::fit(samples));
  samples = measured();
  for (DecodeSample& s : samples) s.heads = 0;
  EXPECT_FALSE(DecodePredictor::fit(samples));
  samples = measured();
  DecodeSample strange = samples.front();
  strange.format = "Q9_Z";
  samples.push_back(strange);
  strange.format = "CODEBOOK4";
  samples.push_back(strange);
  EXPECT_TRUE(DecodePredictor::fit(samples));
}

TEST(DecodePredictor, AClassIsAsSlowAsItsSlowestDevice) {
  DeviceProfile fast, slow, unmeasured;
  fast.decode = measured(), slow.decode = measured(3);
  fast.memory_bandwidth_bytes_per_second = 9e9, slow.memory_bandwidth_bytes_per_second = 4e9;
  const std::vector<const DeviceProfile*> devices{&fast, &slow, &unmeasured};
  const ClassSpeed speed = slowest(devices);
  ASSERT_TRUE(speed.decode);
  EXPECT_EQ(speed.bandwidth, 4e9);
  const ModelConfig config = decode_config({"Q8_0", 4, 256, 8, 8, 32, 768, 4096, 0, 0}, 256);
  EXPECT_NEAR(speed.decode->token_seconds(config, TensorType::kQ8_0, 0) /
                  DecodePredictor::fit(fast.decode)->token_seconds(config, TensorType::kQ8_0, 0),
              3, 0.1);
  EXPECT_FALSE(slowest(std::span(devices).last(1)).decode);

  // What is predicted is what the budget binds.
  TeacherShape teacher{config, {}};
  DeviceClass budget;
  const double whole = plan_student(teacher, 10'000, budget, speed)->token_seconds;
  EXPECT_GT(whole, 0);
  budget.p95_token_seconds = whole / 2;
  const auto plan = plan_student(teacher, 10'000, budget, speed);
  ASSERT_OK(plan);
  EXPECT_LE(plan->token_seconds, whole / 2);
}

}  // namespace
}  // namespace retort
