#include "coordinator/artifacts/artifact_store.h"

#include <set>

#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/core/units.h"

namespace retort {
namespace {

constexpr std::uint64_t kDiskReserveBytes = 16 << 20;

}  // namespace

ArtifactStore::ArtifactStore(std::filesystem::path folder, Store& store, TrustRepository& trust,
                             const Clock& clock)
    : folder_(std::move(folder)), store_(store), records_(store, "artifacts"), trust_(trust), clock_(clock) {}

std::filesystem::path ArtifactStore::path(const std::string& sha256) const {
  return folder_ / sha256.substr(0, 2) / sha256;
}

Result<void> ArtifactStore::clean() {
  RETORT_TRY(make_folders(folder_));
  std::set<std::string> recorded;
  for (ArtifactRecord& record : RETORT_TRY(records_.all())) recorded.insert(std::move(record.sha256));
  std::error_code error;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_, error)) {
    const std::string name = entry.path().filename();
    const bool ours = name.size() == 64 && entry.is_regular_file(error);
    if (name.find(".tmp-") != std::string::npos || (ours && recorded.count(name) == 0))
      std::filesystem::remove(entry.path(), error);
  }
  std::vector<ArtifactManifest> unlisted;
  for (const std::string& sha256 : recorded)
    if (!trust_.knows(sha256)) unlisted.push_back(RETORT_TRY(make_manifest(path(sha256))));
  return unlisted.empty() ? Result<void>() : trust_.add(unlisted);
}

Result<ArtifactRecord> ArtifactStore::import(const std::filesystem::path& gguf, ArtifactRecord facts) {
  const ArtifactManifest manifest = RETORT_TRY(make_manifest(gguf));
  if (const auto known = RETORT_TRY(records_.get(manifest.sha256))) return *known;
  const std::filesystem::path target = path(manifest.sha256);
  RETORT_TRY(make_folders(target.parent_path()));
  const std::uint64_t free = RETORT_TRY(free_disk_bytes(folder_));
  if (free < manifest.length + kDiskReserveBytes)
    return fail(ErrorCode::kOutOfBudget, folder_.string(), "the artifact needs {}, the disk has {} left",
                format_bytes(manifest.length), format_bytes(free));
  RETORT_TRY(copy_file_atomic(gguf, target));
  if (RETORT_TRY(sha256_file_hex(target)) != manifest.sha256) {
    std::error_code ignored;
    std::filesystem::remove(target, ignored);
    return fail(ErrorCode::kCorrupt, gguf.string(), "changed while it was copied");
  }
  facts.sha256 = manifest.sha256;
  facts.bytes = manifest.length;
  facts.created = clock_.unix_millis();
  RETORT_TRY(trust_.add({manifest}));
  RETORT_TRY(records_.put(facts.sha256, facts));
  return facts;
}

Result<void> ArtifactStore::remove(const std::string& sha256) {
  RETORT_TRY(trust_.remove(sha256));
  RETORT_TRY(records_.erase(sha256));
  std::error_code error;
  std::filesystem::remove(path(sha256), error);
  if (error) log_warn("{}: cannot remove: {}", path(sha256).string(), error.message());
  return {};
}

Result<ArtifactRecord> ArtifactStore::find(std::string_view id) const {
  if (id.size() < 8)
    return fail(ErrorCode::kNotFound, "",
                "there is no artifact '{}' (give at least 8 characters of its SHA-256)", id);
  std::vector<std::string> hits;
  RETORT_TRY(store_.scan("artifacts", id, "", [&](std::string_view, std::string_view value) {
    hits.emplace_back(value);
    return hits.size() < 2;
  }));
  if (hits.empty()) return fail(ErrorCode::kNotFound, "", "there is no artifact '{}'", id);
  if (hits.size() > 1)
    return fail(ErrorCode::kConflict, "", "several artifacts begin with '{}'; give more characters", id);
  return wire::decode_record<ArtifactRecord>(hits[0]);
}

Result<ArtifactRecord> ArtifactStore::find_listed(std::string_view id) const {
  ArtifactRecord record = RETORT_TRY(find(id));
  if (!trust_.lists(record.sha256))
    return fail(
        ErrorCode::kConflict, "",
        "artifact {} is not among the signed targets yet: devices would refuse it (retort trust status)",
        record.sha256.substr(0, 12));
  return record;
}

}  // namespace retort
