#pragma once

#include <memory>

#include "agent/serve/commands/commands.h"

namespace retort {

/// The commands for a model that is an encoder (ModelConfig::is_encoder).
Result<void> serve_encoder(const ServeArguments& options, std::shared_ptr<const Model> model);
Result<void> eval_encoder(const ServeArguments& options, std::shared_ptr<const Model> model);

}  // namespace retort
