#include "coordinator/trust/trust_repository.h"

#include <algorithm>

#include "common/core/fail_point.h"
#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/trust/client.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

constexpr UnixMillis kDay = 24ll * 3600 * 1000;
constexpr UnixMillis kRootValid = 365 * kDay, kTargetsValid = 365 * kDay, kSnapshotValid = 7 * kDay,
                     kTimestampValid = kDay, kAssignmentValid = 7 * kDay, kRenewLongLived = 30 * kDay;
constexpr const char* kTable = "trust";
/// Published versions of snapshot and targets that stay, for devices that are between two files.
constexpr std::size_t kKeepVersions = 4;
constexpr std::string_view kRoles[] = {"root", "targets", "snapshot", "timestamp", "assignment"};

std::string file_key(std::string_view name) { return "file/" + std::string(name); }
std::string draft_key(std::string_view role) { return "draft/" + std::string(role); }
std::string versioned(std::uint64_t version, std::string_view role) {
  return std::to_string(version) + "." + std::string(role) + ".json";
}

Role& role_of(RootMetadata& root, const std::string& name) {
  if (name != "assignment") return root.roles[name];
  if (!root.assignment) root.assignment.emplace();
  return *root.assignment;
}
const Role& role_of(const RootMetadata& root, const std::string& name) {
  static const Role none{{}, 1};
  if (name != "assignment") return root.roles.at(name);
  return root.assignment ? *root.assignment : none;
}

/// Keys that no role names leave the list.
void drop_unused(RootMetadata& root) {
  std::erase_if(root.keys, [&](const auto& entry) {
    return std::none_of(std::begin(kRoles), std::end(kRoles), [&](std::string_view role) {
      const auto& ids = role_of(std::as_const(root), std::string(role)).key_ids;
      return std::find(ids.begin(), ids.end(), entry.first) != ids.end();
    });
  });
}

std::string missing_signatures(std::uint32_t have, const Role& role, std::string_view whose) {
  return fmt::format("{} more signature{} of {} keys", role.threshold - have,
                     role.threshold - have == 1 ? "" : "s", whose);
}

}  // namespace

Result<std::unique_ptr<TrustRepository>> TrustRepository::open(Store& store, fs::path keys,
                                                               const Clock& clock) {
  std::unique_ptr<TrustRepository> out(new TrustRepository(store, std::move(keys), clock));
  RETORT_TRY(make_folders(out->keys_folder_));
  RETORT_TRY(out->load_keys());
  if (RETORT_TRY(out->latest_root()) == 0) {
    RETORT_TRY(out->make_first_root());
  } else {
    RETORT_TRY(out->load());
    out->forget_unused_keys();
  }
  RETORT_TRY(out->refresh());
  return out;
}

Result<void> TrustRepository::check(Store& store, const fs::path& keys) {
  const SystemClock clock;  // nothing is signed
  TrustRepository repository(store, keys, clock);
  if (RETORT_TRY(repository.latest_root()) == 0) return {};  // a store of 0.1.0: the next start makes one
  RETORT_TRY(repository.load_keys());
  RETORT_TRY(repository.load());
  TrustClient::Stored first;
  first["root"] = RETORT_TRY(repository.file(versioned(1, "root")));
  TrustClient client = RETORT_TRY(TrustClient::open(std::move(first)));
  client.refresh(0);  // expiry is another matter: a start signs anew
  while (const auto wanted = client.wanted()) {
    const auto text = RETORT_TRY(store.get(kTable, file_key(TrustClient::file_name(*wanted))));
    RETORT_TRY(text ? client.provide(*text) : client.absent());
  }
  for (const auto& [name, target] : repository.targets_.targets) {
    const ManifestReference reference = RETORT_TRY(manifest_of_target(target));
    const auto hash = target.hashes.find("sha256");
    const std::string sha256 = hash == target.hashes.end() ? "" : hash->second;
    const std::string text = RETORT_TRY(repository.file(manifest_file_name(sha256)));
    if (text.size() != reference.length || sha256_hex(text) != reference.sha256)
      return fail(ErrorCode::kCorrupt, manifest_file_name(sha256), "is not the signed one");
  }
  return {};
}

