#include "agent/serve/commands/server.h"

#include <signal.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <thread>
#include <utility>

#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/core/units.h"
#include "common/http/http.h"
#include "common/process/process.h"
#include "common/seal/sealed_file.h"

namespace retort {

namespace {

/// The file's first line.
Result<std::string> bearer_token(const ServeArguments& options) {
  if (options.token_file.empty()) return std::string();
  std::string token = RETORT_TRY(read_file(options.token_file, 64u << 10));
  token.resize(std::min(token.find_first_of("\r\n"), token.size()));
  if (token.empty()) return fail(ErrorCode::kInvalid, options.token_file, "holds no token in its first line");
  return token;
}

}  // namespace

std::string served_name(const ServeArguments& options) {
  return options.name.empty() ? std::filesystem::path(options.model).stem().string() : options.name;
}

json::object model_facts(const Model& model, std::uint32_t n_ctx) {
  return {{"architecture", to_string(model.config().family)},
          {"n_params", model.parameters()},
          {"size", model.file().file_length()},
          {"n_vocab", model.config().n_vocab},
          {"n_ctx", n_ctx},
          {"n_embd", model.config().n_embd},
          {"bits_per_weight", model.bits_per_weight()}};
}

Result<void> run_server(const ServeArguments& options, ServeFront& front, const std::string& told,
                        const std::function<bool()>& idle) {
  front.require_token(RETORT_TRY(bearer_token(options)));
  HttpLimits limits;
  limits.body_bytes = RETORT_TRY(parse_bytes(options.request_bytes));
  if (options.tls_certificate.empty() != options.tls_key.empty())
    return fail(ErrorCode::kInvalid, "", "--tls-cert and --tls-key go together");
  std::shared_ptr<TlsServer> tls;
  if (!options.tls_certificate.empty())
    tls = RETORT_TRY(TlsServer::load(options.tls_certificate, options.tls_key));
  boost::asio::io_context reactor(1);
  boost::asio::signal_set signals(reactor, SIGTERM, SIGINT);  // from here on they are kept for the wait below
  const auto handle = [&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    try {
      front.handle(std::move(request), responder);
    } catch (const std::bad_alloc&) {
      front.refuse(*responder, 503, "server_error",
                   "there is not enough memory for this request; try again later, or with a smaller one");
    }
  };
  const auto refuse = [&](int status, const std::string& why,
                          const std::shared_ptr<HttpResponder>& responder) {
    front.refuse(*responder, status, "invalid_request_error", why);
  };
  HttpServer server(reactor, limits, handle, tls, refuse), held(reactor, limits, handle, tls, refuse);
  const char *fds = std::getenv("LISTEN_FDS"), *owner = std::getenv("LISTEN_PID");
  const bool activated =
      fds != nullptr && std::atoi(fds) >= 1 && owner != nullptr && std::atoi(owner) == ::getpid();
  const std::uint16_t port = activated && !options.hold_socket
                                 ? RETORT_TRY(server.adopt(3))
                                 : RETORT_TRY(server.listen(options.host, options.port));
  // Two slots share a public socket: only the one that is told answers there.
  boost::asio::signal_set named(reactor, SIGUSR1);
  bool holding = activated && options.hold_socket;
  std::function<void()> await_named = [&] {
    named.async_wait([&](const boost::system::error_code& error, int) {
      if (error) return;
      if (std::exchange(holding, false)) {
        if (const Result<std::uint16_t> adopted = held.adopt(3); !adopted)
          log_error("the public socket: {}", adopted.error().describe());
        else
          log_info("answering on the public port {}", *adopted);
      }
      await_named();
    });
  };
  await_named();
  if (!options.port_file.empty())
    RETORT_TRY(write_file_atomic(options.port_file, std::to_string(port) + "\n", 0644));
  log_info("serving {} ({}) at {}://{}:{}", front.name(), told, tls ? "https" : "http", options.host, port);
  if (tls) log_info("certificate: {}", tls->fingerprint());
  notify_service_manager("READY=1");

  // /health tells which artifact this is; large files take a while, and the first requests come first.
  boost::asio::steady_timer rest(reactor, std::chrono::milliseconds(200));
  std::thread hashing;
  const auto hash_file = [&] {
    Result<std::string> hash = SealedFile::is_sealed(options.model) ? SealedFile::artifact_of(options.model)
                                                                    : sha256_file_hex(options.model);
    if (hash) boost::asio::post(reactor, [&front, text = *hash] { front.set_artifact(text); });
  };
  rest.async_wait([&](const boost::system::error_code& error) {
    if (!error) hashing = std::thread(hash_file);
  });
  boost::asio::steady_timer drain(reactor);
  std::function<void()> wait_idle = [&] {
    if (idle() && server.connections() + held.connections() == 0) return reactor.stop();
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
    held.stop();
    deadline.expires_after(std::chrono::seconds(5));
    deadline.async_wait(
        [&](const boost::system::error_code&) { ::_exit(0); });  // a computation that will not end in time
    wait_idle();
  });
  const ServiceWatchdog watchdog(reactor);
  while (!reactor.stopped()) {
    try {
      reactor.run();
    } catch (const std::bad_alloc&) {  // thrown out of a connection's handler, which is gone with it
      log_error("out of memory: a connection was dropped");
    }
  }
  if (hashing.joinable()) hashing.join();
  return {};
}

}  // namespace retort
