#include "common/process/process.h"

#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "common/core/file.h"

extern char** environ;

namespace retort {

Result<pid_t> start_process(const ProcessSpec& spec) {
  if (spec.arguments.empty()) return fail(ErrorCode::kInvalid, "", "no program to start");
  // All memory is taken before fork(): between fork and exec only async-signal-safe calls are allowed.
  std::vector<char*> arguments;
  for (const std::string& argument : spec.arguments) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  std::vector<std::string> variables;
  for (char** v = environ; *v != nullptr; ++v) {
    const std::string_view entry = *v;
    if (spec.environment.count(std::string(entry.substr(0, entry.find('=')))) == 0)
      variables.emplace_back(entry);
  }
  for (const auto& [name, value] : spec.environment) variables.push_back(name + "=" + value);
  std::vector<char*> environment;
  for (std::string& variable : variables) environment.push_back(variable.data());
  environment.push_back(nullptr);

  int failure[2];  // carries errno of a failed exec; closed by a successful one
  if (::pipe2(failure, O_CLOEXEC) != 0) return fail_errno(spec.arguments[0], "cannot make a pipe");
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) {
    const int error = errno;
    ::close(failure[0]);
    ::close(failure[1]);
    errno = error;
    return fail_errno(spec.arguments[0], "cannot fork");
  }
  if (pid == 0) {
    const auto give_up = [&] {
      const int error = errno;
      [[maybe_unused]] const ssize_t n = ::write(failure[1], &error, sizeof error);
      ::_exit(127);
    };
    if (spec.own_session) ::setsid();
    if (spec.die_with_parent) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) ::_exit(127);
    }
    if (spec.nice != 0) ::setpriority(PRIO_PROCESS, 0, spec.nice);
    for (int number = 1; number < NSIG; ++number)
      if (number != SIGKILL && number != SIGSTOP) ::signal(number, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    const auto redirect = [&](const std::filesystem::path& path, int target) {
      const char* name = path.empty() ? "/dev/null" : path.c_str();
      const int fd = ::open(name, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0600);
      if (fd < 0 || ::dup2(fd, target) < 0) give_up();
      if (fd != target) ::close(fd);
    };
    const int in = ::open("/dev/null", O_RDONLY);
    if (in < 0 || ::dup2(in, 0) < 0) give_up();
    redirect(spec.stdout_file, 1);
    redirect(spec.stderr_file, 2);
    ::syscall(SYS_close_range, 3, ~0u, 4 /* CLOSE_RANGE_CLOEXEC: the failure pipe must live until exec */);
    if (!spec.folder.empty() && ::chdir(spec.folder.c_str()) != 0) give_up();
    ::execvpe(arguments[0], arguments.data(), environment.data());
    give_up();
  }
  ::close(failure[1]);
  int error = 0;
  const ssize_t got = ::read(failure[0], &error, sizeof error);
  ::close(failure[0]);
  if (got == sizeof error) {
    ::waitpid(pid, nullptr, 0);
    errno = error;
    return fail_errno(spec.arguments[0], "cannot start");
  }
  return pid;
}

Result<ProcessIdentity> identify_process(pid_t pid) {
  const std::string stat = RETORT_TRY(read_file("/proc/" + std::to_string(pid) + "/stat", 4096));
  // The name in parentheses may hold anything; fields count from the last ')'. starttime is the 20th after
  // it.
  std::size_t at = stat.rfind(')');
  if (at != std::string::npos && at + 2 < stat.size() && (stat[at + 2] == 'Z' || stat[at + 2] == 'X'))
    return fail(ErrorCode::kNotFound, "/proc/" + std::to_string(pid), "has ended");
  for (int field = 0; field < 20 && at != std::string::npos; ++field) at = stat.find(' ', at + 1);
  ProcessIdentity identity{pid, 0};
  if (at == std::string::npos ||
      std::from_chars(stat.data() + at + 1, stat.data() + stat.size(), identity.start_ticks).ec !=
          std::errc())
    return fail(ErrorCode::kInternal, "/proc/" + std::to_string(pid) + "/stat", "unexpected form");
  return identity;
}