std::uint64_t TrustRepository::next_version(std::uint64_t before) const {
  // Not before + 1 alone: after a restore from a backup the versions must still be newer than those that
  // devices have seen.
  return std::max(before + 1,
                  static_cast<std::uint64_t>(std::max<UnixMillis>(clock_.unix_millis(), 0) / 1000));
}

Result<void> TrustRepository::load_keys() {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(keys_folder_, error)) {
    if (entry.path().extension() != ".ed25519") continue;
    const SigningKey key = RETORT_TRY(load_signing_key(entry.path()));
    const std::string id = key_id(public_key_of(key));
    held_[id] = key;
    key_files_[id] = entry.path();
  }
  return {};
}

Result<std::uint64_t> TrustRepository::latest_root() const {
  std::uint64_t latest = 0;
  RETORT_TRY(store_.scan(kTable, "file/", "", [&](std::string_view key, std::string_view) {
    if (key.ends_with(".root.json"))
      latest =
          std::max<std::uint64_t>(latest, std::strtoull(std::string(key.substr(5)).c_str(), nullptr, 10));
    return true;
  }));
  return latest;
}

Result<void> TrustRepository::load() {
  const std::uint64_t latest = RETORT_TRY(latest_root());
  const auto body_of = [&](const std::string& name) -> Result<json::object> {
    const auto text = RETORT_TRY(store_.get(kTable, file_key(name)));
    if (!text) return fail(ErrorCode::kCorrupt, "trust/" + name, "is not in the store");
    return std::move(RETORT_TRY(parse_signed(*text, name)).body);
  };
  root_ = RETORT_TRY(read_root(RETORT_TRY(body_of(versioned(latest, "root")))));
  timestamp_ = RETORT_TRY(read_timestamp(RETORT_TRY(body_of("timestamp.json"))));
  snapshot_ =
      RETORT_TRY(read_snapshot(RETORT_TRY(body_of(versioned(timestamp_.snapshot.version, "snapshot")))));
  targets_ = RETORT_TRY(
      read_targets(RETORT_TRY(body_of(versioned(snapshot_.meta["targets.json"].version, "targets")))));
  for (const char* role : {"snapshot", "timestamp", "assignment"}) {
    const Role& r = role_of(std::as_const(root_), role);
    if (std::none_of(r.key_ids.begin(), r.key_ids.end(), [&](const auto& id) { return held_.count(id) > 0; }))
      return fail(ErrorCode::kNotFound, keys_folder_.string(),
                  "the key of role {} is not here: restore the folder from a backup (docs/security.md)",
                  role);
  }
  return {};
}

Result<SigningKey> TrustRepository::new_key() {
  const SigningKey key = make_signing_key();
  const std::string id = key_id(public_key_of(key));
  const fs::path path = keys_folder_ / (id.substr(0, 16) + ".ed25519");
  RETORT_TRY(save_signing_key(path, key));
  held_[id] = key;
  key_files_[id] = path;
  return key;
}

Result<void> TrustRepository::make_first_root() {
  std::optional<SigningKey> old;
  if (fs::exists(keys_folder_ / "targets.ed25519"))
    old = RETORT_TRY(load_signing_key(keys_folder_ / "targets.ed25519"));
  RootMetadata root;
  root.head = {1, clock_.unix_millis() + kRootValid};
  for (const std::string_view name : kRoles) {
    const SigningKey key = name == "targets" && old ? *old : RETORT_TRY(new_key());
    const PublicKey open = public_key_of(key);
    root.keys[key_id(open)] = open;
    role_of(root, std::string(name)) = {{key_id(open)}, 1};
  }
  SignedDocument document = RETORT_TRY(make_document(to_json(root)));
  sign_with_held(document, root.keys, root.roles["root"]);
  if (old) add_signature(document, *old);
  StoreBatch batch;
  batch.put(kTable, file_key("1.root.json"), to_text(document));
  targets_.head = {next_version(0), clock_.unix_millis() + kTargetsValid};
  SignedDocument targets = RETORT_TRY(make_document(to_json(targets_)));
  sign_with_held(targets, root.keys, root.roles["targets"]);
  batch.put(kTable, file_key(versioned(targets_.head.version, "targets")), to_text(targets));
  RETORT_TRY(put_snapshot(batch, root, to_text(targets), targets_.head.version));
  RETORT_TRY(write(batch, "created"));
  root_ = std::move(root);
  log_info("trust: first root made, its keys are in {}", keys_folder_.string());
  return {};
}

