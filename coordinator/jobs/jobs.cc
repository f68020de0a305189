#include "coordinator/jobs/jobs.h"

#include <signal.h>

#include <boost/asio/post.hpp>
#include <charconv>

#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/units.h"

namespace retort {
namespace {

constexpr std::uint32_t kMaxStarts = 5;
constexpr std::uint64_t kLogPieceBytes = 1 << 20;

class LocalLauncher final : public Launcher {
 public:
  explicit LocalLauncher(LocalLauncherOptions options) : options_(std::move(options)) {}
  Result<pid_t> launch(const std::filesystem::path& folder) override {
    ProcessSpec spec;
    spec.arguments = {options_.worker_binary,
                      "run",
                      (folder / "recipe.yaml").string(),
                      "--out",
                      folder.string(),
                      "--serve-binary",
                      options_.serve_binary};
    if (options_.threads != 0)
      spec.arguments.insert(spec.arguments.end(), {"--threads", std::to_string(options_.threads)});
    if (options_.memory_limit_bytes != 0)
      spec.arguments.insert(spec.arguments.end(),
                            {"--memory-limit", std::to_string(options_.memory_limit_bytes)});
    if (!options_.teacher_cache.empty())
      spec.arguments.insert(spec.arguments.end(), {"--cache", options_.teacher_cache.string()});
    if (!options_.teacher_cache.empty() && options_.teacher_cache_bytes != 0)
      spec.arguments.insert(spec.arguments.end(),
                            {"--cache-limit", std::to_string(options_.teacher_cache_bytes)});
    spec.stdout_file = folder / "stdout";
    spec.stderr_file = folder / "stderr";
    spec.own_session = true;
    spec.nice = 5;  // the control plane and what it serves come first
    return start_process(spec);
  }

 private:
  LocalLauncherOptions options_;
};

/// The last bytes of a file, for an error message.
std::string tail(const std::filesystem::path& path, std::size_t limit) {
  const std::string text = read_file(path, 64 << 20).value_or("");
  std::string out = text.size() > limit ? "…" + text.substr(text.size() - limit) : text;
  while (!out.empty() && (out.back() == '\n' || out.back() == ' ')) out.pop_back();
  return out;
}

bool ended(const JobRecord& job) {
  return job.state == "succeeded" || job.state == "failed" || job.state == "cancelled";
}

void remove_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  if (error) log_warn("{}: cannot remove: {}", folder.string(), error.message());
}

/// Less free space than this and no worker is started.
constexpr std::uint64_t kJobRoomBytes = 4 << 20;
constexpr std::chrono::seconds kRoomInterval{5};

}  // namespace

std::unique_ptr<Launcher> make_local_launcher(LocalLauncherOptions options) {
  return std::make_unique<LocalLauncher>(std::move(options));
}

Jobs::Jobs(boost::asio::io_context& reactor, boost::asio::thread_pool& pool, std::filesystem::path folder,
           Store& store, ArtifactStore& artifacts, const Clock& clock, RandomSource& random,
           Launcher& launcher, unsigned max_jobs, OnSuccess on_success)
    : reactor_(reactor),
      pool_(pool),
      folder_(std::move(folder)),
      artifacts_(artifacts),
      clock_(clock),
      random_(random),
      launcher_(launcher),
      max_jobs_(std::max(1u, max_jobs)),
      on_success_(std::move(on_success)),
      table_(store, "jobs") {}

Result<void> Jobs::save(const JobRecord& job) {
  const Result<void> done = table_.put(job.id, job);
  if (!done) log_error("job {}: {}", job.id, done.error().describe());
  if (done) on_change_(job);
  return done;
}

Result<void> Jobs::start() {
  RETORT_TRY(make_folders(folder_));
  for (JobRecord& job : RETORT_TRY(table_.all())) {
    const std::string id = job.id;
    jobs_.emplace(id, std::move(job));
  }
  // What a removal that was interrupted, or that the disk refused, left.
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, error))
    if (const std::string name = entry.path().filename(); name.starts_with("job-") && jobs_.count(name) == 0)
      remove_folder(entry.path());
  for (auto& [id, job] : jobs_) {
    if (job.state != "running") continue;
    running_[id];
    if (adopt(id)) {
      log_info("job {}: its worker still runs, adopted", id);
      continue;
    }
    boost::asio::post(reactor_, [this, job_id = id] { on_exit(job_id, -1); });  // finished, or to be resumed
  }
  pump();
  return {};
}

