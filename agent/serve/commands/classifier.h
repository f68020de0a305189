#pragma once

#include "agent/serve/commands/commands.h"
#include "common/gguf/gguf.h"

namespace retort {

/// The commands for a file of a classifier of tensors (is_gguf_classifier).
Result<void> serve_classifier(const ServeArguments& options, GgufFile file);
Result<void> eval_classifier(const ServeArguments& options, GgufFile file);
Result<void> bench_classifier(const ServeArguments& options, GgufFile file);
Result<void> describe_classifier(const ServeArguments& options, GgufFile file);

}  // namespace retort
