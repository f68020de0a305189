#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/model/device.h"
#include "common/store/store.h"
#include "common/trust/artifact_target.h"
#include "common/trust/metadata.h"

namespace retort {

/// The repository of The Update Framework that devices verify against (docs/security.md): signed metadata in
/// the store's table "trust", and in a folder the keys that the coordinator signs with itself. Snapshot,
/// timestamp and assignment are always signed here; root and targets where their keys are here, and
/// otherwise by people who export what waits, sign it elsewhere and import it. What one call publishes is
/// published in one write. Thread: any.
class TrustRepository {
 public:
  /// Makes the first root, with keys for every role, where there is none; a "targets.ed25519" of 0.1.0 goes
  /// on as the targets' key and signs the first root too, so that its devices can follow.
  static Result<std::unique_ptr<TrustRepository>> open(Store& store, std::filesystem::path keys,
                                                       const Clock& clock);

  /// Whether a device that begins with the first root would accept all that is published, and whether the
  /// keys that must be in the folder are; changes nothing. kCorrupt, kNotFound, kDenied.
  static Result<void> check(Store& store, const std::filesystem::path& keys);

  /// By file name: "timestamp.json", "7.root.json", "manifests/<sha256>.json"; kNotFound.
  Result<std::string> file(std::string_view name) const;
  /// Root metadata of now: what a device that enrols begins with.
  std::string root_text() const;
  /// Whether the targets that are published list the artifact, so that devices will take it.
  bool lists(std::string_view sha256) const;
  /// Whether it lists it, or will when what waits is signed.
  bool knows(std::string_view sha256) const;
  /// Lists artifacts. Where the targets' keys are elsewhere, they wait for import().
  Result<void> add(const std::vector<ArtifactManifest>& manifests);
  /// Lists it no more, nor keeps its manifest. Where the targets' keys are elsewhere, that waits for
  /// import().
  Result<void> remove(std::string_view sha256);
  /// What a device should do, signed for a week.
  Result<std::string> sign_assignment(const std::string& device, const DesiredState& desired) const;
  /// Signs anew what has used up half of its time; root and targets when a month is left, where their keys
  /// are here, and else as drafts that wait. To be called now and then.
  Result<void> refresh();
  /// Signs targets, snapshot and timestamp anew whatever their age: devices may have seen later versions than
  /// those of a backup.
  Result<void> renew();

  // Changes of root. Each is signed with the keys that are here; where those are enough, it is published,
  // otherwise it waits as a draft, and further changes add to it.
  struct Progress {
    std::string role;
    std::uint64_t version = 0;
    bool published = false;
    std::string missing;  ///< "1 more signature of root's keys"; empty when published
  };
  /// Roles root and targets. threshold 0: as it was.
  Result<Progress> add_key(const std::string& role, const PublicKey& key, std::uint32_t threshold);
  Result<Progress> remove_key(const std::string& role, const std::string& id_prefix, std::uint32_t threshold);
  /// New keys in the place of those that the coordinator holds for the role.
  Result<Progress> rotate(const std::string& role);
  /// Root in other hands: these keys in the place of those that are here.
  Result<Progress> hand_over(const std::string& role, const std::vector<PublicKey>& keys,
                             std::uint32_t threshold);

  /// The draft of root or targets, as it is signed so far; kNotFound where nothing waits.
  Result<std::string> draft(const std::string& role) const;
  Result<void> drop_draft(const std::string& role);
  /// A draft that somebody signed. kInvalid: not what waits here; kDenied: no new signature that counts.
  Result<Progress> import(std::string_view text);

  /// For operators: roles, versions, expiry, keys and where they are, drafts, warnings.
  json::object status() const;

 private:
  TrustRepository(Store& store, std::filesystem::path keys, const Clock& clock)
      : store_(store), keys_folder_(std::move(keys)), clock_(clock) {}
  Result<void> load_keys();
  Result<std::uint64_t> latest_root() const;  ///< its version; 0: there is none
  Result<void> load();
  Result<void> make_first_root();
  Result<SigningKey> new_key();
  void sign_with_held(SignedDocument& document, const KeyMap& keys, const Role& role) const;
  Result<RootMetadata> next_root() const;
  Result<Progress> change_root(RootMetadata next);
  Result<Progress> settle_root(SignedDocument document);
  /// Of now, with what waits.
  Result<TargetsMetadata> next_targets() const;
  Result<Progress> settle_targets(SignedDocument document, StoreBatch batch);
  Result<Progress> publish_targets(TargetsMetadata next, StoreBatch batch);
  Result<void> put_snapshot(StoreBatch& batch, const RootMetadata& root, const std::string& targets_text,
                            std::uint64_t targets_version);
  Result<void> put_timestamp(StoreBatch& batch, const RootMetadata& root, const std::string& snapshot_text,
                             std::uint64_t snapshot_version);
  Result<void> write(const StoreBatch& batch, std::string_view what);
  Result<void> commit(StoreBatch& batch);
  void forget_unused_keys();
  std::uint64_t next_version(std::uint64_t before) const;
  std::optional<SignedDocument> stored_draft(const std::string& role) const;
  Result<void> need_role(const std::string& role, bool may_be_elsewhere) const;

  Store& store_;
  std::filesystem::path keys_folder_;
  const Clock& clock_;
  mutable std::mutex mutex_;
  std::map<std::string, SigningKey> held_;                  ///< by key id
  std::map<std::string, std::filesystem::path> key_files_;  ///< by key id
  RootMetadata root_;
  TargetsMetadata targets_;
  SnapshotMetadata snapshot_;
  TimestampMetadata timestamp_;
};

}  // namespace retort
