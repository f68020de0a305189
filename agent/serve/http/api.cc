#include "agent/serve/http/api.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <iterator>
#include <utility>

#include "agent/serve/grammar/json_schema.h"
#include "common/core/clock.h"
#include "common/core/utf8.h"

namespace retort {
namespace {

constexpr std::size_t kMaxStops = 16, kMaxStopBytes = 256;
constexpr std::uint32_t kMaxChoices = 16, kMaxLogprobs = 20;

/// The members that both kinds of request have.
Result<void> read_options(const json::object& body, CompletionCall& call, RandomSource& random) {
  const std::string where = "request";
  const auto number = [&](const char* key, double fallback, double low, double high) -> Result<double> {
    if (!json_has(body, key)) return fallback;
    const double value = RETORT_TRY(json_number(body, key, where));
    if (!(value >= low && value <= high))
      return fail(ErrorCode::kInvalid, where, "'{}' is {}, outside {}…{}", key, value, low, high);
    return value;
  };
  if (json_has(body, "n")) {
    call.choices = static_cast<std::uint32_t>(RETORT_TRY(json_uint(body, "n", where, 1u << 30)));
    if (call.choices < 1 || call.choices > kMaxChoices)
      return fail(ErrorCode::kInvalid, where, "'n' is {}, outside 1…{}", call.choices, kMaxChoices);
  }
  if (RETORT_TRY(number("best_of", 1, 0, 1e9)) > call.choices)
    return fail(ErrorCode::kUnsupported, where, "'best_of' above 'n' is not supported");
  if (json_has(body, "logit_bias"))
    return fail(ErrorCode::kUnsupported, where, "'logit_bias' is not supported yet");
  if (json_has(body, "response_format")) {
    const json::object& format = *RETORT_TRY(json_object(body, "response_format", where));
    const std::string type = RETORT_TRY(json_string(format, "type", where));
    call.format.json = type != "text";
    if (type == "json_schema") {
      const json::object& named = *RETORT_TRY(json_object(format, "json_schema", where));
      if (json_has(named, "strict")) RETORT_TRY(json_bool(named, "strict", where));  // it always is
      call.format.schema = *RETORT_TRY(json_object(named, "schema", where));
    } else if (type != "text" && type != "json_object") {
      return fail(
          ErrorCode::kUnsupported, where,
          "'response_format' of type '{}' is not supported; 'text', 'json_object' and 'json_schema' are",
          type);
    }
    if (call.format.json && json_has(body, "stop"))
      return fail(ErrorCode::kInvalid, where, "'stop' would cut the JSON that 'response_format' asks for");
  }
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
  sampling.presence_penalty = static_cast<float>(RETORT_TRY(number("presence_penalty", 0, -2, 2)));
  sampling.frequency_penalty = static_cast<float>(RETORT_TRY(number("frequency_penalty", 0, -2, 2)));
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
  call.stream = json_has(body, "stream") && RETORT_TRY(json_bool(body, "stream", where));
  if (json_has(body, "stream_options")) {
    const json::object& options = *RETORT_TRY(json_object(body, "stream_options", where));
    call.include_usage =
        json_has(options, "include_usage") && RETORT_TRY(json_bool(options, "include_usage", where));
  }
  return {};
}

Result<std::uint32_t> read_logprobs(const json::object& body, const char* key) {
  const std::uint64_t top = RETORT_TRY(json_uint(body, key, "request", 1u << 30));
  if (top > kMaxLogprobs)
    return fail(ErrorCode::kInvalid, "request", "'{}' is {}, outside 0…{}", key, top, kMaxLogprobs);
  return static_cast<std::uint32_t>(top);
}

Result<void> check_length(const CompletionCall& call, std::uint32_t n_ctx) {
  if (call.generation.prompt.size() < n_ctx) return {};
  return fail(ErrorCode::kInvalid, "request",
              "the prompt has {} tokens; the context holds {}, and at least one must be left to generate",
              call.generation.prompt.size(), n_ctx);
}

/// A message as templates expect it: content in parts becomes one text.
Result<json::object> read_message(const json::value& value, std::size_t index) {
  const std::string where = fmt::format("message {}", index);
  json::object message = *RETORT_TRY(as_object(value, where));
  RETORT_TRY(json_string(message, "role", where));
  json::value& content = message["content"];  // null where there is none
  if (content.is_string() || content.is_null()) return message;
  if (!content.is_array())
    return fail(ErrorCode::kInvalid, where, "'content' must be a text, or parts of type 'text'");
  json::string text;
  for (const json::value& entry : content.get_array()) {
    const json::object& part = *RETORT_TRY(as_object(entry, where));
    const std::string type = RETORT_TRY(json_string(part, "type", where));
    if (type != "text")
      return fail(ErrorCode::kUnsupported, where, "content of type '{}' is not supported; 'text' is", type);
    text += RETORT_TRY(json_string(part, "text", where));
  }
  content = std::move(text);
  return message;
}

}  // namespace

Result<CompletionCall> parse_completion(std::string_view text, const Tokenizer& tokenizer,
                                        std::uint32_t n_ctx, RandomSource& random) {
  const std::string where = "request";
  const json::value document = RETORT_TRY(parse_json(text, where));
  const json::object& body = *RETORT_TRY(as_object(document, where));
  CompletionCall call;
  RETORT_TRY(read_options(body, call, random));
  if (json_has(body, "logprobs")) call.generation.logprobs = RETORT_TRY(read_logprobs(body, "logprobs"));
  if (json_has(body, "suffix")) return fail(ErrorCode::kUnsupported, where, "'suffix' is not supported yet");
  if (json_has(body, "echo") && RETORT_TRY(json_bool(body, "echo", where)))
    return fail(ErrorCode::kUnsupported, where, "'echo' is not supported yet");
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
  RETORT_TRY(check_length(call, n_ctx));
  return call;
}

Result<CompletionCall> parse_chat(std::string_view text, const ChatTemplate& chat, const Tokenizer& tokenizer,
                                  std::uint32_t n_ctx, RandomSource& random) {
  const std::string where = "request";
  const json::value document = RETORT_TRY(parse_json(text, where));
  const json::object& body = *RETORT_TRY(as_object(document, where));
  CompletionCall call;
  call.chat = true;
  call.generation.max_tokens = n_ctx;  // until it ends, or the context does
  RETORT_TRY(read_options(body, call, random));
  if (json_has(body, "max_completion_tokens")) {
    call.generation.max_tokens =
        static_cast<std::uint32_t>(RETORT_TRY(json_uint(body, "max_completion_tokens", where, 1u << 30)));
    if (call.generation.max_tokens == 0)
      return fail(ErrorCode::kInvalid, where, "'max_completion_tokens' must be at least 1");
  }
  if (json_has(body, "logprobs") && RETORT_TRY(json_bool(body, "logprobs", where)))
    call.generation.logprobs =
        json_has(body, "top_logprobs") ? RETORT_TRY(read_logprobs(body, "top_logprobs")) : 0;
  json::object variables{{"add_generation_prompt", true},
                         {"bos_token", tokenizer.text(tokenizer.bos())},
                         {"eos_token", tokenizer.text(tokenizer.eos())}};
  if (json_has(body, "chat_template_kwargs"))
    for (const auto& member : *RETORT_TRY(json_object(body, "chat_template_kwargs", where)))
      variables[member.key()] = member.value();
  if (json_has(body, "tools")) variables["tools"] = *RETORT_TRY(json_array(body, "tools", where));
  json::array messages;
  for (const json::value& message : *RETORT_TRY(json_array(body, "messages", where)))
    messages.emplace_back(RETORT_TRY(read_message(message, messages.size())));
  if (messages.empty()) return fail(ErrorCode::kInvalid, where, "'messages' is empty");
  variables["messages"] = std::move(messages);
  // The template writes its special tokens itself, the first one included.
  call.generation.prompt = tokenizer.encode(RETORT_TRY(chat.render(variables)), false, true);
  if (call.generation.prompt.empty())
    return fail(ErrorCode::kInvalid, where, "the chat template makes nothing of these messages");
  RETORT_TRY(check_length(call, n_ctx));
  return call;
}

ServeApi::ServeApi(ServeFront& front, ServedModel served, ServeLimits limits, Engine& engine,
                   ServeMetrics& metrics, RandomSource& random)
    : front_(front),
      served_(std::move(served)),
      limits_(std::move(limits)),
      engine_(engine),
      metrics_(metrics),
      random_(random) {
  front_.add("POST", "/v1/completions", [this](HttpRequest request, auto responder) {
    generate(parse_completion(request.body, served_.model->tokenizer(), served_.n_ctx, random_),
             std::move(responder));
  });
  front_.add("POST", "/v1/chat/completions", [this](HttpRequest request, auto responder) {
    if (!served_.chat) return front_.refuse(*responder, served_.chat.error());
    generate(parse_chat(request.body, *served_.chat, served_.model->tokenizer(), served_.n_ctx, random_),
             std::move(responder));
  });
}

namespace {

/// One request's answer while its generations write it. Touched by the inference thread alone once they are
/// submitted.
struct Answer {
  std::string id, model;
  std::int64_t created = 0;
  bool chat = false, stream = false, include_usage = false, logprobs = false, started = false;
  struct Choice {
    std::string text;
    std::vector<TokenLogprob> tokens;
    std::size_t offset = 0;  ///< of the tokens told so far, in characters
    bool started = false;
    GenerationEnd end;
  };
  std::vector<Choice> choices;
  std::size_t running = 0;

