#include "agent/update/mirrors.h"

#include <gtest/gtest.h>

namespace retort {
namespace {

using namespace std::chrono_literals;

TEST(Mirrors, TheFirstThatIsNotPutAside) {
  const Mirrors::Time now{};
  Mirrors mirrors;
  EXPECT_FALSE(mirrors.choose(now));
  mirrors.set({"http://a", "gopher://x", "https://b"});
  EXPECT_EQ(mirrors.choose(now), "http://a");
  mirrors.failed("http://a", now);
  EXPECT_EQ(mirrors.choose(now), "https://b");
  EXPECT_EQ(mirrors.choose(now + 61s), "http://a");
  // Twice as long each time, an hour and four minutes at most; one success makes up for all.
  mirrors.failed("http://a", now + 61s);
  EXPECT_EQ(mirrors.choose(now + 180s), "https://b");
  EXPECT_EQ(mirrors.choose(now + 182s), "http://a");
  for (int i = 0; i < 20; ++i) mirrors.failed("http://a", now);
  EXPECT_EQ(mirrors.choose(now + 65min), "http://a");
  mirrors.worked("http://a");
  mirrors.failed("http://a", now + 65min);
  EXPECT_EQ(mirrors.choose(now + 67min), "http://a");
  mirrors.lied("http://a", now);
  mirrors.failed("https://b", now);
  EXPECT_FALSE(mirrors.choose(now + 30s)) << "the coordinator it is";
  EXPECT_EQ(mirrors.choose(now + 23h), "https://b");
  mirrors.failed("http://a", now);
  EXPECT_EQ(mirrors.choose(now + 23h), "https://b") << "another failure does not shorten it";
  EXPECT_EQ(mirrors.choose(now + 25h), "http://a");
  // Those that stay keep what is known of them.
  mirrors.set({"http://a", "http://c"});
  EXPECT_EQ(mirrors.choose(now), "http://c");
  mirrors.set({});
  EXPECT_FALSE(mirrors.choose(now + 48h));
  mirrors.set(std::vector<std::string>(100, "http://d"));
  EXPECT_EQ(mirrors.choose(now), "http://d");
}

}  // namespace
}  // namespace retort