Result<JobRecord> Jobs::submit(JobRecord job, const std::string& recipe) {
  job.id = "job-" + random_.hex(6);
  job.state = "queued";
  job.created = clock_.unix_millis();
  RETORT_TRY(make_folders(folder_of(job.id)));
  RETORT_TRY(write_file_atomic(folder_of(job.id) / "recipe.yaml", recipe));
  RETORT_TRY(save(job));
  jobs_[job.id] = job;
  boost::asio::post(reactor_, [this] { pump(); });
  return job;
}

Result<void> Jobs::remove(const std::string& id) {
  const std::string exact = RETORT_TRY(find(id)).id;
  if (!ended(jobs_.at(exact)))
    return fail(ErrorCode::kConflict, "", "job {} has not ended; cancel it first", exact);
  RETORT_TRY(table_.erase(exact));
  jobs_.erase(exact);
  boost::asio::post(pool_, [folder = folder_of(exact)] { remove_folder(folder); });
  return {};
}

std::string Jobs::user_of(const std::filesystem::path& file) const {
  for (const auto& [id, job] : jobs_)
    if (!ended(job) && read_file(folder_of(id) / "recipe.yaml", 2 << 20).value_or("").find(file.string()) !=
                           std::string::npos)
      return id;
  return "";
}

Result<JobRecord> Jobs::find(const std::string& id) const {
  const auto found = jobs_.find(id);
  if (found != jobs_.end()) return found->second;
  const auto from = jobs_.lower_bound(id);
  if (id.size() < 8 || from == jobs_.end() || !from->first.starts_with(id))
    return fail(ErrorCode::kNotFound, "", "there is no job '{}'", id);
  if (std::next(from) != jobs_.end() && std::next(from)->first.starts_with(id))
    return fail(ErrorCode::kConflict, "", "several jobs begin with '{}'", id);
  return from->second;
}

void Jobs::pump() {
  if (suspending_) return;
  // Oldest first; ids are random, so by the time of creation.
  while (running_.size() < max_jobs_) {
    JobRecord* next = nullptr;
    for (auto& [id, job] : jobs_)
      if (job.state == "queued" && (next == nullptr || job.created < next->created)) next = &job;
    if (next == nullptr) return;
    running_[next->id];
    launch(*next);
  }
}

void Jobs::launch(JobRecord& job) {
  if (suspending_) return;
  if (adopt(job.id)) return;
  if (!job.cancel_requested) {
    if (free_disk_bytes(folder_).value_or(kJobRoomBytes) < kJobRoomBytes) return wait_for_room(job, "");
    job.error_code = job.error = "";
    job.state = "running";
    ++job.starts;
    if (job.started == 0) job.started = clock_.unix_millis();
    if (const Result<void> saved = save(job); !saved) return end(job, "failed", saved.error());
    const Result<pid_t> pid = launcher_.launch(folder_of(job.id));
    if (!pid) return end(job, "failed", pid.error());
    log_info("job {}: worker {} started{}", job.id, *pid,
             job.starts > 1 ? " again, it goes on from its checkpoint" : "");
    return watch(job.id, *pid);
  }
  end(job, "cancelled", {ErrorCode::kCancelled, "cancelled by an operator", ""});
}

void Jobs::watch(const std::string& id, pid_t pid) {
  running_[id].watch =
      std::make_unique<ProcessWatch>(reactor_, pid, [this, id](int code) { on_exit(id, code); });
}

bool Jobs::adopt(const std::string& id) {
  const std::filesystem::path lock = folder_of(id) / "worker.lock";
  if (!FileLock::held(lock)) return false;
  const std::string text = read_file(lock, 64).value_or("");
  pid_t pid = 0;
  std::from_chars(text.data(), text.data() + text.size(), pid);
  if (pid <= 0) return false;
  watch(id, pid);
  return true;
}

