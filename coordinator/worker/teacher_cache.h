#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "common/core/file.h"
#include "common/core/result.h"
#include "coordinator/worker/recipe.h"

namespace retort {

/// All that a teacher's outputs over a corpus depend on. Outputs with another key are never mixed.
struct TeacherOutputsKey {
  std::string teacher_sha256, tokenizer_sha256, data_sha256;
  std::uint64_t limit_documents = 0;  ///< 0: all
  std::uint64_t windows = 0;          ///< in the corpus
  std::uint32_t window = 0;           ///< tokens
  std::uint32_t vocabulary = 0;
  TeacherOutputs outputs = TeacherOutputs::kTopK;
  std::uint32_t k = 0;
  double temperature = 1;
  std::uint64_t seed = 0;  ///< of the draws

  std::string text() const;  ///< one line of JSON
  /// Bytes of one window's outputs. A token (kWritten: k is 1, the window's ids but the first): k ids (2
  /// bytes each, 4 above 65,536 tokens), and for kTopK k + 1 natural logarithms of probabilities at
  /// `temperature` in F16, the last that of all other tokens together.
  std::uint64_t record_bytes() const;
};

/// One corpus's teacher outputs on disk: DIR/<hash of the key>.teacher, a page that holds the key, then a
/// record for each window, written when it is first needed, each with a check value, so that a torn or
/// missing one is simply computed again. Several workers may use one file at once. Thread: one.
class TeacherCache {
 public:
  /// Opens the file or makes it. Where all of DIR's files and this one would exceed `limit_bytes`, those that
  /// nobody has open go, the longest unused first; kOutOfBudget when that is not enough. kConflict when the
  /// file says that it is another teacher's, tokenizer's or corpus's.
  static Result<TeacherCache> open(const std::filesystem::path& folder, const TeacherOutputsKey& key,
                                   std::uint64_t limit_bytes);
  /// False when the window is not there.
  bool read(std::uint64_t window, std::span<std::byte> record) const;
  Result<void> write(std::uint64_t window, std::span<const std::byte> record);
  const std::filesystem::path& path() const { return path_; }

 private:
  TeacherCache(File file, std::filesystem::path path, std::uint64_t record_bytes)
      : file_(std::move(file)), path_(std::move(path)), record_bytes_(record_bytes) {}
  File file_;  ///< holds a shared lock
  std::filesystem::path path_;
  std::uint64_t record_bytes_ = 0;
};

}  // namespace retort
