#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <utility>

#include "common/core/result.h"

namespace retort {

/// Memory that no file stands behind and no core dump shows. Moves keep the address. Thread: any (read-only).
class PrivateMemory {
 public:
  PrivateMemory() = default;
  ~PrivateMemory();
  PrivateMemory(PrivateMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  PrivateMemory& operator=(PrivateMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  /// `fill` writes it; afterwards it is only read. kOutOfBudget where there is no memory.
  static Result<PrivateMemory> make(std::size_t size,
                                    const std::function<Result<void>(std::span<char>)>& fill);
  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }
  /// Gives back a part of bytes() that is never read again (whole pages of it).
  void forget(std::span<const std::byte> part) const;

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace retort