void Jobs::on_exit(const std::string& id, int exit_code) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) return;
  JobRecord& job = found->second;
  running_[id].watch.reset();
  running_[id].timer.reset();
  if (adopt(id)) return;  // ours found another worker at it and went away
  const std::filesystem::path result_file = folder_of(id) / "result.json";
  if (std::filesystem::exists(result_file)) {
    const Result<std::string> text = read_file(result_file, 16 << 20);
    Result<json::value> result =
        text ? parse_json(*text, result_file.string()) : Result<json::value>(fail(text.error()));
    if (!result) return end(job, "failed", result.error());
    if (!result->is_object())
      return end(job, "failed", {ErrorCode::kCorrupt, "is not a JSON object", result_file.string()});
    return finish(id, result->get_object());
  }
  if (suspending_) return;  // the record says running: the next coordinator resumes it
  if (job.cancel_requested)
    return end(job, "cancelled", {ErrorCode::kCancelled, "cancelled by an operator", ""});
  const std::string why = tail(folder_of(id) / "stderr", 600);
  if (exit_code == retort::exit_code(ErrorCode::kUnavailable) ||
      free_disk_bytes(folder_).value_or(kJobRoomBytes) < kJobRoomBytes)
    return wait_for_room(job, why);
  if (job.starts >= kMaxStarts)
    return end(job, "failed",
               {ErrorCode::kInternal,
                fmt::format("the worker ended {} times without a result (last status {}): {}", job.starts,
                            exit_code, why),
                id});
  if (job.starts == 0 || exit_code == -1) return launch(job);
  const int seconds = 1 << std::min(job.starts, 5u);
  log_warn("job {}: its worker ended with status {} and no result; again in {} s. {}", id, exit_code, seconds,
           why);
  launch_after(id, std::chrono::seconds(seconds));
}

void Jobs::launch_after(const std::string& id, std::chrono::seconds delay) {
  Running& running = running_[id];
  running.timer = std::make_unique<boost::asio::steady_timer>(reactor_, delay);
  running.timer->async_wait([this, id](const boost::system::error_code& error) {
    if (!error) launch(jobs_.at(id));
  });
}

void Jobs::wait_for_room(JobRecord& job, const std::string& why) {
  const bool news = job.error.empty();
  job.error_code = to_string(ErrorCode::kUnavailable);
  job.error = fmt::format("{}: the disk is full ({} are left): make room, the job then goes on by itself{}{}",
                          folder_of(job.id).string(), format_bytes(free_disk_bytes(folder_).value_or(0)),
                          why.empty() ? "" : ". ", why);
  if (news) log_warn("job {}: {}", job.id, job.error);
  if (job.starts > 0) --job.starts;  // a full disk is not the worker's fault
  launch_after(job.id, kRoomInterval);
}

void Jobs::finish(const std::string& id, const json::object& result) {
  JobRecord& job = jobs_.at(id);
  const std::string where = "result.json";
  const Result<std::string> state = json_string(result, "state", where);
  if (!state) return end(job, "failed", state.error());
  if (*state != "succeeded") {
    Error error{ErrorCode::kInternal, "the worker gave no reason", ""};
    if (const auto reason = json_object(result, "error", where)) {
      error.code = error_code_from(json_string(**reason, "code", where).value_or("internal"));
      error.message = json_string(**reason, "message", where).value_or("");
      error.where = json_string(**reason, "where", where).value_or("");
    }
    return end(job, *state == "cancelled" ? "cancelled" : "failed", error);
  }
  // Hashing and copying are slow: on the pool. Until they are done the job counts as running.
  boost::asio::post(pool_, [this, id, result, where, folder = folder_of(id), job_facts = job] {
    const auto import_all = [&]() -> Result<std::vector<ArtifactRecord>> {
      std::vector<ArtifactRecord> imported;
      for (const json::value& value : *RETORT_TRY(json_array(result, "artifacts", where))) {
        const json::object& entry = *RETORT_TRY(as_object(value, where));
        ArtifactRecord facts;
        facts.name = RETORT_TRY(json_string(entry, "file", where));
        if (facts.name.find('/') != std::string::npos || facts.name == "..")
          return fail(ErrorCode::kInvalid, where, "artifact '{}' is not a plain file name", facts.name);
        if (!facts.name.ends_with(".gguf")) continue;
        facts.label = json_string(entry, "label", where).value_or("");
        facts.parameters = json_uint(entry, "parameters", where).value_or(0);
        facts.bits_per_weight = json_number(entry, "bits_per_weight", where).value_or(0);
        facts.format = json_string(entry, "format", where).value_or("");
        if (json_has(entry, "evaluation")) facts.evaluation_json = json::serialize(entry.at("evaluation"));
        facts.job = id;
        facts.device_class = job_facts.device_class;
        facts.teacher = job_facts.teacher;
        imported.push_back(RETORT_TRY(artifacts_.import(folder / facts.name, facts)));
      }
      return imported;
    };
    Result<std::vector<ArtifactRecord>> imported = import_all();
    boost::asio::post(reactor_, [this, id, imported = std::move(imported)] {
      JobRecord& done = jobs_.at(id);
      if (!imported) return end(done, "failed", imported.error());
      done.artifacts.clear();
      for (const ArtifactRecord& artifact : *imported) done.artifacts.push_back(artifact.sha256);
      on_success_(done,
                  *imported);  // before the record says succeeded: after a crash in between it is done again
      end(done, "succeeded", {});
    });
  });
}

