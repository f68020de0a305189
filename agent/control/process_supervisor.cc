#include <signal.h>

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <charconv>
#include <map>

#include "agent/control/supervisor.h"
#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/log.h"
#include "common/process/process.h"

namespace retort {
namespace {
namespace fs = std::filesystem;

constexpr auto kDrainTime = std::chrono::seconds(7);

class ProcessSupervisor final : public ServeSupervisor {
 public:
  ProcessSupervisor(boost::asio::io_context& reactor, ServeOptions options)
      : reactor_(reactor), options_(std::move(options)) {}

  Result<void> adopt() {
    RETORT_TRY(make_folders(options_.run_folder));
    for (const char* slot : {"a", "b"}) {
      const Result<Known> known = read_known(slot);
      if (known && is_running(known->identity)) {
        log_info("slot {}: adopted retort-serve, process {}", slot, known->identity.pid);
        watch(slot, *known);
      }
    }
    end_strays();
    return {};
  }

  void on_exit(OnExit callback) override { on_exit_ = std::move(callback); }

  Result<void> start(const std::string& slot, const std::string& artifact, std::uint16_t port) override {
    if (running_.count(slot) > 0)
      return fail(ErrorCode::kConflict, "slot " + slot, "its retort-serve runs already");
    std::error_code ignored;
    fs::remove(port_file(slot), ignored);
    const fs::path log = options_.run_folder / ("serve-" + slot + ".log");
    // Appended to by serve; bounded here, at each start.
    if (fs::is_symlink(log, ignored)) fs::remove(log, ignored);  // not ours
    if (const auto size = fs::file_size(log, ignored); !ignored && size > (1u << 20))
      fs::resize_file(log, 0, ignored);
    ProcessSpec spec;
    spec.arguments = {options_.binary.string(), "serve",
                      (options_.state_folder / "slots" / slot / "model.gguf").string()};
    const std::vector<std::string> more = options_.arguments(port_file(slot), port);
    spec.arguments.insert(spec.arguments.end(), more.begin(), more.end());
    spec.stdout_file = spec.stderr_file = log;
    spec.own_session = true;
    spec.environment = {{"NOTIFY_SOCKET", ""}, {"LISTEN_FDS", ""}};  // ours, not its
    const pid_t pid = RETORT_TRY(start_process(spec));
    Known known{{pid, 0}, artifact};
    if (const Result<ProcessIdentity> identity = identify_process(pid)) known.identity = *identity;
    watch(slot, known);
    const Result<void> noted = write_file_atomic(
        known_file(slot),
        json::serialize(
            json::object{{"pid", pid}, {"start_ticks", known.identity.start_ticks}, {"artifact", artifact}}));
    if (!noted) log_warn("slot {}: {}; a restarted agent will not adopt it", slot, noted.error().describe());
    log_info("slot {}: started retort-serve, process {}", slot, pid);
    return {};
  }

  std::optional<Serve> find(const std::string& slot) override {
    const auto found = running_.find(slot);
    if (found == running_.end()) return std::nullopt;
    Running& running = found->second;
    if (running.port == 0) {
      const std::string text = read_file(port_file(slot), 64).value_or("");
      std::from_chars(text.data(), text.data() + text.size(), running.port);
    }
    return Serve{running.watch->pid(), running.port, running.artifact};
  }

  void stop(const std::string& slot, std::function<void()> stopped) override {
    const auto found = running_.find(slot);
    if (found == running_.end()) return boost::asio::post(reactor_, std::move(stopped));
    Running& running = found->second;
    running.stopped.push_back(std::move(stopped));
    if (running.kill_timer) return;  // being stopped already
    running.watch->signal(SIGTERM);
    running.kill_timer = std::make_unique<boost::asio::steady_timer>(reactor_, kDrainTime);
    running.kill_timer->async_wait([this, slot](const boost::system::error_code& error) {
      if (error) return;
      log_warn("slot {}: retort-serve did not end in {} s, killed", slot, kDrainTime.count());
      kill(slot);
    });
  }

  void kill(const std::string& slot) override {
    if (const auto found = running_.find(slot); found != running_.end()) found->second.watch->signal(SIGKILL);
  }

  std::uint16_t public_port() const override { return 0; }
  void make_public(const std::string&) override {}

