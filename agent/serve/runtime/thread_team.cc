#include "agent/serve/runtime/thread_team.h"

#include <algorithm>

namespace retort {
namespace {

constexpr int kSpins = 4000;  // about 10 µs: longer than the gaps inside a forward pass

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// Waits until `value` differs from `old`.
std::uint32_t wait_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    const std::uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

ThreadTeam::ThreadTeam(std::uint32_t size) {
  for (std::uint32_t member = 1; member < size; ++member)
    threads_.emplace_back([this, member] { serve(member); });
}

ThreadTeam::~ThreadTeam() {
  stop_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadTeam::start(const void* work, Call call) {
  work_ = work;
  call_ = call;
  pending_.store(static_cast<std::uint32_t>(threads_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  call(work, 0);
  for (std::uint32_t left; (left = pending_.load(std::memory_order_acquire)) != 0;)
    wait_for_change(pending_, left);
}

void ThreadTeam::serve(std::uint32_t member) {
  std::uint32_t seen = 0;
  for (;;) {
    seen = wait_for_change(generation_, seen);
    if (stop_) return;
    call_(work_, member);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

}  // namespace retort
