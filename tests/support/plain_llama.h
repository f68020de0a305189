#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "common/core/result.h"
#include "common/model/model_config.h"

namespace retort::testing {

/// The kinds of Llama that config.json can say, each a change of tiny_config.
std::vector<std::pair<std::string, std::function<void(ModelConfig&)>>> llama_variants();

/// Logits [tokens, vocabulary] of a Hugging Face folder of the llama or qwen2 type, in double precision and
/// as plainly as it can be written, from config.json's own text: what the runtime and the worker must give.
Result<std::vector<double>> plain_llama(const std::filesystem::path& folder, const std::vector<int>& tokens);

}  // namespace retort::testing
