#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "agent/serve/http/encoder_engine.h"
#include "agent/serve/http/front.h"
#include "agent/serve/http/metrics.h"
#include "common/core/json.h"
#include "common/model/model_config.h"
#include "common/tokenizer/tokenizer.h"

namespace retort {

/// A body of /v1/embeddings or /v1/classify, validated. `input`: a text, texts, a text's token ids (as they
/// are, [CLS] and [SEP] not added), or several such. The error is for the client.
Result<EncodeCall> parse_encode(EncodeKind kind, std::string_view body, const Tokenizer& tokenizer,
                                const ModelConfig& config, std::uint32_t n_ctx);

/// The answer to one, a row of floats for each text.
json::object encode_answer(const EncodeCall& call, const std::vector<std::vector<float>>& rows,
                           const std::vector<std::string>& labels, const std::string& model);

/// POST /v1/embeddings of an encoder, and /v1/classify where it has a classification head. Thread: reactor;
/// answers come from the engine's thread.
class EncodeApi {
 public:
  /// `timeout`: of a request, from its arrival; 0: none.
  EncodeApi(ServeFront& front, std::shared_ptr<const Model> model, std::uint32_t n_ctx,
            std::chrono::seconds timeout, EncoderEngine& engine, ServeMetrics& metrics);

 private:
  void encode(EncodeKind kind, const HttpRequest& request, std::shared_ptr<HttpResponder> responder);

  ServeFront& front_;
  std::shared_ptr<const Model> model_;
  const std::uint32_t n_ctx_;
  const std::chrono::seconds timeout_;
  EncoderEngine& engine_;
  ServeMetrics& metrics_;
};

}  // namespace retort
