#include "common/store/store.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>
#include <span>

#include "common/core/file.h"
#include "common/core/random.h"
#include "tests/support/support.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

/// Both stores must behave alike.
class AnyStore : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (!GetParam()) {
      store_ = make_memory_store();
      return;
    }
    auto opened = open_rocksdb_store(folder_ / "store", {"devices", "jobs"});
    ASSERT_OK(opened);
    store_ = std::move(*opened);
  }
  void put(std::string_view table, const std::string& key, const std::string& value) {
    StoreBatch batch;
    batch.put(table, key, value);
    ASSERT_OK(store_->write(batch));
  }
  std::vector<std::string> keys(std::string_view prefix, std::string_view start_after,
                                std::size_t limit = 100) {
    std::vector<std::string> out;
    EXPECT_OK(store_->scan("devices", prefix, start_after, [&](std::string_view key, std::string_view) {
      out.emplace_back(key);
      return out.size() < limit;
    }));
    return out;
  }
  testing::TemporaryFolder folder_;
  std::unique_ptr<Store> store_;
};

TEST_P(AnyStore, PutsGetsErases) {
  EXPECT_EQ(*store_->get("devices", "a"), std::nullopt);
  put("devices", "a", std::string("x\0y", 3));
  put("jobs", "a", "other");
  EXPECT_EQ(*store_->get("devices", "a"), std::string("x\0y", 3));
  StoreBatch batch;
  batch.erase("devices", "a");
  batch.erase("devices", "never there");
  batch.put("jobs", "b", "");
  ASSERT_OK(store_->write(batch));
  EXPECT_EQ(*store_->get("devices", "a"), std::nullopt);
  EXPECT_EQ(*store_->get("jobs", "a"), "other");
  EXPECT_EQ(*store_->get("jobs", "b"), "");
}