void TrustRepository::sign_with_held(SignedDocument& document, const KeyMap& keys, const Role& role) const {
  for (const std::string& id : role.key_ids) {
    const auto key = held_.find(id);
    if (key != held_.end() && keys.count(id) > 0) add_signature(document, key->second);
  }
}

Result<void> TrustRepository::put_snapshot(StoreBatch& batch, const RootMetadata& root,
                                           const std::string& targets_text, std::uint64_t targets_version) {
  SnapshotMetadata next;
  next.head = {next_version(snapshot_.head.version), clock_.unix_millis() + kSnapshotValid};
  next.meta["targets.json"] = describe_file(targets_text, targets_version);
  SignedDocument document = RETORT_TRY(make_document(to_json(next)));
  sign_with_held(document, root.keys, root.roles.at("snapshot"));
  const std::string text = to_text(document);
  batch.put(kTable, file_key(versioned(next.head.version, "snapshot")), text);
  snapshot_ = std::move(next);
  return put_timestamp(batch, root, text, snapshot_.head.version);
}

Result<void> TrustRepository::put_timestamp(StoreBatch& batch, const RootMetadata& root,
                                            const std::string& snapshot_text,
                                            std::uint64_t snapshot_version) {
  TimestampMetadata next;
  next.issued = clock_.unix_millis();
  next.head = {next_version(timestamp_.head.version), next.issued + kTimestampValid};
  next.snapshot = describe_file(snapshot_text, snapshot_version);
  SignedDocument document = RETORT_TRY(make_document(to_json(next)));
  sign_with_held(document, root.keys, root.roles.at("timestamp"));
  batch.put(kTable, file_key("timestamp.json"), to_text(document));
  timestamp_ = std::move(next);
  return {};
}

/// Every write of ours, with the places where a test may end the process (common/core/fail_point.h).
Result<void> TrustRepository::write(const StoreBatch& batch, std::string_view what) {
  const std::string point = fmt::format("coordinator.trust.{}", what);
  fail_point(point + ".saving");
  RETORT_TRY(store_.write(batch));
  fail_point(point + ".saved");
  return {};
}

/// Writes the batch, and lets the oldest versions of snapshot and targets go with it.
Result<void> TrustRepository::commit(StoreBatch& batch) {
  std::map<std::string, std::vector<std::uint64_t>> versions;
  RETORT_TRY(store_.scan(kTable, "file/", "", [&](std::string_view key, std::string_view) {
    for (const char* role : {"snapshot", "targets"})
      if (key.ends_with(std::string(".") + role + ".json"))
        versions[role].push_back(std::strtoull(std::string(key.substr(5)).c_str(), nullptr, 10));
    return true;
  }));
  for (auto& [role, numbers] : versions) {
    const std::uint64_t current =
        role == "snapshot" ? timestamp_.snapshot.version : snapshot_.meta["targets.json"].version;
    std::sort(numbers.rbegin(), numbers.rend());
    for (std::size_t i = kKeepVersions; i < numbers.size(); ++i)
      if (numbers[i] != current) batch.erase(kTable, file_key(versioned(numbers[i], role)));
  }
  const Result<void> written = write(batch, "published");
  if (!written) {
    // Memory is ahead of the disk now: back to what is there.
    const Error why = written.error();
    if (const Result<void> again = load(); !again) log_error("trust: {}", again.error().describe());
    return fail(why);
  }
  return {};
}