void Jobs::end(JobRecord& job, const std::string& state, const Error& error) {
  job.state = state;
  job.finished = clock_.unix_millis();
  job.error_code = error.message.empty() ? "" : to_string(error.code);
  job.error = error.message.empty() ? "" : error.describe();
  (void)save(job).has_value();
  log_info("job {}: {}{}{}", job.id, state, job.error.empty() ? "" : ": ", job.error);
  running_.erase(job.id);
  boost::asio::post(reactor_, [this] { pump(); });
}

Result<JobRecord> Jobs::cancel(const std::string& id) {
  const std::string exact = RETORT_TRY(find(id)).id;
  JobRecord& job = jobs_.at(exact);
  if (ended(job)) return fail(ErrorCode::kConflict, "", "job {} has ended already ({})", exact, job.state);
  job.cancel_requested = true;
  RETORT_TRY(save(job));
  const auto running = running_.find(exact);
  if (running == running_.end() || (!running->second.watch && running->second.timer)) {
    end(job, "cancelled", {ErrorCode::kCancelled, "cancelled by an operator", ""});
    return job;
  }
  RETORT_TRY(write_file_atomic(folder_of(exact) / "cancel", ""));
  if (running->second.watch) {  // a worker that does not look is ended
    running->second.timer = std::make_unique<boost::asio::steady_timer>(reactor_, std::chrono::seconds(20));
    running->second.timer->async_wait([this, exact](const boost::system::error_code& error) {
      const auto still = running_.find(exact);
      if (!error && still != running_.end() && still->second.watch) still->second.watch->signal(SIGKILL);
    });
  }
  return job;
}

void Jobs::suspend_all() {
  suspending_ = true;
  for (auto& [id, running] : running_)
    if (running.watch) running.watch->signal(SIGTERM);
}

json::object Jobs::progress(const std::string& id) const {
  const Result<File> file = File::open_read(folder_of(id) / "progress.jsonl");
  if (!file) return {};
  const std::uint64_t size = file->size().value_or(0), from = size > 65536 ? size - 65536 : 0;
  std::string text(size - from, '\0');
  if (!file->read_exact_at(from, text)) return {};
  for (std::size_t end = text.size(); end > 0;) {  // lines from the last
    const std::size_t newline = text.rfind('\n', end - 1),
                      begin = newline == std::string::npos ? 0 : newline + 1;
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    if (line.find("\"progress\"") != std::string_view::npos)
      if (Result<json::value> value = parse_json(line, "progress.jsonl"); value && value->is_object())
        return value->get_object();
    if (newline == std::string::npos) break;
    end = newline;
  }
  return {};
}

Result<Jobs::Log> Jobs::log(const std::string& id, std::uint64_t offset) const {
  const std::string exact = RETORT_TRY(find(id)).id;
  const std::filesystem::path path = folder_of(exact) / "progress.jsonl";
  if (!std::filesystem::exists(path)) return Log{"", offset};
  const File file = RETORT_TRY(File::open_read(path));
  const std::uint64_t size = RETORT_TRY(file.size());
  if (offset >= size) return Log{"", offset};
  std::string text(std::min(size - offset, kLogPieceBytes), '\0');
  RETORT_TRY(file.read_exact_at(offset, text));
  text.resize(text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1);
  const std::uint64_t next = offset + text.size();
  return Log{std::move(text), next};
}

}  // namespace retort
