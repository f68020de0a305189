#pragma once

#include <optional>

#include "common/seal/sealed_file.h"

namespace retort {

/// How students lie on this device's disk.
struct Sealing {
  std::optional<SealKey> key;  ///< none: nothing sealed can be read
  bool seal = false;           ///< what is brought here is sealed, and what lies here already
};

/// A student's file in a slot, as it is or sealed: the same bytes at the same offsets. Thread: one at a time.
class StoredFile {
 public:
  /// Sealed or not, as it begins. kDenied: sealed, and not under this key.
  static Result<StoredFile> open(const std::filesystem::path& path, const std::optional<SealKey>& key,
                                 bool to_write = false);
  /// Into a file that is there, empty or noughts.
  static Result<StoredFile> create(const std::filesystem::path& path, const Sealing& sealing,
                                   std::string_view artifact, std::uint64_t length);

  bool is_sealed() const { return sealed_.has_value(); }
  /// What a sealed one was sealed as; empty where it is not sealed.
  std::string artifact() const { return sealed_ ? sealed_->artifact() : ""; }
  Result<std::uint64_t> length() const;  ///< of the artifact
  Result<void> read_exact_at(std::uint64_t offset, std::span<char> out);
  Result<void> write_all_at(std::uint64_t offset, std::string_view bytes);
  Result<void> sync() const;
  /// SHA-256 of a range, hexadecimal.
  Result<std::string> hash(std::uint64_t offset, std::uint64_t length);

 private:
  File plain_;
  std::optional<SealedFile> sealed_;
};

}  // namespace retort