Result<std::string> TrustRepository::file(std::string_view name) const {
  const auto text = RETORT_TRY(store_.get(kTable, file_key(name)));
  if (!text) return fail(ErrorCode::kNotFound, "", "there is no file '{}'", name);
  return *text;
}

std::string TrustRepository::root_text() const {
  const std::lock_guard lock(mutex_);
  return file(versioned(root_.head.version, "root")).value_or("");
}

bool TrustRepository::lists(std::string_view sha256) const {
  const std::lock_guard lock(mutex_);
  return targets_.targets.count(artifact_target_name(sha256)) > 0;
}

bool TrustRepository::knows(std::string_view sha256) const {
  const auto text = store_.get(kTable, file_key(manifest_file_name(sha256)));
  return text && text->has_value();
}

std::optional<SignedDocument> TrustRepository::stored_draft(const std::string& role) const {
  const auto text = store_.get(kTable, draft_key(role));
  if (!text || !*text) return std::nullopt;
  Result<SignedDocument> document = parse_signed(**text, role);
  if (!document) return std::nullopt;
  return std::move(*document);
}

Result<TargetsMetadata> TrustRepository::next_targets() const {
  if (const auto draft = stored_draft("targets")) return read_targets(draft->body);
  return targets_;
}

Result<void> TrustRepository::remove(std::string_view sha256) {
  const std::lock_guard lock(mutex_);
  TargetsMetadata next = RETORT_TRY(next_targets());
  if (next.targets.erase(artifact_target_name(sha256)) == 0) return {};
  const Progress progress = RETORT_TRY(publish_targets(std::move(next), {}));
  if (!progress.published)
    log_warn("trust: targets version {} waits for {}", progress.version, progress.missing);
  return {};
}

Result<void> TrustRepository::add(const std::vector<ArtifactManifest>& manifests) {
  const std::lock_guard lock(mutex_);
  TargetsMetadata next = RETORT_TRY(next_targets());
  bool news = false;
  StoreBatch texts;
  for (const ArtifactManifest& manifest : manifests) {
    const std::string text = RETORT_TRY(manifest_to_text(manifest));
    TargetFile target = artifact_target(manifest, text);
    const auto known = next.targets.find(artifact_target_name(manifest.sha256));
    if (known != next.targets.end() && known->second.custom == target.custom) continue;
    next.targets[artifact_target_name(manifest.sha256)] = std::move(target);
    texts.put(kTable, file_key(manifest_file_name(manifest.sha256)), text);
    news = true;
  }
  if (!news) return {};
  const Progress progress = RETORT_TRY(publish_targets(std::move(next), std::move(texts)));
  if (!progress.published)
    log_warn("trust: targets version {} waits for {}", progress.version, progress.missing);
  return {};
}

Result<TrustRepository::Progress> TrustRepository::publish_targets(TargetsMetadata next, StoreBatch batch) {
  next.head = {next_version(targets_.head.version), clock_.unix_millis() + kTargetsValid};
  return settle_targets(RETORT_TRY(make_document(to_json(next))), std::move(batch));
}

Result<TrustRepository::Progress> TrustRepository::settle_targets(SignedDocument document, StoreBatch batch) {
  const Role& role = root_.roles.at("targets");
  sign_with_held(document, root_.keys, role);
  TargetsMetadata next = RETORT_TRY(read_targets(document.body));
  const std::string text = to_text(document);
  if (text.size() > TrustClient::kMaxTargetsBytes)
    return fail(ErrorCode::kOutOfBudget, "trust",
                "the list of artifacts would have {} bytes, devices take {}", text.size(),
                TrustClient::kMaxTargetsBytes);
  const std::uint32_t have = count_signatures(document, root_.keys, role, check_ed25519);
  Progress progress{"targets", next.head.version, have >= role.threshold, ""};
  if (!progress.published) {
    progress.missing = missing_signatures(have, role, "the targets'");
    batch.put(kTable, draft_key("targets"), text);
    RETORT_TRY(write(batch, "waiting"));
    return progress;
  }
  batch.put(kTable, file_key(versioned(next.head.version, "targets")), text);
  batch.erase(kTable, draft_key("targets"));
  for (const auto& [name, target] : targets_.targets)
    if (const auto hash = target.hashes.find("sha256");
        next.targets.count(name) == 0 && hash != target.hashes.end())
      batch.erase(kTable, file_key(manifest_file_name(hash->second)));
  targets_ = std::move(next);
  RETORT_TRY(put_snapshot(batch, root_, text, targets_.head.version));
  RETORT_TRY(commit(batch));
  return progress;
}

