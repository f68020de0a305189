#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "common/core/file.h"
#include "common/core/result.h"
#include "common/seal/private_memory.h"

namespace retort {

/// The secret under which a device's students lie on its disk.
struct SealKey {
  static constexpr std::size_t kBytes = 32;
  std::array<unsigned char, kBytes> bytes{};
  static SealKey make();
  /// Tells one key from another, and nothing about it: 8 bytes of a hash, hexadecimal.
  std::string id() const;
  bool operator==(const SealKey&) const = default;
};

/// A key as it is handed to another process of this user: 64 hexadecimal digits. kInvalid for anything else.
Result<SealKey> read_seal_key(const std::filesystem::path& file);
/// The same text in memory that has no name and never reaches a disk (memfd). Whoever may look into this
/// process reads it at /proc/<pid>/fd/<fd>.
Result<File> seal_key_in_memory(const SealKey& key);

/// An artifact that lies encrypted and authenticated on the disk: a header, then records, each of them a
/// range of the artifact under a nonce of its own (XChaCha20-Poly1305). Bytes are written at any offset, in
/// any order, as a pull brings them, and always as a new record at the end: what was synced is never written
/// over, so that a power cut costs what was not synced and nothing else. Of two records of the same bytes the
/// later counts. docs/format.md has the layout. Thread: one at a time.
class SealedFile {
 public:
  static constexpr std::size_t kHeaderBytes = 96, kRecordHeaderBytes = 40, kTagBytes = 16;
  static constexpr std::size_t kMaxRecordBytes = 256u << 10;
  /// On disk, of an artifact of `length` bytes that is written in records of kMaxRecordBytes, `pieces` times
  /// begun anew.
  static std::uint64_t stored_bytes(std::uint64_t length, std::size_t pieces);

  /// Whether the file begins as a sealed one does.
  static bool is_sealed(const std::filesystem::path& path);
  /// Which artifact it says it is. Nothing vouches for that before open().
  static Result<std::string> artifact_of(const std::filesystem::path& path);

  /// Begins an empty one in `file`. `artifact`: its SHA-256, hexadecimal.
  static Result<SealedFile> create(File file, std::string where, const SealKey& key,
                                   std::string_view artifact, std::uint64_t length);
  /// kInvalid: not a sealed file. kDenied: sealed under another key. kCorrupt: the header is damaged. What
  /// follows the last whole record (a write that a power cut tore) does not count and is written over.
  static Result<SealedFile> open(File file, std::string where, const SealKey& key);

  const std::string& artifact() const { return artifact_; }
  std::uint64_t length() const { return length_; }
  Result<void> write_all_at(std::uint64_t offset, std::string_view bytes);
  Result<void> sync() const { return file_.sync(); }
  /// kCorrupt: a record was damaged, or nothing was ever written there.
  Result<void> read_exact_at(std::uint64_t offset, std::span<char> out);

 private:
  struct Record {  ///< what lies at an offset of the artifact
    std::uint64_t begin = 0, position = 0;
    std::uint32_t length = 0;
  };
  struct Extent {
    std::uint64_t end = 0;
    Record record;
  };
  SealedFile(File file, std::string where) : file_(std::move(file)), where_(std::move(where)) {}
  Result<void> take_header(const SealKey& key);
  Result<void> find_records();
  Result<std::optional<Record>> record_at(std::uint64_t position, std::uint64_t file_size) const;
  Result<void> decrypt(const Record& record);
  void add(const Record& record);

  File file_;
  std::string where_, artifact_;
  std::uint64_t length_ = 0, end_ = kHeaderBytes;
  std::array<unsigned char, 32> file_key_{};
  std::map<std::uint64_t, Extent> extents_;  ///< by their begin; they do not overlap
  std::string sealed_, plain_;               ///< of `decrypted_`
  std::optional<std::uint64_t> decrypted_;   ///< position of the record that `plain_` holds
};

/// The whole artifact, in memory that no file stands behind and no core dump shows; its hash is the one that
/// it was sealed as. kDenied, kCorrupt, kInvalid as open().
Result<PrivateMemory> unseal(const std::filesystem::path& path, const SealKey& key);

}  // namespace retort
