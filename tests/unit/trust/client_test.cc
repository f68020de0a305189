// Each attack that The Update Framework defends against [spec 1.0.31 §1.5.2], mounted on the client that
// agents run.
#include "common/trust/client.h"

#include <gmock/gmock.h>

#include "common/core/hex.h"
#include "common/core/sha256.h"
#include "tests/support/support.h"
#include "tests/support/tuf_repository.h"

namespace retort {
namespace {

using testing::sign_body;
using testing::TufRepository;

constexpr UnixMillis kNow = 1'800'000'000'000, kDay = 24ll * 3600 * 1000;

ArtifactManifest sample(char letter = 'a') {
  const std::string hash(64, letter);
  return {hash, 30, "gguf", {{"header", hash, 0, 10}, {"t", hash, 10, 20}}, {{"retort.teacher.sha256", "x"}}};
}

class TrustClientTest : public ::testing::Test {
 protected:
  /// A device that knows the first root alone.
  TrustClient fresh() { return std::move(*TrustClient::open({{"root", repository_.first_root()}})); }
  /// Refreshes, and keeps what is to outlive the process as an agent would.
  Result<void> refresh(UnixMillis now = kNow) { return refresh_from(repository_, now); }
  Result<void> refresh_from(const TufRepository& repository, UnixMillis now = kNow) {
    Result<TrustClient> client = TrustClient::open(stored_);
    if (!client) return fail(client.error());
    client->refresh(now);
    Result<void> done = repository.serve(*client);
    for (auto& [role, bytes] : client->take_changes())
      if (bytes)
        stored_[role] = *bytes;
      else
        stored_.erase(role);
    if (done) latest_ = std::move(*client);
    return done;
  }
  std::string error_of(const Result<void>& result, ErrorCode code) {
    if (result) return "no error";
    EXPECT_EQ(result.error().code, code) << result.error().describe();
    return result.error().describe();
  }
  void resign_timestamp(const SigningKey& key) {
    repository_.files["timestamp.json"] = sign_body(to_json(repository_.timestamp), {key});
  }

  TufRepository repository_{kNow};
  TrustClient::Stored stored_{{"root", repository_.first_root()}};
  std::optional<TrustClient> latest_;
};

TEST_F(TrustClientTest, RefreshesAndFindsTargets) {
  repository_.add(sample());
  repository_.publish();
  ASSERT_OK(refresh());
  EXPECT_EQ(latest_->targets().head.version, 2u);
  latest_->find(artifact_target_name(sample().sha256));
  EXPECT_FALSE(latest_->wanted());
  ASSERT_TRUE(latest_->found());
  const auto manifest = manifest_of_target(*latest_->found());
  ASSERT_OK(manifest);
  const std::string text = repository_.files.at(manifest_file_name(sample().sha256));
  EXPECT_EQ(manifest->sha256, sha256_hex(text));
  EXPECT_EQ(*manifest_from_text(text), sample());
  latest_->find("artifacts/none.gguf");
  EXPECT_FALSE(latest_->found());

  // What is known and current is not downloaded again.
  TrustClient again = std::move(*TrustClient::open(stored_));
  again.refresh(kNow);
  std::vector<std::string> asked;
  while (const auto wanted = again.wanted()) {
    asked.push_back(TrustClient::file_name(*wanted));
    const auto file = repository_.files.find(asked.back());
    ASSERT_OK(file == repository_.files.end() ? again.absent() : again.provide(file->second));
  }
  EXPECT_EQ(asked, (std::vector<std::string>{"2.root.json", "timestamp.json"}));
  EXPECT_EQ(again.targets().targets.size(), 1u);
  EXPECT_TRUE(again.take_changes().empty());
}

TEST_F(TrustClientTest, RollbackOfEachRole) {
  repository_.publish();
  ASSERT_OK(refresh());
  const TufRepository newer = repository_;
  // timestamp
  repository_.timestamp.head.version = 1;
  resign_timestamp(repository_.keys["timestamp"]);
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("rollback"));
  // a new timestamp that names an old snapshot
  repository_ = newer;
  repository_.timestamp.head.version = 9;
  repository_.timestamp.snapshot.version = 1;
  resign_timestamp(repository_.keys["timestamp"]);
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("rollback"));
  // a new snapshot that names old targets
  repository_ = newer;
  repository_.targets.head.version = 0;
  repository_.publish();
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("rollback"));
  // a new snapshot that names none
  repository_ = newer;
  repository_.publish();
  repository_.snapshot.meta.clear();
  const std::string snapshot = sign_body(to_json(repository_.snapshot), {repository_.keys["snapshot"]});
  repository_.files[std::to_string(repository_.snapshot.head.version) + ".snapshot.json"] = snapshot;
  repository_.timestamp.snapshot = describe_file(snapshot, repository_.snapshot.head.version);
  ++repository_.timestamp.head.version;
  resign_timestamp(repository_.keys["timestamp"]);
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("gone"));
  // root: the next version must be the next number
  repository_ = newer;
  repository_.publish_root({});
  repository_.files["2.root.json"] = repository_.first_root();
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("version 1"));
  repository_ = newer;
  repository_.root.head.version = 2;
  repository_.publish_root({});  // 3, served as 2
  repository_.files["2.root.json"] = repository_.files["3.root.json"];
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("version 3"));
  // None of it spoilt what comes next.
  repository_ = newer;
  repository_.timestamp.head.version = repository_.snapshot.head.version = 20;
  repository_.publish();
  EXPECT_OK(refresh());
}