Result<std::string> TrustRepository::sign_assignment(const std::string& device,
                                                     const DesiredState& desired) const {
  const std::lock_guard lock(mutex_);
  AssignmentMetadata m;
  m.head = {desired.generation, clock_.unix_millis() + kAssignmentValid};
  m.device = device;
  m.device_class = desired.device_class;
  m.artifact = desired.artifact;
  SignedDocument document = RETORT_TRY(make_document(to_json(m)));
  sign_with_held(document, root_.keys, role_of(root_, "assignment"));
  return to_text(document);
}

Result<void> TrustRepository::refresh() {
  const std::lock_guard lock(mutex_);
  const UnixMillis now = clock_.unix_millis();
  // Where the keys are elsewhere, this makes the drafts that people are to sign.
  if (root_.head.expires - now < kRenewLongLived && !stored_draft("root"))
    RETORT_TRY(change_root(RETORT_TRY(next_root())));
  if (targets_.head.expires - now < kRenewLongLived && !stored_draft("targets"))
    RETORT_TRY(publish_targets(targets_, {}));
  StoreBatch batch;
  if (snapshot_.head.expires - now < kSnapshotValid / 2) {
    const std::uint64_t version = targets_.head.version;
    RETORT_TRY(put_snapshot(batch, root_, RETORT_TRY(file(versioned(version, "targets"))), version));
    return commit(batch);
  }
  if (timestamp_.head.expires - now >= kTimestampValid / 2) return {};
  const std::uint64_t version = snapshot_.head.version;
  RETORT_TRY(put_timestamp(batch, root_, RETORT_TRY(file(versioned(version, "snapshot"))), version));
  return commit(batch);
}

Result<void> TrustRepository::renew() {
  const std::lock_guard lock(mutex_);
  TargetsMetadata next = targets_;
  if (const auto draft = stored_draft("targets")) next = RETORT_TRY(read_targets(draft->body));
  const Progress progress = RETORT_TRY(publish_targets(std::move(next), {}));
  if (progress.published) return {};
  log_warn("trust: devices take no update until targets version {} is signed and imported", progress.version);
  StoreBatch batch;
  const std::uint64_t version = targets_.head.version;
  RETORT_TRY(put_snapshot(batch, root_, RETORT_TRY(file(versioned(version, "targets"))), version));
  return commit(batch);
}

// Changes of root -----------------------------------------------------------------------------------

Result<RootMetadata> TrustRepository::next_root() const {
  RootMetadata next = root_;
  if (const auto draft = stored_draft("root")) next = RETORT_TRY(read_root(draft->body));
  next.head = {root_.head.version + 1, clock_.unix_millis() + kRootValid};
  return next;
}

Result<void> TrustRepository::need_role(const std::string& role, bool may_be_elsewhere) const {
  if (role == "root" || role == "targets") return {};
  const bool known = std::find(std::begin(kRoles), std::end(kRoles), role) != std::end(kRoles);
  if (!known)
    return fail(ErrorCode::kInvalid, "", "there is no role '{}'; there are {}", role,
                fmt::join(kRoles, ", "));
  if (may_be_elsewhere)
    return fail(ErrorCode::kInvalid, "",
                "the coordinator signs as {} all the time, its key must be here: use 'rotate' for a new one",
                role);
  return {};
}

Result<TrustRepository::Progress> TrustRepository::change_root(RootMetadata next) {
  for (const std::string_view name : kRoles) {
    const Role& role = role_of(std::as_const(next), std::string(name));
    if (role.threshold == 0 || role.threshold > role.key_ids.size())
      return fail(ErrorCode::kInvalid, "", "role {} would have {} keys and a threshold of {}", name,
                  role.key_ids.size(), role.threshold);
  }
  drop_unused(next);
  return settle_root(RETORT_TRY(make_document(to_json(next))));
}

