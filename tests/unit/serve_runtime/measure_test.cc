#include "agent/serve/runtime/measure.h"

#include "common/core/file.h"
#include "tests/support/support.h"

namespace retort {
namespace {

using std::chrono::milliseconds;

TEST(Measure, EachShapeGetsATimeAndNothingStays) {
  testing::TemporaryFolder folder;
  ThreadTeam team(1);
  const std::vector<DecodeSample> shapes{{"Q8_0", 2, 64, 2, 1, 32, 96, 300, 0, 0},
                                         {"Q4_K", 1, 256, 8, 8, 32, 256, 300, 40, 0},
                                         {"F16", 1, 64, 2, 2, 32, 96, 300, 5, 0}};
  const auto measured = measure_decode(shapes, team, folder.path(), milliseconds(1), 0);
  ASSERT_OK(measured);
  ASSERT_EQ(measured->size(), shapes.size());
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    EXPECT_GT((*measured)[i].seconds, 1e-7);
    DecodeSample asked = (*measured)[i];
    asked.seconds = 0;
    EXPECT_EQ(asked, shapes[i]);
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Measure, WhatDoesNotFitIsLeftOut) {
  testing::TemporaryFolder folder;
  ThreadTeam team(1);
  const std::vector<DecodeSample> shapes{{"Q8_0", 1, 64, 2, 2, 32, 96, 300, 0, 0},
                                         {"Q8_0", 1, 512, 16, 16, 32, 1536, 16384, 0, 0}};
  const auto measured = measure_decode(shapes, team, folder.path(), milliseconds(1), 1 << 20);
  ASSERT_OK(measured);
  ASSERT_EQ(measured->size(), 1u);
  EXPECT_EQ(measured->front().hidden, 64u);
}

TEST(Measure, UnknownFormatsAndShapesThatAreNoModelsAreRefused) {
  testing::TemporaryFolder folder;
  ThreadTeam team(1);
  const auto refused = [&](DecodeSample shape) {
    const auto measured = measure_decode(std::span(&shape, 1), team, folder.path(), milliseconds(1), 0);
    return !measured && measured.error().code == ErrorCode::kInvalid;
  };
  EXPECT_TRUE(refused({"Q9_Z", 1, 64, 2, 2, 32, 96, 300, 0, 0}));
  EXPECT_TRUE(refused({"CODEBOOK4", 1, 64, 2, 2, 32, 96, 300, 0, 0}));
  EXPECT_TRUE(refused({"Q8_0", 1, 64, 3, 2, 32, 96, 300, 0, 0}));
}

TEST(Measure, TheShapesAreModels) {
  for (const DecodeSample& shape : decode_shapes())
    EXPECT_OK(validate(decode_config(shape, shape.position + 8), shape.format));
}

}  // namespace
}  // namespace retort
