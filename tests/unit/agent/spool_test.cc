#include "agent/spool/spool.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/core/file.h"
#include "tests/support/support.h"

namespace retort {
namespace {

using retort::testing::TemporaryFolder;

std::vector<TelemetryPoint> points(double value) { return {{1000, "agent_pss_bytes", value}}; }

TEST(Spool, KeepsValuesAcrossOpens) {
  TemporaryFolder folder;
  {
    Spool spool = *Spool::open(folder / "state.db");
    EXPECT_OK(spool.put({{"a", "1"}, {"b", std::string("\0x", 2)}}));
    EXPECT_OK(spool.put({{"a", "2"}}));
    EXPECT_OK(spool.put({{"gone", "x"}}));
    EXPECT_OK(spool.erase("gone"));
  }
  Spool spool = *Spool::open(folder / "state.db");
  EXPECT_EQ(**spool.get("a"), "2");
  EXPECT_EQ(**spool.get("b"), std::string("\0x", 2));
  EXPECT_FALSE(spool.get("gone")->has_value());
}

TEST(Spool, PullProgress) {
  TemporaryFolder folder;
  {
    Spool spool = *Spool::open(folder / "state.db");
    EXPECT_FALSE(spool.pull()->has_value());
    EXPECT_OK(spool.begin_pull({"abc", "b", "{}", std::vector<bool>(5), 0}));
    const std::uint32_t done[] = {0, 3};
    EXPECT_OK(spool.note_progress(done, 7777));
  }
  Spool spool = *Spool::open(folder / "state.db");
  const auto pull = *spool.pull();
  ASSERT_TRUE(pull.has_value());
  EXPECT_EQ(pull->artifact, "abc");
  EXPECT_EQ(pull->done, (std::vector<bool>{true, false, false, true, false}));
  EXPECT_EQ(pull->cursor, 7777u);
  EXPECT_OK(spool.begin_pull({"def", "b", "{}", std::vector<bool>(2), 0}));  // supersedes
  EXPECT_EQ((*spool.pull())->done, (std::vector<bool>{false, false}));
  EXPECT_OK(spool.end_pull());
  EXPECT_FALSE(spool.pull()->has_value());
}

TEST(Spool, BatchesGrowForEverAndAreForgottenWhenAcknowledged) {
  TemporaryFolder folder;
  {
    Spool spool = *Spool::open(folder / "state.db");
    EXPECT_EQ(*spool.append(points(1.5), 1000), 1u);
    EXPECT_EQ(*spool.append(points(2.5), 1000), 2u);
    const Spool::Batch first = spool.next_batch(0)->value();
    EXPECT_EQ(first.number, 1u);
    EXPECT_EQ(first.points, points(1.5));
    EXPECT_EQ(spool.next_batch(1)->value().points, points(2.5));
    EXPECT_OK(spool.acknowledge(2));
    EXPECT_FALSE(spool.next_batch(0)->has_value());
  }
  Spool spool = *Spool::open(folder / "state.db");
  EXPECT_EQ(*spool.append(points(3), 1000), 3u);
}

TEST(Spool, OldestGoFirstAndAreCounted) {
  TemporaryFolder folder;
  const std::uint64_t one = std::string("1000 agent_pss_bytes 1\n").size();
  Spool spool = *Spool::open(folder / "state.db", {.telemetry_bytes = 3 * one});
  for (int i = 0; i < 5; ++i) EXPECT_OK(spool.append(points(1), 1000));
  Spool::Batch batch = spool.next_batch(0)->value();
  EXPECT_EQ(batch.number, 3u);
  EXPECT_EQ(batch.dropped_before, 2u);
  // A week later, everything but the new one is too old.
  EXPECT_OK(spool.append(points(1), 1000 + 8ll * 24 * 3600 * 1000));
  batch = spool.next_batch(0)->value();
  EXPECT_EQ(batch.number, 6u);
  EXPECT_EQ(batch.dropped_before, 5u);
  EXPECT_EQ(spool.waiting()->batches, 1u);
}

TEST(Spool, FullIsAnErrorAndLosesNothing) {
  TemporaryFolder folder;
  Spool spool = *Spool::open(folder / "state.db", {.file_bytes = 64 << 10});
  EXPECT_OK(spool.put({{"kept", "yes"}}));
  const auto full = spool.put({{"large", std::string(1 << 20, 'x')}});
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, ErrorCode::kOutOfBudget);
  EXPECT_EQ(**spool.get("kept"), "yes");
  EXPECT_OK(spool.put({{"kept", "still"}}));
}

TEST(Spool, NotADatabaseAndANewerOne) {
  TemporaryFolder folder;
  ASSERT_OK(write_file_atomic(folder / "junk.db", std::string(8192, 'j')));
  EXPECT_EQ(Spool::open(folder / "junk.db").error().code, ErrorCode::kCorrupt);
  EXPECT_FALSE(Spool::open(folder / "no/such/folder/state.db"));
}

TEST(Spool, ADamagedPageIsNoticedWhenItOpens) {
  TemporaryFolder folder;
  {
    Spool spool = *Spool::open(folder / "state.db");
    for (int i = 0; i < 50; ++i) ASSERT_OK(spool.put({{std::to_string(i), std::string(1000, 'v')}}));
  }
  {
    const File file = *File::open_write(folder / "state.db", false);
    ASSERT_OK(file.write_all_at(4 * 4096, std::string(4096, 'g')));
  }
  EXPECT_EQ(Spool::open(folder / "state.db").error().code, ErrorCode::kCorrupt);
}

// A child writes and tells after each write; killed at any moment, what it told of is there.
TEST(Spool, WhatWasToldSurvivesKill) {
  TemporaryFolder folder;
  std::uint64_t told_ever = 0;
  for (int round = 0; round < 12; ++round) {
    int pipe_ends[2];
    ASSERT_EQ(::pipe(pipe_ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(pipe_ends[0]);
      auto spool = Spool::open(folder / "state.db");
      if (!spool) ::_exit(1);
      for (;;) {
        const auto number = spool->append(points(1), 1000);
        if (!number || !spool->put({{"last", std::to_string(*number)}})) ::_exit(2);
        if (::write(pipe_ends[1], &*number, sizeof *number) != sizeof *number) ::_exit(3);
      }
    }
    ::close(pipe_ends[1]);
    std::uint64_t told = 0;
    for (int i = 0; i < 2 + round * 3; ++i)
      ASSERT_EQ(::read(pipe_ends[0], &told, sizeof told), static_cast<ssize_t>(sizeof told));
    ::kill(child, SIGKILL);
    while (::read(pipe_ends[0], &told, sizeof told) == static_cast<ssize_t>(sizeof told)) {
    }
    ::close(pipe_ends[0]);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    Spool spool = *Spool::open(folder / "state.db");
    EXPECT_GT(told, told_ever);
    EXPECT_GE(std::stoull(**spool.get("last")), told);
    EXPECT_TRUE(spool.next_batch(told - 1)->has_value());
    told_ever = told;
  }
}

}  // namespace
}  // namespace retort
