#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <charconv>
#include <cstdlib>
#include <map>
#include <set>

#include "agent/control/supervisor.h"
#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/log.h"
#include "common/process/process.h"

namespace retort {
namespace {
namespace fs = std::filesystem;

/// Drives the units through `systemctl`; the port and options reach them in run/serve-<slot>.env, which the
/// unit reads. The unit's main process is watched through a pidfd, so that its end is noticed at once.
class SystemdSupervisor final : public ServeSupervisor {
 public:
  SystemdSupervisor(boost::asio::io_context& reactor, ServeOptions options)
      : reactor_(reactor), options_(std::move(options)) {}

  Result<void> adopt() {
    public_port_ = activated_port();
    RETORT_TRY(make_folders(options_.run_folder));
    RETORT_TRY(make_folders(options_.state_folder / "packed"));  // its unit may write there, not make it
    for (const std::string slot : {"a", "b"}) {
      const pid_t pid = main_pid(slot);
      if (pid > 0) watch(slot, pid, read_file(file(slot, ".artifact"), 128).value_or(""));
    }
    return {};
  }

  void on_exit(OnExit callback) override { on_exit_ = std::move(callback); }

  Result<void> start(const std::string& slot, const std::string& artifact, std::uint16_t port) override {
    if (running_.count(slot) > 0) return fail(ErrorCode::kConflict, unit(slot), "runs already");
    std::error_code ignored;
    fs::remove(file(slot, ".port"), ignored);
    std::string line =
        fmt::format("RETORT_SERVE_OPTIONS={}", fmt::join(options_.arguments(file(slot, ".port"), port), " "));
    if (public_port_ != 0) line += " --hold-socket";
    RETORT_TRY(write_file_atomic(file(slot, ".env"), line + "\n"));
    RETORT_TRY(write_file_atomic(file(slot, ".artifact"), artifact));
    RETORT_TRY(systemctl({"start", "--no-block", unit(slot)}));
    running_[slot].artifact = artifact;
    look_for_pid(slot, 100);
    return {};
  }

  std::optional<Serve> find(const std::string& slot) override {
    const auto found = running_.find(slot);
    if (found == running_.end()) return std::nullopt;
    Running& running = found->second;
    if (running.port == 0) {
      const std::string text = read_file(file(slot, ".port"), 64).value_or("");
      std::from_chars(text.data(), text.data() + text.size(), running.port);
    }
    return Serve{running.watch ? running.watch->pid() : 0, running.port, running.artifact};
  }

  void stop(const std::string& slot, std::function<void()> stopped) override {
    const auto found = running_.find(slot);
    if (found == running_.end()) return boost::asio::post(reactor_, std::move(stopped));
    found->second.stopped.push_back(std::move(stopped));
    if (const Result<void> asked = systemctl({"stop", "--no-block", unit(slot)}); !asked)
      log_warn("{}", asked.error().describe());
    if (!found->second.watch) gone(slot, -1);
  }

  void kill(const std::string& slot) override {
    if (const Result<void> asked = systemctl({"kill", "--signal=KILL", unit(slot)}); !asked)
      log_warn("{}", asked.error().describe());
  }

  std::uint16_t public_port() const override { return public_port_; }

  void make_public(const std::string& slot) override {
    const auto found = running_.find(slot);
    if (public_port_ != 0 && found != running_.end() && found->second.watch)
      found->second.watch->signal(SIGUSR1);
  }

  Result<pid_t> start_profile(const std::vector<std::string>& arguments) override {
    RETORT_TRY(write_file_atomic(options_.run_folder / "profile.env",
                                 fmt::format("RETORT_PROFILE_OPTIONS={}\n", fmt::join(arguments, " "))));
    // The service manager opens the unit's output as root: a file that it made would not be the agent's to
    // read.
    RETORT_TRY(write_file_atomic(options_.run_folder / "profile.json", ""));
    ProcessSpec spec;  // without --no-block: it ends with the unit
    spec.arguments = {"systemctl", "start", "retort-agent-profile.service"};
    spec.die_with_parent = true;
    return start_process(spec);
  }

 private:
  struct Running {
    std::unique_ptr<ProcessWatch> watch;
    std::unique_ptr<boost::asio::steady_timer> timer;
    std::string artifact;
    std::uint16_t port = 0;
    std::vector<std::function<void()>> stopped;
  };

