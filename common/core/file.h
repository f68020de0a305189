#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "common/core/result.h"

namespace retort {

/// An open file descriptor, closed with the object. Thread: one at a time (reads at offsets: any).
class File {
 public:
  File() = default;
  explicit File(int fd, std::filesystem::path path = {}) : fd_(fd), path_(std::move(path)) {}
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;

  static Result<File> open_read(const std::filesystem::path& path);
  /// Opens for reading and writing; creates it (mode 0600) when it is not there.
  static Result<File> open_write(const std::filesystem::path& path, bool truncate);

  int fd() const { return fd_; }
  int release();
  Result<std::uint64_t> size() const;
  Result<void> read_exact_at(std::uint64_t offset, std::span<char> out) const;
  Result<void> write_all_at(std::uint64_t offset, std::string_view bytes) const;
  /// fdatasync.
  Result<void> sync() const;

 private:
  int fd_ = -1;
  std::filesystem::path path_;
};

/// A whole file, mapped for reading; two processes that map it share its pages. Moves keep the address.
class MappedFile {
 public:
  MappedFile() = default;
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  /// An empty file maps to empty bytes. Anything but a regular file is kInvalid.
  static Result<MappedFile> open(const std::filesystem::path& path);
  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }
  /// Lets go of the pages that were read; they come back when they are read again.
  void drop_pages() const;

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

/// The whole file; kOutOfBudget above `limit_bytes`.
Result<std::string> read_file(const std::filesystem::path& path, std::uint64_t limit_bytes = 1ull << 30);
/// Standard input to its end, a pipe or what else.
Result<std::string> read_standard_input(std::uint64_t limit_bytes = 1ull << 30);

/// Replaces `path` in one step: temporary file beside it, fdatasync, rename, fsync of the folder. After a
/// crash one finds the old bytes or the new, never a mixture.
Result<void> write_file_atomic(const std::filesystem::path& path, std::string_view bytes,
                               unsigned mode = 0600);
/// The same with a writer that fills the temporary file; when it fails, nothing is left behind.
Result<void> write_file_with(const std::filesystem::path& path,
                             const std::function<Result<void>(const File&)>& write, unsigned mode = 0600);

/// A copy that appears whole or not at all, in the same way.
Result<void> copy_file_atomic(const std::filesystem::path& from, const std::filesystem::path& to);

/// fsync of a folder, so that a rename or a new name in it lasts.
Result<void> sync_folder(const std::filesystem::path& folder);

/// create_directories with a clear error.
Result<void> make_folders(const std::filesystem::path& folder);

/// An advisory lock (flock) held until the object goes or the process ends, however it ends. kConflict when
/// another process holds it; the message names its process id where the file tells. A disk that is read-only
/// or full is no hindrance where the file is there.
class FileLock {
 public:
  FileLock() = default;
  static Result<FileLock> take(const std::filesystem::path& path);
  /// True when some process holds the lock now.
  static bool held(const std::filesystem::path& path);
  const File& file() const { return file_; }

 private:
  File file_;
};

/// Free bytes for an ordinary user on the file system that holds `path`.
Result<std::uint64_t> free_disk_bytes(const std::filesystem::path& path);

}  // namespace retort
