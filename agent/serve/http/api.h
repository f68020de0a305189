#pragma once

#include <chrono>
#include <deque>
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

/// What a request may take.
struct ServeLimits {
  std::uint32_t max_tokens = 0;     ///< generated for each choice; 0: no limit but the context
  std::chrono::seconds timeout{0};  ///< from a request's arrival to the end of its answer; 0: none
};

/// How a request's text must look.
struct ResponseFormat {
  bool json = false;
  json::value schema;  ///< null: any object
};

/// A request to generate, validated.
struct CompletionCall {
  ResponseFormat format;
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
  ServeApi(ServeFront& front, ServedModel served, ServeLimits limits, Engine& engine, ServeMetrics& metrics,
           RandomSource& random);

 private:
  Result<std::shared_ptr<grammar::Masks>> grammar_of(const ResponseFormat& format);
  void generate(Result<CompletionCall> call, std::shared_ptr<HttpResponder> responder);

  ServeFront& front_;
  ServedModel served_;
  const ServeLimits limits_;
  Engine& engine_;
  ServeMetrics& metrics_;
  RandomSource& random_;
  std::shared_ptr<const grammar::TokenTrie> trie_;  ///< made for the first request that needs it
  /// Of the last schemas asked for, the latest first: their masks are the inference thread's, and are kept
  /// because the same ones come again.
  std::deque<std::pair<std::string, std::shared_ptr<grammar::Masks>>> grammars_;
};

}  // namespace retort
