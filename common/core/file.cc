#include "common/core/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace retort {

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}
File::File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}
File& File::operator=(File&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}
int File::release() { return std::exchange(fd_, -1); }

Result<File> File::open_read(const std::filesystem::path& path) {
  // Without O_NONBLOCK a pipe that lies where a file should holds its opener until somebody writes to it.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return fail_errno(path.string(), "cannot open");
  File file(fd, path);
  struct stat info {};
  if (::fstat(fd, &info) != 0) return fail_errno(path.string(), "cannot stat");
  if (S_ISFIFO(info.st_mode)) return fail(ErrorCode::kInvalid, path.string(), "is a pipe, not a file");
  return file;
}

Result<File> File::open_write(const std::filesystem::path& path, bool truncate) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | (truncate ? O_TRUNC : 0), 0600);
  if (fd < 0) return fail_errno(path.string(), "cannot open for writing");
  return File(fd, path);
}

Result<std::uint64_t> File::size() const {
  struct stat info {};
  if (::fstat(fd_, &info) != 0) return fail_errno(path_.string(), "cannot stat");
  return static_cast<std::uint64_t>(info.st_size);
}

Result<void> File::read_exact_at(std::uint64_t offset, std::span<char> out) const {
  while (!out.empty()) {
    const ssize_t got = ::pread(fd_, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(path_.string(), "cannot read");
    if (got == 0) return fail(ErrorCode::kCorrupt, path_.string(), "ends at byte {}", offset);
    out = out.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return {};
}

Result<void> File::write_all_at(std::uint64_t offset, std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return fail_errno(path_.string(), "cannot write");
    bytes.remove_prefix(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
  return {};
}

Result<void> File::sync() const {
  if (::fdatasync(fd_) != 0) return fail_errno(path_.string(), "cannot write to disk");
  return {};
}

void MappedFile::drop_pages() const {
  if (data_ != nullptr) ::madvise(data_, size_, MADV_DONTNEED);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}
MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Result<MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const File file = RETORT_TRY(File::open_read(path));
  struct stat info {};
  if (::fstat(file.fd(), &info) != 0) return fail_errno(path.string(), "cannot stat");
  if (!S_ISREG(info.st_mode)) return fail(ErrorCode::kInvalid, path.string(), "not a regular file");
  MappedFile mapped;
  mapped.size_ = static_cast<std::size_t>(info.st_size);
  if (mapped.size_ == 0) return mapped;
  void* data = ::mmap(nullptr, mapped.size_, PROT_READ, MAP_SHARED, file.fd(), 0);
  if (data == MAP_FAILED) {
    mapped.size_ = 0;
    return fail_errno(path.string(), "cannot map");
  }
  mapped.data_ = data;
  return mapped;
}

namespace {

Result<std::string> read_all(int fd, const std::filesystem::path& path, std::uint64_t limit_bytes) {
  std::string out;
  char buffer[65536];
  for (;;) {  // not by size: files under /proc and /sys say 0
    const ssize_t got = ::read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(path.string(), "cannot read");
    if (got == 0) return out;
    if (out.size() + static_cast<std::size_t>(got) > limit_bytes)
      return fail(ErrorCode::kOutOfBudget, path.string(), "larger than the limit of {} bytes", limit_bytes);
    out.append(buffer, static_cast<std::size_t>(got));
  }
}

}  // namespace

Result<std::string> read_file(const std::filesystem::path& path, std::uint64_t limit_bytes) {
  const File file = RETORT_TRY(File::open_read(path));
  return read_all(file.fd(), path, limit_bytes);
}

Result<std::string> read_standard_input(std::uint64_t limit_bytes) {
  return read_all(STDIN_FILENO, "standard input", limit_bytes);
}

Result<void> sync_folder(const std::filesystem::path& folder) {
  const int fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return fail_errno(folder.string(), "cannot open folder");
  const File file(fd, folder);
  if (::fsync(fd) != 0) return fail_errno(folder.string(), "cannot write folder to disk");
  return {};
}

Result<void> write_file_atomic(const std::filesystem::path& path, std::string_view bytes, unsigned mode) {
  return write_file_with(
      path, [&](const File& file) { return file.write_all_at(0, bytes); }, mode);
}

Result<void> write_file_with(const std::filesystem::path& path,
                             const std::function<Result<void>(const File&)>& write, unsigned mode) {
  std::filesystem::path temporary = path;
  temporary += ".tmp-" + std::to_string(::getpid());
  const auto write_all = [&]() -> Result<void> {
    const File file = RETORT_TRY(File::open_write(temporary, true));
    if (::fchmod(file.fd(), mode) != 0) return fail_errno(temporary.string(), "cannot set the mode");
    RETORT_TRY(write(file));
    RETORT_TRY(file.sync());
    if (::rename(temporary.c_str(), path.c_str()) != 0)
      return fail_errno(path.string(), "cannot rename into place");
    return sync_folder(path.parent_path());
  };
  Result<void> done = write_all();
  if (!done) ::unlink(temporary.c_str());
  return done;
}

Result<void> copy_file_atomic(const std::filesystem::path& from, const std::filesystem::path& to) {
  const File source = RETORT_TRY(File::open_read(from));
  const std::uint64_t size = RETORT_TRY(source.size());
  return write_file_with(to, [&](const File& out) -> Result<void> {
    std::string buffer;
    for (std::uint64_t at = 0; at < size; at += buffer.size()) {
      buffer.resize(std::min<std::uint64_t>(1 << 20, size - at));
      RETORT_TRY(source.read_exact_at(at, buffer));
      RETORT_TRY(out.write_all_at(at, buffer));
    }
    return {};
  });
}

Result<void> make_folders(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    errno = error.value();
    return fail_errno(folder.string(), "cannot create folder");
  }
  return {};
}

Result<FileLock> FileLock::take(const std::filesystem::path& path) {
  FileLock lock;
  Result<File> file = File::open_write(path, false);
  struct statvfs disk {};
  const bool read_only = !file && ::statvfs(path.c_str(), &disk) == 0 && (disk.f_flag & ST_RDONLY) != 0;
  if (read_only) file = File::open_read(path);
  lock.file_ = RETORT_TRY(std::move(file));
  if (::flock(lock.file_.fd(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return fail_errno(path.string(), "cannot lock");
    const std::string holder = read_file(path, 64).value_or("");
    return fail(ErrorCode::kConflict, path.string(), "held by another process{}{}",
                holder.empty() ? "" : ", id ", holder);
  }
  if (read_only) return lock;
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(lock.file_.fd(), 0) != 0) return fail_errno(path.string(), "cannot truncate");
  if (const auto noted = lock.file_.write_all_at(0, pid);
      !noted && noted.error().code != ErrorCode::kOutOfBudget)
    return fail(noted.error());
  return lock;
}

bool FileLock::held(const std::filesystem::path& path) {
  const Result<File> file = File::open_read(path);
  if (!file) return false;
  if (::flock(file->fd(), LOCK_SH | LOCK_NB) == 0) return false;  // released as the descriptor closes
  return errno == EWOULDBLOCK;
}

Result<std::uint64_t> free_disk_bytes(const std::filesystem::path& path) {
  struct statvfs info {};
  if (::statvfs(path.c_str(), &info) != 0) return fail_errno(path.string(), "cannot ask for free space");
  return static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
}

}  // namespace retort
