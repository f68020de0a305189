#include <iostream>

#include "agent/serve/commands/classifier.h"
#include "agent/serve/commands/commands.h"
#include "agent/serve/commands/encoder.h"
#include "agent/serve/runtime/evaluate.h"
#include "common/core/documents.h"
#include "common/hf/classifier_model.h"

namespace retort {

Result<void> eval(const ServeArguments& options) {
  OpenedFile opened = RETORT_TRY(open_file(options));
  if (is_gguf_classifier(opened.file)) return eval_classifier(options, std::move(opened.file));
  const auto student = RETORT_TRY(Model::from_file(std::move(opened.file)));
  if (student->config().is_encoder()) return eval_encoder(options, student);
  std::shared_ptr<const Model> teacher;
  if (!options.teacher.empty()) teacher = RETORT_TRY(Model::open(options.teacher));
  const auto documents = RETORT_TRY(read_documents(options.data, options.documents));
  ThreadTeam team(thread_count(options));
  const Evaluation result = RETORT_TRY(evaluate(
      student, teacher, documents,
      {.max_tokens = options.max_tokens, .n_ctx = options.ctx, .cache = cache_type(options, *student)},
      team));
  std::cout << json::serialize(result.to_json()) << "\n";
  return {};
}

}  // namespace retort
