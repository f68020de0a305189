#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "agent/spool/spool.h"
#include "agent/update/plan.h"
#include "agent/update/stored_file.h"
#include "common/core/result.h"

namespace retort {

/// Files of the A/B slots: DIR/<slot>/model.gguf with manifest.json (the verified manifest it came with), and
/// model.gguf.part while one is being pulled; both perhaps sealed (StoredFile), the manifest never. Thread:
/// one at a time (the agent's disk pool).
class SlotFiles {
 public:
  /// `disk_budget_bytes`: of everything in the slots together; 0: what the file system has.
  SlotFiles(std::filesystem::path slots, std::uint64_t disk_budget_bytes, Sealing sealing = {});

  /// Where students are to be sealed: seals those that lie in the slots as they are. Each is replaced in one
  /// step; a server that has one open keeps it.
  Result<void> seal_what_is_not() const;

  std::filesystem::path model(std::string_view slot) const;
  /// The artifact of a slot if its files are there, can be read with our key and the names agree; not
  /// rehashed.
  std::optional<LocalArtifact> artifact_in(std::string_view slot) const;

  /// The slot that was preferred last, or whose artifact came since; nothing: neither holds one.
  std::optional<std::string> newest() const;
  /// For newest(): this slot's artifact is good, the other one's was given up. "": both slots' were; then
  /// neither counts any more.
  void prefer(std::string_view slot) const;

  /// `manifest_text` was verified (TrustPull). Where the slot holds this very artifact, that is all. Else
  /// makes room (the slot's old model goes when there is no other way), reserves the file, copies the pieces
  /// that lie here already; notes all in `spool`, so that it can go on after a crash. Resumes where `spool`
  /// holds this very artifact. kOutOfBudget when the disk is too small.
  struct Begun {
    ArtifactManifest manifest;
    std::vector<bool> done;
    std::uint64_t cursor = 0, bytes_copied = 0;
  };
  Result<Begun> begin(Spool& spool, const std::string& slot, const std::string& artifact,
                      std::string_view manifest_text);

  /// Writes bytes at an offset, to the disk, then checks the pieces they completed, then notes the progress.
  /// kCorrupt: a piece's hash is wrong (nothing is noted for this call).
  Result<void> write(Spool& spool, const std::string& slot, const ArtifactManifest& manifest,
                     std::uint64_t offset, std::string_view bytes,
                     const std::vector<std::uint32_t>& completed, std::uint64_t cursor_after);

  /// The whole file against the manifest's hash. kCorrupt otherwise; the file is removed then.
  Result<void> verify(const std::string& slot, const ArtifactManifest& manifest) const;
  /// What stands in the slot is this artifact, by its hash. kCorrupt otherwise: its files are removed then.
  /// kDenied: it was sealed under another key; it stays until the next one takes its place.
  Result<void> check(const std::string& slot, const std::string& artifact) const;
  /// Part and manifest become the slot's. Harmless to repeat.
  Result<void> stage(Spool& spool, const std::string& slot, const std::string& artifact);
  /// Ends what is left of pulls other than that of `wanted` ("": of all): partial files, what a crash left of
  /// a file that was being replaced, and the note in `spool`.
  Result<void> tidy(Spool& spool, const std::string& wanted);

 private:
  std::filesystem::path part(std::string_view slot) const;
  Result<std::string> hash_of(const std::filesystem::path& file) const;
  Result<void> reserve(const std::string& slot, std::uint64_t bytes) const;
  std::filesystem::path slots_;
  std::uint64_t disk_budget_bytes_;
  Sealing sealing_;
  std::optional<StoredFile> open_part_;  ///< of the pull under way
};

}  // namespace retort
