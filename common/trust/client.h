#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common/trust/metadata.h"

namespace retort {

/// The client's workflow of The Update Framework [spec 1.0.31 §5.3–5.6], as a machine that says which file it
/// wants next and is given its bytes. No I/O and no clock: an agent feeds it from the fleet link, the test
/// client from HTTP. Whatever it is fed, it ends with verified metadata or an error; what it verified before
/// an error stays. Thread: any, one at a time.
///
/// Deviations: a key counts by its value, not its id (ids may be anything, each counts once); our members of
/// root and timestamp (metadata.h).
class TrustClient {
 public:
  static constexpr std::uint64_t kMaxRootBytes = 512 << 10, kMaxTimestampBytes = 16 << 10,
                                 kMaxSnapshotBytes = 2 << 20, kMaxTargetsBytes = 5 << 20;
  static constexpr int kMaxRootRotations = 256, kMaxDelegations = 32;

  /// A file that the machine wants.
  struct Wanted {
    std::string role;
    std::optional<std::uint64_t> version;  ///< part of the file's name where there is one
    std::uint64_t max_bytes = 0;           ///< more is not to be downloaded [§5: endless data]
  };
  /// "7.root.json", "timestamp.json".
  static std::string file_name(const Wanted& wanted);

  /// What must outlive the process: role name to bytes, all of it verified; nothing: erase it. To be put on
  /// disk together, before anything is believed that needs it.
  using Changes = std::map<std::string, std::optional<std::string>>;
  /// Role name to bytes, as take_changes() gave them.
  using Stored = std::map<std::string, std::string>;

  /// From what was stored; `stored` must hold "root". Root is not judged by its expiry here.
  static Result<TrustClient> open(Stored stored, SignatureCheck check = check_ed25519);
  /// A root that comes from a source that is trusted already (packaged, or by the enrolled link): only that
  /// it is signed as it says itself. Its bytes become "root" of `Stored`.
  static Result<RootMetadata> check_first_root(std::string_view bytes, SignatureCheck check = check_ed25519);

  /// Begins a refresh; `now` is the time against which expiry is judged for all of it [§5.1].
  void refresh(UnixMillis now);
  /// Begins the search for a target, after a refresh.
  void find(std::string target);
  /// The file to bring next; nothing when refresh or search is done, or failed.
  std::optional<Wanted> wanted();
  /// The wanted file's bytes. kDenied: signatures, or an older version than the one known (rollback);
  /// kUnavailable: expired (freeze); kCorrupt: form, length, hash, version other than named (mix-and-match).
  Result<void> provide(std::string_view bytes);
  /// There is no such file: the end of the roots' chain, and kNotFound for all others.
  Result<void> absent();
  Changes take_changes() { return std::exchange(changes_, {}); }

  const RootMetadata& root() const { return root_; }
  bool has_timestamp() const { return timestamp_.has_value(); }
  /// After a refresh, or where there is one.
  const TimestampMetadata& timestamp() const { return *timestamp_; }
  const TargetsMetadata& targets() const { return targets_.at("targets"); }
  /// What find() found; nothing: no trusted role names it.
  const std::optional<TargetFile>& found() const { return found_; }
  /// The target's metadata of `found`, checked: kCorrupt when bytes have another length or hash.
  static Result<void> check_target(std::string_view bytes, const TargetFile& file, std::string_view name);

 private:
  enum class Step { kIdle, kRoot, kTimestamp, kSnapshot, kTargets };
  struct Ask {  // a role to be searched
    std::string role, parent;
  };

  Result<void> provide_root(std::string_view bytes);
  Result<void> provide_timestamp(std::string_view bytes);
  Result<void> provide_snapshot(std::string_view bytes);
  Result<void> provide_targets(std::string_view bytes);
  Result<void> finish_roots();
  void use_stored_timestamp();
  Result<void> accept_timestamp();
  Result<TimestampMetadata> check_timestamp(std::string_view bytes) const;
  Result<SnapshotMetadata> check_snapshot(std::string_view bytes) const;
  Result<void> accept_snapshot(SnapshotMetadata snapshot);
  Result<TargetsMetadata> check_targets(std::string_view bytes, const Ask& ask) const;
  Result<void> advance();  ///< through what need not be downloaded
  Result<const MetaFile*> meta_of(const std::string& role) const;
  Result<void> stop(Error error);
  void keep(const std::string& role, std::string_view bytes);
  void forget(const std::string& role);

  SignatureCheck check_ = check_ed25519;
  Stored stored_;
  Changes changes_;
  UnixMillis now_ = 0;
  Step step_ = Step::kIdle;
  int rotations_ = 0;
  RootMetadata root_;
  std::optional<TimestampMetadata> timestamp_;
  std::optional<SnapshotMetadata> snapshot_;
  std::map<std::string, TargetsMetadata> targets_;  ///< verified since the refresh
  std::string target_;
  std::vector<Ask> asks_;  ///< the next one last
  std::set<std::string> visited_;
  std::optional<TargetFile> found_;
};

}  // namespace retort