  json::object frame(json::array list) const {
    return {{"id", id},
            {"object", !chat    ? "text_completion"
                       : stream ? "chat.completion.chunk"
                                : "chat.completion"},
            {"created", created},
            {"model", model},
            {"choices", std::move(list)}};
  }
  /// `reason` empty: not ended yet.
  json::object choice(std::size_t index, std::string text, const std::vector<TokenLogprob>& tokens,
                      const std::string& ended) {
    const bool late = ended == "timeout";
    json::value reason = late ? "length" : json::value(ended);
    if (ended.empty()) reason = nullptr;
    json::object out{{"index", index}};
    if (late) out["timed_out"] = true;
    if (!chat) {
      out["text"] = std::move(text);
    } else if (!stream) {
      out["message"] = json::object{{"role", "assistant"}, {"content", std::move(text)}};
    } else {
      json::object delta;
      if (!std::exchange(choices[index].started, true)) delta["role"] = "assistant";
      if (reason.is_null() || !text.empty()) delta["content"] = std::move(text);
      out["delta"] = std::move(delta);
    }
    out["logprobs"] = !logprobs ? json::value(nullptr) : chat ? told_of_chat(tokens) : told(index, tokens);
    out["finish_reason"] = std::move(reason);
    return out;
  }
  json::object told(std::size_t index, const std::vector<TokenLogprob>& tokens) {
    json::array texts, values, tops, offsets;
    for (const TokenLogprob& token : tokens) {
      const std::string text = valid_utf8(token.token);
      values.emplace_back(token.logprob);
      json::object top;
      for (const auto& [other, logprob] : token.top)
        top.emplace(valid_utf8(other), logprob);  // of equal texts the likeliest
      tops.emplace_back(std::move(top));
      offsets.emplace_back(choices[index].offset);
      choices[index].offset += static_cast<std::size_t>(std::count_if(
          text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
      texts.emplace_back(text);
    }
    return {{"tokens", std::move(texts)},
            {"token_logprobs", std::move(values)},
            {"top_logprobs", std::move(tops)},
            {"text_offset", std::move(offsets)}};
  }
  static json::object told_of_chat(const std::vector<TokenLogprob>& tokens) {
    const auto entry = [](const std::string& token, double logprob) {
      json::array bytes;
      for (const char c : token) bytes.emplace_back(static_cast<unsigned char>(c));
      return json::object{{"token", valid_utf8(token)}, {"logprob", logprob}, {"bytes", std::move(bytes)}};
    };
    json::array content;
    for (const TokenLogprob& token : tokens) {
      json::object out = entry(token.token, token.logprob);
      json::array top;
      for (const auto& [other, logprob] : token.top) top.emplace_back(entry(other, logprob));
      out["top_logprobs"] = std::move(top);
      content.emplace_back(std::move(out));
    }
    return {{"content", std::move(content)}};
  }
  json::object usage() const {
    std::uint64_t completion = 0;
    for (const Choice& choice : choices) completion += choice.end.completion_tokens;
    const std::uint64_t prompt = choices.front().end.prompt_tokens;
    return {
        {"prompt_tokens", prompt}, {"completion_tokens", completion}, {"total_tokens", prompt + completion}};
  }
};

std::string event(const json::value& value) { return "data: " + json::serialize(value) + "\n\n"; }

}  // namespace

Result<std::shared_ptr<grammar::Masks>> ServeApi::grammar_of(const ResponseFormat& format) {
  const std::string key = json::serialize(format.schema);
  const auto known =
      std::find_if(grammars_.begin(), grammars_.end(), [&](const auto& entry) { return entry.first == key; });
  if (known != grammars_.end()) {
    std::rotate(grammars_.begin(), known, known + 1);
    return grammars_.front().second;
  }
  if (trie_ == nullptr) trie_ = std::make_shared<grammar::TokenTrie>(served_.model->tokenizer());
  if (!trie_->writes_ascii())
    return fail(ErrorCode::kUnsupported, "request",
                "'response_format': this model's vocabulary cannot write every JSON text");
  const grammar::SchemaOptions options{.ascii = !trie_->writes_utf8()};
  auto network = format.schema.is_null() ? grammar::any_object(options)
                                         : grammar::compile_schema(format.schema, options);
  if (!network)
    return fail(network.error().code, "request", "'response_format': {}", network.error().message);
  auto masks = std::make_shared<grammar::Masks>(std::move(*network), trie_);
  masks->start();
  if (masks->wide())
    return fail(
        ErrorCode::kUnsupported, "request",
        "'response_format': the schema has more than {} alternatives at once, of those that 'anyOf', 'oneOf' "
        "and 'enum' multiply",
        grammar::Masks::kWidest);
  grammars_.emplace_front(key, std::move(masks));
  constexpr std::size_t kKept = 2;
  if (grammars_.size() > kKept) grammars_.pop_back();
  return grammars_.front().second;
}

void ServeApi::generate(Result<CompletionCall> call, std::shared_ptr<HttpResponder> responder) {
  if (call && call->format.json) {
    auto masks = grammar_of(call->format);
    if (masks)
      call->generation.grammar = std::move(*masks);
    else
      call = fail(masks.error());
  }
  if (call && call->choices > engine_.most())
    call = fail(ErrorCode::kOutOfBudget, "request",
                "'n' is {}; this server computes and queues no more than {} at once", call->choices,
                engine_.most());
  if (!call) return front_.refuse(*responder, call.error());
  if (limits_.max_tokens != 0)
    call->generation.max_tokens = std::min(call->generation.max_tokens, limits_.max_tokens);
  const auto answer = std::make_shared<Answer>();
  answer->id = (call->chat ? "chatcmpl-" : "cmpl-") + random_.hex(12);
  answer->chat = call->chat;
  answer->model = front_.name();
  answer->created = SystemClock().unix_millis() / 1000;
  answer->stream = call->stream;
  answer->include_usage = call->include_usage;
  answer->logprobs = call->generation.logprobs.has_value();
  answer->running = call->choices;
  answer->choices.resize(call->choices);
  std::vector<std::shared_ptr<Generation>> generations;
  for (std::size_t index = 0; index < call->choices; ++index) {
    const auto generation = std::make_shared<Generation>();
    generation->request = call->generation;
    generation->request.sampling.seed += index;
    if (limits_.timeout.count() != 0)
      generation->deadline = std::chrono::steady_clock::now() + limits_.timeout;
    generation->on_text = [answer, responder, index](std::string text, std::vector<TokenLogprob> tokens) {
      if (!answer->stream) {
        Answer::Choice& choice = answer->choices[index];
        choice.text += text;
        std::move(tokens.begin(), tokens.end(), std::back_inserter(choice.tokens));
        return;
      }
      if (!std::exchange(answer->started, true)) responder->start_stream(200, "text/event-stream");
      responder->write(event(answer->frame({answer->choice(index, std::move(text), tokens, "")})));
    };
    generation->on_end = [answer, responder, index, this](const GenerationEnd& end) {
      answer->choices[index].end = end;
      const bool last = --answer->running == 0;
      const bool none_yet = end.reason == "timeout" && !answer->started && end.completion_tokens == 0;
      if (answer->stream && end.reason != "error" && !(none_yet && answer->choices.size() == 1)) {
        if (!std::exchange(answer->started, true)) responder->start_stream(200, "text/event-stream");
        json::object closing = answer->frame({answer->choice(index, "", {}, end.reason)});
        if (last && answer->include_usage) closing["usage"] = answer->usage();
        responder->write(event(closing));
      }
      if (!last) return;
      const auto with_reason = [&](const char* reason) {
        return std::find_if(answer->choices.begin(), answer->choices.end(),
                            [&](const Answer::Choice& choice) { return choice.end.reason == reason; });
      };
      if (const auto failed = with_reason("error"); failed != answer->choices.end() && !answer->started)
        return front_.refuse(*responder, 500, "server_error", failed->end.error);
      const bool nothing =
          std::all_of(answer->choices.begin(), answer->choices.end(), [](const auto& choice) {
            return choice.end.reason == "timeout" && choice.end.completion_tokens == 0;
          });
      if (nothing && !answer->started)
        return front_.refuse(*responder, 504, "timeout_error",
                             fmt::format("no token was generated in {} s", limits_.timeout.count()));
      const bool left = with_reason("cancelled") != answer->choices.end();
      metrics_.count_request(left ? 499 : 200);
      if (answer->stream) {
        responder->write("data: [DONE]\n\n");
        return responder->finish();
      }
      if (left) return;
      json::array list;
      for (std::size_t i = 0; i < answer->choices.size(); ++i) {
        Answer::Choice& choice = answer->choices[i];
        list.emplace_back(answer->choice(i, std::move(choice.text), choice.tokens, choice.end.reason));
      }
      json::object whole = answer->frame(std::move(list));
      whole["usage"] = answer->usage();
      responder->send(200, "application/json", json::serialize(whole) + "\n");
    };
    generations.push_back(generation);
  }
  responder->on_closed([generations] {
    for (const auto& generation : generations) generation->cancelled = true;
  });
  if (!engine_.submit(generations)) front_.refuse_full(*responder);
}

}  // namespace retort
