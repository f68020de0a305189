#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace retort {

/// A fixed team of threads that runs one piece of work at a time together with its caller. Members spin
/// briefly between pieces and then sleep. Thread: run() from one thread at a time.
class ThreadTeam {
 public:
  explicit ThreadTeam(std::uint32_t size);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;
  std::uint32_t size() const { return static_cast<std::uint32_t>(threads_.size()) + 1; }

  /// Calls work(member) for members 0 … size() - 1, the caller being 0, and returns when all are done.
  template <typename Work>
  void run(const Work& work) {
    if (threads_.empty()) return work(0);
    start(&work, [](const void* w, std::uint32_t member) { (*static_cast<const Work*>(w))(member); });
  }

 private:
  using Call = void (*)(const void* work, std::uint32_t member);
  void start(const void* work, Call call);
  void serve(std::uint32_t member);

  std::vector<std::thread> threads_;
  const void* work_ = nullptr;
  Call call_ = nullptr;
  std::atomic<std::uint32_t> generation_{0}, pending_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace retort