Result<TrustRepository::Progress> TrustRepository::settle_root(SignedDocument document) {
  const RootMetadata next = RETORT_TRY(read_root(document.body));
  const Role &before = root_.roles.at("root"), &after = next.roles.at("root");
  sign_with_held(document, root_.keys, before);
  sign_with_held(document, next.keys, after);
  const std::uint32_t old_have = count_signatures(document, root_.keys, before, check_ed25519),
                      new_have = count_signatures(document, next.keys, after, check_ed25519);
  Progress progress{"root", next.head.version, old_have >= before.threshold && new_have >= after.threshold,
                    ""};
  const std::string text = to_text(document);
  StoreBatch batch;
  if (!progress.published) {
    progress.missing = old_have < before.threshold ? missing_signatures(old_have, before, "root's present")
                                                   : missing_signatures(new_have, after, "root's new");
    batch.put(kTable, draft_key("root"), text);
    RETORT_TRY(write(batch, "waiting"));
    return progress;
  }
  batch.put(kTable, file_key(versioned(next.head.version, "root")), text);
  batch.erase(kTable, draft_key("root"));
  // All that the new keys must have signed goes out with the root that names them.
  std::string targets = RETORT_TRY(file(versioned(targets_.head.version, "targets")));
  SignedDocument signed_targets = RETORT_TRY(parse_signed(targets, "targets"));
  const Role& target_role = next.roles.at("targets");
  if (count_signatures(signed_targets, next.keys, target_role, check_ed25519) < target_role.threshold) {
    TargetsMetadata again = targets_;
    if (const auto draft = stored_draft("targets")) again = RETORT_TRY(read_targets(draft->body));
    again.head = {next_version(targets_.head.version), clock_.unix_millis() + kTargetsValid};
    SignedDocument renewed = RETORT_TRY(make_document(to_json(again)));
    sign_with_held(renewed, next.keys, target_role);
    if (count_signatures(renewed, next.keys, target_role, check_ed25519) >= target_role.threshold) {
      targets = to_text(renewed);
      batch.put(kTable, file_key(versioned(again.head.version, "targets")), targets);
      batch.erase(kTable, draft_key("targets"));
      targets_ = std::move(again);
    } else {
      batch.put(kTable, draft_key("targets"), to_text(renewed));
      log_warn("trust: devices take no update until targets version {} is signed and imported",
               again.head.version);
    }
  }
  RETORT_TRY(put_snapshot(batch, next, targets, targets_.head.version));
  root_ = next;
  RETORT_TRY(commit(batch));
  forget_unused_keys();
  log_info("trust: root version {} published", next.head.version);
  return progress;
}

/// A secret that no root, published or waiting, names is worth nothing to us and something to a thief.
void TrustRepository::forget_unused_keys() {
  RootMetadata waiting;
  if (const auto draft = stored_draft("root"))
    if (auto root = read_root(draft->body)) waiting = std::move(*root);
  for (auto it = key_files_.begin(); it != key_files_.end();) {
    if (root_.keys.count(it->first) > 0 || waiting.keys.count(it->first) > 0) {
      ++it;
      continue;
    }
    std::error_code error;
    fs::remove(it->second, error);
    log_info("trust: key {} is no longer used, its file is removed", it->first.substr(0, 12));
    held_.erase(it->first);
    it = key_files_.erase(it);
  }
}

Result<TrustRepository::Progress> TrustRepository::add_key(const std::string& role, const PublicKey& key,
                                                           std::uint32_t threshold) {
  const std::lock_guard lock(mutex_);
  RETORT_TRY(need_role(role, true));
  RootMetadata next = RETORT_TRY(next_root());
  Role& r = role_of(next, role);
  const std::string id = key_id(key);
  if (std::find(r.key_ids.begin(), r.key_ids.end(), id) != r.key_ids.end())
    return fail(ErrorCode::kConflict, "", "role {} has this key already", role);
  next.keys[id] = key;
  r.key_ids.push_back(id);
  if (threshold != 0) r.threshold = threshold;
  return change_root(std::move(next));
}

