#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "common/core/result.h"

namespace retort {

/// Beginnings of a dataset's documents: each the first half of one, cut between two words, at most 160 bytes;
/// spread over the file. kInvalid: it has no document that is long enough.
Result<std::vector<std::string>> canary_prompts(const std::filesystem::path& dataset, std::uint32_t count);

/// Asks a retort-serve (a teacher's) for the next token after each prompt, greedily: JSON
/// [{"prompt", "answer"}]; prompts that it ends at once are left out. Blocking. Thread: a pool's.
Result<std::string> ask_canary_teacher(const std::string& url, const std::vector<std::string>& prompts);

}  // namespace retort
