#include "agent/serve/runtime/packed_weights.h"

#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "agent/serve/kernels/kernels.h"
#include "common/blocks/matrix.h"
#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/units.h"

namespace retort {
namespace {

constexpr std::uint64_t kPage = 4096;

/// The first page of a cache file. Whatever differs makes the file another one's.
struct Header {
  char magic[8] = {'R', 'T', 'P', 'A', 'C', 'K', '\n', '\0'};
  std::uint32_t version = 0, endian = 0x01020304;
  char instruction_set[16] = {};
  std::uint64_t device = 0, inode = 0, size = 0, modified_s = 0, modified_ns = 0, changed_s = 0,
                changed_ns = 0;
  std::uint64_t packed_bytes = 0;
  std::uint64_t checksum =
      0;  ///< of the packed weights: what of another file differs above, of this one here
};
static_assert(sizeof(Header) == 104 && std::is_trivially_copyable_v<Header>);

/// FNV-1a over 64-bit words in eight lanes, whose products do not wait for each other: as fast as the memory.
/// Against accidents; who may write the file may write its sum as well.
std::uint64_t checksum_of(const std::byte* data, std::uint64_t size) {
  constexpr std::uint64_t kPrime = 0x100000001b3;
  std::uint64_t lanes[8], words[8];
  for (std::uint64_t i = 0; i < 8; ++i) lanes[i] = 0xcbf29ce484222325 + i;
  for (; size >= sizeof words; data += sizeof words, size -= sizeof words) {
    std::memcpy(words, data, sizeof words);
    for (int i = 0; i < 8; ++i) {
      lanes[i] = (lanes[i] ^ words[i]) * kPrime;
      lanes[i] ^= lanes[i] >> 32;  // the prime alone moves nothing downwards
    }
  }
  std::memset(words, 0, sizeof words);
  std::memcpy(words, data, size);
  std::uint64_t sum = 0;
  for (int i = 0; i < 8; ++i) sum = ((sum ^ lanes[i]) * kPrime ^ words[i]) * kPrime;
  return sum;
}

Result<Header> header_of(const std::filesystem::path& source, std::uint64_t packed_bytes) {
  struct stat s {};
  if (::stat(source.c_str(), &s) != 0) return fail_errno(source.string(), "cannot look at it");
  Header h;
  h.version = kernels::packing_version();
  std::string_view(kernels::instruction_set()).copy(h.instruction_set, sizeof h.instruction_set - 1);
  h.device = s.st_dev, h.inode = s.st_ino, h.size = static_cast<std::uint64_t>(s.st_size);
  h.modified_s = static_cast<std::uint64_t>(s.st_mtim.tv_sec);
  h.modified_ns = static_cast<std::uint64_t>(s.st_mtim.tv_nsec);
  h.changed_s = static_cast<std::uint64_t>(s.st_ctim.tv_sec);
  h.changed_ns = static_cast<std::uint64_t>(s.st_ctim.tv_nsec);
  h.packed_bytes = packed_bytes;
  return h;
}

std::filesystem::path whole_path(const std::filesystem::path& source) {
  std::error_code error;
  const std::filesystem::path whole = std::filesystem::weakly_canonical(source, error);
  return error ? source : whole;
}

/// One file for each model path and instruction set, so that a changed model replaces its old packing.
std::filesystem::path cache_file(const std::filesystem::path& source, const std::filesystem::path& cache) {
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a: names of the same hash replace each other's files
  for (const unsigned char c : whole_path(source).string()) hash = (hash ^ c) * 0x100000001b3;
  return cache / fmt::format("{}-{:016x}-{}.packed", source.stem().string().substr(0, 80), hash,
                             kernels::instruction_set());
}

/// Makes a mapping's pages present. Where the file system keeps files in large pieces (ext4 and XFS of recent
/// kernels), they are mapped as huge pages: with small ones, reading weights from memory in a virtual machine
/// was up to four times slower.
void make_present(std::byte* mapped, std::uint64_t size) {
  ::madvise(mapped, size, MADV_HUGEPAGE);
#ifdef MADV_POPULATE_READ
  if (::madvise(mapped, size, MADV_POPULATE_READ) == 0) return;
#endif
  for (std::uint64_t at = 0; at < size; at += kPage)  // a kernel before 5.14
    (void)*static_cast<const volatile std::byte*>(mapped + at);
}

/// The file mapped, its pages made present; null when it is not the one that `header` tells of.
void* map_cached(const std::filesystem::path& path, const Header& header) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    return nullptr;  // opening a pipe would wait for a writer
  const Result<File> file = File::open_read(path);
  if (!file) return nullptr;
  Header found;
  const Result<std::uint64_t> size = file->size();
  if (!size || *size != kPage + header.packed_bytes) return nullptr;
  if (!file->read_exact_at(0, std::span(reinterpret_cast<char*>(&found), sizeof found))) return nullptr;
  if (std::memcmp(&found, &header, offsetof(Header, checksum)) != 0) return nullptr;
  void* const mapped = ::mmap(nullptr, kPage + header.packed_bytes, PROT_READ, MAP_SHARED, file->fd(), 0);
  if (mapped == MAP_FAILED) return nullptr;
  make_present(static_cast<std::byte*>(mapped), kPage + header.packed_bytes);
  if (checksum_of(static_cast<const std::byte*>(mapped) + kPage, header.packed_bytes) == found.checksum)
    return mapped;
  log_warn("{}: damaged since it was written; the weights are packed anew", path.string());
  ::munmap(mapped, kPage + header.packed_bytes);
  return nullptr;
}

/// The first page: the header, then the model's path.
std::string first_page(const Header& header, const std::filesystem::path& source) {
  std::string page(kPage, '\0');
  std::memcpy(page.data(), &header, sizeof header);
  whole_path(source).string().copy(page.data() + sizeof header, kPage - sizeof header - 1);
  return page;
}

/// Removes what was packed from models that are gone.
void drop_orphans(const std::filesystem::path& cache) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(cache, error)) {
    if (entry.path().extension() != ".packed" || !entry.is_regular_file(error)) continue;
    const Result<File> file = File::open_read(entry.path());
    std::string page(kPage, '\0');
    if (!file || !file->read_exact_at(0, page) ||
        std::memcmp(page.data(), Header{}.magic, sizeof Header{}.magic) != 0)
      continue;
    page.back() = '\0';
    if (!std::filesystem::exists(page.c_str() + sizeof(Header), error) && !error)
      std::filesystem::remove(entry.path(), error);
  }
}

}  // namespace

