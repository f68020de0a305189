#include "agent/serve/http/api.h"

#include <cmath>

#include "common/core/file.h"

namespace retort {
namespace {

constexpr std::size_t kMaxStops = 16, kMaxStopBytes = 256;

std::uint64_t resident_bytes() {
  const std::string text = read_file("/proc/self/statm", 4096).value_or("");
  const std::size_t space = text.find(' ');
  return space == std::string::npos ? 0 : std::strtoull(text.c_str() + space, nullptr, 10) * 4096;
}

}  // namespace

Result<CompletionCall> parse_completion(std::string_view text, const Tokenizer& tokenizer,
                                        std::uint32_t n_ctx, RandomSource& random) {
  const std::string where = "request";
  const json::value document = RETORT_TRY(parse_json(text, where));
  const json::object& body = *RETORT_TRY(as_object(document, where));
  CompletionCall call;
  const auto number = [&](const char* key, double fallback, double low, double high) -> Result<double> {
    if (!json_has(body, key)) return fallback;
    const double value = RETORT_TRY(json_number(body, key, where));
    if (!(value >= low && value <= high))
      return fail(ErrorCode::kInvalid, where, "'{}' is {}, outside {}…{}", key, value, low, high);
    return value;
  };
  const auto flag = [&](const char* key) -> Result<bool> {
    if (!json_has(body, key)) return false;
    return json_bool(body, key, where);
  };
  for (const char* key : {"n", "best_of"})
    if (RETORT_TRY(number(key, 1, 0, 1e9)) != 1)
      return fail(ErrorCode::kUnsupported, where, "'{}' other than 1 is not supported", key);
  for (const char* key : {"logprobs", "suffix", "logit_bias"})
    if (json_has(body, key)) return fail(ErrorCode::kUnsupported, where, "'{}' is not supported yet", key);
  if (RETORT_TRY(flag("echo"))) return fail(ErrorCode::kUnsupported, where, "'echo' is not supported yet");

  const json::value* prompt = body.if_contains("prompt");
  if (prompt != nullptr && prompt->is_string()) {
    call.generation.prompt = tokenizer.encode(std::string_view(prompt->get_string()), true);
  } else if (prompt != nullptr && prompt->is_array()) {
    for (const json::value& id : prompt->get_array()) {
      if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() >= tokenizer.vocabulary_size())
        return fail(ErrorCode::kInvalid, where,
                    "'prompt' must be a text or token ids of the vocabulary of {}",
                    tokenizer.vocabulary_size());
      call.generation.prompt.push_back(static_cast<TokenId>(id.get_int64()));
    }
  } else {
    return fail(ErrorCode::kInvalid, where, "'prompt' must be a text or an array of token ids");
  }
  if (call.generation.prompt.empty()) return fail(ErrorCode::kInvalid, where, "'prompt' is empty");
  if (call.generation.prompt.size() >= n_ctx)
    return fail(ErrorCode::kInvalid, where,
                "the prompt has {} tokens; the context holds {}, and at least one must be left to generate",
                call.generation.prompt.size(), n_ctx);
  if (json_has(body, "max_tokens"))
    call.generation.max_tokens =
        static_cast<std::uint32_t>(RETORT_TRY(json_uint(body, "max_tokens", where, 1u << 30)));
  if (call.generation.max_tokens == 0)
    return fail(ErrorCode::kInvalid, where, "'max_tokens' must be at least 1");
  SamplingOptions& sampling = call.generation.sampling;
  sampling.temperature = static_cast<float>(RETORT_TRY(number("temperature", 1, 0, 100)));
  sampling.top_p = static_cast<float>(RETORT_TRY(number("top_p", 1, 0, 1)));
  sampling.min_p = static_cast<float>(RETORT_TRY(number("min_p", 0, 0, 1)));
  sampling.repetition_penalty = static_cast<float>(RETORT_TRY(number("repetition_penalty", 1, 0.01, 100)));
  if (json_has(body, "top_k"))
    sampling.top_k = static_cast<std::uint32_t>(RETORT_TRY(json_uint(body, "top_k", where, 1u << 30)));
  sampling.seed = json_has(body, "seed")
                      ? static_cast<std::uint64_t>(RETORT_TRY(json_int(body, "seed", where)))
                      : random.next_u64();
  if (json_has(body, "stop")) {
    const json::value& stop = body.at("stop");
    const json::array list = stop.is_array() ? stop.get_array() : json::array{stop};
    if (list.size() > kMaxStops)
      return fail(ErrorCode::kInvalid, where, "'stop' holds {} texts, the limit is {}", list.size(),
                  kMaxStops);
    for (const json::value& word : list) {
      if (!word.is_string() || word.get_string().empty() || word.get_string().size() > kMaxStopBytes)
        return fail(ErrorCode::kInvalid, where, "'stop' must be a text or texts of 1 to {} bytes",
                    kMaxStopBytes);
      call.generation.stop.emplace_back(word.get_string());
    }
  }
  call.stream = RETORT_TRY(flag("stream"));
  if (json_has(body, "stream_options")) {
    const json::object& options = *RETORT_TRY(json_object(body, "stream_options", where));
    call.include_usage =
        json_has(options, "include_usage") && RETORT_TRY(json_bool(options, "include_usage", where));
  }
  return call;
}