Result<TrustRepository::Progress> TrustRepository::remove_key(const std::string& role,
                                                              const std::string& id_prefix,
                                                              std::uint32_t threshold) {
  const std::lock_guard lock(mutex_);
  RETORT_TRY(need_role(role, true));
  RootMetadata next = RETORT_TRY(next_root());
  Role& r = role_of(next, role);
  std::vector<std::string> hits;
  for (const std::string& id : r.key_ids)
    if (id.starts_with(id_prefix)) hits.push_back(id);
  if (id_prefix.size() < 4 || hits.size() != 1)
    return fail(hits.size() > 1 ? ErrorCode::kConflict : ErrorCode::kNotFound, "",
                "role {} has {} keys whose id begins with '{}'", role, hits.size(), id_prefix);
  std::erase(r.key_ids, hits[0]);
  if (threshold != 0) r.threshold = threshold;
  return change_root(std::move(next));
}

Result<TrustRepository::Progress> TrustRepository::rotate(const std::string& role) {
  const std::lock_guard lock(mutex_);
  RETORT_TRY(need_role(role, false));
  RootMetadata next = RETORT_TRY(next_root());
  Role& r = role_of(next, role);
  bool any = false;
  for (std::string& id : r.key_ids) {
    if (held_.count(id) == 0) continue;
    const PublicKey fresh = public_key_of(RETORT_TRY(new_key()));
    id = key_id(fresh);
    next.keys[id] = fresh;
    any = true;
  }
  if (!any)
    return fail(ErrorCode::kNotFound, "",
                "no key of role {} is here: add the new one with 'add-key' and remove the old one", role);
  return change_root(std::move(next));
}

Result<TrustRepository::Progress> TrustRepository::hand_over(const std::string& role,
                                                             const std::vector<PublicKey>& keys,
                                                             std::uint32_t threshold) {
  const std::lock_guard lock(mutex_);
  RETORT_TRY(need_role(role, true));
  if (keys.empty()) return fail(ErrorCode::kInvalid, "", "no key is given");
  RootMetadata next = RETORT_TRY(next_root());
  Role& r = role_of(next, role);
  std::erase_if(r.key_ids, [&](const std::string& id) { return held_.count(id) > 0; });
  for (const PublicKey& key : keys) {
    const std::string id = key_id(key);
    next.keys[id] = key;
    if (std::find(r.key_ids.begin(), r.key_ids.end(), id) == r.key_ids.end()) r.key_ids.push_back(id);
  }
  if (threshold != 0) r.threshold = threshold;
  return change_root(std::move(next));
}

Result<std::string> TrustRepository::draft(const std::string& role) const {
  const std::lock_guard lock(mutex_);
  const auto text = RETORT_TRY(store_.get(kTable, draft_key(role)));
  if (!text) return fail(ErrorCode::kNotFound, "", "no change of {} waits to be signed", role);
  return *text;
}

Result<void> TrustRepository::drop_draft(const std::string& role) {
  const std::lock_guard lock(mutex_);
  if (role != "root")
    return fail(ErrorCode::kInvalid, "",
                "only a change of root can be dropped: that of targets holds artifacts");
  if (!RETORT_TRY(store_.get(kTable, draft_key(role))))
    return fail(ErrorCode::kNotFound, "", "no change of {} waits to be signed", role);
  StoreBatch batch;
  batch.erase(kTable, draft_key(role));
  RETORT_TRY(write(batch, "dropped"));
  forget_unused_keys();
  return {};
}

