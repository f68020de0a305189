#include "agent/update/slot_files.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <map>

#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/core/units.h"
#include "common/trust/artifact_target.h"

namespace retort {
namespace fs = std::filesystem;

namespace {

/// Left free on the file system whatever is pulled: the agent's own state must still be writable.
constexpr std::uint64_t kDiskReserveBytes = 8u << 20;

std::uint64_t size_or_zero(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : size;
}
void remove_quietly(const fs::path& path) {
  std::error_code ignored;
  fs::remove(path, ignored);
}

}  // namespace

SlotFiles::SlotFiles(fs::path slots, std::uint64_t disk_budget_bytes, Sealing sealing)
    : slots_(std::move(slots)), disk_budget_bytes_(disk_budget_bytes), sealing_(std::move(sealing)) {}

fs::path SlotFiles::model(std::string_view slot) const { return slots_ / slot / "model.gguf"; }
fs::path SlotFiles::part(std::string_view slot) const { return slots_ / slot / "model.gguf.part"; }

std::optional<LocalArtifact> SlotFiles::artifact_in(std::string_view slot) const {
  const Result<std::string> text = read_file(slots_ / slot / "manifest.json", 64u << 20);
  if (!text) return std::nullopt;
  Result<ArtifactManifest> manifest = manifest_from_text(*text);
  if (!manifest || size_or_zero(model(slot)) == 0) return std::nullopt;
  const Result<StoredFile> file = StoredFile::open(model(slot), sealing_.key);
  if (!file || file->length().value_or(0) != manifest->length ||
      (file->is_sealed() && file->artifact() != manifest->sha256))
    return std::nullopt;
  return LocalArtifact{model(slot), std::move(*manifest)};
}

std::optional<std::string> SlotFiles::newest() const {
  std::optional<std::string> found;
  fs::file_time_type when;
  for (const char* slot : {"a", "b"}) {
    std::error_code error;
    const auto came = fs::last_write_time(slots_ / slot / "manifest.json", error);
    if (error || !artifact_in(slot) || (found && came <= when)) continue;
    found = slot, when = came;
  }
  return found;
}

void SlotFiles::prefer(std::string_view slot) const {
  std::error_code ignored;
  if (!slot.empty())
    fs::last_write_time(slots_ / slot / "manifest.json", fs::file_time_type::clock::now(), ignored);
  else
    for (const char* each : {"a", "b"}) fs::remove(slots_ / each / "manifest.json", ignored);
}

Result<void> SlotFiles::seal_what_is_not() const {
  if (!sealing_.seal) return {};
  for (const char* slot : {"a", "b"}) {
    const std::optional<LocalArtifact> there = artifact_in(slot);
    if (!there || SealedFile::is_sealed(there->file)) continue;
    const std::uint64_t length = there->manifest.length;
    const fs::path temporary = model(slot).string() + ".tmp-seal";
    remove_quietly(temporary);
    const auto seal = [&]() -> Result<void> {
      StoredFile in = RETORT_TRY(StoredFile::open(there->file, std::nullopt)),
                 out = RETORT_TRY(StoredFile::create(temporary, sealing_, there->manifest.sha256, length));
      std::string buffer;
      for (std::uint64_t at = 0; at < length; at += buffer.size()) {
        buffer.resize(std::min<std::uint64_t>(length - at, SealedFile::kMaxRecordBytes));
        RETORT_TRY(in.read_exact_at(at, buffer));
        RETORT_TRY(out.write_all_at(at, buffer));
      }
      RETORT_TRY(out.sync());
      if (::rename(temporary.c_str(), model(slot).c_str()) != 0)
        return fail_errno(model(slot).string(), "cannot rename into place");
      return sync_folder(slots_ / slot);
    };
    Result<void> sealed = seal();
    if (!sealed) {
      remove_quietly(temporary);
      return sealed;
    }
    log_info("slot {}: its student was sealed", slot);
  }
  return {};
}

Result<void> SlotFiles::reserve(const std::string& slot, std::uint64_t length) const {
  const fs::path file = part(slot);
  RETORT_TRY(make_folders(file.parent_path()));
  const auto room = [&]() -> Result<void> {
    const std::uint64_t have = size_or_zero(file), more = length > have ? length - have : 0;
    const std::uint64_t free = RETORT_TRY(free_disk_bytes(file.parent_path()));
    if (more + kDiskReserveBytes > free && more > 0)
      return fail(ErrorCode::kOutOfBudget, file.string(),
                  "the student needs {} of disk and {} are free ({} are kept for the agent): free some space",
                  format_bytes(more), format_bytes(free), format_bytes(kDiskReserveBytes));
    if (disk_budget_bytes_ > 0) {
      std::uint64_t used = length;
      for (const char* other : {"a", "b"}) used += size_or_zero(model(other));
      if (used > disk_budget_bytes_)
        return fail(ErrorCode::kOutOfBudget, file.string(),
                    "with this student the slots would hold {}, above the disk budget of {}",
                    format_bytes(used), format_bytes(disk_budget_bytes_));
    }
    return {};
  };
  Result<void> fits = room();
  if (!fits && size_or_zero(model(slot)) > 0) {
    log_info("slot {}: its previous model goes, to make room for the next one", slot);
    remove_quietly(model(slot));
    remove_quietly(slots_ / slot / "manifest.json");
    fits = room();
  }
  if (!fits) return fits;
  const File out = RETORT_TRY(File::open_write(file, false));
  if (length > 0)
    if (const int error = ::posix_fallocate(out.fd(), 0, static_cast<off_t>(length)); error != 0) {
      remove_quietly(file);
      errno = error;
      return fail_errno(file.string(), "cannot reserve disk space");
    }
  return out.sync();
}

Result<SlotFiles::Begun> SlotFiles::begin(Spool& spool, const std::string& slot, const std::string& artifact,
                                          std::string_view manifest_text) {
  Begun begun;
  begun.manifest = RETORT_TRY(manifest_from_text(manifest_text));
  if (begun.manifest.sha256 != artifact)
    return fail(ErrorCode::kCorrupt, artifact, "the manifest is for another artifact, {}",
                begun.manifest.sha256);
  if (begun.manifest.format != "gguf")
    return fail(ErrorCode::kUnsupported, artifact, "format \"{}\"; this agent serves gguf",
                begun.manifest.format);
  const std::size_t pieces = begun.manifest.pieces.size();

  const std::optional<Spool::Pull> earlier = RETORT_TRY(spool.pull());
  if (const std::optional<LocalArtifact> there = artifact_in(slot);
      there && there->manifest.sha256 == artifact) {
    // The way back: the slot still holds it. verify() hashes the file.
    remove_quietly(part(slot));
    begun.done.assign(pieces, true);
    RETORT_TRY(spool.begin_pull({artifact, slot, std::string(manifest_text), begun.done, 0}));
    return begun;
  }
  open_part_.reset();
  const auto goes_on = [&] {
    if (!earlier || earlier->artifact != artifact || earlier->slot != slot || earlier->done.size() != pieces)
      return false;
    if (size_or_zero(part(slot)) == 0 || SealedFile::is_sealed(part(slot)) != sealing_.seal) return false;
    const Result<StoredFile> file = StoredFile::open(part(slot), sealing_.key);
    return file && file->length().value_or(0) == begun.manifest.length &&
           (!sealing_.seal || file->artifact() == artifact);
  };
  const bool resumed = goes_on();
  if (resumed) {
    begun.done = earlier->done;
    begun.cursor = earlier->cursor;
  } else {
    remove_quietly(part(slot));
    begun.done.assign(pieces, false);
    RETORT_TRY(spool.begin_pull({artifact, slot, std::string(manifest_text), begun.done, 0}));
  }
  RETORT_TRY(reserve(
      slot, sealing_.seal ? SealedFile::stored_bytes(begun.manifest.length, pieces) : begun.manifest.length));
  open_part_ =
      RETORT_TRY(resumed ? StoredFile::open(part(slot), sealing_.key, true)
                         : StoredFile::create(part(slot), sealing_, artifact, begun.manifest.length));

  std::vector<LocalArtifact> local;
  for (const char* name : {"a", "b"})
    if (std::optional<LocalArtifact> found = artifact_in(name)) local.push_back(std::move(*found));
  StoredFile& out = *open_part_;
  std::map<fs::path, Result<StoredFile>> open;
  std::vector<std::uint32_t> copied;
  std::string buffer;
  for (const PieceCopy& copy : plan_copies(begun.manifest, local, begun.done)) {
    const ArtifactPiece& piece = begun.manifest.pieces[copy.piece];
    if (open.count(copy.file) == 0) open.emplace(copy.file, StoredFile::open(copy.file, sealing_.key));
    Result<StoredFile>& in = open.at(copy.file);
    if (!in) continue;  // then it is pulled
    Sha256 hash;
    bool good = true;
    for (std::uint64_t at = 0; good && at < piece.length;) {
      buffer.resize(std::min<std::uint64_t>(piece.length - at, 256u << 10));
      good = in->read_exact_at(copy.offset + at, buffer).has_value();
      if (!good) break;
      hash.update(buffer);
      RETORT_TRY(out.write_all_at(piece.offset + at, buffer));
      at += buffer.size();
    }
    if (!good || hash.finish_hex() != piece.sha256) continue;
    copied.push_back(copy.piece);
    begun.done[copy.piece] = true;
    begun.bytes_copied += piece.length;
  }
  if (!copied.empty()) {
    RETORT_TRY(out.sync());
    RETORT_TRY(spool.note_progress(copied, begun.cursor));
  }
  return begun;
}

Result<void> SlotFiles::write(Spool& spool, const std::string& slot, const ArtifactManifest& manifest,
                              std::uint64_t offset, std::string_view bytes,
                              const std::vector<std::uint32_t>& completed, std::uint64_t cursor_after) {
  if (!open_part_)
    return fail(ErrorCode::kUnavailable, part(slot).string(), "the pull is not under way any more");
  RETORT_TRY(open_part_->write_all_at(offset, bytes));
  RETORT_TRY(open_part_->sync());
  std::vector<std::uint32_t> good;
  for (const std::uint32_t index : completed) {
    const ArtifactPiece& piece = manifest.pieces[index];
    if (RETORT_TRY(open_part_->hash(piece.offset, piece.length)) == piece.sha256) {
      good.push_back(index);
      continue;
    }
    // Any of the piece's chunks may be the bad one: cursor 0 makes the next try pull it from its start.
    RETORT_TRY(spool.note_progress(good, 0));
    return fail(ErrorCode::kCorrupt, manifest.sha256,
                "piece \"{}\" arrived with another hash than its manifest names", piece.name);
  }
  return spool.note_progress(good, cursor_after);
}

Result<void> SlotFiles::verify(const std::string& slot, const ArtifactManifest& manifest) const {
  // After a crash between stage's two steps the file has its final name already.
  const bool staged = !fs::exists(part(slot)) && fs::exists(model(slot));
  const fs::path file = staged ? model(slot) : part(slot);
  const Result<std::string> hash = hash_of(file);
  if (hash && *hash == manifest.sha256) return {};
  if (!hash && hash.error().code == ErrorCode::kIo) return fail(hash.error());
  remove_quietly(file);
  return fail(ErrorCode::kCorrupt, manifest.sha256, "the whole file's hash is {}",
              hash ? *hash : "unknown: " + hash.error().describe());
}

Result<std::string> SlotFiles::hash_of(const fs::path& file) const {
  StoredFile stored = RETORT_TRY(StoredFile::open(file, sealing_.key));
  return stored.hash(0, RETORT_TRY(stored.length()));
}

Result<void> SlotFiles::check(const std::string& slot, const std::string& artifact) const {
  Result<std::string> found = hash_of(model(slot));
  if (found && *found == artifact && artifact_in(slot)) return {};
  if (!found && (found.error().code == ErrorCode::kIo || found.error().code == ErrorCode::kDenied))
    return fail(found.error());
  remove_quietly(model(slot));
  remove_quietly(slots_ / slot / "manifest.json");
  return fail(ErrorCode::kCorrupt, model(slot).string(),
              "is not the student that was put there ({}): removed",
              found ? "its hash is " + *found : found.error().message);
}

Result<void> SlotFiles::stage(Spool& spool, const std::string& slot, const std::string& artifact) {
  open_part_.reset();
  const std::optional<Spool::Pull> pull = RETORT_TRY(spool.pull());
  const std::optional<LocalArtifact> there = artifact_in(slot);
  if (there && there->manifest.sha256 == artifact && !fs::exists(part(slot))) return spool.end_pull();
  if (!pull || pull->artifact != artifact)
    return fail(ErrorCode::kNotFound, artifact, "no pull of this artifact to put in slot {}", slot);
  // The old manifest goes first: model and manifest never disagree unnoticed, for artifact_in compares.
  remove_quietly(slots_ / slot / "manifest.json");
  if (fs::exists(part(slot))) {
    std::error_code error;
    fs::rename(part(slot), model(slot), error);
    if (error) {
      errno = error.value();
      return fail_errno(model(slot).string(), "cannot rename into place");
    }
    RETORT_TRY(sync_folder(slots_ / slot));
  }
  RETORT_TRY(write_file_atomic(slots_ / slot / "manifest.json", pull->manifest));
  return spool.end_pull();
}

Result<void> SlotFiles::tidy(Spool& spool, const std::string& wanted) {
  const std::optional<Spool::Pull> pull = RETORT_TRY(spool.pull());
  const bool wants_pull = pull && !wanted.empty() && pull->artifact == wanted;
  if (!wants_pull) open_part_.reset();
  for (const std::string slot : {"a", "b"}) {
    if (!wants_pull || pull->slot != slot) remove_quietly(part(slot));
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(slots_ / slot, error))
      if (entry.path().filename().string().find(".tmp-") != std::string::npos) remove_quietly(entry.path());
  }
  return pull && !wants_pull ? spool.end_pull() : Result<void>();
}

}  // namespace retort
