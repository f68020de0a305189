#pragma once

#include <map>
#include <string>

#include "common/trust/artifact_target.h"
#include "common/trust/client.h"

namespace retort::testing {

/// A repository of metadata as a coordinator keeps one, whose every part a test may change before publish():
/// what an attacker would serve is made by changing the files afterwards, or with keys that are not root's.
class TufRepository {
 public:
  explicit TufRepository(UnixMillis now);

  /// Signs what changed: the files of a consistent snapshot, into `files`. Older ones stay.
  void publish();
  /// Root version + 1, signed by `signers` and by the keys it names.
  void publish_root(const std::vector<SigningKey>& signers);
  /// Lists an artifact and its manifest.
  void add(const ArtifactManifest& manifest);
  std::string assignment(const std::string& device, std::uint64_t generation, const std::string& device_class,
                         const std::string& artifact) const;
  /// A new key for a role, in `root`; publish_root() makes it count.
  SigningKey replace_key(const std::string& role);
  void set_key(const std::string& role, const SigningKey& key);
  /// Feeds a client from `files` until it wants nothing more.
  Result<void> serve(TrustClient& client) const;
  const std::string& first_root() const { return files.at("1.root.json"); }

  std::map<std::string, SigningKey> keys;  ///< by role, "assignment" among them
  RootMetadata root;
  TimestampMetadata timestamp;
  SnapshotMetadata snapshot;
  TargetsMetadata targets;
  UnixMillis assignment_expires = 0;
  std::map<std::string, std::string> files;  ///< by name: "1.root.json", "manifests/<sha256>.json"
};

std::string sign_body(json::object body, const std::vector<SigningKey>& signers);

}  // namespace retort::testing