Result<void> check_finite(const GgufFile& file, bool matrices) {
  std::vector<float> some;
  for (const GgufTensor& tensor : file.tensors()) {
    const std::uint64_t columns = tensor.columns(), rows = tensor.rows();
    if ((rows > 1) != matrices) continue;
    const std::uint64_t at_once = std::clamp<std::uint64_t>((64 << 10) / columns, 1, rows);
    for (std::uint64_t row = 0; row < rows; row += at_once) {
      some.resize(std::min(at_once, rows - row) * columns);
      decode_rows(tensor.type, rows, columns, tensor.data, row, some);
      if (!kernels::all_finite(some.data(), some.size()))
        return fail(
            ErrorCode::kCorrupt, file.where(),
            "tensor '{}' holds NaN or infinity: the file is broken, or was written by a training that "
            "had failed",
            tensor.name);
    }
  }
  return {};
}

Result<PackedWeights> PackedWeights::make(std::uint64_t size, const std::filesystem::path& source,
                                          const std::filesystem::path& cache,
                                          const std::function<Result<void>(std::byte*)>& fill) {
  PackedWeights out;
  out.size_ = size;
  if (size == 0) return out;
  std::filesystem::path path;
  Header header;
  if (!source.empty() && !cache.empty()) {
    if (const auto made = header_of(source, size)) {
      header = *made;
      path = cache_file(source, cache);
    }
  }
  const auto use_cached = [&] {
    out.mapping_ = map_cached(path, header);
    if (out.mapping_ == nullptr) return false;
    out.mapping_size_ = kPage + size;
    out.data_ = static_cast<const std::byte*>(out.mapping_) + kPage;
    return out.shared_ = true;
  };
  if (!path.empty() && use_cached()) return out;

  // Room to begin at a huge page's boundary, with the file's first page before the weights: it is written in
  // one piece, so that the page cache may keep it in large ones.
  constexpr std::uint64_t kHuge = 2 << 20;
  const std::uint64_t room = kPage + size + kHuge;
  void* const mapped = ::mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED)
    return fail(ErrorCode::kOutOfBudget, source.string(),
                "the packed weights need {} and the system does not give them; --pack-cache off uses the "
                "file's own",
                format_bytes(room));
  auto* const whole =
      reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(mapped) + kHuge - 1) / kHuge * kHuge);
  std::byte* const data = whole + kPage;
  ::madvise(whole, kPage + size, MADV_HUGEPAGE);
  if (Result<void> filled = fill(data); !filled) {
    ::munmap(mapped, room);
    return fail(filled.error());
  }
  if (!path.empty()) {
    const auto written = [&]() -> Result<void> {
      RETORT_TRY(make_folders(cache));
      // One process at a time writes; those that packed the same meanwhile map the first one's file.
      const File folder = RETORT_TRY(File::open_read(cache));
      while (::flock(folder.fd(), LOCK_EX) != 0)
        if (errno != EINTR) return fail_errno(cache.string(), "cannot lock");
      if (use_cached()) return {};
      drop_orphans(cache);
      header.checksum = checksum_of(data, size);
      std::memcpy(whole, first_page(header, source).data(), kPage);
      return write_file_with(path, [&](const File& file) {
        return file.write_all_at(0, {reinterpret_cast<const char*>(whole), kPage + size});
      });
    }();
    if (!written) {
      log_warn("packed weights are not kept for the next start: {}", written.error().describe());
    } else if (out.mapping_ != nullptr || use_cached()) {
      ::munmap(mapped, room);
      return out;
    }
  }
  out.mapping_ = mapped;
  out.mapping_size_ = room;
  out.data_ = data;
  return out;
}

PackedWeights::~PackedWeights() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapping_size_);
}

PackedWeights::PackedWeights(PackedWeights&& other) noexcept
    : data_(other.data_),
      size_(other.size_),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_size_(other.mapping_size_),
      shared_(other.shared_) {}

PackedWeights& PackedWeights::operator=(PackedWeights&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_size_, other.mapping_size_);
  std::swap(shared_, other.shared_);
  return *this;
}

}  // namespace retort
