#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "common/core/error.h"
#include "common/model/manifest.h"

namespace retort {

/// An artifact that is on this device's disk already.
struct LocalArtifact {
  std::filesystem::path file;
  ArtifactManifest manifest;
};

/// A piece that need not be pulled: its bytes lie in a local file.
struct PieceCopy {
  std::uint32_t piece = 0;  ///< index in the wanted manifest
  std::filesystem::path file;
  std::uint64_t offset = 0;
};

/// Which pieces of `wanted` lie in local artifacts (same hash and length). `done` pieces are left out.
std::vector<PieceCopy> plan_copies(const ArtifactManifest& wanted, const std::vector<LocalArtifact>& local,
                                   const std::vector<bool>& done);

/// Walks an artifact's missing bytes in file order. Values only; the bytes themselves pass by elsewhere.
/// Invariant: every byte before `next()` that a piece not done holds has been received.
class PullCursor {
 public:
  PullCursor(const ArtifactManifest& manifest, std::vector<bool> done, std::uint64_t cursor);

  struct Range {
    std::uint64_t offset = 0;
    std::uint32_t length = 0;
  };
  /// The missing range at or after `offset`, at most `limit` long, across neighbouring missing pieces;
  /// nothing when there is none.
  std::optional<Range> missing_from(std::uint64_t offset, std::uint32_t limit) const;
  /// Where the next byte must go; the artifact's length when nothing is missing.
  std::uint64_t next() const { return cursor_; }
  bool complete() const;
  /// Bytes at `next()` have been received: which pieces that completed. They count as done from here on.
  std::vector<std::uint32_t> received(std::uint64_t length);
  std::uint64_t bytes_missing() const;
  const std::vector<bool>& done() const { return done_; }

 private:
  void skip_done();
  std::vector<ArtifactPiece> pieces_;
  std::vector<bool> done_;
  std::uint64_t cursor_ = 0;
};

/// What to do after the `attempts`-th failure (from 1) to bring an artifact here.
struct RetryDecision {
  bool again = false;
  std::uint32_t after_millis = 0;
};
/// Never endless: passing troubles five times with doubling pauses, damaged or refused bytes three times,
/// what cannot get better not at all.
RetryDecision decide_retry(ErrorCode code, std::uint32_t attempts);

}  // namespace retort
