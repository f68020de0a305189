#include "coordinator/trust/trust_repository.h"

#include <gmock/gmock.h>

#include "common/core/file.h"
#include "common/trust/client.h"
#include "tests/support/support.h"

namespace retort {
namespace {

using testing::ManualClock;
using testing::TemporaryFolder;

ArtifactManifest sample(char letter) {
  const std::string hash(64, letter);
  return {hash, 30, "gguf", {{"header", hash, 0, 30}}, {}};
}

class TrustRepositoryTest : public ::testing::Test {
 protected:
  void SetUp() override { open(); }
  void open() {
    auto opened = TrustRepository::open(*store_, folder_ / "keys", clock_);
    ASSERT_OK(opened);
    trust_ = std::move(*opened);
    if (first_root_.empty()) first_root_ = trust_->root_text();
  }
  /// What a device that was here at the first root, and at each call since, makes of it now.
  Result<void> refresh() {
    if (stored_.empty()) stored_["root"] = first_root_;
    TrustClient client = RETORT_TRY(TrustClient::open(stored_));
    client.refresh(clock_.unix_millis());
    const auto run = [&]() -> Result<void> {
      while (const auto wanted = client.wanted()) {
        const auto file = trust_->file(TrustClient::file_name(*wanted));
        RETORT_TRY(file ? client.provide(*file) : client.absent());
      }
      return {};
    };
    const Result<void> done = run();
    for (auto& [role, bytes] : client.take_changes())
      if (bytes)
        stored_[role] = *bytes;
      else
        stored_.erase(role);
    if (done) {
      root_ = client.root();
      client.find(artifact_target_name(std::string(64, 'a')));
      listed_ = client.found().has_value();
    }
    return done;
  }
  std::size_t keys_here() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(folder_ / "keys"), {}));
  }
  std::string sign(const std::string& text, const SigningKey& key) {
    SignedDocument document = *parse_signed(text, "");
    add_signature(document, key);
    return to_text(document);
  }
  void move(std::chrono::hours by) { clock_.advance(by); }

  TemporaryFolder folder_;
  ManualClock clock_;
  std::unique_ptr<Store> store_ = make_memory_store();
  std::unique_ptr<TrustRepository> trust_;
  std::string first_root_;
  TrustClient::Stored stored_;
  RootMetadata root_;
  bool listed_ = false;
};

TEST_F(TrustRepositoryTest, ListsArtifactsForDevices) {
  ASSERT_OK(refresh());
  EXPECT_FALSE(listed_);
  ASSERT_OK(trust_->add({sample('a'), sample('b')}));
  EXPECT_TRUE(trust_->lists(std::string(64, 'a')));
  EXPECT_FALSE(trust_->lists(std::string(64, 'c')));
  ASSERT_OK(refresh());
  EXPECT_TRUE(listed_);
  EXPECT_EQ(*manifest_from_text(*trust_->file(manifest_file_name(std::string(64, 'b')))), sample('b'));
  const std::string before = *trust_->file("timestamp.json");
  ASSERT_OK(trust_->add({sample('a')}));
  EXPECT_EQ(*trust_->file("timestamp.json"), before) << "nothing new, nothing signed";
  open();
  EXPECT_TRUE(trust_->lists(std::string(64, 'a')));
  ASSERT_OK(refresh());
  const auto assignment = trust_->sign_assignment("dev-1", {7, "small", std::string(64, 'a')});
  ASSERT_OK(assignment);
  EXPECT_EQ(verify_assignment(*assignment, root_, "dev-1", clock_.unix_millis())->head.version, 7u);
  EXPECT_EQ(trust_->file("../keys/x").error().code, ErrorCode::kNotFound);
  ASSERT_OK(trust_->remove(std::string(64, 'a')));
  ASSERT_OK(refresh());
  EXPECT_FALSE(listed_);
  EXPECT_EQ(trust_->file(manifest_file_name(std::string(64, 'a'))).error().code, ErrorCode::kNotFound);
  EXPECT_TRUE(trust_->lists(std::string(64, 'b')));
  ASSERT_OK(trust_->remove(std::string(64, 'a')));
}

TEST_F(TrustRepositoryTest, RenewsWhatIsHereAndLetsOldVersionsGo) {
  ASSERT_OK(trust_->add({sample('a')}));
  for (int day = 0; day < 400; ++day) {
    move(std::chrono::hours(12));
    ASSERT_OK(trust_->refresh());
    ASSERT_OK(refresh()) << day;
    move(std::chrono::hours(12));
    ASSERT_OK(trust_->refresh());
  }
  EXPECT_GE(root_.head.version, 2u) << "a root whose keys are here is renewed too";
  std::size_t snapshots = 0;
  ASSERT_OK(store_->scan("trust", "file/", "", [&](std::string_view key, std::string_view) {
    snapshots += key.ends_with(".snapshot.json");
    return true;
  }));
  EXPECT_LE(snapshots, 6u);
  move(std::chrono::hours(40 * 24));  // the coordinator was off: then devices wait
  EXPECT_EQ(refresh().error().code, ErrorCode::kUnavailable);
  ASSERT_OK(trust_->refresh());
  EXPECT_OK(refresh());
}

