#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/clock.h"
#include "common/core/json.h"
#include "common/core/result.h"
#include "common/model/manifest.h"

namespace retort {

/// An Ed25519 key; libsodium inside. Thread: any.
struct SigningKey {
  std::string public_key;  ///< 32 raw bytes
  std::string secret_key;  ///< 64 raw bytes; empty where only verification is possible
};
SigningKey make_signing_key();
Result<SigningKey> load_or_make_signing_key(const std::filesystem::path& path);

/// OLPC canonical JSON, the form that TUF signs: keys sorted, no white space, integers only.
Result<std::string> canonical_json(const json::value& value);
/// TUF key id: SHA-256 of the canonical JSON of the public key object, hexadecimal.
std::string key_id(std::string_view public_key);

/// Makes TUF targets metadata (spec 1.0.31, one key, threshold 1) with one target, "artifacts/<sha256>.gguf";
/// header and tensors, by hash, offset and length, and the lineage, are in its "custom" member.
Result<std::string> sign_manifest(const ArtifactManifest& manifest, std::uint64_t version, UnixMillis expires,
                                  const SigningKey& key);

/// Checks signature, type, expiry (against `now`), and the manifest's own shape (pieces cover the file
/// without holes or overlaps, hashes well-formed, bounds). kDenied: signature or key; kUnavailable: expired;
/// kCorrupt: the rest.
Result<ArtifactManifest> verify_manifest(std::string_view signed_json, std::string_view public_key,
                                         UnixMillis now);

/// Builds the manifest of a GGUF file on disk: hashes header, every tensor and the whole.
Result<ArtifactManifest> make_manifest(const std::filesystem::path& gguf);

}  // namespace retort