TEST_P(AnyStore, ScansByPrefixInOrder) {
  for (const char* key : {"b/2", "a", "b/10", "b/1", "c", "b"}) put("devices", key, key);
  EXPECT_EQ(keys("b/", ""), (std::vector<std::string>{"b/1", "b/10", "b/2"}));
  EXPECT_EQ(keys("b/", "b/1"), (std::vector<std::string>{"b/10", "b/2"}));
  EXPECT_EQ(keys("b/", "b/15"), (std::vector<std::string>{"b/2"}));
  EXPECT_EQ(keys("b/", "a"), (std::vector<std::string>{"b/1", "b/10", "b/2"}));
  EXPECT_EQ(keys("b/", "c"), std::vector<std::string>{});
  EXPECT_EQ(keys("", "", 2), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(keys("\xff", ""), std::vector<std::string>{});
}

TEST_P(AnyStore, AVisitorMayWrite) {
  put("devices", "a", "1");
  put("devices", "b", "2");
  std::size_t seen = 0;
  EXPECT_OK(store_->scan("devices", "", "", [&](std::string_view key, std::string_view) {
    put("devices", std::string(key) + "/copy", "x");
    ++seen;
    return seen < 10;
  }));
  EXPECT_EQ(seen, 2u);
}

INSTANTIATE_TEST_SUITE_P(Store, AnyStore, ::testing::Bool(),
                         [](const auto& which) { return which.param ? "Rocksdb" : "Memory"; });

TEST(RocksdbStore, KeepsWhatWasWrittenWhenTheProcessDies) {
  testing::TemporaryFolder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    auto store = open_rocksdb_store(folder / "store", {"t"});
    StoreBatch batch;
    batch.put("t", "key", "value");
    batch.put("t", "other", "too");
    if (!store || !(*store)->write(batch)) ::_exit(1);
    ::_exit(0);  // no destructor runs
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  const auto store = open_rocksdb_store(folder / "store", {"t", "a new table"});
  ASSERT_OK(store);
  EXPECT_EQ(*(*store)->get("t", "key"), "value");
  EXPECT_EQ(*(*store)->get("t", "other"), "too");
  EXPECT_EQ(*(*store)->get("a new table", "key"), std::nullopt);
}

// A power cut takes what was not synced, wholly or in parts, and may leave anything in its place.
TEST(RocksdbStore, LostAndTornWritesTakeTheLastOnesFirst) {
  testing::TemporaryFolder folder;
  const auto log_of = [](const fs::path& store) {
    for (const auto& entry : fs::directory_iterator(store))
      if (entry.path().extension() == ".log" && entry.file_size() > 0) return entry.path();
    return fs::path();
  };
  constexpr int kSynced = 20, kAll = 60;
  const fs::path whole = folder / "whole";
  std::uint64_t synced_bytes = 0;
  {
    const auto store = open_rocksdb_store(folder / "store", {"t", "u"});
    ASSERT_OK(store);
    for (int i = 0; i < kAll; ++i) {
      StoreBatch batch;  // both or none
      batch.put("t", fmt::format("{:03}", i), std::string(10 + i * 7 % 50, 'x'));
      batch.put("u", fmt::format("{:03}", i), std::to_string(i));
      ASSERT_OK((*store)->write(batch, i % 2 == 0 && i < kSynced));
      if (i + 1 != kSynced) continue;
      ASSERT_OK((*store)->sync());
      synced_bytes = fs::file_size(log_of(folder / "store"));
    }
    fs::copy(folder / "store", whole, fs::copy_options::recursive);  // as a cut would leave it at best
  }
  const std::uint64_t all_bytes = fs::file_size(log_of(whole));
  ASSERT_GT(synced_bytes, 0u);
  ASSERT_GT(all_bytes, synced_bytes);
  SeededRandom random(7);
  std::set<int> counts;
  for (int trial = 0; trial < 90; ++trial) {
    const fs::path torn = folder / "torn";
    fs::remove_all(torn);
    fs::copy(whole, torn, fs::copy_options::recursive);
    const fs::path log = log_of(torn);
    const auto at = synced_bytes + static_cast<std::uint64_t>(random.next_unit() *
                                                              static_cast<double>(all_bytes - synced_bytes));
    std::string bytes = *read_file(log, 1 << 20);
    if (trial % 3 == 0) {
      bytes.resize(at);  // the tail never came to the disk
    } else {
      const std::span<char> rest(bytes.data() + at, bytes.size() - at);
      if (trial % 3 == 1)
        random.fill(std::as_writable_bytes(rest));  // other bytes did
      else
        std::fill(rest.begin(), rest.end(), '\0');  // its length did
    }
    ASSERT_OK(write_file_atomic(log, bytes));
    const auto store = open_rocksdb_store(torn, {"t", "u"});
    ASSERT_OK(store) << "trial " << trial;
    int there = 0;
    while (there < kAll && *(*store)->get("t", fmt::format("{:03}", there))) ++there;
    EXPECT_GE(there, kSynced) << "trial " << trial << ": something that was on disk is gone";
    for (int i = 0; i < kAll; ++i)
      EXPECT_EQ((*store)->get("u", fmt::format("{:03}", i))->has_value(), i < there) << trial << ' ' << i;
    counts.insert(there);
  }
  EXPECT_GT(counts.size(), 10u) << "the cuts were all alike";
}

TEST(RocksdbStore, OneProcessAtATime) {
  testing::TemporaryFolder folder;
  const auto first = open_rocksdb_store(folder / "store", {"t"});
  ASSERT_OK(first);
  const auto second = open_rocksdb_store(folder / "store", {"t"});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kConflict) << second.error().describe();
}

TEST(RocksdbStore, OpensWithTablesItDoesNotKnow) {
  testing::TemporaryFolder folder;
  ASSERT_OK(open_rocksdb_store(folder / "store", {"t", "of a newer version"}));
  const auto store = open_rocksdb_store(folder / "store", {"t"});
  ASSERT_OK(store);
  EXPECT_FALSE((*store)->get("no such table", "key"));
}

TEST(RocksdbStore, DamageIsToldNotCrashedOn) {
  testing::TemporaryFolder folder;
  ASSERT_OK(open_rocksdb_store(folder / "store", {"t"}));
  ASSERT_OK(write_file_atomic(folder / "store/CURRENT", "garbage\n"));
  const auto store = open_rocksdb_store(folder / "store", {"t"});
  ASSERT_FALSE(store);
  EXPECT_NE(store.error().describe().find("store"), std::string::npos);
}

}  // namespace
}  // namespace retort
