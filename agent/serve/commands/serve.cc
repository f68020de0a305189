#include "agent/serve/commands/classifier.h"
#include "agent/serve/commands/commands.h"
#include "agent/serve/commands/encoder.h"
#include "agent/serve/commands/server.h"
#include "agent/serve/http/api.h"
#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/units.h"
#include "common/hf/classifier_model.h"

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
  OpenedFile opened = RETORT_TRY(open_file(options));
  if (is_gguf_classifier(opened.file)) return serve_classifier(options, std::move(opened.file));
  const auto model = RETORT_TRY(open_model(options, opened));
  if (model->config().is_encoder()) return serve_encoder(options, model);
  Result<ChatTemplate> chat = chat_template(options, model->tokenizer());
  if (!options.chat_template.empty()) RETORT_TRY(chat);
  ThreadTeam team(thread_count(options));
  SessionOptions wanted{.n_ctx = options.ctx,
                        .streams = options.streams,
                        .cache = cache_type(options, *model),
                        .memory_limit = RETORT_TRY(memory_limit(options))};
  // A narrower cache and fewer streams where memory is short; the least that is needed is told when even one
  // is too many.
  const auto too_much = [&] {
    return wanted.memory_limit != 0 && plan_memory(*model, wanted, team.size()).total() > wanted.memory_limit;
  };
  if (options.kv_cache == "auto") {
    const kernels::CacheType widest = wanted.cache;
    for (const auto narrower : {kernels::CacheType::kF16, kernels::CacheType::kQ8})
      if (too_much()) wanted.cache = narrower;
    if (wanted.cache != widest)
      log_warn("the memory limit leaves room for a KV cache of {} bits alone",
               wanted.cache == kernels::CacheType::kF16 ? 16 : 8);
  }
  while (wanted.streams > 1 && too_much()) --wanted.streams;
  if (wanted.streams < options.streams)
    log_warn("the memory limit leaves room for {} of {} streams", wanted.streams, options.streams);
  auto session = RETORT_TRY(Session::create(model, team, wanted));
  const std::uint32_t n_ctx = session->n_ctx();
  ServeMetrics metrics;
  SystemRandom random;
  Engine engine(std::move(session), options.queue, metrics);
  ServeFront front(served_name(options), model_facts(*model, n_ctx), SystemClock().unix_millis(), metrics,
                   [&] { return engine.waiting(); });
  ServeApi api(front, {model, n_ctx, std::move(chat)},
               {options.request_tokens, std::chrono::seconds(options.request_seconds)}, engine, metrics,
               random);
  return run_server(options, front,
                    fmt::format("{} parameters, {:.2f} bits per weight, context {}, {} streams, {} threads",
                                format_count(model->parameters()), model->bits_per_weight(), n_ctx,
                                wanted.streams, team.size()),
                    [&] { return engine.idle(); });
}

}  // namespace retort
