#pragma once

#include <sys/types.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/core/result.h"

namespace retort {

/// How to start a program.
struct ProcessSpec {
  std::vector<std::string> arguments;              ///< arguments[0] is the program, a path or a name on PATH
  std::map<std::string, std::string> environment;  ///< added to ours
  std::filesystem::path folder;                    ///< working folder; empty: ours
  std::filesystem::path stdout_file, stderr_file;  ///< appended to, no symbolic links; empty: /dev/null
  bool own_session = false;      ///< setsid: outlives us, and a terminal's Ctrl-C does not reach it
  bool die_with_parent = false;  ///< PR_SET_PDEATHSIG(SIGKILL)
  int nice = 0;
};

/// Starts it; descriptors other than 0, 1, 2 are closed in the child, signals are reset. kNotFound when the
/// program is not there. The child must be watched (below), or it stays a zombie.
Result<pid_t> start_process(const ProcessSpec& spec);

/// A process's identity that a reused id cannot fake: id and start time (field 22 of /proc/<id>/stat).
struct ProcessIdentity {
  pid_t pid = 0;
  std::uint64_t start_ticks = 0;
};
/// kNotFound when there is no such process, or one that has ended and is not reaped.
Result<ProcessIdentity> identify_process(pid_t pid);
bool is_running(const ProcessIdentity& identity);

/// Watches a process, ours or adopted, through a pidfd on the reactor. Thread: reactor.
class ProcessWatch {
 public:
  /// `exit_code`: the exit status, 128 + signal, or -1 where it is not our child and cannot be known. Called
  /// once, at once (posted) when the process is gone already; never after the object is destroyed.
  using OnExit = std::function<void(int exit_code)>;
  ProcessWatch(boost::asio::io_context& reactor, pid_t pid, OnExit on_exit);
  ~ProcessWatch();
  ProcessWatch(const ProcessWatch&) = delete;
  ProcessWatch& operator=(const ProcessWatch&) = delete;
  pid_t pid() const;
  /// Through the pidfd, so that it can never hit another process that got the id since.
  void signal(int number);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

/// Proportional set size of a process, bytes (/proc/<id>/smaps_rollup); kNotFound when it is gone.
Result<std::uint64_t> pss_bytes(pid_t pid);

/// The CPU allowance in cores' worth: the least of online cores, affinity and cgroup quota (v1 and v2).
double cpu_allowance();
/// The memory this process may use: the least of the machine's and the cgroup limits (v1 and v2) above it.
std::uint64_t memory_allowance_bytes();
/// For a process in which large blocks come and go (an artifact's chunks, a training step's tensors): those
/// of up to `largest` bytes come from the heap, and up to `kept` bytes of what is freed stay there. Otherwise
/// the kernel takes and clears their pages anew each time, which costs more than a chunk's encryption.
/// Thread: the main one, at its start.
void keep_freed_memory(std::size_t largest, std::size_t kept);
/// Gives what is kept back to the kernel, before work that needs more memory than speed. Thread: any.
void release_freed_memory();

/// Tells systemd (NOTIFY_SOCKET) "READY=1", "STOPPING=1"; does nothing where there is none.
void notify_service_manager(std::string_view state);

/// Tells systemd's watchdog that the reactor turns: at once, and twice in each of its intervals, as long as
/// the object is there. From the reactor, so that one that hangs misses it. Does nothing where there is no
/// watchdog. Thread: reactor.
class ServiceWatchdog {
 public:
  explicit ServiceWatchdog(boost::asio::io_context& reactor);

 private:
  void ping();
  std::shared_ptr<int> alive_ = std::make_shared<int>();
  boost::asio::steady_timer timer_;
  std::chrono::milliseconds pause_;
};

}  // namespace retort
