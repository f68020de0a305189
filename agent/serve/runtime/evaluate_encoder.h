#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "agent/serve/runtime/model.h"
#include "agent/serve/runtime/thread_team.h"
#include "common/core/json.h"
#include "common/core/result.h"

namespace retort {

/// A model with a classification head over JSON lines {"text", "label"}, the label by its name or number; at
/// most `limit` of them (0: all). Longer texts are cut to `n_ctx` (0: the model's) tokens, [SEP] kept, and
/// counted. JSON: ClassificationMetrics', tokens, texts_cut, tokens_per_second.
Result<json::object> evaluate_labels(std::shared_ptr<const Model> model, const std::filesystem::path& data,
                                     std::uint64_t limit, std::uint32_t n_ctx, ThreadTeam& team);

/// A masked language model over documents: every seventh token of each in turn, from the fourth on, is hidden
/// by [MASK] and told from the rest, all of a text at once. JSON: tokens, nll_per_token, perplexity,
/// accuracy.
Result<json::object> evaluate_masked(std::shared_ptr<const Model> model,
                                     const std::vector<std::string>& documents, std::uint64_t max_tokens,
                                     std::uint32_t n_ctx, ThreadTeam& team);

}  // namespace retort