TEST_F(TrustRepositoryTest, ARestoredBackupIsNoRollback) {
  const auto older = make_memory_store();
  StoreBatch copy;
  ASSERT_OK(store_->scan("trust", "", "", [&](std::string_view key, std::string_view value) {
    copy.put("trust", std::string(key), std::string(value));
    return true;
  }));
  ASSERT_OK(older->write(copy));
  for (int i = 0; i < 5; ++i) {
    move(std::chrono::hours(1));
    ASSERT_OK(trust_->add({sample(static_cast<char>('a' + i))}));
  }
  ASSERT_OK(refresh());
  move(std::chrono::hours(13));
  trust_ = std::move(*TrustRepository::open(*older, folder_ / "keys", clock_));
  EXPECT_EQ(refresh().error().code, ErrorCode::kDenied) << "it lists fewer artifacts under an older version";
  ASSERT_OK(trust_->add({sample('a')}));
  EXPECT_OK(refresh());
}

TEST_F(TrustRepositoryTest, OnlineKeysAreRotated) {
  ASSERT_OK(refresh());
  const std::size_t keys = keys_here();
  for (const char* role : {"timestamp", "snapshot", "targets", "assignment", "root"}) {
    const auto progress = trust_->rotate(role);
    ASSERT_OK(progress);
    EXPECT_TRUE(progress->published);
    ASSERT_OK(refresh()) << role;
  }
  EXPECT_EQ(root_.head.version, 6u);
  EXPECT_EQ(keys_here(), keys) << "the old keys are gone from the disk";
  open();
  ASSERT_OK(trust_->add({sample('a')}));
  ASSERT_OK(refresh());
  EXPECT_TRUE(listed_);
  EXPECT_EQ(trust_->rotate("mirrors").error().code, ErrorCode::kInvalid);
  EXPECT_EQ(trust_->add_key("timestamp", public_key_of(make_signing_key()), 0).error().code,
            ErrorCode::kInvalid);
}

TEST_F(TrustRepositoryTest, RootInOtherHands) {
  const SigningKey alice = make_signing_key(), bob = make_signing_key(), eve = make_signing_key();
  auto progress = trust_->hand_over("root", {public_key_of(alice), public_key_of(bob)}, 2);
  ASSERT_OK(progress);
  EXPECT_FALSE(progress->published);
  EXPECT_EQ(progress->missing, "2 more signatures of root's new keys");
  ASSERT_OK(refresh());
  EXPECT_EQ(root_.head.version, 1u) << "nothing is published before all have signed";
  EXPECT_EQ(trust_->draft("targets").error().code, ErrorCode::kNotFound);
  const std::string draft = *trust_->draft("root");
  EXPECT_EQ(trust_->import(draft).error().code, ErrorCode::kDenied) << "nobody signed";
  EXPECT_EQ(trust_->import(sign(draft, eve)).error().code, ErrorCode::kDenied);
  EXPECT_EQ(trust_->import("{}").error().code, ErrorCode::kCorrupt);
  progress = trust_->import(sign(draft, alice));
  ASSERT_OK(progress);
  EXPECT_EQ(progress->missing, "1 more signature of root's new keys");
  open();  // what was signed survives
  EXPECT_EQ(trust_->import(sign(draft, alice)).error().code, ErrorCode::kDenied)
      << "that one is here already";
  progress = trust_->import(sign(draft, bob));
  ASSERT_OK(progress);
  EXPECT_TRUE(progress->published);
  ASSERT_OK(refresh());
  EXPECT_EQ(root_.head.version, 2u);
  EXPECT_EQ(root_.roles["root"].threshold, 2u);
  EXPECT_EQ(keys_here(), 4u) << "the coordinator's own root key is gone";

  // Every further change of root waits for both.
  progress = trust_->rotate("timestamp");
  ASSERT_OK(progress);
  EXPECT_FALSE(progress->published);
  ASSERT_OK(refresh());
  EXPECT_EQ(trust_->import(draft).error().code, ErrorCode::kInvalid) << "an older change";
  std::string again = *trust_->draft("root");
  ASSERT_OK(trust_->import(sign(sign(again, alice), bob)));
  ASSERT_OK(refresh());
  EXPECT_EQ(root_.head.version, 3u);
  // A change can be called off.
  ASSERT_OK(trust_->rotate("snapshot"));
  EXPECT_EQ(keys_here(), 5u);
  ASSERT_OK(trust_->drop_draft("root"));
  EXPECT_EQ(keys_here(), 4u);
  EXPECT_EQ(trust_->drop_draft("root").error().code, ErrorCode::kNotFound);
  // Bob leaves, Carol comes: by the keys of before and after.
  const SigningKey carol = make_signing_key();
  ASSERT_OK(trust_->add_key("root", public_key_of(carol), 0));
  ASSERT_OK(trust_->remove_key("root", key_id(public_key_of(bob)).substr(0, 12), 0));
  EXPECT_EQ(trust_->remove_key("root", "ffff", 0).error().code, ErrorCode::kNotFound);
  again = *trust_->draft("root");
  EXPECT_FALSE(trust_->import(sign(sign(again, alice), carol))->published)
      << "the root before needs two of its own";
  EXPECT_TRUE(trust_->import(sign(again, bob))->published);
  ASSERT_OK(refresh());
  EXPECT_EQ(root_.head.version, 4u);
}

