#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/store/store.h"
#include "common/wire/record_table.h"
#include "coordinator/trust/trust_repository.h"

namespace retort {

/// Immutable files named by their SHA-256, each listed in the trust repository: DATA/blobs/<first
/// two>/<sha256>.
/// Thread: any; import() is slow (it hashes and copies) and belongs on a pool.
class ArtifactStore {
 public:
  ArtifactStore(std::filesystem::path folder, Store& store, TrustRepository& trust, const Clock& clock);
  /// Removes files without a record, which an interrupted import or removal left, and lists what the trust
  /// repository does not have yet (a store of 0.1.0, which is hashed for it).
  Result<void> clean();
  /// Copies a GGUF in, lists it in the trust repository and records it; `facts` gives name, label, job and so
  /// on. Importing the same bytes again gives the record that is there. kOutOfBudget: the disk is full
  /// (nothing is left behind).
  Result<ArtifactRecord> import(const std::filesystem::path& gguf, ArtifactRecord facts);
  Result<std::vector<ArtifactRecord>> all() const { return records_.all(); }
  /// By hash or a prefix of at least 8 characters; kNotFound, kConflict when several match.
  Result<ArtifactRecord> find(std::string_view id) const;
  /// find(), of one that the signed targets list, so that devices will take it; kConflict otherwise.
  Result<ArtifactRecord> find_listed(std::string_view id) const;
  /// The file, its record and its place among the targets; that nobody is to serve it, the caller sees to.
  Result<void> remove(const std::string& sha256);
  std::filesystem::path path(const std::string& sha256) const;
  TrustRepository& trust() const { return trust_; }

 private:
  std::filesystem::path folder_;
  Store& store_;
  RecordTable<ArtifactRecord> records_;
  TrustRepository& trust_;
  const Clock& clock_;
};

}  // namespace retort
