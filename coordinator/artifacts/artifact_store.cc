#include "coordinator/artifacts/artifact_store.h"

#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/core/units.h"

namespace retort {
namespace {

constexpr UnixMillis kValidMillis = 365ll * 24 * 3600 * 1000, kRenewMillis = 30ll * 24 * 3600 * 1000;
constexpr std::uint64_t kDiskReserveBytes = 16 << 20;

}  // namespace

ArtifactStore::ArtifactStore(std::filesystem::path folder, Store& store, SigningKey key, const Clock& clock)
    : folder_(std::move(folder)),
      store_(store),
      records_(store, "artifacts"),
      key_(std::move(key)),
      clock_(clock) {}

std::filesystem::path ArtifactStore::path(const std::string& sha256) const {
  return folder_ / sha256.substr(0, 2) / sha256;
}

Result<void> ArtifactStore::clean() const {
  RETORT_TRY(make_folders(folder_));
  std::error_code error;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_, error))
    if (entry.path().filename().string().find(".tmp-") != std::string::npos)
      std::filesystem::remove(entry.path(), error);
  return {};
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
  facts.signed_manifest = RETORT_TRY(sign_manifest(manifest, 1, clock_.unix_millis() + kValidMillis, key_));
  RETORT_TRY(records_.put(facts.sha256, facts));
  return facts;
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

Result<std::string> ArtifactStore::manifest(const std::string& sha256) {
  ArtifactRecord record = RETORT_TRY(find(sha256));
  const UnixMillis now = clock_.unix_millis();
  if (verify_manifest(record.signed_manifest, key_.public_key, now + kRenewMillis))
    return record.signed_manifest;
  const ArtifactManifest manifest = RETORT_TRY(make_manifest(path(record.sha256)));
  record.signed_manifest =
      RETORT_TRY(sign_manifest(manifest, static_cast<std::uint64_t>(now / 1000), now + kValidMillis, key_));
  RETORT_TRY(records_.put(record.sha256, record));
  return record.signed_manifest;
}

}  // namespace retort
