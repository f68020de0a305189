#include <signal.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdlib>
#include <thread>
#include <utility>

#include "agent/serve/commands/commands.h"
#include "agent/serve/http/api.h"
#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/core/units.h"
#include "common/http/http.h"
#include "common/process/process.h"

namespace retort {
namespace {

/// How conversations become prompts: the file that was named, or the model's own template.
Result<ChatTemplate> chat_template(const ServeArguments& options, const Tokenizer& tokenizer) {
  if (!options.chat_template.empty())
    return ChatTemplate::parse(RETORT_TRY(read_file(options.chat_template, 1u << 20)), options.chat_template);
  if (tokenizer.chat_template().empty())
    return fail(ErrorCode::kUnsupported, options.model,
                "the model has no chat template; start retort-serve with --chat-template FILE, or use "
                "/v1/completions");
  Result<ChatTemplate> own = ChatTemplate::parse(tokenizer.chat_template(), "chat template");
  if (!own) log_warn("/v1/chat/completions cannot be answered: {}", own.error().describe());
  return own;
}

}  // namespace

Result<void> serve(const ServeArguments& options) {
  const auto model = RETORT_TRY(open_model(options));
  Result<ChatTemplate> chat = chat_template(options, model->tokenizer());
  if (!options.chat_template.empty()) RETORT_TRY(chat);
  ThreadTeam team(thread_count(options));
  SessionOptions wanted{.n_ctx = options.ctx,
                        .streams = options.streams,
                        .cache = cache_type(options),
                        .memory_limit = RETORT_TRY(memory_limit(options))};
  // A narrower cache and fewer streams where memory is short; the least that is needed is told when even one
  // is too many.
  const auto too_much = [&] {
    return wanted.memory_limit != 0 && plan_memory(*model, wanted, team.size()).total() > wanted.memory_limit;
  };
  if (options.kv_cache == "auto" && too_much()) {
    wanted.cache = kernels::CacheType::kF16;
    log_warn("the memory limit leaves room for a KV cache of 16 bits alone");
  }
  while (wanted.streams > 1 && too_much()) --wanted.streams;
  if (wanted.streams < options.streams)
    log_warn("the memory limit leaves room for {} of {} streams", wanted.streams, options.streams);
  auto session = RETORT_TRY(Session::create(model, team, wanted));
  const std::uint32_t n_ctx = session->n_ctx();
  boost::asio::io_context reactor(1);
  boost::asio::signal_set signals(reactor, SIGTERM, SIGINT);  // from here on they are kept for the wait below
  ServeMetrics metrics;
  SystemRandom random;
  Engine engine(std::move(session), options.queue, metrics);
  const std::string name =
      options.name.empty() ? std::filesystem::path(options.model).stem().string() : options.name;
  ServeApi api({model, name, "", n_ctx, SystemClock().unix_millis(), std::move(chat)}, engine, metrics,
               random);
  const auto handle = [&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    api.handle(std::move(request), std::move(responder));
  };
  HttpServer server(reactor, {}, handle), held(reactor, {}, handle);

  const char *fds = std::getenv("LISTEN_FDS"), *owner = std::getenv("LISTEN_PID");
  const bool activated =
      fds != nullptr && std::atoi(fds) >= 1 && owner != nullptr && std::atoi(owner) == ::getpid();
  const std::uint16_t port = activated && !options.hold_socket
                                 ? RETORT_TRY(server.adopt(3))
                                 : RETORT_TRY(server.listen(options.host, options.port));
  // Two slots share a public socket: only the one that is told answers there.
  boost::asio::signal_set told(reactor, SIGUSR1);
  bool holding = activated && options.hold_socket;
  std::function<void()> await_told = [&] {
    told.async_wait([&](const boost::system::error_code& error, int) {
      if (error) return;
      if (std::exchange(holding, false))
        if (const Result<std::uint16_t> adopted = held.adopt(3); !adopted)
          log_error("the public socket: {}", adopted.error().describe());
        else
          log_info("answering on the public port {}", *adopted);
      await_told();
    });
  };
  await_told();
  if (!options.port_file.empty())
    RETORT_TRY(write_file_atomic(options.port_file, std::to_string(port) + "\n", 0644));
  log_info(
      "serving {} ({} parameters, {:.2f} bits per weight, context {}, {} streams, {} threads) at "
      "http://{}:{}",
      name, format_count(model->parameters()), model->bits_per_weight(), n_ctx, wanted.streams, team.size(),
      options.host, port);
  notify_service_manager("READY=1");

  // /health tells which artifact this is; large files take a while, and the first requests come first.
  boost::asio::steady_timer rest(reactor, std::chrono::milliseconds(200));
  std::thread hashing;
  const auto hash_file = [&] {
    Result<std::string> hash = sha256_file_hex(options.model);
    if (hash) boost::asio::post(reactor, [&api, text = *hash] { api.set_artifact(text); });
  };
  rest.async_wait([&](const boost::system::error_code& error) {
    if (!error) hashing = std::thread(hash_file);
  });
  boost::asio::steady_timer drain(reactor), watchdog(reactor);
  std::function<void()> wait_idle = [&] {
    if (engine.idle() && server.connections() + held.connections() == 0) return reactor.stop();
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
        [&](const boost::system::error_code&) { ::_exit(0); });  // a generation that will not end in time
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
