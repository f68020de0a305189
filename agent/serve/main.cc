// retort-serve: serves a GGUF model over HTTP; also evaluates, measures and describes one.
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstring>
#include <iostream>
#include <thread>

#include "agent/serve/http/api.h"
#include "agent/serve/kernels/roofline.h"
#include "agent/serve/runtime/evaluate.h"
#include "agent/serve/runtime/session.h"
#include "common/core/documents.h"
#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/core/units.h"
#include "common/http/http.h"
#include "common/process/process.h"

namespace retort {
namespace {

struct Options {
  std::string model, host = "127.0.0.1", port_file, name, memory_limit, data, teacher, chat_template,
                     pack_cache = "auto", kv_cache = "auto";
  std::uint16_t port = 8080;
  std::uint32_t threads = 0, ctx = 0, streams = 8, prompt = 128, depth = 0, generate = 64, repeat = 3;
  std::size_t queue = 64;
  std::uint64_t max_tokens = 0;
  bool as_json = false;
};

std::uint32_t thread_count(const Options& options) {
  if (options.threads != 0) return options.threads;
  return std::max(1u, static_cast<std::uint32_t>(cpu_allowance()));
}

Result<std::uint64_t> memory_limit(const Options& options) {
  if (options.memory_limit.empty()) return std::uint64_t{0};
  return parse_bytes(options.memory_limit);
}

kernels::CacheType cache_type(const Options& options) {
  return options.kv_cache == "f16" ? kernels::CacheType::kF16 : kernels::CacheType::kF32;
}

/// The model with its packed weights from the cache, where there is memory for them.
Result<std::shared_ptr<const Model>> open_model(const Options& options) {
  ModelOptions how;
  if (options.pack_cache == "auto") {
    const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
    if (cache != nullptr && cache[0] == '/')
      how.pack_cache = std::filesystem::path(cache) / "retort";
    else if (home != nullptr && home[0] == '/')
      how.pack_cache = std::filesystem::path(home) / ".cache/retort";
  } else if (options.pack_cache == "off") {
    how.pack = false;
  } else if (options.pack_cache != "none") {
    how.pack_cache = options.pack_cache;
  }
  if (const std::uint64_t limit = RETORT_TRY(memory_limit(options)); limit != 0)
    how.pack_if = [&options, limit](const Model& unpacked, std::uint64_t packed_bytes) {
      const std::uint64_t needed =
          plan_memory(unpacked, {.n_ctx = options.ctx}, thread_count(options)).total() + packed_bytes;
      if (needed > limit)
        log_warn(
            "{} with packed weights is more than the limit of {}: they are used as the file has them, which "
            "is slower",
            format_bytes(needed), format_bytes(limit));
      return needed <= limit;
    };
  return Model::open(options.model, how);
}

/// How conversations become prompts: the file that was named, or the model's own template.
Result<ChatTemplate> chat_template(const Options& options, const Tokenizer& tokenizer) {
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

std::uint64_t status_bytes(const char* file, const std::string& key) {
  const std::string text = read_file(file, 1 << 20).value_or("");
  const std::size_t at = text.find(key);
  return at == std::string::npos ? 0 : std::strtoull(text.c_str() + at + key.size(), nullptr, 10) * 1024;
}

Result<void> serve(const Options& options) {
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
  HttpServer server(reactor, {}, [&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    api.handle(std::move(request), std::move(responder));
  });

  const char *fds = std::getenv("LISTEN_FDS"), *owner = std::getenv("LISTEN_PID");
  const bool activated =
      fds != nullptr && std::atoi(fds) >= 1 && owner != nullptr && std::atoi(owner) == ::getpid();
  const std::uint16_t port =
      activated ? RETORT_TRY(server.adopt(3)) : RETORT_TRY(server.listen(options.host, options.port));
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
    if (engine.idle() && server.connections() == 0) return reactor.stop();
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

Result<void> eval(const Options& options) {
  const auto student = RETORT_TRY(Model::open(options.model));
  std::shared_ptr<const Model> teacher;
  if (!options.teacher.empty()) teacher = RETORT_TRY(Model::open(options.teacher));
  const auto documents = RETORT_TRY(read_documents(options.data));
  ThreadTeam team(thread_count(options));
  const Evaluation result =
      RETORT_TRY(evaluate(student, teacher, documents, options.max_tokens, options.ctx, team));
  std::cout << json::serialize(result.to_json()) << "\n";
  return {};
}

/// Bytes of weights that one generated token reads, and multiply-adds of a prompt token's matrix products
/// (those of the output, which the last alone has, apart).
struct Work {
  std::uint64_t bytes = 0, multiplications = 0, output_multiplications = 0;
  bool quantized = false;
};
Work work_of(const Model& model) {
  Work work;
  const auto add = [&](const Model::Projection& p, std::uint64_t& multiplications) {
    for (const Model::Projection::Part& part : p.parts) {
      const auto& m = part.matrix;
      work.bytes += m.packed ? kernels::packed_bytes(m.type, m.rows, m.columns)
                             : m.rows * *row_bytes(m.type, m.columns);
      multiplications += std::uint64_t{m.rows} * m.columns;
    }
    work.quantized |= p.quantized;
  };
  for (const Model::Layer& layer : model.layers())
    for (const auto* p : {&layer.qkv, &layer.attn_output, &layer.ffn_gate, &layer.ffn_up, &layer.ffn_down})
      add(*p, work.multiplications);
  add(model.output(), work.output_multiplications);
  return work;
}

/// Runs work(member) on all threads at once again and again for a tenth of a second, and returns the shortest
/// time.
template <typename Work>
double shortest_seconds(ThreadTeam& team, const Work& work) {
  using clock = std::chrono::steady_clock;
  double best = 1e9;
  for (const auto end = clock::now() + std::chrono::milliseconds(100); clock::now() < end;) {
    const auto begin = clock::now();
    team.run(team.size(), [&](std::uint32_t, std::uint32_t part) { work(part); });
    best = std::min(best, std::chrono::duration<double>(clock::now() - begin).count());
  }
  return best;
}

/// What the machine could do with these threads: bytes a second from a working set of `bytes`, and operations
/// a second.
struct Roofline {
  double bandwidth = 0, peak = 0;
};
Roofline measure_roofline(ThreadTeam& team, std::uint64_t bytes, bool quantized) {
  Roofline roof;
  const std::uint64_t part = std::max<std::uint64_t>(bytes / team.size() / 1024, 1) * 1024;
  constexpr std::size_t kHuge = 2 << 20;
  const std::unique_ptr<std::byte, void (*)(void*)> memory(
      static_cast<std::byte*>(std::aligned_alloc(kHuge, (part * team.size() + kHuge - 1) / kHuge * kHuge)),
      std::free);
  if (memory == nullptr) std::abort();
  ::madvise(memory.get(), part * team.size(), MADV_HUGEPAGE);
  std::memset(memory.get(), 1, part * team.size());
  // Small sets are read several times in a row, so that starting the team does not count.
  const std::uint64_t times = std::max<std::uint64_t>(1, (8 << 20) / part);
  roof.bandwidth =
      static_cast<double>(part * team.size() * times) / shortest_seconds(team, [&](std::uint32_t i) {
        for (std::uint64_t n = 0; n < times; ++n) kernels::read_once(memory.get() + i * part, part);
      });
  double operations = 0;
  const double seconds = shortest_seconds(team, [&](std::uint32_t i) {
    const double done = kernels::multiply_in_registers(quantized, 20'000);
    if (i == 0) operations = done;
  });
  roof.peak = operations * team.size() / seconds;
  return roof;
}

Result<void> bench(const Options& options) {
  const auto model = RETORT_TRY(open_model(options));
  ThreadTeam team(thread_count(options));
  const auto session = RETORT_TRY(Session::create(model, team,
                                                  {.n_ctx = options.ctx,
                                                   .cache = cache_type(options),
                                                   .memory_limit = RETORT_TRY(memory_limit(options))}));
  if (options.prompt < 1 || options.generate < 1 || options.repeat < 1 ||
      std::max(options.prompt, options.depth + options.generate) > session->n_ctx())
    return fail(ErrorCode::kInvalid, options.model,
                "prompt {}, or depth {} and generate {}, do not fit the context of {}", options.prompt,
                options.depth, options.generate, session->n_ctx());
  SeededRandom random(1);
  std::vector<TokenId> prompt;
  for (std::uint32_t i = 0; i < options.prompt; ++i)
    prompt.push_back(static_cast<TokenId>(random.next_u64() % model->config().n_vocab));
  std::vector<double> prompt_seconds, token_seconds;
  using clock = std::chrono::steady_clock;
  for (std::uint32_t round = 0; round <= options.repeat; ++round) {  // the first warms up
    session->rewind(0);
    const auto begin = clock::now();
    RETORT_TRY(session->evaluate(prompt));
    const auto middle = clock::now();
    session->rewind(0);  // generation is measured from an empty context, or `depth`, as llama-bench does
    for (std::uint32_t at = 0; at < options.depth; at += options.prompt)
      RETORT_TRY(session->evaluate(std::span(prompt).first(std::min(options.prompt, options.depth - at))));
    const auto generating = clock::now();
    for (std::uint32_t i = 0; i < options.generate; ++i) {
      const TokenId next = prompt[i % prompt.size()];  // any will do: sampling is not what is measured
      RETORT_TRY(session->evaluate(std::span(&next, 1)));
    }
    if (round == 0) continue;
    prompt_seconds.push_back(std::chrono::duration<double>(middle - begin).count());
    token_seconds.push_back(std::chrono::duration<double>(clock::now() - generating).count() /
                            options.generate);
  }
  const auto median = [](std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                     values.end());
    return values[values.size() / 2];
  };
  const double first = median(prompt_seconds), token = median(token_seconds);
  const Work work = work_of(*model);
  const Roofline roof = measure_roofline(team, work.bytes, work.quantized);
  const double bandwidth_used = static_cast<double>(work.bytes) / token / roof.bandwidth;
  const double prompt_operations = 2.0 * (static_cast<double>(work.multiplications) * options.prompt +
                                          static_cast<double>(work.output_multiplications));
  const double peak_used = prompt_operations / first / roof.peak;
  const json::object out{{"model", options.model},
                         {"parameters", model->parameters()},
                         {"file_bytes", model->file().file_length()},
                         {"bits_per_weight", model->bits_per_weight()},
                         {"kernels", kernels::instruction_set()},
                         {"threads", team.size()},
                         {"prompt_tokens_per_second", options.prompt / first},
                         {"generate_tokens_per_second", 1 / token},
                         {"first_token_ms", first * 1e3},
                         {"per_token_ms", token * 1e3},
                         {"roofline", json::object{{"weight_bytes_per_token", work.bytes},
                                                   {"bandwidth_bytes_per_second", roof.bandwidth},
                                                   {"bandwidth_used", bandwidth_used},
                                                   {"peak_operations_per_second", roof.peak},
                                                   {"peak_is_of", work.quantized ? "INT8" : "F32"},
                                                   {"peak_used", peak_used}}},
                         {"resident_bytes", status_bytes("/proc/self/smaps_rollup", "Rss:")},
                         {"private_dirty_bytes", status_bytes("/proc/self/smaps_rollup", "Private_Dirty:")}};
  if (options.as_json) {
    std::cout << json::serialize(out) << "\n";
  } else {
    std::cout << fmt::format("{}: {} parameters, {}, {:.2f} bits per weight, {} kernels, {} threads\n",
                             options.model, format_count(model->parameters()),
                             format_bytes(model->file().file_length()), model->bits_per_weight(),
                             kernels::instruction_set(), team.size())
              << fmt::format("prompt   {:>10.1f} tokens/s  ({} tokens, median of {})\n",
                             options.prompt / first, options.prompt, options.repeat)
              << fmt::format("generate {:>10.1f} tokens/s  ({} tokens, median of {})\n", 1 / token,
                             options.generate, options.repeat)
              << fmt::format(
                     "roofline {:.0f} % of {:.1f} GB/s ({} of weights a token), {:.0f} % of {:.0f} {} ({})\n",
                     100 * bandwidth_used, roof.bandwidth / 1e9, format_bytes(work.bytes), 100 * peak_used,
                     roof.peak / 1e9, work.quantized ? "GOP/s" : "GFLOP/s", work.quantized ? "INT8" : "F32");
  }
  return {};
}

Result<void> describe(const Options& options) {
  const auto model = RETORT_TRY(Model::open(options.model));  // packed, to know what serving takes
  const ModelConfig& c = model->config();
  const SessionOptions session{
      .n_ctx = options.ctx, .streams = options.streams, .cache = cache_type(options)};
  const MemoryPlan plan = plan_memory(*model, session, thread_count(options));
  std::map<std::string, std::uint64_t> types;
  for (const GgufTensor& tensor : model->file().tensors())
    types[std::string(info(tensor.type).name)] += tensor.data.size();
  json::object by_type;
  for (const auto& [name, bytes] : types) by_type[name] = bytes;
  if (options.as_json) {
    json::array layers;
    for (const LayerShape& layer : c.layers)
      layers.push_back(
          json::object{{"n_head", layer.n_head}, {"n_head_kv", layer.n_head_kv}, {"n_ff", layer.n_ff}});
    std::cout << json::serialize(
                     json::object{{"architecture", to_string(c.family)},
                                  {"parameters", model->parameters()},
                                  {"file_bytes", model->file().file_length()},
                                  {"bits_per_weight", model->bits_per_weight()},
                                  {"n_vocab", c.n_vocab},
                                  {"n_ctx", c.n_ctx},
                                  {"n_embd", c.n_embd},
                                  {"layers", layers},
                                  {"tensors", model->file().tensors().size()},
                                  {"bytes_by_type", by_type},
                                  {"memory", json::object{{"weights_mapped_bytes", plan.weights_mapped_bytes},
                                                          {"weights_packed_bytes", plan.weights_packed_bytes},
                                                          {"kv_cache_bytes", plan.kv_cache_bytes},
                                                          {"activation_bytes", plan.activation_bytes},
                                                          {"total_bytes", plan.total()}}}})
              << "\n";
    return {};
  }
  std::cout << fmt::format(
      "{}\n  architecture  {}, {} layers, width {}, vocabulary {}, context {}\n  parameters    {} ({:.2f} "
      "bits per weight, {})\n",
      options.model, to_string(c.family), c.n_layer(), c.n_embd, c.n_vocab, c.n_ctx,
      format_count(model->parameters()), model->bits_per_weight(), format_bytes(model->file().file_length()));
  for (std::uint32_t i = 0; i < c.n_layer(); ++i)
    std::cout << fmt::format("  layer {:<2}      {} heads, {} KV heads, FFN {}\n", i, c.layers[i].n_head,
                             c.layers[i].n_head_kv, c.layers[i].n_ff);
  for (const auto& [name, bytes] : types)
    std::cout << fmt::format("  {:<13} {}\n", name, format_bytes(bytes));
  std::cout << fmt::format(
      "  memory        {}: {} weights as in the file, {} packed, {} KV cache of {} streams, {} activations\n",
      format_bytes(plan.total()), format_bytes(plan.weights_mapped_bytes),
      format_bytes(plan.weights_packed_bytes), format_bytes(plan.kv_cache_bytes), options.streams,
      format_bytes(plan.activation_bytes));
  return {};
}

int run(int argc, char** argv) {
  CLI::App app{
      "Serves a GGUF model (Llama or GPT-2; F32, F16, BF16 and GGUF's block formats) over HTTP, OpenAI "
      "style; evaluates, "
      "measures and describes one."};
  app.set_version_flag("--version", "retort-serve " RETORT_VERSION);
  app.footer(
      "Examples:\n"
      "  retort-serve model.gguf --port 8080\n"
      "  curl localhost:8080/v1/completions -d '{\"prompt\": \"Once\", \"max_tokens\": 40, \"temperature\": "
      "0}'\n"
      "  retort-serve eval student.gguf --data held_out.jsonl --teacher teacher.gguf\n"
      "  retort-serve bench model.gguf --threads 1\n"
      "  retort-serve info model.gguf");
  app.require_subcommand(1);
  Options options;
  const auto common = [&](CLI::App* command) {
    command->add_option("model", options.model, "a GGUF file")->required();
    command->add_option("--threads", options.threads, "threads (default: the CPU allowance)")
        ->check(CLI::Range(1, 256));
    command->add_option("--ctx", options.ctx, "context in tokens (default: the model's)");
  };
  const auto packing = [&](CLI::App* command) {
    command
        ->add_option(
            "--pack-cache", options.pack_cache,
            "folder that keeps the weights in the processor's own layout, for a quick start and shared "
            "memory;\nauto: below the user's cache folder, none: packed into memory, off: used as the "
            "file has them (slower)")
        ->capture_default_str();
    command
        ->add_option(
            "--kv-cache", options.kv_cache,
            "what keys and values are kept in: f32, f16 (half the memory), auto: f32, or f16 where the "
            "memory limit asks for it")
        ->check(CLI::IsMember({"auto", "f32", "f16"}))
        ->capture_default_str();
  };
  CLI::App* serve_command = app.add_subcommand("serve", "answer HTTP requests (the default)");
  common(serve_command);
  packing(serve_command);
  serve_command->add_option("--host", options.host, "address to listen on")->capture_default_str();
  serve_command->add_option("--port", options.port, "port, 0 for any free one")->capture_default_str();
  serve_command->add_option("--port-file", options.port_file, "file to write the port to when ready");
  serve_command->add_option("--name", options.name, "model name in answers (default: the file's)");
  serve_command
      ->add_option("--streams", options.streams, "requests computed at the same time, a KV cache each")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  serve_command->add_option(
      "--chat-template", options.chat_template,
      "file with the Jinja template of /v1/chat/completions (default: the model's own)");
  serve_command->add_option("--queue", options.queue, "requests that may wait; beyond, 429")
      ->capture_default_str();
  serve_command->add_option("--memory-limit", options.memory_limit,
                            "refuse to start when more is needed (64M, 1G)");
  CLI::App* eval_command =
      app.add_subcommand("eval", "perplexity, and KL divergence and top-1 agreement with a teacher; JSON");
  common(eval_command);
  eval_command->add_option("--data", options.data, "JSONL {\"text\"} or plain text split at blank lines")
      ->required();
  eval_command->add_option("--teacher", options.teacher, "GGUF to compare with");
  eval_command->add_option("--max-tokens", options.max_tokens, "stop after this many predictions");
  eval_command->add_flag("--json", options.as_json, "always so");
  CLI::App* bench_command = app.add_subcommand("bench", "prompt and generation speed");
  common(bench_command);
  packing(bench_command);
  bench_command->add_option("--prompt", options.prompt, "prompt tokens")->capture_default_str();
  bench_command->add_option("--generate", options.generate, "tokens to generate")->capture_default_str();
  bench_command->add_option("--depth", options.depth, "tokens in the context before generation is measured")
      ->capture_default_str();
  bench_command->add_option("--repeat", options.repeat, "rounds; the median is told")->capture_default_str();
  bench_command->add_option("--memory-limit", options.memory_limit, "refuse when more is needed");
  bench_command->add_flag("--json", options.as_json, "machine-readable");
  CLI::App* info_command = app.add_subcommand("info", "what a model file holds and how much memory it takes");
  common(info_command);
  info_command->add_option("--streams", options.streams, "requests computed at the same time")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  info_command->add_flag("--json", options.as_json, "machine-readable");

  // "retort-serve model.gguf …" means "retort-serve serve model.gguf …".
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty()) {
    const std::string& first = arguments.front();
    if (first != "serve" && first != "eval" && first != "bench" && first != "info" && first != "--help" &&
        first != "-h" && first != "--version")
      arguments.insert(arguments.begin(), "serve");
  }
  std::reverse(arguments.begin(), arguments.end());
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  const Result<void> done = serve_command->parsed()   ? serve(options)
                            : eval_command->parsed()  ? eval(options)
                            : bench_command->parsed() ? bench(options)
                                                      : describe(options);
  if (done) return 0;
  std::cerr << "retort-serve: " << done.error().describe() << "\n";
  return exit_code(done.error().code);
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) { return retort::run(argc, argv); }