TEST_F(TrustClientTest, FreezeIsNoticedByExpiry) {
  ASSERT_OK(refresh());
  // The attacker serves the same files for ever; root and timestamp expire.
  EXPECT_THAT(error_of(refresh(kNow + 31 * kDay), ErrorCode::kUnavailable), ::testing::HasSubstr("expired"));
  for (const std::string role : {"root", "timestamp", "snapshot", "targets"}) {
    TufRepository expired(kNow);
    MetadataHead& head = role == "root"        ? expired.root.head
                         : role == "timestamp" ? expired.timestamp.head
                         : role == "snapshot"  ? expired.snapshot.head
                                               : expired.targets.head;
    head.expires = kNow + kDay;
    expired.publish_root({});
    expired.publish();
    stored_ = {{"root", expired.first_root()}};
    EXPECT_OK(refresh_from(expired, kNow)) << role;
    stored_ = {{"root", expired.first_root()}};
    EXPECT_THAT(error_of(refresh_from(expired, kNow + 2 * kDay), ErrorCode::kUnavailable),
                ::testing::StartsWith(role))
        << role;
    // What is stored does not become good by being stored.
    EXPECT_THAT(error_of(refresh_from(expired, kNow + 2 * kDay), ErrorCode::kUnavailable),
                ::testing::StartsWith(role));
  }
}

TEST_F(TrustClientTest, MixAndMatch) {
  // Files that are all signed and current, but never were together.
  repository_.publish();
  const std::string other_targets = [&] {
    TufRepository other = repository_;
    other.targets.targets["artifacts/x.gguf"] = artifact_target(sample(), "x");
    return sign_body(to_json(other.targets), {other.keys["targets"]});
  }();
  TufRepository attack = repository_;
  attack.files["2.targets.json"] = other_targets;
  EXPECT_THAT(error_of(refresh_from(attack), ErrorCode::kCorrupt), ::testing::HasSubstr("targets"));
  stored_ = {{"root", repository_.first_root()}};
  attack = repository_;
  attack.files["2.snapshot.json"] = attack.files["1.snapshot.json"];
  EXPECT_THAT(error_of(refresh_from(attack), ErrorCode::kCorrupt), ::testing::HasSubstr("snapshot"));
  // Without lengths and hashes in snapshot and timestamp the version alone must do.
  stored_ = {{"root", repository_.first_root()}};
  attack = repository_;
  attack.files["2.targets.json"] = attack.files["1.targets.json"];
  attack.snapshot.meta["targets.json"] = {2, {}, {}};
  attack.files["2.snapshot.json"] = sign_body(to_json(attack.snapshot), {attack.keys["snapshot"]});
  attack.timestamp.snapshot = {2, {}, {}};
  attack.files["timestamp.json"] = sign_body(to_json(attack.timestamp), {attack.keys["timestamp"]});
  EXPECT_THAT(error_of(refresh_from(attack), ErrorCode::kCorrupt), ::testing::HasSubstr("version 1"));
  stored_ = {{"root", repository_.first_root()}};
  EXPECT_OK(refresh());
}

