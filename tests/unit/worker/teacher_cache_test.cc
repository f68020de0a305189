#include "coordinator/worker/teacher_cache.h"

#include <sys/resource.h>

#include <csignal>

#include "tests/support/support.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

TeacherOutputsKey key_of(const std::string& teacher) {
  TeacherOutputsKey key;
  key.teacher_sha256 = teacher, key.tokenizer_sha256 = "t", key.data_sha256 = "d";
  key.windows = 4, key.window = 8, key.vocabulary = 100, key.k = 2;
  return key;
}

std::vector<std::byte> record(const TeacherOutputsKey& key, int fill) {
  return std::vector<std::byte>(key.record_bytes(), static_cast<std::byte>(fill));
}

TEST(TeacherCache, KeepsWindowsAcrossOpenings) {
  testing::TemporaryFolder folder;
  const TeacherOutputsKey key = key_of("a");
  EXPECT_EQ(key.record_bytes(), 8u * (2 * 2 + 2 * 3));
  {
    auto cache = TeacherCache::open(folder / "c", key, 1 << 20);
    ASSERT_OK(cache);
    ASSERT_OK(cache->write(2, record(key, 7)));
    ASSERT_OK(cache->write(3, record(key, 0)));  // like a hole, but written
  }
  auto cache = TeacherCache::open(folder / "c", key, 1 << 20);
  ASSERT_OK(cache);
  std::vector<std::byte> got(key.record_bytes());
  EXPECT_TRUE(cache->read(2, got));
  EXPECT_EQ(got, record(key, 7));
  EXPECT_TRUE(cache->read(3, got));
  EXPECT_FALSE(cache->read(1, got));
  EXPECT_FALSE(cache->read(99, got));
  // A torn record, and one from another place.
  auto file = File::open_write(cache->path(), false);
  ASSERT_OK(file);
  const std::uint64_t stride = key.record_bytes() + 8;
  ASSERT_OK(file->write_all_at(4096 + 2 * stride + 11, "x"));
  EXPECT_FALSE(cache->read(2, got));
  ASSERT_OK(cache->write(2, record(key, 7)));
  std::string bytes(stride, '\0');
  ASSERT_OK(file->read_exact_at(4096 + 2 * stride, bytes));
  ASSERT_OK(file->write_all_at(4096 + 1 * stride, bytes));
  EXPECT_FALSE(cache->read(1, got));
}

TEST(TeacherCache, AnotherTeachersFileIsRefused) {
  testing::TemporaryFolder folder;
  const TeacherOutputsKey a = key_of("a"), b = key_of("b");
  const fs::path first = TeacherCache::open(folder / "c", a, 1 << 20)->path();
  const fs::path second = TeacherCache::open(folder / "c", b, 1 << 20)->path();
  EXPECT_NE(first, second);
  fs::remove(second);
  fs::rename(first, second);
  const auto refused = TeacherCache::open(folder / "c", b, 1 << 20);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kConflict);
  EXPECT_NE(refused.error().message.find("another teacher"), std::string::npos);
}

TEST(TeacherCache, OldFilesMakeRoomButNotThoseInUse) {
  testing::TemporaryFolder folder;
  const std::uint64_t one = 4096 + 4 * (key_of("a").record_bytes() + 8), limit = 2 * one + 100;
  auto a = TeacherCache::open(folder / "c", key_of("a"), limit);
  ASSERT_OK(a);
  fs::path b_path;
  {
    auto b = TeacherCache::open(folder / "c", key_of("b"), limit);
    ASSERT_OK(b);
    b_path = b->path();
    const auto none = TeacherCache::open(folder / "c", key_of("c"), limit);
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().code, ErrorCode::kOutOfBudget);
  }
  ASSERT_OK(TeacherCache::open(folder / "c", key_of("c"), limit));
  EXPECT_FALSE(fs::exists(b_path));
  EXPECT_TRUE(fs::exists(a->path()));
}

}  // namespace
}  // namespace retort