bool is_running(const ProcessIdentity& identity) {
  const Result<ProcessIdentity> now = identify_process(identity.pid);
  return now && now->start_ticks == identity.start_ticks;
}

struct ProcessWatch::Impl : std::enable_shared_from_this<ProcessWatch::Impl> {
  Impl(boost::asio::io_context& reactor, pid_t id, OnExit callback)
      : pid(id), on_exit(std::move(callback)), descriptor(reactor) {}
  pid_t pid;
  OnExit on_exit;
  boost::asio::posix::stream_descriptor descriptor;

  void finished() {
    int code = -1;
    int status = 0;
    if (::waitpid(pid, &status, WNOHANG) == pid)
      code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (on_exit) std::exchange(on_exit, nullptr)(code);
  }
};

ProcessWatch::ProcessWatch(boost::asio::io_context& reactor, pid_t pid, OnExit on_exit)
    : impl_(std::make_shared<Impl>(reactor, pid, std::move(on_exit))) {
  const int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) {  // gone already
    boost::asio::post(reactor, [impl = impl_] { impl->finished(); });
    return;
  }
  impl_->descriptor.assign(fd);
  impl_->descriptor.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                               [impl = impl_](const boost::system::error_code& error) {
                                 if (!error) impl->finished();
                               });
}

ProcessWatch::~ProcessWatch() {
  impl_->on_exit = nullptr;
  boost::system::error_code ignored;
  impl_->descriptor.close(ignored);
}

pid_t ProcessWatch::pid() const { return impl_->pid; }

void ProcessWatch::signal(int number) {
  if (impl_->descriptor.is_open())
    ::syscall(SYS_pidfd_send_signal, impl_->descriptor.native_handle(), number, nullptr, 0);
}

Result<std::uint64_t> pss_bytes(pid_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/smaps_rollup";
  const std::string text = RETORT_TRY(read_file(path, 1 << 16));
  const std::size_t at = text.find("\nPss:");
  if (at == std::string::npos) return fail(ErrorCode::kNotFound, path, "no Pss line");
  std::size_t begin = text.find_first_of("0123456789", at);
  std::uint64_t kilobytes = 0;
  if (begin == std::string::npos ||
      std::from_chars(text.data() + begin, text.data() + text.size(), kilobytes).ec != std::errc())
    return fail(ErrorCode::kNotFound, path, "no Pss line");
  return kilobytes * 1024;
}

void keep_freed_memory(std::size_t largest, std::size_t kept) {
  ::mallopt(M_MMAP_THRESHOLD, static_cast<int>(largest));
  ::mallopt(M_TRIM_THRESHOLD, static_cast<int>(kept));
}

void release_freed_memory() {
#ifdef __GLIBC__
  ::malloc_trim(0);
#endif
}

void notify_service_manager(std::string_view state) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  if (path == nullptr || path[0] == '\0') return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::size_t length = std::strlen(path);
  if (length >= sizeof address.sun_path) return;
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';  // abstract
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  ::sendto(fd, state.data(), state.size(), MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&address),
           static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length));
  ::close(fd);
}

ServiceWatchdog::ServiceWatchdog(boost::asio::io_context& reactor) : timer_(reactor), pause_(0) {
  const char* text = std::getenv("WATCHDOG_USEC");
  const char* pid = std::getenv("WATCHDOG_PID");
  if (text == nullptr || (pid != nullptr && std::strtoll(pid, nullptr, 10) != ::getpid())) return;
  pause_ = std::chrono::milliseconds(std::strtoull(text, nullptr, 10) / 2000);
  if (pause_.count() > 0) ping();
}

void ServiceWatchdog::ping() {
  notify_service_manager("WATCHDOG=1");
  timer_.expires_after(pause_);
  timer_.async_wait([this, alive = std::weak_ptr<int>(alive_)](const boost::system::error_code& error) {
    if (!error && !alive.expired()) ping();
  });
}

}  // namespace retort
