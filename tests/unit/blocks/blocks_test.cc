#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/blocks/block_grid.h"
#include "common/blocks/encoded_matrix.h"
#include "common/blocks/tensor_type.h"
#include "common/core/random.h"
#include "tests/support/support.h"

namespace retort {
namespace {

TEST(F16, KnownValuesAndEveryBitPatternRoundTrips) {
  EXPECT_EQ(f32_to_f16(1.0f), 0x3c00);
  EXPECT_EQ(f32_to_f16(-2.0f), 0xc000);
  EXPECT_EQ(f32_to_f16(65504.0f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65519.9f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(1e30f), 0x7c00);
  EXPECT_EQ(f32_to_f16(0x1p-24f), 0x0001);
  EXPECT_EQ(f32_to_f16(0x1p-26f), 0x0000);
  EXPECT_EQ(f32_to_f16(1.0f + 0x1p-11f), 0x3c00);      // tie, to even
  EXPECT_EQ(f32_to_f16(1.0f + 3 * 0x1p-11f), 0x3c02);  // tie, to even
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const float value = f16_to_f32(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) continue;
    ASSERT_EQ(f32_to_f16(value), bits);
  }
  EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(BF16, RoundsToNearestEven) {
  EXPECT_EQ(f32_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);
  EXPECT_EQ(f32_to_bf16(1.0f + 3 * 0x1p-8f), 0x3f82);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Q8_0, KnownBytes) {
  std::vector<float> values(32, 0.0f);
  values[0] = 127.0f;
  values[1] = -127.0f;
  values[2] = 63.5f;  // rounds away from zero, like roundf
  std::vector<std::byte> bytes(34);
  encode_row(TensorType::kQ8_0, values, bytes);
  EXPECT_EQ(bytes[0], std::byte{0x00});
  EXPECT_EQ(bytes[1], std::byte{0x3c});
  EXPECT_EQ(static_cast<std::int8_t>(bytes[2]), 127);
  EXPECT_EQ(static_cast<std::int8_t>(bytes[3]), -127);
  EXPECT_EQ(static_cast<std::int8_t>(bytes[4]), 64);
}

TEST(Q8_0, ErrorIsAtMostHalfAStepAndNonFiniteInputIsDefined) {
  SeededRandom random(3);
  std::vector<float> values(256), back(256);
  for (float& x : values) x = static_cast<float>(random.next_unit() * 2 - 1);
  std::vector<std::byte> bytes(*row_bytes(TensorType::kQ8_0, 256));
  encode_row(TensorType::kQ8_0, values, bytes);
  decode_row(TensorType::kQ8_0, bytes, back);
  for (std::size_t block = 0; block < 256; block += 32) {
    float largest = 0;
    for (std::size_t i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(values[block + i]));
    for (std::size_t i = 0; i < 32; ++i)
      EXPECT_NEAR(back[block + i], values[block + i], largest / 127 * 0.51f + 1e-4f);
  }
  values.assign(256, std::numeric_limits<float>::quiet_NaN());
  encode_row(TensorType::kQ8_0, values, bytes);  // must not be undefined
  EXPECT_EQ(row_bytes(TensorType::kQ8_0, 33), std::nullopt);
}

TEST(Q4_0, KnownBytes) {
  std::vector<float> values(32, 0.0f);
  values[0] = -8.0f;  // the furthest from zero becomes −8 steps
  values[1] = 7.0f;
  values[17] = 2.4f;
  std::vector<std::byte> bytes(18);
  encode_row(TensorType::kQ4_0, values, bytes);
  EXPECT_EQ(bytes[0], std::byte{0x00});
  EXPECT_EQ(bytes[1], std::byte{0x3c});  // 1.0
  EXPECT_EQ(bytes[2], std::byte{0x80});  // column 0 below column 16
  EXPECT_EQ(bytes[3], std::byte{0xaf});
  EXPECT_EQ(bytes[4], std::byte{0x88});
}

TEST(Q4_0, ErrorIsAtMostAStepAndNonFiniteInputIsDefined) {
  SeededRandom random(4);
  std::vector<float> values(256), back(256);
  for (float& x : values) x = static_cast<float>(random.next_unit() * 2 - 1);
  std::vector<std::byte> bytes(*row_bytes(TensorType::kQ4_0, 256));
  encode_row(TensorType::kQ4_0, values, bytes);
  decode_row(TensorType::kQ4_0, bytes, back);
  for (std::size_t block = 0; block < 256; block += 32) {
    float largest = 0;
    for (std::size_t i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(values[block + i]));
    for (std::size_t i = 0; i < 32; ++i)
      EXPECT_NEAR(back[block + i], values[block + i], largest / 8 * 1.001f);
  }
  values.assign(256, std::numeric_limits<float>::infinity());
  encode_row(TensorType::kQ4_0, values, bytes);  // must not be undefined
}

/// Two blocks of a normal sample, with a large and a tiny run of values among them.
std::vector<float> sample() {
  SeededRandom random(5);
  std::vector<float> values(512);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double gauss = std::sqrt(-2 * std::log(1 - random.next_unit())) *
                         std::cos(2 * 3.14159265358979 * random.next_unit());
    values[i] = static_cast<float>(gauss * (i / 16 == 3 ? 10 : i / 16 == 9 ? 0.001 : 1));
  }
  return values;
}

TEST(KQuants, ErrorsAreAsSmallAsTheirBitsAllow) {
  const std::vector<float> values = sample();
  double power = 0;
  for (const float x : values) power += double{x} * x;
  // Relative squared error; the expected ones of a normal distribution with steps of that size, with room.
  for (const auto& [type, limit] : {std::pair(TensorType::kQ3K, 0.03), std::pair(TensorType::kQ4K, 0.006),
                                    std::pair(TensorType::kQ5K, 0.0016), std::pair(TensorType::kQ6K, 0.0006),
                                    std::pair(TensorType::kIq4Nl, 0.009)}) {
    std::vector<std::byte> bytes(*row_bytes(type, values.size()));
    std::vector<float> back(values.size()), again(values.size());
    encode_row(type, values, bytes);
    decode_row(type, bytes, back);
    double error = 0;
    for (std::size_t i = 0; i < values.size(); ++i)
      error += (double{values[i]} - back[i]) * (double{values[i]} - back[i]);
    EXPECT_LT(error, limit * power) << info(type).name << ": " << error / power;
    // What is zero, infinite or no number at all is defined, and leaves the other block as it was.
    std::vector<float> odd = values;
    for (std::size_t i = 0; i < 256; ++i) odd[i] = i % 3 == 0 ? 0 : std::numeric_limits<float>::quiet_NaN();
    encode_row(type, odd, bytes);
    decode_row(type, bytes, again);
    for (std::size_t i = 0; i < 256; ++i) ASSERT_EQ(again[i], 0.0f) << info(type).name;
    for (std::size_t i = 256; i < 512; ++i) ASSERT_EQ(again[i], back[i]) << info(type).name;
  }
}

/// Each format's layout, value by value: a block in which all is zero but one value, or one scale.
TEST(KQuants, KnownBytes) {
  const auto decoded = [](TensorType type, std::vector<std::byte> bytes) {
    std::vector<float> out(info(type).block_values);
    decode_row(type, bytes, out);
    return out;
  };
  constexpr std::byte kOne[2] = {std::byte{0x00}, std::byte{0x3c}};  // 1.0 as F16
  {
    std::vector<std::byte> q6(210);
    q6[208] = kOne[0], q6[209] = kOne[1];
    q6[192 + 6] = std::byte{3};     // the scale of values 96…111
    q6[32] = std::byte{0x50};       // value 96's low half: 5
    q6[128 + 0] = std::byte{0xc0};  // its upper bits: 3
    const auto out = decoded(TensorType::kQ6K, q6);
    EXPECT_EQ(out[96], 3.0f * (5 + 48 - 32));
    EXPECT_EQ(out[97], 3.0f * -32);
    EXPECT_EQ(out[95], 0.0f);
  }
  {
    std::vector<std::byte> q4(144);
    q4[0] = kOne[0], q4[1] = kOne[1], q4[2] = kOne[0], q4[3] = kOne[1];
    q4[4 + 9] = std::byte{0x21};        // run 5: low halves of its scale (1) and min (2)
    q4[4 + 1] = std::byte{0x40};        // the upper bits of its scale: 16
    q4[4 + 5] = std::byte{0x80};        // and of its min: 32
    q4[16 + 64 + 7] = std::byte{0x90};  // value 64·2 + 32 + 7
    const auto out = decoded(TensorType::kQ4K, q4);
    EXPECT_EQ(out[167], 17.0f * 9 - 34);
    EXPECT_EQ(out[160], -34.0f);
    EXPECT_EQ(out[0], 0.0f);
  }
  {
    std::vector<std::byte> q5(176);
    q5[0] = kOne[0], q5[1] = kOne[1];
    q5[4 + 2] = std::byte{5};           // the scale of run 2
    q5[16 + 3] = std::byte{0x04};       // the fifth bit of value 64 + 3
    q5[48 + 32 + 3] = std::byte{0x02};  // its low half
    EXPECT_EQ(decoded(TensorType::kQ5K, q5)[67], 5.0f * 18);
  }
  {
    std::vector<std::byte> q3(110);
    q3[108] = kOne[0], q3[109] = kOne[1];
    q3[96 + 2] = std::byte{0x70};       // run 10: low bits of its scale 7 …
    q3[96 + 8 + 2] = std::byte{0x20};   // … upper ones 2: 39 − 32
    q3[0 + 5] = std::byte{0x20};        // third bit of value 32·5 + 5
    q3[32 + 32 + 5] = std::byte{0x08};  // two bits of value 128 + 32 + 5
    const auto out = decoded(TensorType::kQ3K, q3);
    EXPECT_EQ(out[165], 7.0f * 2);
    EXPECT_EQ(out[166], 7.0f * -4);
  }
  {
    std::vector<std::byte> iq4(18);
    iq4[0] = kOne[0], iq4[1] = kOne[1];
    iq4[2 + 3] = std::byte{0xf0};
    const auto out = decoded(TensorType::kIq4Nl, iq4);
    EXPECT_EQ(out[3], -127.0f);
    EXPECT_EQ(out[19], 113.0f);
  }
}

/// Weighted error of a row against itself encoded with and without the weights.
TEST(EncodeRow, WeightsLowerTheErrorThatTheyWeigh) {
  const std::vector<float> values = sample();
  SeededRandom random(9);
  std::vector<float> weights(values.size());
  for (float& w : weights) w = random.next_unit() < 0.1 ? 100.0f : 0.1f;
  for (const TensorType type : {TensorType::kQ3K, TensorType::kQ4K, TensorType::kQ5K, TensorType::kQ6K,
                                TensorType::kQ4_0, TensorType::kIq4Nl}) {
    std::vector<std::byte> bytes(*row_bytes(type, values.size()));
    std::vector<float> back(values.size());
    const auto error = [&](std::span<const float> w) {
      encode_row(type, values, bytes, w);
      decode_row(type, bytes, back);
      double sum = 0;
      for (std::size_t i = 0; i < values.size(); ++i)
        sum += double{weights[i]} * (double{values[i]} - back[i]) * (double{values[i]} - back[i]);
      return sum;
    };
    const double without = error({});
    EXPECT_LT(error(weights), 0.8 * without) << info(type).name;
    // Equal weights are no weights, but for Q4_0, which searches only when it has some.
    const std::vector<float> ones(values.size(), 1.0f);
    if (type != TensorType::kQ4_0) {
      EXPECT_EQ(error(ones), without) << info(type).name;
    } else {
      EXPECT_LE(error(ones), without);
    }
  }
}

/// What block_grid says of an encoded block is what decoding it gives, and levels put back change nothing.
TEST(BlockGrid, TakesEveryFormatApartAndTogether) {
  const std::vector<float> values = sample();
  for (const TensorType type : {TensorType::kQ3K, TensorType::kQ4K, TensorType::kQ5K, TensorType::kQ6K,
                                TensorType::kQ4_0, TensorType::kIq4Nl, TensorType::kQ8_0}) {
    ASSERT_TRUE(has_levels(type));
    const std::size_t n = info(type).block_values;
    std::vector<std::byte> bytes(*row_bytes(type, n));
    std::vector<float> back(n);
    encode_row(type, std::span(values).first(n), bytes);
    decode_row(type, bytes, back);
    const BlockGrid grid = block_grid(type, bytes);
    const LevelSet set = level_set(type);
    const auto value = [&](std::size_t i, int level) {
      return grid.scale[i] * static_cast<float>(level) - grid.min[i];
    };
    std::vector<std::int8_t> levels(n);
    for (std::size_t i = 0; i < n; ++i) {
      levels[i] = set.nearest((back[i] + grid.min[i]) / grid.scale[i]);
      EXPECT_NEAR(value(i, levels[i]), back[i], 1e-6) << info(type).name << " " << i;
      // Nothing on the grid is nearer to the original than what `nearest` takes.
      const std::int8_t best = set.nearest((values[i] + grid.min[i]) / grid.scale[i]);
      for (int other = -128; other < 128; ++other) {
        const bool there = set.table.empty()
                               ? other >= set.low && other <= set.high
                               : std::find(set.table.begin(), set.table.end(), other) != set.table.end();
        if (!there) continue;
        EXPECT_LE(std::fabs(value(i, best) - values[i]), std::fabs(value(i, other) - values[i]) + 1e-5f);
      }
    }
    std::vector<std::byte> again = bytes;
    const std::vector<std::int8_t> highest(n, static_cast<std::int8_t>(set.high));
    put_levels(type, highest, again);
    decode_row(type, again, back);
    for (std::size_t i = 0; i < n; ++i) EXPECT_NEAR(back[i], value(i, set.high), 1e-5) << info(type).name;
    put_levels(type, levels, again);
    EXPECT_EQ(again, bytes) << info(type).name;
  }
}

}  // namespace
}  // namespace retort
