#include "coordinator/cli/rest.h"

#include <gtest/gtest.h>

#include "common/core/file.h"
#include "tests/support/support.h"

namespace retort::cli {
namespace {

TEST(CliRest, EscapesAndQueries) {
  EXPECT_EQ(escape_url("a b/ü~"), "a%20b%2F%C3%BC~");
  EXPECT_EQ(query_of({{"a", ""}, {"b", "1 2"}, {"c", "x"}}), "?b=1%202&c=x");
  EXPECT_EQ(query_of({{"a", ""}}), "");
}

TEST(CliRest, TokenFromTheFirstPlaceThatHasOne) {
  testing::TemporaryFolder folder;
  ASSERT_OK(write_file_atomic(folder / "given", "from-file \r\nmore\n"));
  ASSERT_OK(write_file_atomic(folder / "fallback", "from-home"));
  EXPECT_EQ(*find_token("direct", (folder / "given").string(), folder / "fallback"), "direct");
  EXPECT_EQ(*find_token("", (folder / "given").string(), folder / "fallback"), "from-file");
  EXPECT_EQ(*find_token("", "", folder / "fallback"), "from-home");
  EXPECT_EQ(*find_token("", "", folder / "none"), "");
  EXPECT_FALSE(find_token("", (folder / "none").string(), folder / "fallback"));
  ASSERT_OK(write_file_atomic(folder / "empty", "\n"));
  EXPECT_FALSE(find_token("", (folder / "empty").string(), ""));
}

TEST(CliRest, AddressesAreChecked) {
  for (const char* good : {"http://127.0.0.1:8440", "http://localhost", "http://a.example/prefix/"})
    EXPECT_OK(Rest::open({good, "t"}));
  for (const char* bad : {"", "127.0.0.1:8440", "https://", "http://", "http://a b", "http://a\r\nX: y"})
    EXPECT_FALSE(Rest::open({bad, "t"})) << bad;
  EXPECT_FALSE(Rest::open({"http://a", "to\nken"}));
  EXPECT_TRUE(Rest::open({"http://localhost/x/", ""})->local());
  EXPECT_TRUE(Rest::open({"http://127.0.0.1:1", ""})->local());
  EXPECT_FALSE(Rest::open({"http://coordinator.example", ""})->local());
}

}  // namespace
}  // namespace retort::cli