  Result<pid_t> start_profile(const std::vector<std::string>& arguments) override {
    ProcessSpec spec;
    spec.arguments = {options_.agent_binary.string(), "profile"};
    spec.arguments.insert(spec.arguments.end(), arguments.begin(), arguments.end());
    spec.arguments.insert(spec.arguments.end(), {"--serve-binary", options_.binary.string()});
    spec.stdout_file = options_.run_folder / "profile.json";
    spec.die_with_parent = true;
    return start_process(spec);
  }

 private:
  struct Known {
    ProcessIdentity identity;
    std::string artifact;
  };
  struct Running {
    std::unique_ptr<ProcessWatch> watch;
    std::string artifact;
    std::uint16_t port = 0;
    std::vector<std::function<void()>> stopped;
    std::unique_ptr<boost::asio::steady_timer> kill_timer;
  };

  fs::path port_file(const std::string& slot) const {
    return options_.run_folder / ("serve-" + slot + ".port");
  }
  fs::path known_file(const std::string& slot) const {
    return options_.run_folder / ("serve-" + slot + ".json");
  }

  Result<Known> read_known(const std::string& slot) const {
    const std::string where = known_file(slot).string();
    const json::value value = RETORT_TRY(parse_json(RETORT_TRY(read_file(where, 4096)), where));
    const json::object& object = *RETORT_TRY(as_object(value, where));
    return Known{{static_cast<pid_t>(RETORT_TRY(json_uint(object, "pid", where, 1u << 30))),
                  RETORT_TRY(json_uint(object, "start_ticks", where))},
                 RETORT_TRY(json_string(object, "artifact", where))};
  }

  void watch(const std::string& slot, const Known& known) {
    Running& running = running_[slot];
    running.artifact = known.artifact;
    running.watch = std::make_unique<ProcessWatch>(reactor_, known.identity.pid, [this, slot](int code) {
      // Posted: the watch must not be destroyed inside its own callback.
      boost::asio::post(reactor_, [this, slot, code] { gone(slot, code); });
    });
  }

  void gone(const std::string& slot, int code) {
    const auto found = running_.find(slot);
    if (found == running_.end()) return;
    const Running running = std::move(found->second);
    running_.erase(found);
    std::error_code ignored;
    fs::remove(known_file(slot), ignored);
    fs::remove(port_file(slot), ignored);
    for (const auto& callback : running.stopped) callback();
    if (running.stopped.empty() && on_exit_) on_exit_(slot, code);
  }

  /// An agent killed between starting a serve and noting it leaves one that nobody knows; its command line
  /// names our port file.
  void end_strays() {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator("/proc", ignored)) {
      const std::string name = entry.path().filename();
      pid_t pid = 0;
      if (std::from_chars(name.data(), name.data() + name.size(), pid).ec != std::errc()) continue;
      const std::string command = read_file(entry.path() / "cmdline", 1 << 16).value_or("");
      for (const char* slot : {"a", "b"}) {
        const std::string argument = std::string(1, '\0') + port_file(slot).string() + std::string(1, '\0');
        if (command.find(argument) == std::string::npos) continue;
        if (const auto known = running_.find(slot);
            known != running_.end() && known->second.watch->pid() == pid)
          continue;
        log_warn("slot {}: process {} is a retort-serve that nobody noted; ended", slot, pid);
        ::kill(pid, SIGKILL);
      }
    }
  }

  boost::asio::io_context& reactor_;
  ServeOptions options_;
  OnExit on_exit_;
  std::map<std::string, Running> running_;
};

}  // namespace

std::vector<std::string> ServeOptions::arguments(const fs::path& port_file, std::uint16_t port) const {
  std::vector<std::string> out{"--host",       host,
                               "--port",       std::to_string(port),
                               "--port-file",  port_file.string(),
                               "--pack-cache", seal ? "none" : (state_folder / "packed").string()};
  if (threads > 0) out.insert(out.end(), {"--threads", std::to_string(threads)});
  if (memory_limit_bytes > 0) out.insert(out.end(), {"--memory-limit", std::to_string(memory_limit_bytes)});
  if (!seal_key.empty()) out.insert(out.end(), {"--seal-key", seal_key});
  return out;
}

Result<std::unique_ptr<ServeSupervisor>> make_process_supervisor(boost::asio::io_context& reactor,
                                                                 ServeOptions options) {
  auto supervisor = std::make_unique<ProcessSupervisor>(reactor, std::move(options));
  RETORT_TRY(supervisor->adopt());
  return Result<std::unique_ptr<ServeSupervisor>>(std::move(supervisor));
}

}  // namespace retort
