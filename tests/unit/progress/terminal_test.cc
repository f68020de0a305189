#include "coordinator/progress/terminal.h"

#include <gtest/gtest.h>

#include <cmath>

namespace retort {
namespace {

TEST(Terminal, ControlCharactersAreNoText) {
  EXPECT_EQ(harmless("a\x1b[2Jb\n"), "a?[2Jb?");
  EXPECT_EQ(harmless("x\xC2\x9Bm"), "x?m");
  EXPECT_EQ(harmless("naïve"), "naïve");
}

TEST(Terminal, Bar) {
  EXPECT_EQ(bar(0.5, 4), "[##..]  50 %");
  EXPECT_EQ(bar(0.999, 4), "[###.]  99 %");
  EXPECT_EQ(bar(7, 4), "[####] 100 %");
  EXPECT_EQ(bar(-1, 2), "[..]   0 %");
  EXPECT_EQ(bar(std::nan(""), 2), "[..]   0 %");
}

}  // namespace
}  // namespace retort