TEST_F(TrustClientTest, EndlessData) {
  TrustClient client = fresh();
  client.refresh(kNow);
  while (const auto wanted = client.wanted()) {
    const std::string name = TrustClient::file_name(*wanted);
    EXPECT_LE(wanted->max_bytes, 5u << 20) << name;
    if (name == "1.snapshot.json" || name == "1.targets.json") {
      EXPECT_EQ(wanted->max_bytes, repository_.files.at(name).size()) << "as signed";
    }
    TrustClient attacked = client;
    EXPECT_THAT(error_of(attacked.provide(std::string(wanted->max_bytes + 1, ' ')), ErrorCode::kCorrupt),
                ::testing::HasSubstr("at most"));
    EXPECT_FALSE(attacked.wanted()) << "it stops";
    const auto file = repository_.files.find(name);
    ASSERT_OK(file == repository_.files.end() ? client.absent() : client.provide(file->second));
  }
}

TEST_F(TrustClientTest, ArbitrarySoftware) {
  // Signed well, with keys that root does not name.
  TufRepository attacker(kNow);
  attacker.add(sample());
  attacker.publish();
  EXPECT_THAT(error_of(refresh_from(attacker), ErrorCode::kDenied), ::testing::HasSubstr("signed by 0"));
  attacker.publish_root({});
  EXPECT_THAT(error_of(refresh_from(attacker), ErrorCode::kDenied),
              ::testing::HasSubstr("by the root before"));
  // A key of one role signs for no other.
  TufRepository crossed = repository_;
  crossed.keys["targets"] = crossed.keys["timestamp"];
  crossed.publish();
  EXPECT_THAT(error_of(refresh_from(crossed), ErrorCode::kDenied), ::testing::HasSubstr("targets"));
  EXPECT_EQ(TrustClient::open({{"root", "{}"}}).error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(TrustClient::open({}).error().code, ErrorCode::kNotFound);
}

TEST_F(TrustClientTest, ThresholdsAndDuplicates) {
  const SigningKey first = repository_.keys["root"], second = make_signing_key();
  const std::string id = key_id(public_key_of(second));
  // Root 2 wants two keys for the timestamp.
  repository_.root.keys[id] = public_key_of(second);
  repository_.root.roles["timestamp"].key_ids.push_back(id);
  repository_.root.roles["timestamp"].threshold = 2;
  repository_.publish_root({});
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("1 of the 2"));
  // A key id stands in the list once.
  SignedDocument document = *make_document(to_json(repository_.timestamp));
  add_signature(document, repository_.keys["timestamp"]);
  document.signatures.push_back(document.signatures[0]);
  repository_.files["timestamp.json"] = to_text(document);
  EXPECT_THAT(error_of(refresh(), ErrorCode::kCorrupt), ::testing::HasSubstr("two signatures"));
  // A key that root lists under two ids counts once.
  repository_.root.keys["alias"] = public_key_of(repository_.keys["timestamp"]);
  repository_.root.roles["timestamp"].key_ids.push_back("alias");
  repository_.publish_root({});
  document.signatures[1].key_id = "alias";
  repository_.files["timestamp.json"] = to_text(document);
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("1 of the 2"));
  // A broken signature before a good one does no harm.
  document.signatures[1].hex = "00";
  add_signature(document, second);
  repository_.files["timestamp.json"] = to_text(document);
  EXPECT_OK(refresh());
  // A root that lowers a threshold to nothing is none.
  repository_.root.roles["targets"].threshold = 0;
  repository_.publish_root({});
  EXPECT_THAT(error_of(refresh(), ErrorCode::kCorrupt), ::testing::HasSubstr("threshold"));
}

TEST_F(TrustClientTest, RootRotationNeedsBothThresholds) {
  const TufRepository before = repository_;
  const SigningKey old = repository_.replace_key("root");
  repository_.publish_root({});  // by the new key alone
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("root before"));
  repository_.files["2.root.json"] = sign_body(to_json(repository_.root), {old});  // by the old alone
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("by itself"));
  repository_.files["2.root.json"] = sign_body(to_json(repository_.root), {old, repository_.keys["root"]});
  ASSERT_OK(refresh());
  // A chain: a device that knows the first root walks all of it.
  for (int i = 0; i < 5; ++i) repository_.publish_root({repository_.replace_key("root")});
  stored_ = {{"root", repository_.first_root()}};
  ASSERT_OK(refresh());
  EXPECT_EQ(latest_->root().head.version, 7u);
  // The old key is worth nothing now.
  repository_.keys["root"] = old;
  repository_.publish_root({});
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("root before"));
}

