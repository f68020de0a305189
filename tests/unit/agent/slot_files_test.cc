#include "agent/update/slot_files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "agent/update/seal_key_file.h"
#include "common/core/file.h"
#include "common/core/sha256.h"
#include "common/trust/artifact_target.h"
#include "tests/support/support.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

struct Slots {
  explicit Slots(std::uint64_t disk_budget_bytes = 0, Sealing sealing = {})
      : files(folder / "slots", disk_budget_bytes, std::move(sealing)) {
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

TEST(SlotFiles, ASealedPullGoesOnAndIsOfUseUnderItsKeyAlone) {
  const Sealing sealing{SealKey::make(), true};
  Slots slots(0, sealing);
  const Artifact artifact(100'000);
  const std::string& sha256 = artifact.manifest.sha256;
  ASSERT_OK(slots.files.begin(slots.spool, "a", sha256, artifact.text()));
  EXPECT_GE(fs::file_size(slots.part("a")), 200'000u) << "reserved";
  ASSERT_OK(slots.files.write(slots.spool, "a", artifact.manifest, 0, artifact.bytes.substr(0, 150'000), {0},
                              150'000));
  // As after a power cut: what was written since is torn.
  {
    auto part = StoredFile::open(slots.part("a"), sealing.key, true);
    ASSERT_OK(part);
    ASSERT_OK(part->write_all_at(150'000, std::string(10'000, 'x')));
  }
  SlotFiles again(slots.folder / "slots", 0, sealing);
  const auto begun = again.begin(slots.spool, "a", sha256, artifact.text());
  ASSERT_OK(begun);
  EXPECT_EQ(begun->cursor, 150'000u);
  EXPECT_EQ(begun->done, (std::vector<bool>{true, false}));
  ASSERT_OK(again.write(slots.spool, "a", artifact.manifest, 150'000, artifact.bytes.substr(150'000), {1},
                        200'000));
  ASSERT_OK(again.verify("a", artifact.manifest));
  ASSERT_OK(again.stage(slots.spool, "a", sha256));
  ASSERT_OK(again.check("a", sha256));
  EXPECT_TRUE(SealedFile::is_sealed(again.model("a")));
  EXPECT_EQ(read_file(again.model("a"))->find("xxxx"), std::string::npos);
  // Its pieces are copied into the next one.
  const Artifact longer(50'000);
  ASSERT_TRUE(again.artifact_in("a"));
  const auto next = again.begin(slots.spool, "b", longer.manifest.sha256, longer.text());
  ASSERT_OK(next);
  EXPECT_EQ(next->bytes_copied, 0u) << "other pieces";
  ArtifactManifest same = artifact.manifest;
  same.sha256 = sha256_hex(artifact.bytes + "y"), same.length += 1;
  same.pieces.push_back({"y", sha256_hex("y"), 200'000, 1});
  const auto copied = again.begin(slots.spool, "b", same.sha256, *manifest_to_text(same));
  ASSERT_OK(copied);
  EXPECT_EQ(copied->bytes_copied, 200'000u);

  for (const Sealing& other : {Sealing{SealKey::make(), true}, Sealing{}}) {
    SlotFiles foreign(slots.folder / "slots", 0, other);
    EXPECT_FALSE(foreign.artifact_in("a"));
    EXPECT_EQ(foreign.check("a", sha256).error().code, ErrorCode::kDenied);
    EXPECT_TRUE(fs::exists(foreign.model("a"))) << "the key may come back";
  }
}

TEST(SlotFiles, WhatLayThereAsItIsIsSealedWhenThatIsAskedFor) {
  Slots slots;
  const Artifact artifact(100'000);
  const std::string& sha256 = artifact.manifest.sha256;
  ASSERT_OK(slots.files.begin(slots.spool, "a", sha256, artifact.text()));
  ASSERT_OK(slots.files.write(slots.spool, "a", artifact.manifest, 0, artifact.bytes, {0, 1}, 200'000));
  ASSERT_OK(slots.files.stage(slots.spool, "a", sha256));
  ASSERT_FALSE(SealedFile::is_sealed(slots.files.model("a")));
  SlotFiles sealing(slots.folder / "slots", 0, {SealKey::make(), true});
  for (int start = 0; start < 2; ++start) {
    ASSERT_OK(sealing.seal_what_is_not());
    EXPECT_TRUE(SealedFile::is_sealed(sealing.model("a")));
    ASSERT_OK(sealing.check("a", sha256));
  }
}

TEST(SealKeyFile, OpensForItsDeviceAloneAndThroughAChangeOfItsKey) {
  const testing::TemporaryFolder folder;
  const CurveKeys device = make_curve_keys(), next = make_curve_keys();
  EXPECT_FALSE(*seal_key_at_start(folder.path(), device, false));
  const SealKey key = **seal_key_at_start(folder.path(), device, true);
  EXPECT_EQ(*open_seal_key(folder / "seal", device), key);
  EXPECT_EQ(open_seal_key(folder / "seal", next).error().code, ErrorCode::kDenied);
  ASSERT_OK(write_seal_key(folder / "seal", key, {device.public_key, next.public_key}));
  EXPECT_EQ(*open_seal_key(folder / "seal", device), key);
  EXPECT_EQ(**seal_key_at_start(folder.path(), next, false), key) << "also where sealing was turned off";
  EXPECT_EQ(open_seal_key(folder / "seal", device).error().code, ErrorCode::kDenied) << "the old one is out";

  EXPECT_FALSE(**seal_key_at_start(folder.path(), device, true) == key) << "another device's";
  EXPECT_EQ(*open_seal_key(folder / "seal.unusable", next), key) << "nothing is thrown away";
  for (const std::string& text : {std::string("x"), "retort-seal-key 1\n" + device.public_key + " AAAA\n"}) {
    ASSERT_OK(write_file_atomic(folder / "seal", text));
    EXPECT_EQ(open_seal_key(folder / "seal", device).error().code, ErrorCode::kCorrupt) << text;
  }
}

}  // namespace
}  // namespace retort
