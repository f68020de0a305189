#include "agent/update/slot_files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "common/core/file.h"
#include "common/core/sha256.h"
#include "common/trust/artifact_target.h"
#include "tests/support/support.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

struct Slots {
  explicit Slots(std::uint64_t disk_budget_bytes = 0) : files(folder / "slots", disk_budget_bytes) {
    for (const char* slot : {"a", "b"}) fs::create_directories(folder.path() / "slots" / slot);
  }
  fs::path part(const char* slot) const { return folder.path() / "slots" / slot / "model.gguf.part"; }
  testing::TemporaryFolder folder;
  Spool spool = std::move(*Spool::open(folder / "state.db"));
  SlotFiles files;
};

/// Of two pieces of so many bytes each, all of the same letter.
struct Artifact {
  explicit Artifact(std::uint64_t piece_bytes, char letter = 'x') : bytes(2 * piece_bytes, letter) {
    manifest.sha256 = sha256_hex(bytes);
    manifest.length = bytes.size();
    manifest.format = "gguf";
    const std::string piece = sha256_hex(std::string_view(bytes).substr(0, piece_bytes));
    manifest.pieces = {{"header", piece, 0, piece_bytes}, {"w", piece, piece_bytes, piece_bytes}};
  }
  std::string text() const { return *manifest_to_text(manifest); }
  std::string bytes;
  ArtifactManifest manifest;
};

TEST(SlotFiles, TheDiskIsReservedBeforeTheFirstByte) {
  Slots slots;
  const Artifact artifact(3 << 20);
  ASSERT_OK(slots.files.begin(slots.spool, "a", artifact.manifest.sha256, artifact.text()));
  struct stat info {};
  ASSERT_EQ(::stat(slots.part("a").c_str(), &info), 0);
  EXPECT_EQ(info.st_size, 6 << 20);
  EXPECT_GE(info.st_blocks * 512, 6 << 20) << "a hole would be no reservation";
}

TEST(SlotFiles, WhatDoesNotFitLeavesNothing) {
  Slots slots(5 << 20);
  const Artifact artifact(3 << 20);
  const auto begun = slots.files.begin(slots.spool, "a", artifact.manifest.sha256, artifact.text());
  ASSERT_FALSE(begun);
  EXPECT_EQ(begun.error().code, ErrorCode::kOutOfBudget);
  EXPECT_FALSE(fs::exists(slots.part("a")));
  // More than any disk has.
  ArtifactManifest huge = artifact.manifest;
  huge.length = 1ull << 60;
  huge.pieces[1].length = huge.length - huge.pieces[1].offset;
  Slots others;
  EXPECT_EQ(others.files.begin(others.spool, "a", huge.sha256, *manifest_to_text(huge)).error().code,
            ErrorCode::kOutOfBudget);
  EXPECT_FALSE(fs::exists(others.part("a")));
}

TEST(SlotFiles, APullGoesOnAtTheLastNotedByteAndAnotherOneTakesItsPlace) {
  Slots slots;
  const Artifact first(100'000), second(70'000, 'y');
  ASSERT_OK(slots.files.begin(slots.spool, "a", first.manifest.sha256, first.text()));
  ASSERT_OK(
      slots.files.write(slots.spool, "a", first.manifest, 0, first.bytes.substr(0, 150'000), {0}, 150'000));
  ASSERT_OK(slots.files.tidy(slots.spool, first.manifest.sha256)) << "as at a start in mid-pull";
  const auto again = slots.files.begin(slots.spool, "a", first.manifest.sha256, first.text());
  ASSERT_OK(again);
  EXPECT_EQ(again->cursor, 150'000u);
  EXPECT_EQ(again->done, (std::vector<bool>{true, false}));
  ASSERT_OK(slots.files.begin(slots.spool, "a", second.manifest.sha256, second.text()));
  EXPECT_EQ(fs::file_size(slots.part("a")), 140'000u);
  EXPECT_EQ((*slots.spool.pull())->artifact, second.manifest.sha256);
}

TEST(SlotFiles, WhatNoPullNeedsGoes) {
  Slots slots;
  const Artifact artifact(1000);
  ASSERT_OK(slots.files.begin(slots.spool, "a", artifact.manifest.sha256, artifact.text()));
  const fs::path temporary = slots.folder.path() / "slots/b/manifest.json.tmp-77";
  ASSERT_OK(write_file_atomic(temporary, "half"));
  ASSERT_OK(write_file_atomic(slots.part("b"), "of a pull that nobody remembers"));
  ASSERT_OK(write_file_atomic(slots.files.model("b"), "the student"));
  ASSERT_OK(slots.files.tidy(slots.spool, artifact.manifest.sha256));
  EXPECT_TRUE(fs::exists(slots.part("a"))) << "that is the pull under way";
  EXPECT_FALSE(fs::exists(slots.part("b")));
  EXPECT_FALSE(fs::exists(temporary));
  EXPECT_TRUE(fs::exists(slots.files.model("b")));
  ASSERT_OK(slots.files.tidy(slots.spool, ""));
  EXPECT_FALSE(fs::exists(slots.part("a")));
  EXPECT_FALSE(*slots.spool.pull());
}

}  // namespace
}  // namespace retort
