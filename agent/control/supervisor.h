#pragma once

#include <sys/types.h>

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/core/result.h"

namespace retort {

/// Keeps retort-serve of the slots "a" and "b" apart from the agent's own life: what runs goes on when the
/// agent ends, and is found again when it comes back. Also starts the process that measures the device, which
/// needs more than the agent may. Thread: reactor.
class ServeSupervisor {
 public:
  struct Serve {
    pid_t pid = 0;
    std::uint16_t port = 0;  ///< 0: not listening yet
    std::string artifact;
  };
  /// An exit that stop() did not ask for. The code is -1 where it cannot be known.
  using OnExit = std::function<void(const std::string& slot, int code)>;

  virtual ~ServeSupervisor() = default;
  virtual void on_exit(OnExit callback) = 0;
  /// Starts the slot's model. Port 0: any free one. kConflict when the slot's serve runs already.
  virtual Result<void> start(const std::string& slot, const std::string& artifact, std::uint16_t port) = 0;
  virtual std::optional<Serve> find(const std::string& slot) = 0;
  /// SIGTERM (it drains), SIGKILL after seven seconds; `stopped` is posted when it is gone, also when nothing
  /// ran.
  virtual void stop(const std::string& slot, std::function<void()> stopped) = 0;
  /// For one that hangs. Its exit is told through on_exit.
  virtual void kill(const std::string& slot) = 0;
  /// The port of a listening socket that every serve is handed and holds back until it is told; 0: there is
  /// none, and the port given to start() is the one that applications ask.
  virtual std::uint16_t public_port() const = 0;
  /// The slot's serve answers on the public socket from now on; again is no harm. What waits on the socket is
  /// not lost while none does.
  virtual void make_public(const std::string& slot) = 0;
  /// Starts `retort-agent profile ARGUMENTS`, which writes run/profile.json; returns a child process that
  /// ends when it does, with its success.
  virtual Result<pid_t> start_profile(const std::vector<std::string>& arguments) = 0;
};

struct ServeOptions {
  std::filesystem::path state_folder;  ///< slots/ is below it
  std::filesystem::path run_folder;    ///< what need not outlive a restart of the machine
  std::filesystem::path binary;
  std::filesystem::path agent_binary;  ///< of this process; it can profile the device too
  std::string host = "127.0.0.1";
  std::uint64_t memory_limit_bytes = 0;  ///< 0: none stated
  std::uint32_t threads = 0;             ///< 0: serve's own choice
  std::string seal_key;                  ///< file to read it from; empty: there is none
  bool seal = false;                     ///< nothing of a student may lie on the disk as it is
  /// What follows "serve MODEL" for a slot's server.
  std::vector<std::string> arguments(const std::filesystem::path& port_file, std::uint16_t port) const;
};

/// As processes of their own session; adopts what run/serve-<slot>.json names, ends strays of this state
/// folder.
Result<std::unique_ptr<ServeSupervisor>> make_process_supervisor(boost::asio::io_context& reactor,
                                                                 ServeOptions options);
/// As systemd units retort-serve@a and retort-serve@b.
Result<std::unique_ptr<ServeSupervisor>> make_systemd_supervisor(boost::asio::io_context& reactor,
                                                                 ServeOptions options);

}  // namespace retort