TEST_F(TrustClientTest, ARevokedKeyAndAFastForward) {
  ASSERT_OK(refresh());
  // A thief of the timestamp and snapshot keys signs versions beyond what the repository will ever reach.
  TufRepository thief = repository_;
  thief.timestamp.head.version = 1'000'000;
  thief.snapshot.head.version = 1'000'000;
  thief.publish();
  ASSERT_OK(refresh_from(thief));
  repository_.publish();
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("rollback"));
  // New keys in a new root: the versions that the old keys signed are forgotten with them.
  repository_.replace_key("timestamp");
  repository_.replace_key("snapshot");
  repository_.publish_root({});
  repository_.publish();
  thief.files["2.root.json"] = repository_.files["2.root.json"];
  EXPECT_THAT(error_of(refresh_from(thief), ErrorCode::kDenied), ::testing::HasSubstr("signed by 0"));
  ASSERT_OK(refresh());
  // A key of targets is worth nothing at once, also for what is stored already.
  repository_.replace_key("targets");
  repository_.publish_root({});
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("signed by 0"));
  repository_.publish();
  EXPECT_OK(refresh());
}

TEST_F(TrustClientTest, UnknownSpecificationVersions) {
  for (const std::string role : {"root", "timestamp", "snapshot", "targets"}) {
    TufRepository other(kNow);
    const auto resign = [&](json::object body, const std::string& name) {
      body["spec_version"] = role == name ? "2.0.0" : "1.0.99";
      return sign_body(std::move(body), {other.keys[name]});
    };
    ++other.root.head.version;
    other.files["2.root.json"] = resign(to_json(other.root), "root");
    other.files["1.targets.json"] = resign(to_json(other.targets), "targets");
    other.snapshot.meta["targets.json"] = describe_file(other.files["1.targets.json"], 1);
    other.files["1.snapshot.json"] = resign(to_json(other.snapshot), "snapshot");
    other.timestamp.snapshot = describe_file(other.files["1.snapshot.json"], 1);
    other.files["timestamp.json"] = resign(to_json(other.timestamp), "timestamp");
    stored_ = {{"root", other.first_root()}};
    EXPECT_THAT(error_of(refresh_from(other), ErrorCode::kUnsupported), ::testing::HasSubstr("2.0.0"))
        << role;
  }
}

TEST_F(TrustClientTest, MembersThatWeDoNotKnowAreSigned) {
  json::object body = to_json(repository_.timestamp);
  body["future"] = json::object{{"a", json::array{1, "b", nullptr}}};
  repository_.files["timestamp.json"] = sign_body(body, {repository_.keys["timestamp"]});
  EXPECT_OK(refresh());
  stored_.erase("timestamp");
  std::string& text = repository_.files["timestamp.json"];
  text.replace(text.find("\"b\""), 3, "\"c\"");
  EXPECT_THAT(error_of(refresh(), ErrorCode::kDenied), ::testing::HasSubstr("signed by 0"));
}

