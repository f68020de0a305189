#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "common/process/process.h"

namespace retort {

/// The one retort-serve of the chosen teacher: started, watched, and started again when it dies. It ends with
/// the coordinator. Thread: reactor.
class TeacherServe {
 public:
  TeacherServe(boost::asio::io_context& reactor, std::string serve_binary, std::filesystem::path run_folder);
  ~TeacherServe();
  void serve(const std::string& teacher, const std::filesystem::path& gguf);
  void stop();
  const std::string& teacher() const { return teacher_; }
  std::string url() const { return url_; }
  /// "stopped", "starting", "serving", "restarting".
  const std::string& state() const { return state_; }

 private:
  void start();
  void poll_port();
  boost::asio::io_context& reactor_;
  std::string binary_;
  std::filesystem::path folder_, gguf_;
  std::string teacher_, url_, state_ = "stopped";
  std::unique_ptr<ProcessWatch> watch_;
  std::map<pid_t, std::unique_ptr<ProcessWatch>> leaving_;  ///< told to end, kept until they have
  boost::asio::steady_timer timer_;
  int failures_ = 0;
};

}  // namespace retort
