#pragma once

#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/core/file.h"
#include "common/process/process.h"
#include "tests/support/support.h"

/// Mirrors for tests: one that does as a script says, and Debian's nginx.
namespace retort::testing {

/// A listening socket on a port of 127.0.0.1 that is free.
inline int listen_anywhere(std::uint16_t& port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (::bind(fd, reinterpret_cast<sockaddr*>(&address), length) != 0 || ::listen(fd, 64) != 0) std::abort();
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  port = ntohs(address.sin_port);
  return fd;
}

/// An HTTP server whose answer to each request is whatever `answer` does with the connection.
class ScriptedServer {
 public:
  class Connection {
   public:
    Connection(int fd, const std::atomic<bool>& stopping) : fd_(fd), stopping_(stopping) {}
    /// False when the client has gone.
    bool say(std::string_view bytes) const {
      while (!bytes.empty()) {
        const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (sent <= 0) return false;
        bytes.remove_prefix(static_cast<std::size_t>(sent));
      }
      return !stopping_;
    }
    /// Until the client goes, or the test ends; or so long.
    void wait(std::chrono::milliseconds most = std::chrono::minutes(10)) const {
      const auto end = std::chrono::steady_clock::now() + most;
      char byte;
      while (!stopping_ && std::chrono::steady_clock::now() < end) {
        pollfd gone{fd_, POLLIN, 0};
        if (::poll(&gone, 1, 20) > 0 && ::recv(fd_, &byte, 1, MSG_PEEK) <= 0) return;
      }
    }

   private:
    int fd_;
    const std::atomic<bool>& stopping_;
  };
  struct Request {
    std::string head;
    std::uint64_t first = 0, last = 0;  ///< of its Range
  };
  using Answer = std::function<void(const Connection& connection, const Request& request)>;

  explicit ScriptedServer(Answer answer) : answer_(std::move(answer)), listener_(listen_anywhere(port_)) {
    thread_ = std::thread([this] { serve(); });
  }
  ~ScriptedServer() {
    stopping_ = true;
    thread_.join();
    for (std::thread& one : connections_) one.join();
    ::close(listener_);
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/retort"; }
  std::vector<Request> requests() const {
    const std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  void serve() {
    while (!stopping_) {
      pollfd ready{listener_, POLLIN, 0};
      if (::poll(&ready, 1, 20) <= 0) continue;
      const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd >= 0)
        connections_.emplace_back([this, fd] {
          Request request;
          char byte;
          while (request.head.find("\r\n\r\n") == std::string::npos && ::recv(fd, &byte, 1, 0) == 1)
            request.head += byte;
          const std::size_t range = request.head.find("bytes=");
          if (range != std::string::npos)
            std::sscanf(request.head.c_str() + range, "bytes=%lu-%lu", &request.first, &request.last);
          {
            const std::lock_guard lock(mutex_);
            requests_.push_back(request);
          }
          answer_(Connection(fd, stopping_), request);
          ::close(fd);
        });
    }
  }

  Answer answer_;
  std::uint16_t port_ = 0;
  int listener_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
  std::vector<std::thread> connections_;
  mutable std::mutex mutex_;
  std::vector<Request> requests_;
};

/// The start of a right answer to a request for a range of a file of so many bytes.
inline std::string partial_content(const ScriptedServer::Request& request, std::uint64_t of) {
  return fmt::format(
      "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {}-{}/{}\r\n\r\n",
      request.last - request.first + 1, request.first, request.last, of);
}

/// nginx over a folder; `extra` goes into its server block ("limit_rate 1m;").
class Nginx {
 public:
  explicit Nginx(const std::filesystem::path& root, const std::string& extra = "") {
    for (int tries = 0; tries < 5 && pid_ == 0; ++tries) {
      ::close(listen_anywhere(port_));  // free a moment ago: should it be taken by now, once more
      const std::string own = folder_.path().string();
      std::string text = "daemon off; master_process off; pid " + own + "/pid; error_log " + own +
                         "/error.log; events {} http { access_log " + own + "/access.log;";
      for (const char* what : {"client_body", "proxy", "fastcgi", "uwsgi", "scgi"})
        text += fmt::format(" {}_temp_path {}/{};", what, own, what);
      text += fmt::format(" server {{ listen 127.0.0.1:{}; root {}; {} }} }}\n", port_, root.string(), extra);
      EXPECT_OK(write_file_atomic(folder_ / "nginx.conf", text, 0644));
      ProcessSpec spec;
      spec.arguments = {"/usr/sbin/nginx", "-c", (folder_ / "nginx.conf").string(), "-e", own + "/error.log"};
      spec.stderr_file = folder_ / "stderr";
      spec.die_with_parent = true;
      const auto started = start_process(spec);
      if (!started) {
        ADD_FAILURE() << "nginx is needed (scripts/bootstrap): " << started.error().describe();
        return;
      }
      pid_ = *started;
      while (!answers()) {
        if (::waitpid(pid_, nullptr, WNOHANG) == pid_) {
          pid_ = 0;
          break;
        }
        ::usleep(10'000);
      }
    }
    EXPECT_NE(pid_, 0) << read_file(folder_ / "error.log").value_or("")
                       << read_file(folder_ / "stderr").value_or("");
  }
  ~Nginx() { kill(); }
  void kill() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  /// A line a request that is through: "… "GET /ab/abc… HTTP/1.1" 206 1234 …".
  std::string log() const { return read_file(folder_ / "access.log").value_or(""); }

 private:
  bool answers() const {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port_);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const bool there = ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    ::close(fd);
    return there;
  }
  TemporaryFolder folder_;
  std::uint16_t port_ = 0;
  pid_t pid_ = 0;
};

}  // namespace retort::testing
