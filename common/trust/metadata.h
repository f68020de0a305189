#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/trust/signing.h"

/// What the roles of The Update Framework sign: https://theupdateframework.github.io/specification (1.0.31
/// and later of 1.x), §4. Unknown members are ignored, as the specification asks. Members of our own stand
/// where it lets unknown ones be: "retort" in root and timestamp, "custom" of a target; docs/format.md.
namespace retort {

/// Members that all roles have. `version` counts from 1.
struct MetadataHead {
  std::uint64_t version = 1;
  UnixMillis expires = 0;
};

struct RootMetadata {
  MetadataHead head;
  bool consistent_snapshot = true;
  KeyMap keys;
  std::map<std::string, Role> roles;  ///< root, targets, snapshot, timestamp: all four
  /// Who signs the assignments of devices ("retort"."assignment"); none in other projects' roots.
  std::optional<Role> assignment;
};

/// A metadata file that another one names.
struct MetaFile {
  std::uint64_t version = 0;
  std::optional<std::uint64_t> length;
  std::map<std::string, std::string> hashes;  ///< by algorithm; hexadecimal
  bool operator==(const MetaFile&) const = default;
};

struct TimestampMetadata {
  MetadataHead head;
  MetaFile snapshot;
  /// When it was signed ("retort"."issued"); 0 where it does not say.
  UnixMillis issued = 0;
};

struct SnapshotMetadata {
  MetadataHead head;
  std::map<std::string, MetaFile> meta;  ///< by file name without version: "targets.json"
};

struct TargetFile {
  std::uint64_t length = 0;
  std::map<std::string, std::string> hashes;
  json::object custom;
};

/// Another role that may name targets.
struct Delegation {
  std::string name;
  Role role;
  std::vector<std::string> paths;               ///< patterns; '*', '?' and sets match inside one folder
  std::vector<std::string> path_hash_prefixes;  ///< of the SHA-256 of the target's name
  bool terminating = false;
};
/// 2^bits roles NAME-0 … that share the targets by the SHA-256 of their name [TAP 15].
struct SuccinctRoles {
  Role role;
  std::uint32_t bits = 1;
  std::string name_prefix;
};

struct TargetsMetadata {
  MetadataHead head;
  std::map<std::string, TargetFile> targets;
  KeyMap keys;                          ///< of the delegations
  std::vector<Delegation> delegations;  ///< first come, first asked
  std::optional<SuccinctRoles> succinct;
};
/// The delegations that a target's name goes to, in order.
std::vector<Delegation> delegations_for(const TargetsMetadata& metadata, std::string_view target);

/// What one device is to serve, signed for it alone [Uptane's director]. `head.version` is its generation.
struct AssignmentMetadata {
  MetadataHead head;
  std::string device, device_class;
  std::string artifact;  ///< SHA-256 of the file; empty: serve nothing
};

json::object to_json(const RootMetadata& metadata);
json::object to_json(const TimestampMetadata& metadata);
json::object to_json(const SnapshotMetadata& metadata);
/// Without delegations: we make none.
json::object to_json(const TargetsMetadata& metadata);
json::object to_json(const AssignmentMetadata& metadata);

/// Of the body of a document whose signatures were verified, or will be before it counts. kCorrupt: not of
/// the form; kUnsupported: another specification's.
Result<RootMetadata> read_root(const json::object& body);
Result<TimestampMetadata> read_timestamp(const json::object& body);
Result<SnapshotMetadata> read_snapshot(const json::object& body);
Result<TargetsMetadata> read_targets(const json::object& body, std::string_view where = "targets");
Result<AssignmentMetadata> read_assignment(const json::object& body);

/// "sha256", "sha512": kCorrupt where `bytes` are not those; another algorithm is passed over, but one at
/// least must be known.
Result<void> check_hashes(std::string_view bytes, const std::map<std::string, std::string>& hashes,
                          std::string_view where);
MetaFile describe_file(std::string_view bytes, std::uint64_t version);

/// Signature, form, expiry and addressee of an assignment. kDenied: signature, or another device's;
/// kUnavailable: expired; kCorrupt: the rest.
Result<AssignmentMetadata> verify_assignment(std::string_view text, const RootMetadata& root,
                                             std::string_view device, UnixMillis now);

}  // namespace retort