TEST_F(TrustClientTest, Delegations) {
  const SigningKey one = make_signing_key(), two = make_signing_key();
  const auto role = [&](const std::string& name, const SigningKey& key, std::vector<std::string> paths,
                        bool terminating = false) {
    repository_.targets.keys[key_id(public_key_of(key))] = public_key_of(key);
    return Delegation{name, {{key_id(public_key_of(key))}, 1}, std::move(paths), {}, terminating};
  };
  const auto body_of = [&](const std::vector<Delegation>& delegations, std::vector<std::string> names) {
    TargetsMetadata m;
    m.head = {1, kNow + kDay};
    for (const auto& name : names) m.targets[name] = artifact_target(sample(), name);
    json::object body = to_json(m), keys;
    json::array roles;
    for (const Delegation& d : delegations) {
      json::array paths(d.paths.begin(), d.paths.end()), ids(d.role.key_ids.begin(), d.role.key_ids.end());
      roles.push_back(json::object{{"name", d.name},
                                   {"keyids", ids},
                                   {"threshold", 1},
                                   {"paths", paths},
                                   {"terminating", d.terminating}});
    }
    for (const auto& [id, key] : repository_.targets.keys) keys[id] = to_json(key);
    if (!delegations.empty()) body["delegations"] = json::object{{"keys", keys}, {"roles", roles}};
    return body;
  };
  const auto put = [&](const std::string& name, const json::object& body, const SigningKey& key) {
    repository_.files["1." + name + ".json"] = sign_body(body, {key});
    repository_.snapshot.meta[name + ".json"] = describe_file(repository_.files["1." + name + ".json"], 1);
  };
  const auto resign = [&] {
    repository_.files["1.snapshot.json"] =
        sign_body(to_json(repository_.snapshot), {repository_.keys["snapshot"]});
    repository_.timestamp.snapshot = describe_file(repository_.files["1.snapshot.json"], 1);
    ++repository_.timestamp.head.version;
    resign_timestamp(repository_.keys["timestamp"]);
  };
  const auto a = role("a", one, {"a/*"}), b = role("b", two, {"a/*", "b/*/x"}),
             back = role("a", one, {"*/*"});
  put("targets", body_of({a, b}, {"top"}), repository_.keys["targets"]);
  put("a", body_of({back}, {"a/1", "b/2/x"}), one);
  put("b", body_of({back}, {"a/1", "a/2", "b/2/x", "b/2/y"}), two);
  resign();
  const auto look = [&](const std::string& name) -> Result<std::string> {
    TrustClient client = fresh();
    client.refresh(kNow);
    RETORT_TRY(repository_.serve(client));
    client.find(name);
    RETORT_TRY(repository_.serve(client));
    return client.found() ? manifest_of_target(*client.found())->sha256 : "none";
  };
  EXPECT_EQ(*look("top"), sha256_hex("top"));
  EXPECT_EQ(*look("a/1"), sha256_hex("a/1"));
  EXPECT_EQ(*look("a/2"), sha256_hex("a/2")) << "role a does not have it, b is asked next";
  EXPECT_EQ(*look("b/2/x"), sha256_hex("b/2/x"));
  EXPECT_EQ(*look("b/2/y"), "none") << "nobody delegated that name";
  EXPECT_EQ(*look("a/3"), "none") << "a circle ends";
  auto last = a;
  last.terminating = true;
  put("targets", body_of({last, b}, {"top"}), repository_.keys["targets"]);
  resign();
  EXPECT_EQ(*look("a/2"), "none") << "a terminating delegation is the last one asked";
  put("a", body_of({}, {"a/2"}), two);  // another's key
  resign();
  EXPECT_EQ(look("a/2").error().code, ErrorCode::kDenied);
}

TEST(TrustClientDelegations, HashBins) {
  TargetsMetadata m;
  m.succinct = SuccinctRoles{{{"k"}, 1}, 10, "bin"};
  const std::string hash = sha256_hex("some/target");
  const unsigned bin = static_cast<unsigned>(std::stoul(hash.substr(0, 4), nullptr, 16)) >> 6;
  EXPECT_EQ(delegations_for(m, "some/target").at(0).name, fmt::format("bin-{:03x}", bin));
  m.succinct.reset();
  m.delegations = {{"x", {}, {}, {hash.substr(0, 3)}, false}, {"y", {}, {"some/*", "other"}, {}, false}};
  EXPECT_EQ(delegations_for(m, "some/target").size(), 2u);
  EXPECT_EQ(delegations_for(m, "some/target/deeper").size(), 0u) << "'*' does not match '/'";
}

TEST_F(TrustClientTest, Assignments) {
  const std::string text = repository_.assignment("dev-1", 7, "small", std::string(64, 'a'));
  const auto good = verify_assignment(text, repository_.root, "dev-1", kNow);
  ASSERT_OK(good);
  EXPECT_EQ(good->head.version, 7u);
  EXPECT_EQ(good->artifact, std::string(64, 'a'));
  EXPECT_EQ(verify_assignment(text, repository_.root, "dev-2", kNow).error().code, ErrorCode::kDenied);
  EXPECT_EQ(verify_assignment(text, repository_.root, "dev-1", kNow + 99 * kDay).error().code,
            ErrorCode::kUnavailable);
  // Neither the targets' key nor a key of before signs assignments.
  TufRepository other = repository_;
  other.keys["assignment"] = other.keys["targets"];
  EXPECT_EQ(
      verify_assignment(other.assignment("dev-1", 8, "", ""), repository_.root, "dev-1", kNow).error().code,
      ErrorCode::kDenied);
  other = repository_;
  other.replace_key("assignment");
  EXPECT_EQ(verify_assignment(text, other.root, "dev-1", kNow).error().code, ErrorCode::kDenied);
  std::string changed = text;
  changed.replace(changed.find("small"), 5, "large");
  EXPECT_EQ(verify_assignment(changed, repository_.root, "dev-1", kNow).error().code, ErrorCode::kDenied);
  RootMetadata none = repository_.root;
  none.assignment.reset();
  EXPECT_EQ(verify_assignment(text, none, "dev-1", kNow).error().code, ErrorCode::kDenied);
}

}  // namespace
}  // namespace retort
