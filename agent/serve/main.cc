// retort-serve: serves a GGUF model over HTTP; also evaluates, measures and describes one.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>
#include <new>
#include <system_error>

#include "agent/serve/commands/commands.h"

namespace retort {
namespace {

int run(int argc, char** argv) {
  CLI::App app{
      "Serves a GGUF model (Llama, GPT-2, BERT, or a small classifier of tensors; F32, F16, BF16 and GGUF's "
      "block formats) over HTTP, OpenAI style; evaluates, "
      "measures and describes one."};
  app.set_version_flag("--version", "retort-serve " RETORT_VERSION);
  app.footer(
      "Examples:\n"
      "  retort-serve model.gguf --port 8080\n"
      "  curl localhost:8080/v1/completions -d '{\"prompt\": \"Once\", \"max_tokens\": 40, \"temperature\": "
      "0}'\n"
      "  retort-serve eval student.gguf --data held_out.jsonl --teacher teacher.gguf\n"
      "  retort-serve eval eye.gguf --data t10k-images-idx3-ubyte --labels t10k-labels-idx1-ubyte\n"
      "  retort-serve bench model.gguf --threads 1\n"
      "  retort-serve measure\n"
      "  retort-serve info model.gguf");
  app.require_subcommand(1);
  ServeArguments options;
  const auto common = [&](CLI::App* command) {
    command->add_option("model", options.model, "a GGUF file")->required();
    command->add_option("--threads", options.threads, "threads (default: the CPU allowance)")
        ->check(CLI::Range(1, 256));
    command->add_option("--ctx", options.ctx, "context in tokens (default: the model's)")
        ->check(CLI::Range(2u, 1u << 30));
    command->add_option("--seal-key", options.seal_key,
                        "file with the key of a sealed model (retort-agent run --seal), which is opened in "
                        "memory alone");
  };
  const auto packing = [&](CLI::App* command) {
    command
        ->add_option(
            "--pack-cache", options.pack_cache,
            "folder that keeps the weights in the processor's own layout, for a quick start and shared "
            "memory;\nauto: below the user's cache folder, none: packed into memory, off: used as the "
            "file has them (slower)")
        ->capture_default_str();
  };
  const auto caching = [&](CLI::App* command) {
    command
        ->add_option(
            "--kv-cache", options.kv_cache,
            "what keys and values are kept in: f32, f16 (half the memory), q8 (about a quarter), auto: f32 "
            "for a model of more than 24 bits per weight, else f16, or what the memory limit leaves room for")
        ->check(CLI::IsMember({"auto", "f32", "f16", "q8"}))
        ->capture_default_str();
  };
  CLI::App* serve_command = app.add_subcommand("serve", "answer HTTP requests (the default)");
  common(serve_command);
  packing(serve_command);
  caching(serve_command);
  serve_command->add_option("--host", options.host, "address to listen on")->capture_default_str();
  serve_command->add_option("--port", options.port, "port, 0 for any free one")->capture_default_str();
  serve_command->add_option("--port-file", options.port_file, "file to write the port to when ready");
  serve_command->add_option("--tls-cert", options.tls_certificate,
                            "PEM file of a certificate: HTTPS instead of HTTP");
  serve_command->add_option("--tls-key", options.tls_key, "PEM file of its key");
  serve_command->add_option("--name", options.name, "model name in answers (default: the file's)");
  serve_command
      ->add_option("--streams", options.streams, "requests computed at the same time, a KV cache each")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  serve_command->add_option(
      "--chat-template", options.chat_template,
      "file with the Jinja template of /v1/chat/completions (default: the model's own)");
  serve_command->add_option("--queue", options.queue, "requests that may wait; beyond, 429")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  serve_command->add_flag(
      "--hold-socket", options.hold_socket,
      "listen on --host and --port, and on the socket handed over by systemd from SIGUSR1 on");
  serve_command->add_option("--token-file", options.token_file,
                            "requests must bear the token in this file's first line (but /health)");
  serve_command->add_option("--max-request-bytes", options.request_bytes, "a longer request is a 413")
      ->capture_default_str();
  serve_command
      ->add_option("--max-tokens", options.request_tokens,
                   "generated for a choice at most, whatever a request asks for")
      ->check(CLI::Range(1u, 1u << 30));
  serve_command
      ->add_option("--request-timeout", options.request_seconds,
                   "seconds after which a generation ends where it is (0: never)")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
  serve_command->add_option("--memory-limit", options.memory_limit,
                            "refuse to start when more is needed (64M, 1G)");
  CLI::App* eval_command =
      app.add_subcommand("eval",
                         "perplexity, or accuracy and more of a classifier, and KL divergence and "
                         "top-1 agreement with a teacher; JSON");
  common(eval_command);
  caching(eval_command);
  eval_command
      ->add_option("--data", options.data,
                   "JSONL {\"text\"} or plain text split at blank lines; for a classifier JSONL {\"text\", "
                   "\"label\"} or {\"input\", \"label\"}, or an idx file of images")
      ->required();
  eval_command->add_option("--labels", options.labels, "idx file of the images' labels");
  eval_command->add_option("--teacher", options.teacher, "GGUF to compare with");
  eval_command->add_option("--documents", options.documents,
                           "judge by the first so many documents (default: all)");
  eval_command->add_option("--max-tokens", options.max_tokens, "stop after this many predictions");
  eval_command->add_option("--max-examples", options.max_examples, "stop after this many (classifiers)");
  eval_command->add_flag("--json", options.as_json, "always so");
  CLI::App* bench_command =
      app.add_subcommand("bench", "prompt and generation speed; of an encoder, milliseconds a text");
  common(bench_command);
  packing(bench_command);
  caching(bench_command);
  bench_command->add_option("--prompt", options.prompt, "prompt tokens")->capture_default_str();
  bench_command->add_option("--generate", options.generate, "tokens to generate")->capture_default_str();
  bench_command->add_option("--depth", options.depth, "tokens in the context before generation is measured")
      ->capture_default_str();
  bench_command->add_option("--repeat", options.repeat, "rounds; the median is told")->capture_default_str();
  bench_command->add_option("--memory-limit", options.memory_limit, "refuse when more is needed");
  bench_command->add_flag("--json", options.as_json, "machine-readable");
  CLI::App* measure_command = app.add_subcommand(
      "measure",
      "how fast this device generates, by models of random weights that it makes (some seconds): what a "
      "coordinator predicts the speed of students from");
  measure_command->add_option("--threads", options.threads, "threads (default: the CPU allowance)")
      ->check(CLI::Range(1, 256));
  measure_command->add_option("--time", options.time_ms, "milliseconds a model")
      ->check(CLI::Range(1, 10'000))
      ->capture_default_str();
  measure_command->add_option("--memory-limit", options.memory_limit, "leave out models that need more");
  measure_command->add_flag("--json", options.as_json, "machine-readable");
  CLI::App* info_command = app.add_subcommand("info", "what a model file holds and how much memory it takes");
  common(info_command);
  caching(info_command);
  info_command->add_option("--streams", options.streams, "requests computed at the same time")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  info_command->add_flag("--json", options.as_json, "machine-readable");

  // "retort-serve model.gguf …" means "retort-serve serve model.gguf …".
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty()) {
    const std::string& first = arguments.front();
    if (first != "serve" && first != "eval" && first != "bench" && first != "measure" && first != "info" &&
        first != "--help" && first != "-h" && first != "--version")
      arguments.insert(arguments.begin(), "serve");
  }
  std::reverse(arguments.begin(), arguments.end());
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  if (const char* set = std::getenv("RETORT_INSTRUCTION_SET");
      set != nullptr && !kernels::use_instruction_set(set)) {
    std::cerr << "retort-serve: RETORT_INSTRUCTION_SET is " << set << "; this processor has";
    for (const std::string& name : kernels::instruction_sets()) std::cerr << " " << name;
    std::cerr << "\n";
    return 2;
  }
  const Result<void> done = serve_command->parsed()     ? serve(options)
                            : eval_command->parsed()    ? eval(options)
                            : bench_command->parsed()   ? bench(options)
                            : measure_command->parsed() ? measure(options)
                                                        : describe(options);
  if (done) return 0;
  std::cerr << "retort-serve: " << done.error().describe() << "\n";
  return exit_code(done.error().code);
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) {
  try {
    return retort::run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::cerr << "retort-serve: out of memory\n";
    return retort::exit_code(retort::ErrorCode::kOutOfBudget);
  } catch (const std::system_error& error) {
    std::cerr << "retort-serve: a thread cannot be started: " << error.what() << "\n";
    return retort::exit_code(retort::ErrorCode::kOutOfBudget);
  }
}
