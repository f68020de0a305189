#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "common/model/manifest.h"
#include "common/trust/metadata.h"

namespace retort {

/// An artifact as the targets role lists it: "artifacts/<sha256>.gguf", length and hash of the file, and in
/// "custom" those of its manifest, which names header and tensors (docs/format.md, "Manifest").
std::string artifact_target_name(std::string_view sha256);
/// The name of the manifest among the files of a repository: "manifests/<sha256 of the artifact>.json".
std::string manifest_file_name(std::string_view sha256);
TargetFile artifact_target(const ArtifactManifest& manifest, std::string_view manifest_text);

/// Where the manifest of a listed artifact must be: its length (to bound the download) and its hash.
struct ManifestReference {
  std::string sha256;
  std::uint64_t length = 0;
};
/// kCorrupt when the target's "custom" does not say.
Result<ManifestReference> manifest_of_target(const TargetFile& target);

/// JSON, not canonical (names may hold control characters). kCorrupt: the pieces do not cover the file.
Result<std::string> manifest_to_text(const ArtifactManifest& manifest);
/// Checks that pieces cover the file without holes or overlaps, and that hashes are well-formed. kCorrupt,
/// kUnsupported (another version).
Result<ArtifactManifest> manifest_from_text(std::string_view text);

/// Builds the manifest of a GGUF file on disk: hashes header, every tensor and the whole.
Result<ArtifactManifest> make_manifest(const std::filesystem::path& gguf);

}  // namespace retort
