#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <string>
#include <utility>

#include "common/core/file.h"
#include "coordinator/artifacts/artifact_store.h"

namespace retort {

/// Bytes of artifacts for many devices that pull the same at about the same time: blocks of 256 KiB, of which
/// the last ones used are kept, so that one read of the file serves all who are no further apart than that.
/// Not mapped: a file that is cut off, or a disk that fails, would end the process. Thread: reactor.
class ArtifactReader {
 public:
  static constexpr std::uint64_t kBlockBytes = 256u << 10;

  explicit ArtifactReader(const ArtifactStore& artifacts, std::uint64_t kept_bytes = 16u << 20)
      : artifacts_(artifacts), kept_blocks_(kept_bytes / kBlockBytes) {}
  /// kNotFound: no such artifact; kInvalid: it does not have these bytes; kUnavailable: cannot be read now.
  Result<std::string> read(const std::string& artifact, std::uint64_t offset, std::uint32_t length);
  /// Of the disk, so far.
  std::uint64_t reads() const { return reads_; }

 private:
  struct OpenFile {
    File file;
    std::uint64_t bytes = 0;
  };
  using BlockName = std::pair<std::string, std::uint64_t>;  ///< artifact, number of the block
  using Blocks = std::list<std::pair<BlockName, std::string>>;
  Result<const OpenFile*> open(const std::string& artifact);
  Result<const std::string*> block(const std::string& artifact, const OpenFile& file, std::uint64_t number);

  const ArtifactStore& artifacts_;
  std::uint64_t kept_blocks_, reads_ = 0;
  std::map<std::string, OpenFile> files_;
  Blocks blocks_;  ///< the last one used first
  std::map<BlockName, Blocks::iterator> found_;
};

}  // namespace retort
