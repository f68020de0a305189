#include "agent/update/stored_file.h"

#include <algorithm>

#include "common/core/sha256.h"

namespace retort {

Result<StoredFile> StoredFile::open(const std::filesystem::path& path, const std::optional<SealKey>& key,
                                    bool to_write) {
  StoredFile out;
  File file = RETORT_TRY(to_write ? File::open_write(path, false) : File::open_read(path));
  if (!SealedFile::is_sealed(path)) {
    out.plain_ = std::move(file);
    return out;
  }
  if (!key)
    return fail(ErrorCode::kDenied, path.string(), "it is sealed, and this device has no sealing key");
  out.sealed_ = RETORT_TRY(SealedFile::open(std::move(file), path.string(), *key));
  return out;
}

Result<StoredFile> StoredFile::create(const std::filesystem::path& path, const Sealing& sealing,
                                      std::string_view artifact, std::uint64_t length) {
  StoredFile out;
  File file = RETORT_TRY(File::open_write(path, false));
  if (sealing.seal)
    out.sealed_ =
        RETORT_TRY(SealedFile::create(std::move(file), path.string(), *sealing.key, artifact, length));
  else
    out.plain_ = std::move(file);
  return out;
}

Result<std::uint64_t> StoredFile::length() const { return sealed_ ? sealed_->length() : plain_.size(); }

Result<void> StoredFile::read_exact_at(std::uint64_t offset, std::span<char> out) {
  return sealed_ ? sealed_->read_exact_at(offset, out) : plain_.read_exact_at(offset, out);
}

Result<void> StoredFile::write_all_at(std::uint64_t offset, std::string_view bytes) {
  return sealed_ ? sealed_->write_all_at(offset, bytes) : plain_.write_all_at(offset, bytes);
}

Result<void> StoredFile::sync() const { return sealed_ ? sealed_->sync() : plain_.sync(); }

Result<std::string> StoredFile::hash(std::uint64_t offset, std::uint64_t length) {
  Sha256 hash;
  std::string buffer;
  for (const std::uint64_t end = offset + length; offset < end; offset += buffer.size()) {
    buffer.resize(std::min<std::uint64_t>(end - offset, SealedFile::kMaxRecordBytes));
    RETORT_TRY(read_exact_at(offset, buffer));
    hash.update(buffer);
  }
  return hash.finish_hex();
}

}  // namespace retort
