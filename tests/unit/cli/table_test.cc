#include "coordinator/cli/table.h"

#include <gtest/gtest.h>

#include <cmath>

namespace retort::cli {
namespace {

TEST(CliTable, AlignsTextLeftAndNumbersRight) {
  Table table({"NAME", ">BYTES", "STATE"});
  table.row({"a", "5", "ok"});
  table.row({"längst", "12345", ""});
  EXPECT_EQ(table.text(),
            "NAME    BYTES  STATE\n"
            "a           5  ok\n"
            "längst  12345\n");
}

TEST(CliTable, MissingAndSurplusCells) {
  Table table({"A", "B"});
  table.row({"1"});
  table.row({"1", "2", "3"});
  EXPECT_EQ(table.text(), "A  B\n1\n1  2\n");
}

TEST(CliTable, TextFromOutsideCannotDriveTheTerminal) {
  Table table({"NAME"});
  table.row({"a\x1b[2Jb\nc"});
  EXPECT_EQ(table.text(), "NAME\na?[2Jb?c\n");
}

}  // namespace
}  // namespace retort::cli
