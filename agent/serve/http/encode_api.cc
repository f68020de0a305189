#include "agent/serve/http/encode_api.h"

#include <bit>
#include <span>

#include "agent/serve/http/classify.h"
#include "common/core/base64.h"

namespace retort {
namespace {

constexpr std::size_t kMaxTexts = 2048;
static_assert(std::endian::native == std::endian::little);  // as base64 of embeddings is

}  // namespace

Result<EncodeCall> parse_encode(EncodeKind kind, std::string_view body, const Tokenizer& tokenizer,
                                const ModelConfig& config, std::uint32_t n_ctx) {
  const std::string where = "request";
  const json::value document = RETORT_TRY(parse_json(body, where));
  const json::object& root = *RETORT_TRY(as_object(document, where));
  EncodeCall call;
  call.kind = kind;
  const auto add = [&](std::vector<TokenId> text) -> Result<void> {
    if (text.empty()) return fail(ErrorCode::kInvalid, where, "a text of 'input' has no tokens");
    if (text.size() > n_ctx)
      return fail(ErrorCode::kInvalid, where, "text {} of 'input' has {} tokens; the model takes {}",
                  call.texts.size(), text.size(), n_ctx);
    call.texts.push_back(std::move(text));
    return {};
  };
  const auto ids_of = [&](const json::array& list) -> Result<std::vector<TokenId>> {
    std::vector<TokenId> ids;
    for (const json::value& id : list) {
      if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() >= tokenizer.vocabulary_size())
        return fail(ErrorCode::kInvalid, where, "'input' holds a token that is not in the vocabulary of {}",
                    tokenizer.vocabulary_size());
      ids.push_back(static_cast<TokenId>(id.get_int64()));
    }
    return ids;
  };
  const json::value* input = root.if_contains("input");
  const json::array* list = input != nullptr && input->is_array() ? &input->get_array() : nullptr;
  if (input == nullptr || (!input->is_string() && list == nullptr))
    return fail(ErrorCode::kInvalid, where,
                "'input' must be a text, texts, token ids, or lists of token ids");
  if (list == nullptr) {
    RETORT_TRY(add(tokenizer.encode(std::string_view(input->get_string()), true)));
  } else if (!list->empty() && list->front().is_number()) {
    RETORT_TRY(add(RETORT_TRY(ids_of(*list))));
  } else {
    if (list->empty() || list->size() > kMaxTexts)
      return fail(ErrorCode::kInvalid, where, "'input' holds {} texts, outside 1…{}", list->size(),
                  kMaxTexts);
    for (const json::value& text : *list) {
      if (text.is_string())
        RETORT_TRY(add(tokenizer.encode(std::string_view(text.get_string()), true)));
      else if (text.is_array())
        RETORT_TRY(add(RETORT_TRY(ids_of(text.get_array()))));
      else
        return fail(ErrorCode::kInvalid, where, "'input' must be texts or lists of token ids");
    }
  }
  if (kind == EncodeKind::kClassify) {
    if (json_has(root, "top_k")) {
      call.top_k = RETORT_TRY(json_uint(root, "top_k", where, 1u << 30));
      if (call.top_k == 0) return fail(ErrorCode::kInvalid, where, "'top_k' must be at least 1");
    }
    return call;
  }
  if (json_has(root, "encoding_format")) {
    const std::string format = RETORT_TRY(json_string(root, "encoding_format", where));
    if (format != "float" && format != "base64")
      return fail(ErrorCode::kInvalid, where, "'encoding_format' is '{}', not 'float' or 'base64'", format);
    call.base64 = format == "base64";
  }
  if (json_has(root, "dimensions") &&
      RETORT_TRY(json_uint(root, "dimensions", where, 1u << 20)) != config.n_embd)
    return fail(ErrorCode::kUnsupported, where,
                "'dimensions': this model's embeddings have {} and were not made to be cut", config.n_embd);
  return call;
}

json::object encode_answer(const EncodeCall& call, const std::vector<std::vector<float>>& rows,
                           const std::vector<std::string>& labels, const std::string& model) {
  json::array data;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::vector<float>& row = rows[i];
    if (call.kind == EncodeKind::kClassify) {
      data.push_back(classification(i, labels, row, call.top_k));
      continue;
    }
    json::object entry{{"object", "embedding"}, {"index", i}};
    if (call.base64)
      entry["embedding"] = encode_base64(std::as_bytes(std::span(row)));
    else
      entry["embedding"] = json::array(row.begin(), row.end());
    data.push_back(std::move(entry));
  }
  std::uint64_t tokens = 0;
  for (const auto& text : call.texts) tokens += text.size();
  return {{"object", "list"},
          {"model", model},
          {"data", std::move(data)},
          {"usage", json::object{{"prompt_tokens", tokens}, {"total_tokens", tokens}}}};
}

EncodeApi::EncodeApi(ServeFront& front, std::shared_ptr<const Model> model, std::uint32_t n_ctx,
                     std::chrono::seconds timeout, EncoderEngine& engine, ServeMetrics& metrics)
    : front_(front),
      model_(std::move(model)),
      n_ctx_(n_ctx),
      timeout_(timeout),
      engine_(engine),
      metrics_(metrics) {
  const auto add = [this](const char* path, EncodeKind kind) {
    front_.add("POST", path, [this, kind](HttpRequest request, auto responder) {
      encode(kind, request, std::move(responder));
    });
  };
  add("/v1/embeddings", EncodeKind::kEmbed);
  if (!model_->config().encoder.labels.empty()) add("/v1/classify", EncodeKind::kClassify);
}

void EncodeApi::encode(EncodeKind kind, const HttpRequest& request,
                       std::shared_ptr<HttpResponder> responder) {
  Result<EncodeCall> call = parse_encode(kind, request.body, model_->tokenizer(), model_->config(), n_ctx_);
  if (!call) return front_.refuse(*responder, call.error());
  const auto encoding = std::make_shared<Encoding>();
  encoding->call = std::move(*call);
  encoding->on_end = [this, responder](const EncodeCall& asked,
                                       Result<std::vector<std::vector<float>>> rows) {
    if (!rows && rows.error().code == ErrorCode::kUnavailable)
      return front_.refuse(*responder, 504, "timeout_error", rows.error().message);
    if (!rows) return front_.refuse(*responder, 500, "server_error", rows.error().describe());
    front_.answer(*responder, encode_answer(asked, *rows, model_->config().encoder.labels, front_.name()));
  };
  encoding->on_cancelled = [this] { metrics_.count_request(499); };
  if (timeout_.count() != 0) encoding->deadline = std::chrono::steady_clock::now() + timeout_;
  responder->on_closed([encoding] { encoding->cancelled = true; });
  if (!engine_.submit(encoding)) front_.refuse_full(*responder);
}

}  // namespace retort
