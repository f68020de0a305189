#include "agent/serve/runtime/thread_team.h"

#include <algorithm>

namespace retort {
namespace {

constexpr int kSpins = 20000;  // some 200 µs: longer than a share of a long product takes

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

void ThreadTeam::start(std::uint32_t chunks, const void* work, Call call) {
  work_ = work;
  call_ = call;
  done_.store(0, std::memory_order_relaxed);
  const std::uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
  ticket_.store(std::uint64_t{generation} << 32 | std::uint64_t{chunks} << 16, std::memory_order_release);
  generation_.store(generation, std::memory_order_release);
  if (!threads_.empty()) generation_.notify_all();
  work_off(0);
  // What is left was taken by others, who are at work on it.
  for (std::uint32_t done; (done = done_.load(std::memory_order_acquire)) != chunks;)
    wait_for_change(done_, done);
}

void ThreadTeam::work_off(std::uint32_t member) {
  for (std::uint64_t ticket = ticket_.load(std::memory_order_acquire);;) {
    const std::uint32_t next = ticket & 0xffff, chunks = (ticket >> 16) & 0xffff;
    if (next >= chunks) return;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
    call_(work_, member, next);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == chunks && member != 0) done_.notify_one();
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadTeam::serve(std::uint32_t member) {
  std::uint32_t seen = 0;
  for (;;) {
    seen = wait_for_change(generation_, seen);
    if (stop_) return;
    work_off(member);
  }
}

}  // namespace retort
