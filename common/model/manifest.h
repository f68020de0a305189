#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace retort {

/// A byte range of an artifact, named by its hash: the unit of transfer.
struct ArtifactPiece {
  std::string name;    ///< "header", or the tensor's name
  std::string sha256;  ///< 64 hexadecimal characters
  std::uint64_t offset = 0, length = 0;
  bool operator==(const ArtifactPiece&) const = default;
};

/// What is signed about an artifact (version 1: docs/format.md, "Manifest"). Pieces are in file order,
/// without holes or overlaps, and cover the whole file: the header runs to the first tensor, a tensor to the
/// start of the next.
struct ArtifactManifest {
  std::string sha256;  ///< of the whole file; the artifact's name everywhere
  std::uint64_t length = 0;
  std::string format;  ///< "gguf"
  std::vector<ArtifactPiece> pieces;
  /// Teacher, data, recipe hashes and more: inside what is signed.
  std::map<std::string, std::string> lineage;
  bool operator==(const ArtifactManifest&) const = default;
};

}  // namespace retort