Result<TrustRepository::Progress> TrustRepository::import(std::string_view text) {
  const std::lock_guard lock(mutex_);
  const SignedDocument given = RETORT_TRY(parse_signed(text, "import"));
  const std::string type = json_string(given.body, "_type", "import").value_or("");
  if (type != "root" && type != "targets")
    return fail(ErrorCode::kInvalid, "import", "is neither root nor targets metadata");
  std::optional<SignedDocument> draft = stored_draft(type);
  if (!draft || draft->signed_bytes != given.signed_bytes)
    return fail(
        ErrorCode::kInvalid, "import", "is not the change of {} that waits here{}", type,
        draft ? ": it went on since this one was exported; export and sign it again" : " (none does)");
  KeyMap keys = root_.keys;
  std::vector<Role> roles{role_of(std::as_const(root_), type)};
  if (type == "root") {
    const RootMetadata next = RETORT_TRY(read_root(draft->body));
    keys.insert(next.keys.begin(), next.keys.end());
    roles.push_back(next.roles.at("root"));
  }
  bool news = false;
  for (const SignedDocument::Signature& signature : given.signatures) {
    const auto same = [&](const auto& s) { return s.key_id == signature.key_id; };
    if (std::any_of(draft->signatures.begin(), draft->signatures.end(), same)) continue;
    SignedDocument one = *draft;
    one.signatures = {signature};
    if (std::none_of(roles.begin(), roles.end(),
                     [&](const Role& role) { return count_signatures(one, keys, role, check_ed25519) > 0; }))
      continue;
    draft->signatures.push_back(signature);
    news = true;
  }
  if (!news)
    return fail(ErrorCode::kDenied, "import", "holds no further signature by a key that may sign {}", type);
  return type == "root" ? settle_root(std::move(*draft)) : settle_targets(std::move(*draft), {});
}

json::object TrustRepository::status() const {
  const std::lock_guard lock(mutex_);
  const UnixMillis now = clock_.unix_millis();
  json::array roles, drafts, warnings;
  for (const std::string_view name : kRoles) {
    const Role& role = role_of(root_, std::string(name));
    json::array keys;
    for (const std::string& id : role.key_ids)
      keys.push_back(
          json::object{{"id", id}, {"public", root_.keys.at(id).value}, {"here", held_.count(id) > 0}});
    const MetadataHead* head = name == "root"        ? &root_.head
                               : name == "targets"   ? &targets_.head
                               : name == "snapshot"  ? &snapshot_.head
                               : name == "timestamp" ? &timestamp_.head
                                                     : nullptr;
    roles.push_back(json::object{{"role", name},
                                 {"version", head ? json::value(head->version) : json::value(nullptr)},
                                 {"expires", head ? json::value(head->expires) : json::value(nullptr)},
                                 {"threshold", role.threshold},
                                 {"keys", std::move(keys)}});
    if (head && head->expires <= now)
      warnings.emplace_back(fmt::format("{} has expired: devices take no update", name));
    else if (head && (name == "root" || name == "targets") && head->expires - now < kRenewLongLived)
      warnings.emplace_back(fmt::format("{} expires at {}: sign a new one", name, to_rfc3339(head->expires)));
  }
  for (const std::string role : {"root", "targets"})
    if (const auto draft = stored_draft(role)) {
      const Role& present = role_of(root_, role);
      std::uint32_t needed = present.threshold,
                    have = count_signatures(*draft, root_.keys, present, check_ed25519);
      if (role == "root")
        if (const auto next = read_root(draft->body)) {
          const Role& after = next->roles.at("root");
          const std::uint32_t after_have = count_signatures(*draft, next->keys, after, check_ed25519);
          if (have >= needed) needed = after.threshold, have = after_have;
        }
      drafts.push_back(json::object{{"role", role},
                                    {"version", json_uint(draft->body, "version", role).value_or(0)},
                                    {"signatures", have},
                                    {"needed", needed}});
    }
  for (const std::string& id : root_.roles.at("root").key_ids)
    if (held_.count(id) > 0) {
      warnings.emplace_back(
          "a root key is on this machine: who takes the machine takes the fleet (docs/security.md)");
      break;
    }
  return {{"roles", std::move(roles)},
          {"artifacts", targets_.targets.size()},
          {"drafts", std::move(drafts)},
          {"warnings", std::move(warnings)}};
}

}  // namespace retort
