#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

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

}  // namespace
}  // namespace retort
