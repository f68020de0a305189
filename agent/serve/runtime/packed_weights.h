#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>

#include "common/gguf/gguf.h"

namespace retort {

/// Refuses a file whose weights are not all finite (kCorrupt names the tensor): a NaN may hide behind a ReLU
/// or an attention of its own, and the answers are quietly wrong. Its vectors, which are few, or its
/// `matrices`, which are nearly all of it.
Result<void> check_finite(const GgufFile& file, bool matrices);

/// The memory that holds a model's packed weights: the process's own, or a mapped file of the cache folder.
/// A file belongs to one model file (device, inode, size, times), instruction set and layout version; any
/// other is written anew. Thread: any (read-only).
class PackedWeights {
 public:
  PackedWeights() = default;
  /// `size` bytes at a 64-byte boundary. `fill` writes them (they are zero before) unless the cache has them.
  /// A cache that cannot be written is said in the log and done without. `source`: the model's file; empty:
  /// no cache. What `fill` returns, or kOutOfBudget.
  static Result<PackedWeights> make(std::uint64_t size, const std::filesystem::path& source,
                                    const std::filesystem::path& cache,
                                    const std::function<Result<void>(std::byte*)>& fill);
  ~PackedWeights();
  PackedWeights(PackedWeights&& other) noexcept;
  PackedWeights& operator=(PackedWeights&& other) noexcept;

  const std::byte* data() const { return data_; }
  std::uint64_t size() const { return size_; }
  bool shared() const { return shared_; }

 private:
  const std::byte* data_ = nullptr;
  std::uint64_t size_ = 0;
  void* mapping_ = nullptr;
  std::uint64_t mapping_size_ = 0;
  bool shared_ = false;
};

}  // namespace retort
