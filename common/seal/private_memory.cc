#include "common/seal/private_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace retort {

PrivateMemory::~PrivateMemory() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Result<PrivateMemory> PrivateMemory::make(std::size_t size,
                                          const std::function<Result<void>(std::span<char>)>& fill) {
  PrivateMemory memory;
  if (size == 0) return memory;
  void* const data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return fail(ErrorCode::kOutOfBudget, "", "there is no memory for {} bytes", size);
  memory.data_ = data;
  memory.size_ = size;
  ::madvise(data, size, MADV_DONTDUMP);
  ::madvise(data, size, MADV_HUGEPAGE);  // fewer faults, and quicker reading in a virtual machine
  RETORT_TRY(fill({static_cast<char*>(data), size}));
  ::mprotect(data, size, PROT_READ);
  return memory;
}

void PrivateMemory::forget(std::span<const std::byte> part) const {
  if (part.empty()) return;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(part.data()) + page - 1) / page * page,
             end = reinterpret_cast<std::uintptr_t>(part.data() + part.size()) / page * page;
  if (begin >= end) return;
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  ::mprotect(reinterpret_cast<void*>(begin), end - begin, PROT_NONE);  // read after all: noticed at once
}

}  // namespace retort
