#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/store/store.h"
#include "common/trust/trust.h"
#include "common/wire/record_table.h"

namespace retort {

/// Immutable files named by their SHA-256, each with a signed manifest: DATA/blobs/<first two>/<sha256>.
/// Thread: any; import() is slow (it hashes and copies) and belongs on a pool.
class ArtifactStore {
 public:
  ArtifactStore(std::filesystem::path folder, Store& store, SigningKey key, const Clock& clock);
  /// Removes what an interrupted import left.
  Result<void> clean() const;
  /// Copies a GGUF in, signs its manifest and records it; `facts` gives name, label, job and so on. Importing
  /// the same bytes again gives the record that is there. kOutOfBudget: the disk is full (nothing is left
  /// behind).
  Result<ArtifactRecord> import(const std::filesystem::path& gguf, ArtifactRecord facts);
  Result<std::vector<ArtifactRecord>> all() const { return records_.all(); }
  /// By hash or a prefix of at least 8 characters; kNotFound, kConflict when several match.
  Result<ArtifactRecord> find(std::string_view id) const;
  std::filesystem::path path(const std::string& sha256) const;
  const SigningKey& key() const { return key_; }
  /// The manifest to hand out: signed anew when the one on record is near its expiry.
  Result<std::string> manifest(const std::string& sha256);

 private:
  std::filesystem::path folder_;
  Store& store_;
  RecordTable<ArtifactRecord> records_;
  SigningKey key_;
  const Clock& clock_;
};

}  // namespace retort
