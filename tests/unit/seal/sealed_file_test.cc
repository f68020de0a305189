#include "common/seal/sealed_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "common/core/random.h"
#include "common/core/sha256.h"
#include "tests/support/support.h"

namespace retort {
namespace {

class SealedFileTest : public ::testing::Test {
 protected:
  SealedFileTest() {
    SeededRandom random(7);
    random.fill(std::as_writable_bytes(std::span(bytes_)));
    artifact_ = sha256_hex(bytes_);
  }
  SealedFile create() {
    return std::move(
        *SealedFile::create(*File::open_write(path_, true), path_, key_, artifact_, bytes_.size()));
  }
  Result<SealedFile> open() const { return SealedFile::open(*File::open_read(path_), path_, key_); }
  void write_all() { ASSERT_OK(create().write_all_at(0, bytes_)); }
  std::string on_disk() const { return *read_file(path_); }
  void flip(std::uint64_t at) const {
    std::string disk = on_disk();
    disk[at] = static_cast<char>(disk[at] ^ 1);
    ASSERT_OK(write_file_atomic(path_, disk));
  }

  testing::TemporaryFolder folder_;
  const std::filesystem::path path_ = folder_ / "sealed";
  const SealKey key_ = SealKey::make();
  std::string bytes_ = std::string(700'000, '\0'), artifact_;
};

TEST_F(SealedFileTest, WhatWasWrittenInAnyOrderIsReadAtAnyPlace) {
  {
    SealedFile file = create();
    ASSERT_OK(file.write_all_at(400'000, std::string_view(bytes_).substr(400'000)));
    ASSERT_OK(file.write_all_at(0, std::string(300'000, 'x')));  // pulled again below
    ASSERT_OK(file.write_all_at(100, std::string_view(bytes_).substr(100, 399'950)));
    ASSERT_OK(file.write_all_at(0, std::string_view(bytes_).substr(0, 200)));
    ASSERT_OK(file.sync());
  }
  EXPECT_TRUE(SealedFile::is_sealed(path_));
  EXPECT_EQ(*SealedFile::artifact_of(path_), artifact_);
  auto file = open();
  ASSERT_OK(file);
  EXPECT_EQ(file->artifact(), artifact_);
  EXPECT_EQ(file->length(), bytes_.size());
  for (const auto& [offset, length] : std::vector<std::pair<std::size_t, std::size_t>>{
           {0, 700'000}, {99, 2}, {199, 3}, {399'999, 100}, {699'999, 1}, {262'100, 100}, {5, 0}}) {
    std::string out(length, '\0');
    ASSERT_OK(file->read_exact_at(offset, out));
    EXPECT_TRUE(out == std::string_view(bytes_).substr(offset, length)) << offset;
  }
  const auto memory = unseal(path_, key_);
  ASSERT_OK(memory);
  EXPECT_EQ(std::memcmp(memory->bytes().data(), bytes_.data(), bytes_.size()), 0);
}

TEST_F(SealedFileTest, NothingOfTheArtifactIsOnTheDisk) {
  bytes_ = std::string(700'000, 'q');
  artifact_ = sha256_hex(bytes_);
  write_all();
  const std::string disk = on_disk();
  EXPECT_EQ(disk.find("qqqq"), std::string::npos);
  EXPECT_LE(disk.size(), SealedFile::stored_bytes(bytes_.size(), 1));
  // The same bytes again look otherwise.
  write_all();
  EXPECT_NE(disk.substr(SealedFile::kHeaderBytes), on_disk().substr(SealedFile::kHeaderBytes));
}

TEST_F(SealedFileTest, AnotherKeyOpensNothing) {
  write_all();
  const SealKey other = SealKey::make();
  const auto opened = unseal(path_, other);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, ErrorCode::kDenied);
  EXPECT_NE(opened.error().message.find(key_.id()), std::string::npos) << opened.error().message;
  EXPECT_NE(opened.error().message.find(other.id()), std::string::npos) << opened.error().message;
}

TEST_F(SealedFileTest, AnyByteThatChangedIsNoticed) {
  write_all();
  const std::string disk = on_disk();
  const std::size_t record =
      SealedFile::kRecordHeaderBytes + SealedFile::kMaxRecordBytes + SealedFile::kTagBytes;
  std::vector<std::uint64_t> places;
  for (std::uint64_t at = 0; at < SealedFile::kHeaderBytes + SealedFile::kRecordHeaderBytes; ++at)
    places.push_back(at);
  for (const std::uint64_t at : {std::uint64_t{200}, record, record + 100, std::uint64_t{disk.size() - 1}})
    places.push_back(at);
  for (const std::uint64_t at : places) {
    flip(at);
    EXPECT_FALSE(unseal(path_, key_)) << at;
    ASSERT_OK(write_file_atomic(path_, disk));
  }
  ASSERT_OK(unseal(path_, key_));
}

TEST_F(SealedFileTest, RecordsThatWereLeftOutSwappedOrBroughtBackAreNoticed) {
  const std::string_view half = std::string_view(bytes_).substr(0, 200'000),
                         rest = std::string_view(bytes_).substr(200'000, 200'000);
  bytes_.resize(400'000);
  artifact_ = sha256_hex(bytes_);
  {
    SealedFile file = create();
    ASSERT_OK(file.write_all_at(0, std::string(200'000, 'l')));  // an older write of the same place
    ASSERT_OK(file.write_all_at(0, half));
    ASSERT_OK(file.write_all_at(200'000, rest));
  }
  ASSERT_OK(unseal(path_, key_));
  const std::string disk = on_disk(), header = disk.substr(0, SealedFile::kHeaderBytes);
  const std::size_t record = 200'000 + SealedFile::kRecordHeaderBytes + SealedFile::kTagBytes;
  const std::string lie = disk.substr(header.size(), record),
                    first = disk.substr(header.size() + record, record),
                    second = disk.substr(header.size() + 2 * record);
  ASSERT_OK(write_file_atomic(path_, header + second + first));
  ASSERT_OK(unseal(path_, key_)) << "each says where it belongs";
  for (const std::string& records : {first, second, first + second + lie, lie + second, std::string()}) {
    ASSERT_OK(write_file_atomic(path_, header + records));
    EXPECT_EQ(unseal(path_, key_).error().code, ErrorCode::kCorrupt) << records.size();
  }
  // Of another file under the same key.
  write_all();
  ASSERT_OK(write_file_atomic(path_, on_disk().substr(0, SealedFile::kHeaderBytes) + first + second));
  EXPECT_EQ(unseal(path_, key_).error().code, ErrorCode::kCorrupt);
}

TEST_F(SealedFileTest, AWriteThatWasTornIsWrittenAgain) {
  const std::string_view all = bytes_;
  for (const int how : {0, 1, 2}) {
    {
      SealedFile file = create();
      ASSERT_OK(file.write_all_at(0, all.substr(0, 300'000)));
    }
    const std::uint64_t whole = std::filesystem::file_size(path_);
    {
      auto file = SealedFile::open(*File::open_write(path_, false), path_, key_);
      ASSERT_OK(file);
      ASSERT_OK(file->write_all_at(300'000, all.substr(300'000, 100'000)));
    }
    std::string disk = on_disk();
    if (how == 0) disk.resize(whole + 50'000);
    if (how == 1) std::fill(disk.begin() + static_cast<std::ptrdiff_t>(whole), disk.end(), '\0');
    if (how == 2) std::fill(disk.begin() + static_cast<std::ptrdiff_t>(whole) + 5000, disk.end(), '\x55');
    ASSERT_OK(write_file_atomic(path_, disk));
    auto file = SealedFile::open(*File::open_write(path_, false), path_, key_);
    ASSERT_OK(file);
    std::string before(300'000, '\0');
    ASSERT_OK(file->read_exact_at(0, before)) << "what was there is there still";
    EXPECT_TRUE(before == all.substr(0, 300'000));
    EXPECT_FALSE(file->read_exact_at(300'000, std::span(before).first(1000)));
    ASSERT_OK(file->write_all_at(300'000, all.substr(300'000)));
    ASSERT_OK(unseal(path_, key_)) << how;
  }
}

TEST_F(SealedFileTest, NothingIsWrittenBeyondTheEnd) {
  SealedFile file = create();
  EXPECT_FALSE(file.write_all_at(bytes_.size() - 1, "xy"));
  EXPECT_FALSE(file.write_all_at(UINT64_MAX, "x"));
}

TEST_F(SealedFileTest, AKeyIsHandedOnInMemory) {
  const auto memory = seal_key_in_memory(key_);
  ASSERT_OK(memory);
  const auto read = read_seal_key("/proc/self/fd/" + std::to_string(memory->fd()));
  ASSERT_OK(read);
  EXPECT_EQ(*read, key_);
  EXPECT_FALSE(memory->write_all_at(0, "0")) << "nobody changes it";
  ASSERT_OK(write_file_atomic(path_, "abc\n"));
  EXPECT_EQ(read_seal_key(path_).error().code, ErrorCode::kInvalid);
}

TEST(PrivateMemory, APartIsForgotten) {
  const auto memory = PrivateMemory::make(1 << 20, [](std::span<char> out) -> Result<void> {
    std::fill(out.begin(), out.end(), 'm');
    return {};
  });
  ASSERT_OK(memory);
  memory->forget(memory->bytes().subspan(1000, 900'000));
  EXPECT_EQ(memory->bytes()[999], std::byte{'m'});
  EXPECT_EQ(memory->bytes()[4095], std::byte{'m'}) << "a page of which a part is needed stays";
  EXPECT_EQ(memory->bytes()[901'119], std::byte{'m'});
  EXPECT_DEATH((void)*const_cast<const volatile std::byte*>(&memory->bytes()[5000]), "");
}

}  // namespace
}  // namespace retort
