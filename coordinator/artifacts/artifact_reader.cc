#include "coordinator/artifacts/artifact_reader.h"

#include <algorithm>

namespace retort {
namespace {

constexpr std::size_t kMaxOpenFiles = 32;

}  // namespace

Result<const ArtifactReader::OpenFile*> ArtifactReader::open(const std::string& artifact) {
  auto found = files_.find(artifact);
  if (found == files_.end()) {
    const Result<ArtifactRecord> record = artifacts_.find(artifact);
    if (!record || record->sha256 != artifact)
      return fail(ErrorCode::kNotFound, "", "there is no such artifact");
    Result<File> file = File::open_read(artifacts_.path(artifact));
    if (!file) return fail(ErrorCode::kUnavailable, "", "{}", file.error().message);
    const std::uint64_t bytes = RETORT_TRY(file->size());
    if (files_.size() >= kMaxOpenFiles) files_.clear();
    found = files_.emplace(artifact, OpenFile{std::move(*file), bytes}).first;
  }
  return &found->second;
}

Result<const std::string*> ArtifactReader::block(const std::string& artifact, const OpenFile& file,
                                                 std::uint64_t number) {
  const BlockName name(artifact, number);
  if (const auto kept = found_.find(name); kept != found_.end()) {
    blocks_.splice(blocks_.begin(), blocks_, kept->second);
    return &kept->second->second;
  }
  std::string bytes(std::min(kBlockBytes, file.bytes - number * kBlockBytes), '\0');
  ++reads_;
  RETORT_TRY(file.file.read_exact_at(number * kBlockBytes, bytes));
  if (blocks_.size() >= std::max<std::uint64_t>(kept_blocks_, 1)) {
    found_.erase(blocks_.back().first);
    blocks_.pop_back();
  }
  blocks_.emplace_front(name, std::move(bytes));
  found_[name] = blocks_.begin();
  return &blocks_.front().second;
}

Result<std::string> ArtifactReader::read(const std::string& artifact, std::uint64_t offset,
                                         std::uint32_t length) {
  const OpenFile& file = *RETORT_TRY(open(artifact));
  if (offset > file.bytes || length > file.bytes - offset)
    return fail(ErrorCode::kInvalid, "", "{} bytes from {} are asked for, the artifact has {}", length,
                offset, file.bytes);
  std::string out;
  out.reserve(length);
  while (out.size() < length) {
    const std::uint64_t at = offset + out.size();
    const std::string& bytes = *RETORT_TRY(block(artifact, file, at / kBlockBytes));
    out.append(bytes, at % kBlockBytes, length - out.size());
  }
  return out;
}

}  // namespace retort
