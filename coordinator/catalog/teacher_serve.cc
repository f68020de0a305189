#include "coordinator/catalog/teacher_serve.h"

#include <signal.h>

#include "common/core/file.h"
#include "common/core/log.h"

namespace retort {

TeacherServe::TeacherServe(boost::asio::io_context& reactor, std::string serve_binary,
                           std::filesystem::path run_folder)
    : reactor_(reactor), binary_(std::move(serve_binary)), folder_(std::move(run_folder)), timer_(reactor) {}

TeacherServe::~TeacherServe() { stop(); }

void TeacherServe::serve(const std::string& teacher, const std::filesystem::path& gguf) {
  if (teacher == teacher_ && watch_) return;
  stop();
  teacher_ = teacher;
  gguf_ = gguf;
  failures_ = 0;
  start();
}

void TeacherServe::stop() {
  timer_.cancel();
  if (watch_) {
    watch_->signal(SIGTERM);
    const pid_t pid = watch_->pid();
    leaving_[pid] = std::make_unique<ProcessWatch>(reactor_, pid, [this, pid](int) { leaving_.erase(pid); });
  }
  watch_.reset();
  teacher_.clear();
  url_.clear();
  state_ = "stopped";
}

void TeacherServe::start() {
  std::error_code ignored;
  std::filesystem::create_directories(folder_, ignored);
  std::filesystem::remove(folder_ / "port", ignored);
  ProcessSpec spec;
  spec.arguments = {binary_,
                    "serve",
                    gguf_.string(),
                    "--port",
                    "0",
                    "--port-file",
                    (folder_ / "port").string(),
                    "--name",
                    "teacher",
                    "--pack-cache",
                    (folder_ / "packed").string()};
  spec.stderr_file = folder_ / "stderr";
  spec.die_with_parent = true;
  const Result<pid_t> pid = start_process(spec);
  url_.clear();
  const auto again = [this] {
    watch_.reset();
    url_.clear();
    state_ = "restarting";
    const int seconds = std::min(60, 1 << std::min(failures_++, 6));
    log_warn("the teacher's retort-serve is down (see {}); again in {} s", (folder_ / "stderr").string(),
             seconds);
    timer_.expires_after(std::chrono::seconds(seconds));
    timer_.async_wait([this](const boost::system::error_code& error) {
      if (!error) start();
    });
  };
  if (!pid) {
    log_error("{}", pid.error().describe());
    return again();
  }
  state_ = "starting";
  watch_ = std::make_unique<ProcessWatch>(reactor_, *pid, [again](int) { again(); });
  poll_port();
}

void TeacherServe::poll_port() {
  timer_.expires_after(std::chrono::milliseconds(50));
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (error || !watch_) return;
    const Result<std::string> port = read_file(folder_ / "port", 16);
    if (!port || port->empty()) return poll_port();
    url_ = "http://127.0.0.1:" + std::to_string(std::atoi(port->c_str()));
    state_ = "serving";
    failures_ = 0;
    log_info("teacher {} is served at {}", teacher_.substr(0, 12), url_);
  });
}

}  // namespace retort
