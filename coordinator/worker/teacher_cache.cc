#include "coordinator/worker/teacher_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/core/json.h"
#include "common/core/sha256.h"
#include "common/core/units.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kHeaderBytes = 4096, kCheckBytes = 8;
constexpr std::string_view kMagic = "retort teacher outputs 1\n", kSuffix = ".teacher";

/// FNV-1a, 64 bits, over the window's number and its bytes; never what a hole in the file reads as.
std::uint64_t check_value(std::uint64_t window, std::span<const std::byte> record) {
  std::uint64_t hash = 0xcbf29ce484222325ull ^ (window + 1);
  for (const std::byte b : record) hash = (hash ^ static_cast<std::uint8_t>(b)) * 0x100000001b3ull;
  return hash != 0 ? hash : 1;
}

std::string header_of(const TeacherOutputsKey& key) {
  std::string text = std::string(kMagic) + key.text();
  text.resize(kHeaderBytes, '\n');
  return text;
}

/// Removes files that nobody uses, the longest unused first, until `room` more bytes fit below `limit`.
Result<void> make_room(const fs::path& folder, std::uint64_t room, std::uint64_t limit) {
  struct Entry {
    fs::path path;
    std::uint64_t bytes;
    fs::file_time_type used;
  };
  std::vector<Entry> entries;
  std::uint64_t sum = room;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().extension() != kSuffix) continue;
    entries.push_back({entry.path(), entry.file_size(error), entry.last_write_time(error)});
    sum += entries.back().bytes;
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.used < b.used; });
  for (const Entry& entry : entries) {
    if (sum <= limit) return {};
    auto file = File::open_read(entry.path);
    if (!file || ::flock(file->fd(), LOCK_EX | LOCK_NB) != 0) continue;
    if (fs::remove(entry.path, error)) sum -= entry.bytes;
  }
  if (sum <= limit) return {};
  return fail(ErrorCode::kOutOfBudget, folder.string(),
              "the teacher's outputs for this corpus take {}, and the cache may hold {}", format_bytes(room),
              format_bytes(limit));
}

}  // namespace

std::string TeacherOutputsKey::text() const {
  return json::serialize(json::object{{"teacher_sha256", teacher_sha256},
                                      {"tokenizer_sha256", tokenizer_sha256},
                                      {"data_sha256", data_sha256},
                                      {"limit_documents", limit_documents},
                                      {"windows", windows},
                                      {"window", window},
                                      {"vocabulary", vocabulary},
                                      {"outputs", outputs == TeacherOutputs::kTopK      ? "top_k"
                                                  : outputs == TeacherOutputs::kWritten ? "written"
                                                                                        : "sampled"},
                                      {"k", k},
                                      {"temperature", temperature},
                                      {"seed", seed}}) +
         "\n";
}

std::uint64_t TeacherOutputsKey::record_bytes() const {
  const std::uint64_t id = vocabulary <= 65536 ? 2 : 4;
  const std::uint64_t token = id * k + (outputs == TeacherOutputs::kTopK ? 2ull * (k + 1) : 0);
  return token * window;
}

Result<TeacherCache> TeacherCache::open(const fs::path& folder, const TeacherOutputsKey& key,
                                        std::uint64_t limit_bytes) {
  RETORT_TRY(make_folders(folder));
  const fs::path path = folder / (sha256_hex(key.text()).substr(0, 32) + std::string(kSuffix));
  const std::uint64_t record = key.record_bytes();
  const std::uint64_t bytes = kHeaderBytes + key.windows * (record + kCheckBytes);
  for (int turn = 0;; ++turn) {
    std::error_code error;
    if (!fs::exists(path, error)) {
      RETORT_TRY(make_room(folder, bytes, limit_bytes));
      // Its header is whole before it has its name; of two workers that make it at once one wins.
      const fs::path temporary = path.string() + "." + std::to_string(::getpid());
      {
        const File file = RETORT_TRY(File::open_write(temporary, true));
        const auto written = [&]() -> Result<void> {
          RETORT_TRY(file.write_all_at(0, header_of(key)));
          if (::ftruncate(file.fd(), static_cast<off_t>(bytes)) != 0)
            return fail(ErrorCode::kOutOfBudget, temporary.string(), "no room for {}", format_bytes(bytes));
          return file.sync();
        }();
        if (written && ::link(temporary.c_str(), path.c_str()) != 0 && errno != EEXIST) {
          fs::remove(temporary, error);
          return fail(ErrorCode::kIo, path.string(), "{}", std::strerror(errno));
        }
        fs::remove(temporary, error);
        if (!written) return fail(written.error());
      }
    }
    File file = RETORT_TRY(File::open_write(path, false));
    if (::flock(file.fd(), LOCK_SH) != 0) return fail(ErrorCode::kIo, path.string(), "cannot be locked");
    struct stat there {
    }, ours{};
    const bool same =
        ::stat(path.c_str(), &there) == 0 && ::fstat(file.fd(), &ours) == 0 && there.st_ino == ours.st_ino;
    if (!same && turn < 10) continue;  // it was removed for want of room in between
    std::string header(kHeaderBytes, '\0');
    const auto read = file.read_exact_at(0, {header.data(), header.size()});
    if (!read || header != header_of(key) || RETORT_TRY(file.size()) != bytes)
      return fail(ErrorCode::kConflict, path.string(),
                  "this file of a teacher's outputs is damaged or belongs to another teacher, tokenizer or "
                  "corpus than its name says; remove it");
    ::futimens(file.fd(), nullptr);
    return TeacherCache(std::move(file), path, record);
  }
}

bool TeacherCache::read(std::uint64_t window, std::span<std::byte> record) const {
  std::vector<char> bytes(record_bytes_ + kCheckBytes);
  if (record.size() != record_bytes_ || !file_.read_exact_at(kHeaderBytes + window * bytes.size(), bytes))
    return false;
  std::memcpy(record.data(), bytes.data(), record_bytes_);
  std::uint64_t check = 0;
  std::memcpy(&check, bytes.data() + record_bytes_, kCheckBytes);
  return check == check_value(window, record);
}

Result<void> TeacherCache::write(std::uint64_t window, std::span<const std::byte> record) {
  std::string bytes(reinterpret_cast<const char*>(record.data()), record.size());
  const std::uint64_t check = check_value(window, record);
  bytes.append(reinterpret_cast<const char*>(&check), kCheckBytes);
  return file_.write_all_at(kHeaderBytes + window * bytes.size(), bytes);
}

}  // namespace retort
