#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/core/json.h"
#include "common/core/random.h"
#include "common/process/process.h"
#include "common/wire/record_table.h"
#include "coordinator/artifacts/artifact_store.h"

namespace retort {

/// Where a job's worker runs. One implementation so far, a local process; Slurm is the next. Thread: reactor.
class Launcher {
 public:
  virtual ~Launcher() = default;
  /// Starts the worker of the job in `folder`; it must outlive this process.
  virtual Result<pid_t> launch(const std::filesystem::path& folder) = 0;
};

struct LocalLauncherOptions {
  std::string worker_binary, serve_binary;
  unsigned threads = 0;  ///< 0: the worker's own choice
  std::uint64_t memory_limit_bytes = 0;
  /// Where workers share teachers' outputs, so that the second class of one corpus pays for none; empty: each
  /// computes its own. What it may hold; 0: the worker's own limit.
  std::filesystem::path teacher_cache;
  std::uint64_t teacher_cache_bytes = 0;
};
std::unique_ptr<Launcher> make_local_launcher(LocalLauncherOptions options);

/// Compression jobs: queued, run as worker processes that outlive the coordinator, adopted or resumed after a
/// restart. A job's folder DATA/jobs/<id>/ holds recipe.yaml, progress.jsonl, result.json, stdout, stderr and
/// worker.lock, which the worker holds while it runs: whoever sees it held never starts a second one. The
/// record is on disk before the step that it announces. Thread: reactor.
class Jobs {
 public:
  /// Called when a job's artifacts are in the store and its record says succeeded.
  using OnSuccess = std::function<void(const JobRecord& job, const std::vector<ArtifactRecord>& artifacts)>;

  Jobs(boost::asio::io_context& reactor, boost::asio::thread_pool& pool, std::filesystem::path folder,
       Store& store, ArtifactStore& artifacts, const Clock& clock, RandomSource& random, Launcher& launcher,
       unsigned max_jobs, OnSuccess on_success);
  /// Called when a job's record has changed.
  void on_change(std::function<void(const JobRecord&)> call) { on_change_ = std::move(call); }
  /// Adopts, finishes or resumes what an earlier coordinator left.
  Result<void> start();
  /// Queues it; the recipe's paths must be absolute.
  Result<JobRecord> submit(JobRecord facts, const std::string& recipe);
  Result<JobRecord> cancel(const std::string& id);
  /// One that has ended, with its folder; its artifacts stay. kConflict: it has not.
  Result<void> remove(const std::string& id);
  Result<JobRecord> find(const std::string& id) const;
  /// One that is queued or runs and whose recipe has `file`; "": none.
  std::string user_of(const std::filesystem::path& file) const;
  const std::map<std::string, JobRecord>& all() const { return jobs_; }
  /// The worker's last "progress" line; an empty object when there is none yet.
  json::object progress(const std::string& id) const;
  struct Log {
    std::string text;
    std::uint64_t next_offset = 0;
  };
  /// progress.jsonl from an offset, at most 1 MiB, whole lines only.
  Result<Log> log(const std::string& id, std::uint64_t offset) const;
  /// Sends SIGTERM to every worker, which then writes a checkpoint and ends; they are resumed at the next
  /// start.
  void suspend_all();

 private:
  struct Running {
    std::unique_ptr<ProcessWatch> watch;
    std::unique_ptr<boost::asio::steady_timer> timer;  // of a restart, or of a cancellation's last resort
  };
  std::filesystem::path folder_of(const std::string& id) const { return folder_ / id; }
  Result<void> save(const JobRecord& job);
  void pump();
  void launch(JobRecord& job);
  void launch_after(const std::string& id, std::chrono::seconds delay);
  /// The disk is full: says so in the record and looks again in a few seconds.
  void wait_for_room(JobRecord& job, const std::string& why);
  void watch(const std::string& id, pid_t pid);
  bool adopt(const std::string& id);
  void on_exit(const std::string& id, int exit_code);
  void finish(const std::string& id, const json::object& result);
  void end(JobRecord& job, const std::string& state, const Error& error);

  boost::asio::io_context& reactor_;
  boost::asio::thread_pool& pool_;
  std::filesystem::path folder_;
  ArtifactStore& artifacts_;
  const Clock& clock_;
  RandomSource& random_;
  Launcher& launcher_;
  const unsigned max_jobs_;
  OnSuccess on_success_;
  std::function<void(const JobRecord&)> on_change_ = [](const JobRecord&) {};
  RecordTable<JobRecord> table_;
  std::map<std::string, JobRecord> jobs_;
  std::map<std::string, Running> running_;
  bool suspending_ = false;
};

}  // namespace retort