TEST_F(TrustRepositoryTest, TargetsSignedElsewhere) {
  ASSERT_OK(trust_->add({sample('b')}));
  const SigningKey signer = make_signing_key();
  ASSERT_OK(trust_->hand_over("targets", {public_key_of(signer)}, 1));  // root's key is here: published
  // The key that the coordinator had signs no more, so the list itself waits first.
  EXPECT_EQ(refresh().error().code, ErrorCode::kDenied);
  EXPECT_TRUE(trust_->import(sign(*trust_->draft("targets"), signer))->published);
  ASSERT_OK(refresh());
  ASSERT_OK(trust_->add({sample('a')}));
  EXPECT_FALSE(trust_->lists(std::string(64, 'a')));
  EXPECT_TRUE(trust_->knows(std::string(64, 'a')));
  ASSERT_OK(refresh());
  EXPECT_FALSE(listed_);
  open();
  EXPECT_THAT(json::serialize(trust_->status()), ::testing::HasSubstr(R"("drafts":[{"role":"targets")"));
  EXPECT_TRUE(trust_->import(sign(*trust_->draft("targets"), signer))->published);
  EXPECT_TRUE(trust_->lists(std::string(64, 'a')));
  ASSERT_OK(refresh());
  EXPECT_TRUE(listed_);
  EXPECT_EQ(trust_->drop_draft("targets").error().code, ErrorCode::kInvalid);
  // A month before it expires, its renewal waits to be signed.
  move(std::chrono::hours(340 * 24));
  EXPECT_EQ(trust_->draft("targets").error().code, ErrorCode::kNotFound);
  ASSERT_OK(trust_->refresh());
  EXPECT_TRUE(trust_->import(sign(*trust_->draft("targets"), signer))->published);
}

TEST_F(TrustRepositoryTest, ChangesThatWouldLockEverybodyOutAreRefused) {
  EXPECT_EQ(trust_->add_key("root", public_key_of(make_signing_key()), 3).error().code, ErrorCode::kInvalid);
  const std::string id =
      json::value(trust_->status()).at("roles").at(0).at("keys").at(0).at("id").as_string().c_str();
  EXPECT_EQ(trust_->remove_key("root", id, 0).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(trust_->hand_over("root", {}, 1).error().code, ErrorCode::kInvalid);
  EXPECT_OK(refresh());
  std::filesystem::remove_all(folder_ / "keys");
  EXPECT_EQ(TrustRepository::open(*store_, folder_ / "keys", clock_).error().code, ErrorCode::kNotFound);
}

TEST(TrustRepositoryUpgrade, DevicesOfTheOneKeyFollow) {
  TemporaryFolder folder;
  ManualClock clock;
  const auto store = make_memory_store();
  const SigningKey old = make_signing_key();
  ASSERT_OK(make_folders(folder / "keys"));
  ASSERT_OK(save_signing_key(folder / "keys/targets.ed25519", old));
  const auto trust = TrustRepository::open(*store, folder / "keys", clock);
  ASSERT_OK(trust);
  const SignedDocument root = *parse_signed((*trust)->root_text(), "root");
  const PublicKey key = public_key_of(old);
  EXPECT_OK(verify(root, {{key_id(key), key}}, {{key_id(key)}, 1}, check_ed25519, "root"));
  EXPECT_EQ(read_root(root.body)->roles.at("targets").key_ids, std::vector<std::string>{key_id(key)});
  EXPECT_OK(TrustClient::check_first_root((*trust)->root_text()));
}

}  // namespace
}  // namespace retort
