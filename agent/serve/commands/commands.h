#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "agent/serve/runtime/model.h"
#include "agent/serve/runtime/session.h"
#include "common/core/result.h"
#include "common/seal/private_memory.h"

namespace retort {

/// The command line of retort-serve; each command reads what concerns it.
struct ServeArguments {
  std::string model, host = "127.0.0.1", port_file, name, memory_limit, data, labels, teacher, chat_template,
                     pack_cache = "auto", kv_cache = "auto", token_file, request_bytes = "1M",
                     tls_certificate, tls_key, seal_key;
  std::uint16_t port = 8080;
  std::uint32_t threads = 0, ctx = 0, streams = 8, prompt = 128, depth = 0, generate = 64, repeat = 3,
                time_ms = 20;
  std::size_t queue = 64;
  std::uint32_t request_tokens = 0, request_seconds = 0;
  std::uint64_t documents = 0, max_tokens = 0, max_examples = 0;
  bool as_json = false, hold_socket = false;
};

/// `retort-serve serve`, `eval`, `bench`, `measure`, `info`: they print to standard output, and return when
/// they are done (serve: after SIGTERM). Thread: main.
Result<void> serve(const ServeArguments& options);
Result<void> eval(const ServeArguments& options);
Result<void> bench(const ServeArguments& options);
Result<void> measure(const ServeArguments& options);
Result<void> describe(const ServeArguments& options);

/// What the arguments come down to, for more than one command.
std::uint32_t thread_count(const ServeArguments& options);
Result<std::uint64_t> memory_limit(const ServeArguments& options);  ///< bytes; 0: none
kernels::CacheType cache_type(const ServeArguments& options, const Model& model);
/// --pack-cache: whether weights are packed, and the folder that keeps them (empty: none).
struct PackingChoice {
  bool pack = true;
  std::filesystem::path cache;
};
/// What is unsealed is packed into memory alone, whatever the options say.
PackingChoice packing_choice(const ServeArguments& options);
/// The model's file; one that is sealed (docs/agent.md) is opened in memory, with --seal-key.
struct OpenedFile {
  PrivateMemory memory;  ///< what a sealed file's bytes lie in: it outlives `file` and the model of it
  GgufFile file;
};
Result<OpenedFile> open_file(const ServeArguments& options);
/// The model with its packed weights from the cache, where there is memory for them.
Result<std::shared_ptr<const Model>> open_model(const ServeArguments& options, OpenedFile& opened);

/// The middle one of a benchmark's rounds, the upper where their number is even; there is at least one.
double median(std::vector<double> values);

}  // namespace retort
