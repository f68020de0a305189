#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace retort {

/// A fixed team of threads that works off the chunks of one job at a time together with its caller. Members
/// spin briefly between jobs and then sleep. Chunks go to whoever comes first, so that the caller never waits
/// for a member that the scheduler has not woken: on a busy machine the team is about as fast as one thread,
/// not slower. Thread: run() from one thread at a time.
class ThreadTeam {
 public:
  explicit ThreadTeam(std::uint32_t size);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;
  std::uint32_t size() const { return static_cast<std::uint32_t>(threads_.size()) + 1; }

  /// Calls work(member, chunk) once for each chunk below `chunks` (at most 65535) and returns when all are
  /// done. `member`, below size(), is the thread: no two run under the same one at a time.
  template <typename Work>
  void run(std::uint32_t chunks, const Work& work) {
    start(chunks, &work, [](const void* w, std::uint32_t member, std::uint32_t chunk) {
      (*static_cast<const Work*>(w))(member, chunk);
    });
  }

  /// Calls work(member, first, last) for ranges of [0, units), which take about `unit_nanoseconds` each.
  /// Handing a share to the team costs some 0.3 µs and the same again for a memory line to come back, so that
  /// work below a microsecond or two stays where it is: with two threads nothing may be slower than with one.
  template <typename Work>
  void share(std::uint64_t units, std::uint64_t unit_nanoseconds, const Work& work) {
    constexpr std::uint64_t kWorthSharing = 2000;  // nanoseconds
    constexpr std::uint64_t kShare =
        20'000;  // of a long job, so that an absent thread delays nobody for long
    const std::uint64_t time = units * unit_nanoseconds, threads = size();
    if (threads == 1 || time < kWorthSharing || units < 2) return work(0u, std::uint64_t{0}, units);
    const std::uint64_t parts = std::min(
        {units, std::max<std::uint64_t>(threads, std::min<std::uint64_t>(time / kShare, 8 * threads))});
    run(static_cast<std::uint32_t>(parts), [&](std::uint32_t member, std::uint32_t part) {
      work(member, units * part / parts, units * (part + 1) / parts);
    });
  }

 private:
  using Call = void (*)(const void* work, std::uint32_t member, std::uint32_t chunk);
  void start(std::uint32_t chunks, const void* work, Call call);
  void work_off(std::uint32_t member);
  void serve(std::uint32_t member);

  std::vector<std::thread> threads_;
  // Written by run()'s thread while no chunk is out; read by a member after it has taken a chunk.
  const void* work_ = nullptr;
  Call call_ = nullptr;
  /// The job's number << 32 | its chunks << 16 | the next chunk: taking a chunk of a job that is over fails.
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<std::uint32_t> generation_{0}, done_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace retort
