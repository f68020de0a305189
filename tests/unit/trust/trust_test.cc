#include "common/trust/artifact_target.h"

#include "common/core/file.h"
#include "common/core/hex.h"
#include "common/core/random.h"
#include "common/core/sha256.h"
#include "common/hf/hf_model.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

using testing::TemporaryFolder;

constexpr UnixMillis kNow = 1'800'000'000'000;

ArtifactManifest sample() {
  const std::string hash(64, 'a');
  return {hash, 30, "gguf", {{"header", hash, 0, 10}, {"t", hash, 10, 20}}, {{"retort.teacher.sha256", "x"}}};
}

TEST(Manifest, IsTextAndBack) {
  const auto text = manifest_to_text(sample());
  ASSERT_OK(text);
  const auto back = manifest_from_text(*text);
  ASSERT_OK(back);
  EXPECT_EQ(*back, sample());
  ArtifactManifest odd = sample();
  odd.pieces[1].name = std::string("a\0\"\n", 4);
  EXPECT_EQ(*manifest_from_text(*manifest_to_text(odd)), odd);
  EXPECT_EQ(manifest_from_text("{\"retort_manifest\":3}").error().code, ErrorCode::kUnsupported);
  SeededRandom random(2);
  for (int i = 0; i < 3000; ++i) {
    std::string bad = *text;
    bad[random.next_u64() % bad.size()] = static_cast<char>(random.next_u64());
    const auto result = manifest_from_text(bad);
    if (!result) {
      EXPECT_TRUE(result.error().code == ErrorCode::kCorrupt ||
                  result.error().code == ErrorCode::kUnsupported);
    }
  }
}

TEST(Manifest, HolesAndOverlapsAreRefused) {
  for (const auto change :
       {+[](ArtifactManifest& m) { m.pieces[1].offset = 11; },
        +[](ArtifactManifest& m) { m.pieces[1].length = 19; },
        +[](ArtifactManifest& m) { m.pieces[1].length = UINT64_MAX; },
        +[](ArtifactManifest& m) { m.sha256 = "xyz"; }, +[](ArtifactManifest& m) { m.pieces.clear(); }}) {
    ArtifactManifest bad = sample();
    change(bad);
    EXPECT_EQ(manifest_to_text(bad).error().code, ErrorCode::kCorrupt);
  }
}

TEST(CanonicalJson, KeysSortedNoFractions) {
  EXPECT_EQ(*canonical_json(json::parse(R"({"b":[1,true,null],"a":"x\"y\n"})")),
            "{\"a\":\"x\\\"y\n\",\"b\":[1,true,null]}");
  EXPECT_FALSE(canonical_json(json::parse("1.5")));
}

TEST(Manifest, OfAFileCoversEveryByte) {
  TemporaryFolder folder;
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 1));
  const auto model = open_hf_model(folder / "m");
  ASSERT_OK(write_gguf_model(folder / "m.gguf", model->config, model->tokenizer, weight_sources(*model),
                             TensorType::kQ8_0, {{"retort.seed", std::string("7")}}));
  const auto manifest = make_manifest(folder / "m.gguf");
  ASSERT_OK(manifest);
  const std::string bytes = *read_file(folder / "m.gguf");
  std::string joined;
  for (const ArtifactPiece& piece : manifest->pieces) {
    const std::string part = bytes.substr(piece.offset, piece.length);
    EXPECT_EQ(sha256_hex(part), piece.sha256);
    joined += part;
  }
  EXPECT_EQ(joined, bytes);
  EXPECT_EQ(manifest->lineage.at("retort.seed"), "7");
}

TEST(SigningKey, IsKeptInAFile) {
  TemporaryFolder folder;
  const SigningKey key = make_signing_key();
  ASSERT_OK(save_signing_key(folder / "key", key));
  EXPECT_EQ(load_signing_key(folder / "key")->public_key, key.public_key);
  EXPECT_EQ(save_signing_key(folder / "key", make_signing_key()).error().code, ErrorCode::kConflict);
  ASSERT_OK(write_file_atomic(folder / "key", "abc"));
  EXPECT_EQ(load_signing_key(folder / "key").error().code, ErrorCode::kCorrupt);
}

TEST(SigningKey, AKnownAnswer) {
  // RFC 8032 §7.1, test 2.
  const auto key = ed25519_public_key("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
  ASSERT_OK(key);
  const std::string signature = *from_hex(
      "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
      "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00");
  EXPECT_TRUE(check_ed25519(*key, "\x72", signature));
  EXPECT_FALSE(check_ed25519(*key, "\x73", signature));
  EXPECT_FALSE(check_ed25519({"rsa", "ed25519", key->value}, "\x72", signature));
  EXPECT_EQ(ed25519_public_key("3d40").error().code, ErrorCode::kInvalid);
}

TEST(Metadata, TimesMustBeWhole) {
  EXPECT_EQ(*from_rfc3339("1970-01-02T00:00:00Z"), 86'400'000);
  for (const char* bad : {"", "2026", "2026-11-23T14:28:07", "2026-13-23T14:28:07Z", "2026-11-23 14:28:07Z"})
    EXPECT_EQ(from_rfc3339(bad).error().code, ErrorCode::kInvalid) << bad;
}

}  // namespace
}  // namespace retort
