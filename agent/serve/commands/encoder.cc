#include "agent/serve/commands/encoder.h"

#include <iostream>

#include "agent/serve/commands/server.h"
#include "agent/serve/http/encode_api.h"
#include "agent/serve/runtime/evaluate_encoder.h"
#include "common/core/documents.h"
#include "common/core/units.h"

namespace retort {

Result<void> serve_encoder(const ServeArguments& options, std::shared_ptr<const Model> model) {
  const ModelConfig& c = model->config();
  ThreadTeam team(thread_count(options));
  auto session = RETORT_TRY(EncoderSession::create(
      model, team, {.n_ctx = options.ctx, .memory_limit = RETORT_TRY(memory_limit(options))}));
  const std::uint32_t n_ctx = session->n_ctx();
  ServeMetrics metrics;
  EncoderEngine engine(std::move(session), options.queue, metrics);
  json::object facts = model_facts(*model, n_ctx);
  facts["pooling"] = c.encoder.pooling == TextPooling::kCls ? "cls" : "mean";
  facts["n_labels"] = c.encoder.labels.size();
  ServeFront front(served_name(options), std::move(facts), SystemClock().unix_millis(), metrics,
                   [&] { return engine.waiting(); });
  const EncodeApi api(front, model, n_ctx, std::chrono::seconds(options.request_seconds), engine, metrics);
  return run_server(
      options, front,
      fmt::format("{} parameters, {:.2f} bits per weight, texts of {} tokens, {} threads",
                  format_count(model->parameters()), model->bits_per_weight(), n_ctx, team.size()),
      [&] { return engine.idle(); });
}

Result<void> eval_encoder(const ServeArguments& options, std::shared_ptr<const Model> model) {
  if (!options.teacher.empty())
    return fail(ErrorCode::kUnsupported, options.model,
                "encoders are judged by labels or masked tokens, not by a --teacher");
  ThreadTeam team(thread_count(options));
  json::object result;
  if (!model->config().encoder.labels.empty())
    result = RETORT_TRY(evaluate_labels(model, options.data, options.max_examples, options.ctx, team));
  else if (model->config().encoder.mlm_head)
    result = RETORT_TRY(evaluate_masked(model, RETORT_TRY(read_documents(options.data, options.documents)),
                                        options.max_tokens, options.ctx, team));
  else
    return fail(ErrorCode::kUnsupported, options.model,
                "an encoder without a classification or masked-LM head has nothing to judge");
  std::cout << json::serialize(result) << "\n";
  return {};
}

}  // namespace retort
