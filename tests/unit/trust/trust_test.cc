#include "common/trust/trust.h"

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

TEST(Manifest, SignsAndVerifies) {
  const SigningKey key = make_signing_key();
  const auto text = sign_manifest(sample(), 3, kNow + 1000'000, key);
  ASSERT_OK(text);
  const auto back = verify_manifest(*text, key.public_key, kNow);
  ASSERT_OK(back);
  EXPECT_EQ(*back, sample());
}

TEST(Manifest, AnotherKeyATamperedByteAndExpiryAreRefused) {
  const SigningKey key = make_signing_key(), other = make_signing_key();
  const std::string text = *sign_manifest(sample(), 3, kNow + 1000'000, key);
  EXPECT_EQ(verify_manifest(text, other.public_key, kNow).error().code, ErrorCode::kDenied);
  EXPECT_EQ(verify_manifest(text, key.public_key, kNow + 2000'000).error().code, ErrorCode::kUnavailable);
  std::string tampered = text;
  tampered.replace(tampered.find("\"length\":20"), 11, "\"length\":21");
  EXPECT_EQ(verify_manifest(tampered, key.public_key, kNow).error().code, ErrorCode::kDenied);
  SeededRandom random(2);
  for (int i = 0; i < 3000; ++i) {
    std::string bad = text;
    const std::size_t at = random.next_u64() % bad.size();
    const char old = bad[at];
    bad[at] = static_cast<char>(random.next_u64());
    const auto result = verify_manifest(bad, key.public_key, kNow);
    // Only bytes outside what is signed may differ.
    if (result && bad[at] != old) {
      EXPECT_EQ(*result, sample());
    }
  }
}

TEST(Manifest, HolesAndOverlapsAreNeverSigned) {
  const SigningKey key = make_signing_key();
  for (const auto change :
       {+[](ArtifactManifest& m) { m.pieces[1].offset = 11; },
        +[](ArtifactManifest& m) { m.pieces[1].length = 19; },
        +[](ArtifactManifest& m) { m.pieces[1].length = UINT64_MAX; },
        +[](ArtifactManifest& m) { m.sha256 = "xyz"; }, +[](ArtifactManifest& m) { m.pieces.clear(); }}) {
    ArtifactManifest bad = sample();
    change(bad);
    EXPECT_EQ(sign_manifest(bad, 1, kNow, key).error().code, ErrorCode::kCorrupt);
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
  const auto first = load_or_make_signing_key(folder / "key"),
             second = load_or_make_signing_key(folder / "key");
  ASSERT_OK(first);
  EXPECT_EQ(first->public_key, second->public_key);
  ASSERT_OK(write_file_atomic(folder / "key", "abc"));
  EXPECT_EQ(load_or_make_signing_key(folder / "key").error().code, ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace retort
