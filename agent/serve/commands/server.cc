#include "agent/serve/commands/server.h"

#include <signal.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/http/http.h"
#include "common/process/process.h"

namespace retort {

std::string served_name(const ServeArguments& options) {
  return options.name.empty() ? std::filesystem::path(options.model).stem().string() : options.name;
}

Result<void> run_server(const ServeArguments& options, ServeFront& front, const std::string& told,
                        const std::function<bool()>& idle) {
  boost::asio::io_context reactor(1);
  boost::asio::signal_set signals(reactor, SIGTERM, SIGINT);  // from here on they are kept for the wait below
  HttpServer server(reactor, {}, [&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    front.handle(std::move(request), std::move(responder));
  });
  const char *fds = std::getenv("LISTEN_FDS"), *owner = std::getenv("LISTEN_PID");
  const bool activated =
      fds != nullptr && std::atoi(fds) >= 1 && owner != nullptr && std::atoi(owner) == ::getpid();
  const std::uint16_t port =
      activated ? RETORT_TRY(server.adopt(3)) : RETORT_TRY(server.listen(options.host, options.port));
  if (!options.port_file.empty())
    RETORT_TRY(write_file_atomic(options.port_file, std::to_string(port) + "\n", 0644));
  log_info("serving {} ({}) at http://{}:{}", front.name(), told, options.host, port);
  notify_service_manager("READY=1");

  // /health tells which artifact this is; large files take a while, and the first requests come first.
  boost::asio::steady_timer rest(reactor, std::chrono::milliseconds(200));
  std::thread hashing;
  const auto hash_file = [&] {
    Result<std::string> hash = sha256_file_hex(options.model);
    if (hash) boost::asio::post(reactor, [&front, text = *hash] { front.set_artifact(text); });
  };
  rest.async_wait([&](const boost::system::error_code& error) {
    if (!error) hashing = std::thread(hash_file);
  });
  boost::asio::steady_timer drain(reactor), watchdog(reactor);
  std::function<void()> wait_idle = [&] {
    if (idle() && server.connections() == 0) return reactor.stop();
    drain.expires_after(std::chrono::milliseconds(20));
    drain.async_wait([&](const boost::system::error_code& error) {
      if (!error) wait_idle();
    });
  };
  boost::asio::steady_timer deadline(reactor);
  signals.async_wait([&](const boost::system::error_code& error, int) {
    if (error) return;
    notify_service_manager("STOPPING=1");
    server.stop();
    deadline.expires_after(std::chrono::seconds(5));
    deadline.async_wait(
        [&](const boost::system::error_code&) { ::_exit(0); });  // a computation that will not end in time
    wait_idle();
  });
  std::function<void()> ping = [&] {
    notify_service_manager("WATCHDOG=1");
    watchdog.expires_after(std::chrono::milliseconds(watchdog_interval_millis()));
    watchdog.async_wait([&](const boost::system::error_code& error) {
      if (!error) ping();
    });
  };
  if (watchdog_interval_millis() != 0) ping();
  reactor.run();
  if (hashing.joinable()) hashing.join();
  return {};
}

}  // namespace retort
