#include "agent/serve/commands/encoder.h"

#include <iostream>

#include "agent/serve/runtime/evaluate_encoder.h"
#include "common/core/documents.h"

namespace retort {

Result<void> eval_encoder(const ServeArguments& options, std::shared_ptr<const Model> model) {
  if (!options.teacher.empty())
    return fail(ErrorCode::kUnsupported, options.model,
                "encoders are judged by labels or masked tokens, not by a --teacher");
  ThreadTeam team(thread_count(options));
  json::object result;
  if (!model->config().encoder.labels.empty())
    result = RETORT_TRY(evaluate_labels(model, options.data, options.max_examples, options.ctx, team));
  else if (model->config().encoder.mlm_head)
    result = RETORT_TRY(evaluate_masked(model, RETORT_TRY(read_documents(options.data)), options.max_tokens,
                                        options.ctx, team));
  else
    return fail(ErrorCode::kUnsupported, options.model,
                "an encoder without a classification or masked-LM head has nothing to judge");
  std::cout << json::serialize(result) << "\n";
  return {};
}

}  // namespace retort