ServeApi::ServeApi(ServedModel served, Engine& engine, ServeMetrics& metrics, RandomSource& random)
    : served_(std::move(served)), engine_(engine), metrics_(metrics), random_(random) {
  router_.add("GET", "/health", [this](HttpRequest, auto responder) {
    answer(*responder,
           json::object{
               {"status", "ok"}, {"model", served_.name}, {"artifact_sha256", served_.artifact_sha256}});
  });
  router_.add("GET", "/metrics", [this](HttpRequest, auto responder) {
    responder->send(200, "text/plain; version=0.0.4", metrics_.text(engine_.waiting(), resident_bytes()));
  });
  router_.add("GET", "/v1/models", [this](HttpRequest, auto responder) {
    const ModelConfig& c = served_.model->config();
    answer(
        *responder,
        json::object{
            {"object", "list"},
            {"data", json::array{json::object{
                         {"id", served_.name},
                         {"object", "model"},
                         {"created", served_.created / 1000},
                         {"owned_by", "retort"},
                         {"meta", json::object{{"architecture", to_string(c.family)},
                                               {"n_params", served_.model->parameters()},
                                               {"size", served_.model->file().file_length()},
                                               {"n_vocab", c.n_vocab},
                                               {"n_ctx", served_.n_ctx},
                                               {"n_embd", c.n_embd},
                                               {"bits_per_weight", served_.model->bits_per_weight()}}}}}}});
  });
  router_.add("POST", "/v1/completions", [this](HttpRequest request, auto responder) {
    completions(std::move(request), std::move(responder));
  });
}

void ServeApi::answer(HttpResponder& responder, const json::value& body) {
  metrics_.count_request(200);
  responder.send(200, "application/json", json::serialize(body) + "\n");
}

void ServeApi::refuse(HttpResponder& responder, int status, const std::string& type,
                      const std::string& message, HttpHeaders headers) {
  metrics_.count_request(status);
  responder.send(status, "application/json",
                 json::serialize(json::object{
                     {"error", json::object{{"message", message}, {"type", type}, {"code", status}}}}) +
                     "\n",
                 std::move(headers));
}

void ServeApi::handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) {
  router_.dispatch(
      std::move(request), std::move(responder),
      [this](HttpRequest r, auto out) {
        refuse(*out, 404, "invalid_request_error",
               "there is no " + r.path + "; see /v1/models, /v1/completions, /health, /metrics");
      },
      [this](std::string allow, auto out) {
        refuse(*out, 405, "invalid_request_error", "the method is not allowed here; use " + allow,
               {{"Allow", allow}});
      });
}

void ServeApi::completions(HttpRequest request, std::shared_ptr<HttpResponder> responder) {
  Result<CompletionCall> call =
      parse_completion(request.body, served_.model->tokenizer(), served_.n_ctx, random_);
  if (!call) return refuse(*responder, 400, "invalid_request_error", call.error().message);
  const std::string id = "cmpl-" + random_.hex(12);
  const std::int64_t created = SystemClock().unix_millis() / 1000;
  const auto chunk = [id, created, name = served_.name](json::value text, json::value reason) {
    return json::object{{"id", id},
                        {"object", "text_completion"},
                        {"created", created},
                        {"model", name},
                        {"choices", json::array{json::object{{"index", 0},
                                                             {"text", std::move(text)},
                                                             {"logprobs", nullptr},
                                                             {"finish_reason", std::move(reason)}}}}};
  };
  const auto usage = [](const GenerationEnd& end) {
    return json::object{{"prompt_tokens", end.prompt_tokens},
                        {"completion_tokens", end.completion_tokens},
                        {"total_tokens", end.prompt_tokens + end.completion_tokens}};
  };
  auto generation = std::make_shared<Generation>();
  generation->request = std::move(call->generation);
  if (call->stream) {
    const auto event = [](const json::value& value) { return "data: " + json::serialize(value) + "\n\n"; };
    const auto started = std::make_shared<bool>(false);
    const auto begin = [responder, started] {
      if (!std::exchange(*started, true)) responder->start_stream(200, "text/event-stream");
    };
    generation->on_text = [=](std::string text) {
      begin();
      responder->write(event(chunk(json::value(text), nullptr)));
    };
    generation->on_end = [=, this, with_usage = call->include_usage](const GenerationEnd& end) {
      if (end.reason == "error" && !*started) return refuse(*responder, 500, "server_error", end.error);
      metrics_.count_request(end.reason == "cancelled" ? 499 : 200);
      begin();
      json::object last = chunk("", json::value(end.reason));
      if (with_usage) last["usage"] = usage(end);
      responder->write(event(last));
      responder->write("data: [DONE]\n\n");
      responder->finish();
    };
  } else {
    const auto collected = std::make_shared<std::string>();
    generation->on_text = [collected](std::string text) { *collected += text; };
    generation->on_end = [=, this](const GenerationEnd& end) {
      if (end.reason == "error") return refuse(*responder, 500, "server_error", end.error);
      if (end.reason == "cancelled") return metrics_.count_request(499);
      metrics_.count_request(200);
      json::object whole = chunk(json::value(*collected), json::value(end.reason));
      whole["usage"] = usage(end);
      responder->send(200, "application/json", json::serialize(whole) + "\n");
    };
  }
  responder->on_closed([generation] { generation->cancelled = true; });
  if (!engine_.submit(generation))
    refuse(*responder, 429, "rate_limit_error", "the queue is full; try again soon", {{"Retry-After", "1"}});
}

}  // namespace retort
