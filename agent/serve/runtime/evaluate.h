#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "agent/serve/runtime/model.h"
#include "agent/serve/runtime/thread_team.h"
#include "common/core/json.h"
#include "common/core/result.h"

namespace retort {

/// How well a model predicts a text, with the kernels that serve it.
struct Evaluation {
  std::uint64_t tokens = 0;  ///< predicted
  std::uint64_t bytes = 0;   ///< of text that those tokens stand for
  double nll_per_token = 0, perplexity = 0, perplexity_per_byte = 0, bits_per_byte = 0;
  /// Against a teacher: mean KL(teacher ‖ student) in nats per token, and the share of positions where both
  /// like the same token best. Negative where no teacher was given.
  double kl_divergence = -1, top1_agreement = -1;
  double tokens_per_second = 0;

  json::object to_json() const;
};

struct EvaluationOptions {
  std::uint64_t max_tokens = 0;                         ///< predictions to stop after; 0: never
  std::uint32_t n_ctx = 0;                              ///< of the windows; 0: the model's own
  kernels::CacheType cache = kernels::CacheType::kF32;  ///< the student's; the teacher's is F32
};

/// Each document is bos + text + eos, cut into windows of the context's length; every token of a window but
/// its first is predicted. A teacher must have the same vocabulary.
Result<Evaluation> evaluate(std::shared_ptr<const Model> student, std::shared_ptr<const Model> teacher,
                            const std::vector<std::string>& documents, const EvaluationOptions& options,
                            ThreadTeam& team);

}  // namespace retort