  /// retort-serve.socket is handed to the agent too, which never accepts on it: that it is there tells that
  /// the students get it.
  static std::uint16_t activated_port() {
    const char *fds = std::getenv("LISTEN_FDS"), *owner = std::getenv("LISTEN_PID");
    if (fds == nullptr || std::atoi(fds) < 1 || owner == nullptr || std::atoi(owner) != ::getpid()) return 0;
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    constexpr int kFirst = 3;  // SD_LISTEN_FDS_START
    if (::getsockname(kFirst, reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
    if (address.ss_family == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
    if (address.ss_family == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
    return 0;
  }

  static std::string unit(const std::string& slot) { return "retort-serve@" + slot + ".service"; }
  fs::path file(const std::string& slot, const char* suffix) const {
    return options_.run_folder / ("serve-" + slot + suffix);
  }

  /// Short calls to the manager (--no-block): tens of milliseconds at most, and rare.
  Result<void> systemctl(std::vector<std::string> arguments, std::string* output = nullptr) const {
    ProcessSpec spec;
    spec.arguments = {"systemctl"};
    spec.arguments.insert(spec.arguments.end(), arguments.begin(), arguments.end());
    const fs::path out = options_.run_folder / "systemctl.out";
    std::error_code ignored;
    fs::remove(out, ignored);
    spec.stdout_file = spec.stderr_file = out;
    const pid_t pid = RETORT_TRY(start_process(spec));
    int code = -1;
    boost::asio::io_context wait;
    const ProcessWatch watch(wait, pid, [&](int status) { code = status; });
    wait.run_for(std::chrono::seconds(5));
    const std::string text = read_file(out, 1 << 16).value_or("");
    if (output != nullptr) *output = text;
    if (code != 0)
      return fail(ErrorCode::kUnavailable, "systemctl " + arguments[0],
                  "status {}: {} (may this user manage {}?)", code, text.substr(0, 200), arguments.back());
    return {};
  }

  pid_t main_pid(const std::string& slot) const {
    std::string text;
    if (!systemctl({"show", "--property=MainPID", "--value", unit(slot)}, &text)) return 0;
    pid_t pid = 0;
    std::from_chars(text.data(), text.data() + text.size(), pid);
    return pid;
  }

  void look_for_pid(const std::string& slot, int tries) {
    const auto found = running_.find(slot);
    if (found == running_.end() || found->second.watch) return;
    if (const pid_t pid = main_pid(slot); pid > 0) return watch(slot, pid, found->second.artifact);
    if (tries == 0) return gone(slot, -1);
    found->second.timer =
        std::make_unique<boost::asio::steady_timer>(reactor_, std::chrono::milliseconds(50));
    found->second.timer->async_wait([this, slot, tries](const boost::system::error_code& error) {
      if (!error) look_for_pid(slot, tries - 1);
    });
  }

  void watch(const std::string& slot, pid_t pid, const std::string& artifact) {
    Running& running = running_[slot];
    running.artifact = artifact;
    running.watch = std::make_unique<ProcessWatch>(reactor_, pid, [this, slot](int code) {
      boost::asio::post(reactor_, [this, slot, code] { gone(slot, code); });
    });
  }

  void gone(const std::string& slot, int code) {
    const auto found = running_.find(slot);
    if (found == running_.end()) return;
    const Running running = std::move(found->second);
    running_.erase(found);
    for (const auto& callback : running.stopped) callback();
    if (running.stopped.empty() && on_exit_) on_exit_(slot, code);
  }

  boost::asio::io_context& reactor_;
  ServeOptions options_;
  OnExit on_exit_;
  std::uint16_t public_port_ = 0;
  std::map<std::string, Running> running_;
};

}  // namespace

Result<std::unique_ptr<ServeSupervisor>> make_systemd_supervisor(boost::asio::io_context& reactor,
                                                                 ServeOptions options) {
  auto supervisor = std::make_unique<SystemdSupervisor>(reactor, std::move(options));
  RETORT_TRY(supervisor->adopt());
  return Result<std::unique_ptr<ServeSupervisor>>(std::move(supervisor));
}

}  // namespace retort
