#include "coordinator/fleet/transfer_queue.h"

#include <gtest/gtest.h>

#include <set>

namespace retort {
namespace {

using namespace std::chrono_literals;

constexpr std::uint32_t kChunk = 1000;

/// Devices that keep four chunks in flight until they have all of so many, in simulated time.
struct Site {
  TransferQueue queue;
  TransferQueue::Time now{};
  std::map<std::string, std::uint64_t> asked, got;
  std::map<std::string, TransferQueue::Time> finished;
  std::set<std::string> served;
  std::size_t at_a_time = 0;
  std::uint64_t chunks = 0;

  void ask(const std::string& device) {
    if (asked[device] == chunks * kChunk) return;
    ASSERT_TRUE(queue.add(device, {"a", asked[device], kChunk}, 8, now));
    asked[device] += kChunk;
  }
  void run(std::size_t devices, std::uint64_t chunks_each) {
    chunks = chunks_each;
    for (std::size_t i = 0; i < devices; ++i)
      for (int credit = 0; credit < 4; ++credit) ask("d" + std::to_string(i));
    while (finished.size() < devices) {
      while (const auto turn = queue.next(now)) {
        ASSERT_EQ(turn->request.offset, got[turn->device]) << "in the order asked for";
        got[turn->device] += kChunk;
        served.insert(turn->device);
        at_a_time = std::max(at_a_time, served.size());
        if (got[turn->device] == chunks * kChunk) {
          finished[turn->device] = now;
          served.erase(turn->device);
          queue.leave(turn->device);
        } else {
          ask(turn->device);
        }
      }
      const auto next = queue.when();
      if (finished.size() < devices) {
        ASSERT_TRUE(next && *next > now);
        now = *next;
      }
    }
  }
};

TEST(TransferQueue, TheRateHoldsAndAllFinishTogether) {
  Site site;
  site.queue.set_limits({10'000, 0});
  site.run(20, 50);
  // 20 · 50 · 1000 bytes at 10,000 a second, and the last ones of all come within a round.
  EXPECT_NEAR(std::chrono::duration<double>(site.now.time_since_epoch()).count(), 99.9, 0.01);
  for (const auto& [device, at] : site.finished) EXPECT_GT(at, site.now - 2s) << device;
  EXPECT_EQ(site.queue.waiting(), 0u);
}

TEST(TransferQueue, SoManyAtATimeInTheOrderInWhichTheyCame) {
  Site site;
  site.queue.set_limits({10'000, 3});
  site.run(10, 20);
  EXPECT_EQ(site.at_a_time, 3u);
  EXPECT_LT(site.finished.at("d0"), site.finished.at("d9"));
  EXPECT_LT(site.finished.at("d2"), site.now - 10s);
  EXPECT_NEAR(std::chrono::duration<double>(site.now.time_since_epoch()).count(), 19.9, 0.01);
}

TEST(TransferQueue, WhoeverAsksNoMoreLosesItsPlace) {
  TransferQueue queue;
  TransferQueue::Time now{};
  queue.set_limits({0, 1});
  ASSERT_TRUE(queue.add("sleeps", {"a", 0, kChunk}, 4, now));
  ASSERT_TRUE(queue.add("waits", {"a", 0, kChunk}, 4, now));
  EXPECT_EQ(queue.next(now)->device, "sleeps");
  EXPECT_FALSE(queue.next(now));
  EXPECT_EQ(queue.when(), now + TransferQueue::kIdle);
  EXPECT_FALSE(queue.next(now + 4s));
  EXPECT_EQ(queue.next(now + 5s)->device, "waits");
  // It comes back at the end of the queue.
  ASSERT_TRUE(queue.add("sleeps", {"a", kChunk, kChunk}, 4, now + 6s));
  EXPECT_FALSE(queue.next(now + 6s));
  queue.leave("waits");
  EXPECT_EQ(queue.next(now + 6s)->device, "sleeps");
}

TEST(TransferQueue, ADeviceThatAsksForTooMuch) {
  TransferQueue queue;
  const TransferQueue::Time now{};
  queue.set_limits({1000, 0});
  for (std::uint64_t i = 0; i < 4; ++i) EXPECT_TRUE(queue.add("d", {"a", i * kChunk, kChunk}, 4, now));
  EXPECT_FALSE(queue.add("d", {"a", 4 * kChunk, kChunk}, 4, now));
  EXPECT_TRUE(queue.add("d", {"a", 2 * kChunk, kChunk}, 4, now)) << "it waits already";
  // Another artifact: nothing of the one before is wanted any more.
  EXPECT_TRUE(queue.add("d", {"b", 0, kChunk}, 4, now));
  EXPECT_EQ(queue.next(now)->request.artifact, "b");
  EXPECT_FALSE(queue.next(now + 10s));
  EXPECT_EQ(queue.waiting(), 0u);
}

TEST(TransferQueue, ThoseWhoWaitHearOfIt) {
  TransferQueue queue;
  const TransferQueue::Time now{};
  queue.set_limits({0, 1});
  ASSERT_TRUE(queue.add("first", {"a", 0, kChunk}, 4, now));
  ASSERT_TRUE(queue.add("second", {"b", 0, kChunk}, 4, now));
  ASSERT_TRUE(queue.next(now));
  EXPECT_TRUE(queue.to_tell(now + 2s).empty());
  using Told = std::vector<std::pair<std::string, std::string>>;
  EXPECT_EQ(queue.to_tell(now + 3s), (Told{{"second", "b"}}));
  EXPECT_TRUE(queue.to_tell(now + 22s).empty());
  EXPECT_EQ(queue.to_tell(now + 23s).size(), 1u);
  EXPECT_EQ(queue.waiting(), 1u);
}

}  // namespace
}  // namespace retort
