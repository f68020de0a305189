#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "common/core/result.h"

namespace retort {

/// Streaming SHA-256 through libcrypto, which uses the CPU's SHA instructions (1.7 GB/s measured, against
/// libsodium's 0.3). Thread: one at a time.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  void update(std::string_view bytes);
  /// The digest as 64 lower-case hexadecimal characters; the object starts anew afterwards.
  std::string finish_hex();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

std::string sha256_hex(std::string_view bytes);
/// Whether two digests are equal, in a time that does not tell where they differ.
bool same_digest(std::string_view a, std::string_view b);
/// Of a range of a file; length npos means to its end. kIo, kCorrupt (shorter than the range).
Result<std::string> sha256_file_hex(const std::filesystem::path& path, std::uint64_t offset = 0,
                                    std::uint64_t length = UINT64_MAX);

}  // namespace retort
