#pragma once

#include <memory>
#include <string>

#include "agent/serve/chat/chat_template.h"
#include "agent/serve/http/engine.h"
#include "agent/serve/http/front.h"
#include "agent/serve/http/metrics.h"
#include "common/core/json.h"
#include "common/core/random.h"
#include "common/http/http.h"

namespace retort {

/// What the API tells about the model it serves.
struct ServedModel {
  std::shared_ptr<const Model> model;
  std::uint32_t n_ctx = 0;
  Result<ChatTemplate> chat;  ///< or why there is none
};

/// A request to generate, validated.
struct CompletionCall {
  GenerationRequest generation;
  bool chat = false, stream = false, include_usage = false;
  std::uint32_t choices = 1;  ///< generations of it, each with a seed of its own
};
/// From a body of /v1/completions, or of /v1/chat/completions; the error is for the client.
Result<CompletionCall> parse_completion(std::string_view body, const Tokenizer& tokenizer,
                                        std::uint32_t n_ctx, RandomSource& random);
Result<CompletionCall> parse_chat(std::string_view body, const ChatTemplate& chat, const Tokenizer& tokenizer,
                                  std::uint32_t n_ctx, RandomSource& random);

/// The OpenAI-style HTTP interface of a model that generates. Thread: reactor; answers come from the
/// inference thread through the responder.
class ServeApi {
 public:
  ServeApi(ServeFront& front, ServedModel served, Engine& engine, ServeMetrics& metrics,
           RandomSource& random);

 private:
  void generate(Result<CompletionCall> call, std::shared_ptr<HttpResponder> responder);

  ServeFront& front_;
  ServedModel served_;
  Engine& engine_;
  ServeMetrics& metrics_;
  RandomSource& random_;
};

}  // namespace retort
