#pragma once

#include <functional>
#include <string>

#include "agent/serve/commands/commands.h"
#include "agent/serve/http/front.h"

namespace retort {

/// Answers HTTP requests until SIGTERM or SIGINT, then lets those under way finish, for at most 5 s. `told`:
/// for the log. `idle`: nothing waits or is computed. Thread: main; it is the reactor.
Result<void> run_server(const ServeArguments& options, ServeFront& front, const std::string& told,
                        const std::function<bool()>& idle);

/// The model's name in answers.
std::string served_name(const ServeArguments& options);

/// What /v1/models tells of a model of text.
json::object model_facts(const Model& model, std::uint32_t n_ctx);

}  // namespace retort
