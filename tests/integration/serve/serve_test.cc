// The real retort-serve on small models with random weights: HTTP, streaming, refusals, signals, eval.
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <thread>

#include "agent/serve/http/encoder_engine.h"
#include "agent/serve/runtime/classifier.h"
#include "agent/serve/runtime/encoder.h"
#include "agent/serve/runtime/sampler.h"
#include "agent/serve/runtime/session.h"
#include "common/core/base64.h"
#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/sha256.h"
#include "common/hf/classifier_model.h"
#include "common/hf/hf_model.h"
#include "common/http/http.h"
#include "common/process/process.h"
#include "tests/support/bert_reference.h"
#include "tests/support/support.h"
#include "tests/support/tiny_classifier.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

using testing::TemporaryFolder;

struct Ended {
  int status = -1;  ///< exit status, or 128 + signal
  std::string out, err;
};

/// One run of retort-serve; killed when it is still there at the end.
class Program {
 public:
  /// `by`: a program and its arguments that starts it.
  Program(const std::filesystem::path& folder, std::vector<std::string> arguments,
          const std::vector<std::string>& by = {})
      : folder_(folder) {
    static std::atomic<int> number{0};
    const std::string name = "run" + std::to_string(++number);
    arguments.insert(arguments.begin(), testing::binary("retort-serve"));
    arguments.insert(arguments.begin(), by.begin(), by.end());
    ProcessSpec spec;
    spec.arguments = std::move(arguments);
    spec.stdout_file = out_ = folder / (name + ".out");
    spec.stderr_file = err_ = folder / (name + ".err");
    spec.environment = {{"XDG_CACHE_HOME", (folder / "cache").string()}};
    const auto pid = start_process(spec);
    EXPECT_OK(pid);
    if (pid) pid_ = *pid;
  }
  ~Program() {
    if (pid_ > 0) ::kill(pid_, SIGKILL), wait();
  }
  void signal(int number) { ::kill(pid_, number); }
  bool running() { return pid_ > 0 && ::kill(pid_, 0) == 0 && ::waitpid(pid_, &status_, WNOHANG) == 0; }
  Ended wait() {
    Ended ended;
    if (pid_ > 0) ::waitpid(pid_, &status_, 0);
    pid_ = -1;
    ended.status = WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
    ended.out = read_file(out_).value_or("");
    ended.err = read_file(err_).value_or("");
    return ended;
  }

 private:
  std::filesystem::path folder_, out_, err_;
  pid_t pid_ = -1;
  int status_ = 0;
};

template <typename Condition>
bool eventually(Condition condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

class Serve : public ::testing::Test {
 protected:
  void SetUp() override { model_ = write("m.gguf", TensorType::kF32, 128); }

  std::filesystem::path write(const std::string& name, TensorType type, std::uint32_t n_ctx,
                              ModelFamily family = ModelFamily::kLlama, std::uint64_t seed = 3) {
    testing::TinyModelOptions options;
    options.n_ctx = n_ctx;
    EXPECT_OK(
        testing::write_tiny_gguf(folder_ / (name + ".hf"), folder_ / name, family, seed, type, options));
    return folder_ / name;
  }

  void start(std::vector<std::string> more = {}) {
    std::filesystem::remove(folder_ / "port");
    std::vector<std::string> arguments{model_, "--port", "0", "--port-file", folder_ / "port"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    program_.emplace(folder_.path(), arguments);
    ASSERT_TRUE(
        eventually([&] { return std::filesystem::exists(folder_ / "port") || !program_->running(); }));
    const auto port = read_file(folder_ / "port");
    ASSERT_TRUE(port.has_value()) << program_->wait().err;
    url_ = "http://127.0.0.1:" + std::to_string(std::stoi(*port));
  }

  Result<HttpResponse> get(const std::string& path) { return http_call({.url = url_ + path}); }
  Result<HttpResponse> complete(const json::value& body, std::function<bool(std::string_view)> on_body = {}) {
    return http_call({.method = "POST",
                      .url = url_ + "/v1/completions",
                      .body = json::serialize(body),
                      .on_body = std::move(on_body)});
  }
  json::value answer(const json::value& body) {
    const auto response = complete(body);
    EXPECT_OK(response);
    if (!response) return {};
    EXPECT_EQ(response->status, 200) << response->body;
    return json::parse(response->body);
  }
  static std::string text_of(const json::value& whole) {
    return std::string(whole.at("choices").at(0).at("text").as_string());
  }

  /// What the model writes by itself, computed in this process.
  std::string greedy(const std::string& prompt, std::uint32_t tokens) {
    const auto model = Model::open(model_);
    EXPECT_OK(model);
    ThreadTeam team(1);
    auto session = Session::create(*model, team, {});
    EXPECT_OK(session);
    auto logits = (*session)->evaluate((*model)->tokenizer().encode(prompt, true));
    std::vector<TokenId> ids;
    while (ids.size() < tokens) {
      const TokenId next = Sampler({}, (*model)->config().n_vocab).sample(*logits, {});
      if (next == (*model)->tokenizer().eos()) break;
      ids.push_back(next);
      logits = (*session)->evaluate(std::span(&ids.back(), 1));
    }
    return (*model)->tokenizer().decode(ids);
  }

  TemporaryFolder folder_;
  std::filesystem::path model_;
  std::optional<Program> program_;
  std::string url_;
};

/// The data lines of a server-sent-event stream.
std::vector<std::string> events(const std::string& stream) {
  std::vector<std::string> out;
  for (std::size_t at = 0, end; (end = stream.find("\n\n", at)) != std::string::npos; at = end + 2) {
    const std::string line = stream.substr(at, end - at);
    EXPECT_EQ(line.rfind("data: ", 0), 0u) << line;
    out.push_back(line.substr(6));
  }
  return out;
}

TEST_F(Serve, AnswersAsTheRuntimeComputesAndTellsWhatItServes) {
  start({"--name", "tiny"});
  const json::value whole = answer({{"prompt", "the small"}, {"max_tokens", 24}, {"temperature", 0}});
  // The runtime's bytes need not be UTF-8; the answer's text always is.
  const std::string expected = greedy("the small", 24), text = text_of(whole);
  const bool plain = std::all_of(expected.begin(), expected.end(), [](char c) { return c > 0; });
  if (plain) {
    EXPECT_EQ(text, expected);
  }
  EXPECT_EQ(text_of(answer({{"prompt", "the small"}, {"max_tokens", 24}, {"temperature", 0}})), text);
  EXPECT_EQ(whole.at("model").as_string(), "tiny");
  EXPECT_EQ(whole.at("usage").at("total_tokens").to_number<int>(),
            whole.at("usage").at("prompt_tokens").to_number<int>() +
                whole.at("usage").at("completion_tokens").to_number<int>());
  EXPECT_LE(whole.at("usage").at("completion_tokens").to_number<int>(), 24);

  const std::string sha256 = *sha256_file_hex(model_);
  EXPECT_TRUE(eventually([&] {
    const auto health = get("/health");
    return health && json::parse(health->body).at("artifact_sha256").as_string() == sha256;
  }));
  EXPECT_EQ(json::parse(get("/v1/models")->body).at("data").at(0).at("id").as_string(), "tiny");
  const auto missing = get("/nothing");
  EXPECT_EQ(missing->status, 404);
  EXPECT_TRUE(json::parse(missing->body).at("error").at("message").is_string());
  EXPECT_EQ(get("/v1/completions")->status, 405);
  const std::string metrics = get("/metrics")->body;
  EXPECT_NE(metrics.find("retort_serve_generated_tokens_total"), std::string::npos);
  EXPECT_NE(metrics.find("retort_serve_first_token_seconds_count 2"), std::string::npos) << metrics;
}

constexpr const char* kTurns =
    "{%- for m in messages -%}{{ '<' ~ m.role ~ '>' ~ m.content ~ eos_token }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<assistant>' }}{%- endif -%}";

TEST_F(Serve, AChatIsTheCompletionOfWhatItsTemplateMakes) {
  const auto chat = [&](const json::object& body) {
    return http_call({.method = "POST", .url = url_ + "/v1/chat/completions", .body = json::serialize(body)});
  };
  json::object body{{"messages", json::array{json::object{{"role", "user"}, {"content", "a small server"}}}},
                    {"max_tokens", 20},
                    {"temperature", 0},
                    {"logprobs", true},
                    {"top_logprobs", 2}};
  start();  // the model has no template
  const auto without = chat(body);
  EXPECT_EQ(without->status, 400);
  EXPECT_NE(without->body.find("--chat-template"), std::string::npos) << without->body;

  const auto hf = open_hf_model(folder_ / "m.gguf.hf");
  ASSERT_OK(hf);
  ASSERT_OK(write_gguf_model(model_, hf->config, hf->tokenizer, weight_sources(*hf), TensorType::kF32,
                             {{"tokenizer.chat_template", std::string(kTurns)}}));
  start();
  // The ids that the template's text stands for, its special tokens taken as such.
  const auto tokenizer = Model::open(model_).value()->tokenizer();
  const std::string end(tokenizer.text(tokenizer.eos()));
  json::array ids;
  for (const TokenId id : tokenizer.encode("<user>a small server" + end + "<assistant>", false, true))
    ids.emplace_back(id);
  const json::value plain = answer({{"prompt", ids}, {"max_tokens", 20}, {"temperature", 0}});
  const auto response = chat(body);
  ASSERT_EQ(response->status, 200) << response->body;
  const json::value whole = json::parse(response->body);
  const json::object& choice = whole.at("choices").at(0).as_object();
  EXPECT_EQ(whole.at("object").as_string(), "chat.completion");
  EXPECT_EQ(choice.at("message").at("role").as_string(), "assistant");
  EXPECT_EQ(std::string(choice.at("message").at("content").as_string()), text_of(plain));
  EXPECT_EQ(whole.at("usage"), plain.at("usage"));
  const json::array& told = choice.at("logprobs").at("content").as_array();
  EXPECT_EQ(told.size(), whole.at("usage").at("completion_tokens").to_number<std::size_t>());
  EXPECT_EQ(told.at(0).at("top_logprobs").as_array().size(), 2u);
  EXPECT_EQ(told.at(0).at("top_logprobs").at(0).at("bytes"), told.at(0).at("bytes"));

  body["stream"] = true;
  body["messages"].as_array()[0].as_object()["content"] =
      json::array{json::object{{"type", "text"}, {"text", "a small"}},
                  json::object{{"type", "text"}, {"text", " server"}}};
  const auto stream = chat(body);
  std::string content;
  const std::vector<std::string> parts = events(stream->body);
  ASSERT_GE(parts.size(), 2u);
  EXPECT_EQ(parts.back(), "[DONE]");
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
    const json::value part = json::parse(parts[i]);
    EXPECT_EQ(part.at("object").as_string(), "chat.completion.chunk");
    const json::object& delta = part.at("choices").at(0).at("delta").as_object();
    EXPECT_EQ(delta.contains("role"), i == 0) << parts[i];
    if (delta.contains("content")) content += delta.at("content").as_string();
  }
  EXPECT_EQ(content, text_of(plain));

  const auto refused = [&](const char* messages) {
    const auto bad = chat({{"messages", json::parse(messages)}});
    EXPECT_EQ(bad->status, 400) << bad->body;
    return std::string(json::parse(bad->body).at("error").at("message").as_string());
  };
  EXPECT_EQ(refused("[]"), "'messages' is empty");
  EXPECT_NE(refused(R"([{"content": "x"}])").find("message 0: "), std::string::npos);
  EXPECT_EQ(refused(R"([{"role": "user", "content": [{"type": "image_url"}]}])"),
            "message 0: content of type 'image_url' is not supported; 'text' is");
  EXPECT_NE(refused(R"([{"role": "user", "content": 1}])").find("message 0: 'content'"), std::string::npos);

  ASSERT_OK(write_file_atomic(folder_ / "strict.jinja", "{{ raise_exception('not today') }}", 0644));
  start({"--chat-template", folder_ / "strict.jinja"});
  EXPECT_NE(refused(R"([{"role": "user", "content": "x"}])").find("strict.jinja:1: not today"),
            std::string::npos);
  ASSERT_OK(write_file_atomic(folder_ / "wrong.jinja", "{% if %}", 0644));
  Program wrong(folder_.path(), {model_, "--port", "0", "--chat-template", folder_ / "wrong.jinja"});
  const Ended ended = wrong.wait();
  EXPECT_EQ(ended.status, 3);
  EXPECT_NE(ended.err.find("wrong.jinja:1: "), std::string::npos) << ended.err;
}

TEST_F(Serve, StreamsTheSameTextAndEndsInDone) {
  start();
  for (int seed = 0; seed < 5; ++seed) {
    json::object body{{"prompt", "a server"}, {"max_tokens", 60}, {"temperature", 1.5}, {"seed", seed}};
    const std::string whole = text_of(answer(body));
    body["stream"] = true;
    body["stream_options"] = json::object{{"include_usage", true}};
    std::string stream;
    const auto response = complete(body, [&](std::string_view part) {
      stream += part;
      return true;
    });
    ASSERT_OK(response);
    const auto list = events(stream);
    ASSERT_GE(list.size(), 2u);
    EXPECT_EQ(list.back(), "[DONE]");
    std::string joined;
    for (std::size_t i = 0; i + 1 < list.size(); ++i) {
      boost::system::error_code error;
      const json::value event = json::parse(list[i], error);  // refuses half a character
      ASSERT_FALSE(error) << list[i];
      joined += text_of(event);
    }
    EXPECT_EQ(joined, whole);
    EXPECT_NE(list[list.size() - 2].find("\"usage\""), std::string::npos);
  }
}

TEST_F(Serve, StopStringsEndTheTextBeforeThemWhereverTokensBreak) {
  start();
  const json::object base{{"prompt", "mail"}, {"max_tokens", 80}, {"temperature", 1.0}, {"seed", 4}};
  const std::string whole = text_of(answer(base));
  ASSERT_GT(whole.size(), 10u);
  for (std::size_t at = 0; at + 4 < whole.size(); at += 3)
    for (const std::size_t length : {1u, 3u}) {
      const std::string stop = whole.substr(at, length);
      if (!std::all_of(stop.begin(), stop.end(), [](char c) { return c > 0; })) continue;
      json::object body = base;
      body["stop"] = json::array{json::string(stop), "never written"};
      const json::value cut = answer(body);
      EXPECT_EQ(text_of(cut), whole.substr(0, whole.find(stop))) << "stop at " << at;
      EXPECT_EQ(cut.at("choices").at(0).at("finish_reason").as_string(), "stop");
    }
}

TEST_F(Serve, RefusesWhatItCannotDoAndSaysWhy) {
  start();
  const std::pair<const char*, const char*> cases[] = {
      {"{", ""},
      {"[]", ""},
      {"{}", "prompt"},
      {R"({"prompt":7})", "prompt"},
      {R"({"prompt":[1,-1]})", "prompt"},
      {R"({"prompt":[1,300]})", "300"},
      {R"({"prompt":["a","b"]})", "prompt"},
      {R"({"prompt":[]})", "empty"},
      {R"({"prompt":"a","max_tokens":-1})", "max_tokens"},
      {R"({"prompt":"a","max_tokens":0})", "max_tokens"},
      {R"({"prompt":"a","max_tokens":1.5})", "max_tokens"},
      {R"({"prompt":"a","max_tokens":"many"})", "max_tokens"},
      {R"({"prompt":"a","temperature":NaN})", ""},
      {R"({"prompt":"a","temperature":-1})", "temperature"},
      {R"({"prompt":"a","temperature":1e999})", ""},
      {R"({"prompt":"a","top_p":2})", "top_p"},
      {R"({"prompt":"a","top_k":-3})", "top_k"},
      {R"({"prompt":"a","seed":"x"})", "seed"},
      {R"({"prompt":"a","stop":[""]})", "stop"},
      {R"({"prompt":"a","stop":5})", "stop"},
      {R"({"prompt":"a","stream":"yes"})", "stream"},
      {R"({"prompt":"a","n":99})", "n"},
  };
  for (const auto& [body, word] : cases) {
    const auto response = http_call({.method = "POST", .url = url_ + "/v1/completions", .body = body});
    ASSERT_OK(response);
    EXPECT_EQ(response->status, 400) << body << " -> " << response->body;
    const std::string message(json::parse(response->body).at("error").at("message").as_string());
    EXPECT_NE(message.find(word), std::string::npos) << body << " -> " << message;
  }
  std::string longer;
  for (int i = 0; i < 400; ++i) longer += "wood ";
  const auto response = complete({{"prompt", longer}});
  EXPECT_EQ(response->status, 400);
  EXPECT_NE(response->body.find("128"), std::string::npos) << "names the limit: " << response->body;
  EXPECT_EQ(http_call({.method = "POST", .url = url_ + "/v1/completions", .body = std::string(2 << 20, 'x')})
                .value_or(HttpResponse{413, {}, {}})
                .status,
            413);
  EXPECT_EQ(get("/health")->status, 200);
}

TEST_F(Serve, AResponseFormatIsKeptToWhateverTheModelWrites) {
  start();
  const json::value schema = json::parse(
      R"({"type":"object","properties":{"on":{"type":"boolean"},"room":{"enum":["hall","attic"]},"level":{"type":"integer","minimum":1,"maximum":5}},"required":["on","room","level"],"additionalProperties":false})");
  const json::object format{
      {"type", "json_schema"},
      {"json_schema", json::object{{"name", "x"}, {"strict", true}, {"schema", schema}}}};
  for (int seed = 0; seed < 4; ++seed) {
    const json::value whole = answer({{"prompt", "the light"},
                                      {"max_tokens", 110},
                                      {"temperature", seed == 0 ? 0 : 1},
                                      {"seed", seed},
                                      {"n", 2},
                                      {"response_format", format}});
    for (const json::value& choice : whole.at("choices").as_array()) {
      EXPECT_EQ(choice.at("finish_reason").as_string(), "stop");
      const auto value = parse_json(choice.at("text").as_string(), "text");
      ASSERT_TRUE(value) << choice.at("text").as_string();
      EXPECT_EQ(value->as_object().size(), 3u);
      EXPECT_TRUE(value->at("on").is_bool());
      EXPECT_TRUE(value->at("room") == "hall" || value->at("room") == "attic");
      EXPECT_LE(value->at("level").as_int64(), 5);
    }
  }
  const json::value free = answer({{"prompt", "the light"},
                                   {"max_tokens", 5},
                                   {"response_format", json::object{{"type", "json_object"}}}});
  EXPECT_EQ(text_of(free).substr(0, 1), "{");
  const auto message = [&](const json::object& given, const json::object& more = {}) {
    json::object body{{"prompt", "a"}, {"response_format", given}};
    for (const auto& member : more) body[member.key()] = member.value();
    const auto response = complete(body);
    EXPECT_EQ(response->status, 400);
    return std::string(json::parse(response->body).at("error").at("message").as_string());
  };
  EXPECT_NE(message({{"type", "xml"}}).find("'xml'"), std::string::npos);
  EXPECT_NE(message(format, {{"stop", "x"}}).find("stop"), std::string::npos);
  EXPECT_NE(message({{"type", "json_schema"},
                     {"json_schema", json::object{{"schema", json::object{{"oneOf", json::array{}}}}}}})
                .find("'oneOf' at #"),
            std::string::npos);
}

TEST_F(Serve, TheTokenAndLimitsAreKept) {
  ASSERT_OK(write_file_atomic(folder_ / "token", "sesame-42\nnot this line\n", 0600));
  start({"--token-file", folder_ / "token", "--max-tokens", "3", "--max-request-bytes", "2K"});
  const auto with = [&](const std::string& authorization, const std::string& path = "/v1/models") {
    HttpCall call{.url = url_ + path};
    if (!authorization.empty()) call.headers.emplace_back("Authorization", authorization);
    return http_call(call);
  };
  EXPECT_EQ(get("/health")->status, 200);
  for (const char* wrong :
       {"", "Bearer", "Bearer ", "Bearer sesame-4", "Bearer sesame-422", "Basic sesame-42", "sesame-42"}) {
    const auto response = with(wrong);
    ASSERT_OK(response);
    EXPECT_EQ(response->status, 401) << wrong;
    EXPECT_NE(response->body.find("Bearer"), std::string::npos);
  }
  EXPECT_EQ(with("Bearer sesame-42")->status, 200);
  EXPECT_EQ(with("bearer sesame-42", "/metrics")->status, 200);
  const auto post = [&](const std::string& body) {
    return http_call({.method = "POST",
                      .url = url_ + "/v1/completions",
                      .headers = {{"Authorization", "Bearer sesame-42"}},
                      .body = body});
  };
  const auto limited = post(R"({"prompt":"the small","max_tokens":50,"temperature":0})");
  ASSERT_OK(limited);
  ASSERT_EQ(limited->status, 200) << limited->body;
  const json::value whole = json::parse(limited->body);
  EXPECT_LE(whole.at("usage").at("completion_tokens").to_number<int>(), 3);
  const auto too_long = post(R"({"prompt":")" + std::string(3000, 'x') + "\"}");
  ASSERT_OK(too_long);
  EXPECT_EQ(too_long->status, 413);
  const json::value refusal = json::parse(too_long->body);
  EXPECT_EQ(refusal.at("error").at("code"), 413);
  EXPECT_NE(refusal.at("error").at("message").as_string().find("2048 bytes"), std::string::npos);
  EXPECT_NE(with("Bearer sesame-42", "/metrics")->body.find("{code=\"413\"} 1"), std::string::npos);
  ASSERT_OK(write_file_atomic(folder_ / "empty", "\n", 0600));
  Program refused(folder_.path(), {model_, "--token-file", folder_ / "empty"});
  EXPECT_NE(refused.wait().err.find("no token"), std::string::npos);
}

TEST_F(Serve, ARequestThatTakesTooLongEndsWhereItIs) {
  model_ = write("long.gguf", TensorType::kF32, 1u << 17);
  start({"--request-timeout", "3", "--streams", "1", "--threads", "1"});
  // What the format asks for is longer than can be written in that time.
  const json::object format{
      {"type", "json_schema"},
      {"json_schema", json::object{{"schema", json::object{{"type", "array"},
                                                           {"minItems", 4096},
                                                           {"items", json::object{{"type", "string"},
                                                                                  {"minLength", 400}}}}}}}};
  const json::value whole =
      answer({{"prompt", "the small"}, {"max_tokens", 120000}, {"response_format", format}});
  const json::value& choice = whole.at("choices").at(0);
  EXPECT_EQ(choice.at("finish_reason").as_string(), "length");
  EXPECT_TRUE(choice.at("timed_out").as_bool());
  EXPECT_GT(whole.at("usage").at("completion_tokens").to_number<int>(), 0);
}

TEST_F(Serve, RequestsThatAreComputedTogetherGetWhatEachGetsAlone) {
  model_ = write("long.gguf", TensorType::kQ8_0, 512);
  start({"--streams", "3", "--threads", "2"});
  std::vector<json::object> bodies;
  for (int i = 0; i < 12; ++i) {
    std::string prompt = "the server reads mail";
    for (int k = 0; k < i % 5; ++k)
      prompt += " and the client number " + std::to_string(i * k) + " writes a long log";
    bodies.push_back({{"prompt", prompt},
                      {"max_tokens", 20 + 10 * i},
                      {"temperature", i % 2 == 0 ? 0.0 : 0.9},
                      {"seed", i}});
  }
  std::vector<std::string> alone, together(bodies.size());
  for (const json::object& body : bodies) alone.push_back(text_of(answer(body)));
  std::vector<std::thread> clients;
  for (std::size_t i = 0; i < bodies.size(); ++i)
    clients.emplace_back([&, i] { together[i] = text_of(answer(bodies[i])); });
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(together, alone);
}

TEST_F(Serve, SeveralChoicesAndLogProbabilities) {
  start();
  json::object body{{"prompt", "the client"}, {"max_tokens", 12}, {"temperature", 1.2}, {"seed", 5}, {"n", 3},
                    {"logprobs", 2}};
  const json::value whole = answer(body);
  ASSERT_EQ(whole.at("choices").as_array().size(), 3u);
  std::set<std::string> texts;
  std::int64_t completion = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    const json::value& choice = whole.at("choices").at(i);
    EXPECT_EQ(choice.at("index").to_number<std::size_t>(), i);
    texts.insert(std::string(choice.at("text").as_string()));
    const json::object& told = choice.at("logprobs").as_object();
    const json::array &tokens = told.at("tokens").as_array(), &values = told.at("token_logprobs").as_array(),
                      &tops = told.at("top_logprobs").as_array(),
                      &offsets = told.at("text_offset").as_array();
    ASSERT_EQ(tokens.size(), values.size());
    ASSERT_EQ(tokens.size(), tops.size());
    EXPECT_EQ(offsets.at(0).to_number<int>(), 0);
    completion += static_cast<std::int64_t>(tokens.size());
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      ASSERT_LE(tops[t].as_object().size(), 2u);
      double best = -1e9;
      for (const auto& [token, logprob] : tops[t].as_object())
        best = std::max(best, logprob.to_number<double>());
      EXPECT_LE(values[t].to_number<double>(), best + 1e-9);
      EXPECT_LT(best, 0);
      EXPECT_GT(best, std::log(1.0 / 300));  // the likeliest of 300 tokens
    }
    // Each choice is what its seed gives alone.
    json::object alone = body;
    alone["n"] = 1, alone["seed"] = 5 + static_cast<int>(i);
    EXPECT_EQ(text_of(answer(alone)), choice.at("text").as_string());
  }
  EXPECT_EQ(texts.size(), 3u);
  EXPECT_EQ(whole.at("usage").at("completion_tokens").to_number<std::int64_t>(), completion);

  body["stream"] = true;
  std::string stream;
  ASSERT_OK(complete(body, [&](std::string_view part) {
    stream += part;
    return true;
  }));
  std::vector<std::string> streamed(3);
  std::size_t ends = 0, told = 0;
  for (const std::string& line : events(stream)) {
    if (line == "[DONE]") continue;
    const json::value choice = json::parse(line).at("choices").at(0);
    streamed[choice.at("index").to_number<std::size_t>()] += choice.at("text").as_string();
    ends += choice.at("finish_reason").is_null() ? 0 : 1;
    told += choice.at("logprobs").at("tokens").as_array().size();
  }
  EXPECT_EQ(ends, 3u);
  EXPECT_EQ(static_cast<std::int64_t>(told), completion);
  EXPECT_EQ(std::set<std::string>(streamed.begin(), streamed.end()), texts);
  for (const char* wrong : {"0", "17", "-1", "1.5"})
    EXPECT_EQ(complete(json::parse(R"({"prompt": "a", "n": )" + std::string(wrong) + "}"))->status, 400)
        << wrong;
  EXPECT_EQ(complete({{"prompt", "a"}, {"logprobs", 21}})->status, 400);
}

TEST_F(Serve, AFullQueueIs429AndALeavingClientStopsItsGeneration) {
  model_ = write("long.gguf", TensorType::kF32, 16384);
  start({"--queue", "1", "--streams", "1"});
  const json::object endless{{"prompt", "a"}, {"max_tokens", 16000}, {"temperature", 0}, {"stream", true}};
  // Somebody holds the engine (random weights repeat themselves greedily and never end a text) …
  std::atomic<bool> leave{false}, began{false};
  std::thread holder([&] {
    const auto response = complete(endless, [&](std::string_view) {
      began = true;
      return !leave;
    });
    (void)response;
  });
  ASSERT_TRUE(eventually([&] { return began.load(); }));
  // … so of the next ones a single one may wait.
  std::atomic<int> refused{0}, answered{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i)
    clients.emplace_back([&] {
      const auto response = complete({{"prompt", "b"}, {"max_tokens", 2}});
      if (!response) return;
      if (response->status == 429) {
        ++refused;
        EXPECT_EQ(response->headers.at("retry-after"), "1");
      } else if (response->status == 200) {
        ++answered;
      }
    });
  EXPECT_TRUE(eventually([&] { return refused >= 3; })) << refused;
  leave = true;
  holder.join();
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(refused, 3);
  EXPECT_EQ(answered, 1);  // the waiting one got its turn because the holder's generation ended
  EXPECT_TRUE(eventually([&] { return get("/metrics")->body.find("{code=\"499\"} 1") != std::string::npos; }))
      << get("/metrics")->body;
}

TEST_F(Serve, ChoicesMayBeAsManyAsStreamsAndQueueHold) {
  start({"--queue", "1", "--streams", "3"});
  const auto ask = [&](int n) { return complete({{"prompt", "a"}, {"max_tokens", 2}, {"n", n}}); };
  const auto four = ask(4);
  ASSERT_OK(four);
  EXPECT_EQ(four->status, 200) << four->body;
  const auto five = ask(5);  // never: it is not told to come back
  ASSERT_OK(five);
  EXPECT_EQ(five->status, 400);
  EXPECT_NE(five->body.find("'n' is 5"), std::string::npos) << five->body;
}

TEST_F(Serve, SigtermLetsWhatRunsFinishAndExitsZero) {
  model_ = write("long.gguf", TensorType::kF32, 4096);
  start();
  std::atomic<bool> began{false};
  std::string stream;
  std::thread client([&] {
    EXPECT_OK(
        complete({{"prompt", "a"}, {"max_tokens", 2000}, {"temperature", 1}, {"seed", 1}, {"stream", true}},
                 [&](std::string_view part) {
                   stream += part;
                   began = true;
                   return true;
                 }));
  });
  ASSERT_TRUE(eventually([&] { return began.load(); }));
  program_->signal(SIGTERM);
  client.join();
  const Ended ended = program_->wait();
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_NE(stream.find("data: [DONE]"), std::string::npos);
}

TEST_F(Serve, ExitCodesTellWhatToDo) {
  const auto run = [&](std::vector<std::string> arguments) {
    return Program(folder_.path(), std::move(arguments)).wait();
  };
  EXPECT_EQ(run({}).status, 2);
  EXPECT_EQ(run({model_, "--no-such-flag"}).status, 2);
  EXPECT_EQ(run({"--help"}).status, 0);
  const Ended version = run({"--version"});
  EXPECT_EQ(version.status, 0);
  EXPECT_NE(version.out.find("retort-serve"), std::string::npos);
  const Ended missing = run({folder_ / "missing.gguf"});
  EXPECT_NE(missing.status, 0);
  EXPECT_NE(missing.err.find("missing.gguf"), std::string::npos);
  std::string bytes = *read_file(model_);
  ASSERT_OK(write_file_atomic(folder_ / "cut.gguf", bytes.substr(0, bytes.size() / 2)));
  EXPECT_EQ(run({folder_ / "cut.gguf"}).status, 3);
  ASSERT_OK(write_file_atomic(folder_ / "other.gguf", "this is not a model"));
  EXPECT_EQ(run({folder_ / "other.gguf"}).status, 3);
  const Ended big = run({model_, "--memory-limit", "1K", "--port", "0"});
  EXPECT_EQ(big.status, 4);
  EXPECT_NE(big.err.find("KiB"), std::string::npos) << "names what is needed: " << big.err;
  start();
  const std::string port = url_.substr(url_.rfind(':') + 1);
  const Ended taken = run({model_, "--port", port});
  EXPECT_NE(taken.status, 0);
  EXPECT_NE(taken.err.find(port), std::string::npos) << taken.err;
}

TEST_F(Serve, AMemoryLimitNarrowsTheCache) {
  const auto plan = [&](const std::string& cache) {
    const Ended ended =
        Program(folder_.path(), {"info", model_, "--json", "--streams", "32", "--kv-cache", cache}).wait();
    EXPECT_EQ(ended.status, 0) << ended.err;
    const json::value memory = json::parse(ended.out).at("memory");
    // Whether weights are packed is decided while all of the file is still in use.
    const std::uint64_t released =
        std::filesystem::file_size(model_) - memory.at("weights_mapped_bytes").to_number<std::uint64_t>();
    return memory.at("total_bytes").to_number<std::uint64_t>() + released;
  };
  const std::uint64_t f32 = plan("f32"), f16 = plan("f16"), q8 = plan("q8");
  EXPECT_LT(f16, f32);
  EXPECT_LT(q8, f16);
  for (const auto& [limit, told] : std::map<std::uint64_t, std::string>{
           {f32, ""}, {f16, "a KV cache of 16 bits alone"}, {q8, "a KV cache of 8 bits alone"}}) {
    start({"--streams", "32", "--memory-limit", std::to_string(limit)});
    (void)answer({{"prompt", "the server"}, {"max_tokens", 4}, {"temperature", 0}});
    program_->signal(SIGTERM);
    const Ended ended = program_->wait();
    EXPECT_EQ(ended.status, 0) << ended.err;
    EXPECT_EQ(ended.err.find("a KV cache of") != std::string::npos, !told.empty()) << ended.err;
    EXPECT_NE(ended.err.find(told), std::string::npos) << ended.err;
    EXPECT_EQ(ended.err.find("packed weights"), std::string::npos) << ended.err;
    EXPECT_NE(ended.err.find("32 streams"), std::string::npos) << ended.err;
  }
}

TEST_F(Serve, AnInstructionSetCanBeNamed) {
  for (const std::string& set : kernels::instruction_sets()) {
    ::setenv("RETORT_INSTRUCTION_SET", set.c_str(), 1);
    const Ended ended = Program(folder_.path(), {"bench", model_, "--prompt", "8", "--generate", "2",
                                                 "--json", "--repeat", "1", "--pack-cache", "none"})
                            .wait();
    EXPECT_EQ(ended.status, 0) << ended.err;
    EXPECT_EQ(json::parse(ended.out).at("kernels").as_string(), set);
  }
  ::setenv("RETORT_INSTRUCTION_SET", "MMX", 1);
  const Ended unknown = Program(folder_.path(), {"info", model_}).wait();
  ::unsetenv("RETORT_INSTRUCTION_SET");
  EXPECT_EQ(unknown.status, 2);
  EXPECT_NE(unknown.err.find("MMX"), std::string::npos);
}

/// The model with another value in all of a tensor (of F32).
void write_broken(const std::filesystem::path& model, const std::filesystem::path& broken,
                  const std::string& tensor, float value) {
  std::string bytes = *read_file(model);
  {
    const auto file = GgufFile::open(model);
    ASSERT_OK(file);
    const GgufTensor* const found = file->tensor(tensor);
    ASSERT_NE(found, nullptr);
    ASSERT_EQ(found->type, TensorType::kF32);
    for (std::size_t i = 0; i < found->data.size(); i += sizeof value)
      std::memcpy(bytes.data() + found->offset + i, &value, sizeof value);
  }
  ASSERT_OK(write_file_atomic(broken, bytes));
}

TEST_F(Serve, AModelWhoseLogitsAreNoNumbersAnswersWithAnError) {
  write_broken(model_, folder_ / "huge.gguf", "blk.0.ffn_norm.weight", 3e38f);  // its square overflows
  model_ = folder_ / "huge.gguf";
  start({});
  const auto answer = complete({{"prompt", "a"}, {"max_tokens", 4}, {"logprobs", 2}});
  ASSERT_OK(answer);
  EXPECT_EQ(answer->status, 500);
  EXPECT_NE(answer->body.find("no numbers"), std::string::npos) << answer->body;
}

TEST_F(Serve, EvalRefusesAModelWhoseLogitsAreNoNumbers) {
  ASSERT_OK(write_file_atomic(folder_ / "held_out.jsonl", testing::tiny_corpus_jsonl(20, 9)));
  write_broken(model_, folder_ / "huge.gguf", "blk.0.ffn_norm.weight", 3e38f);
  for (const auto& [student, teacher] :
       {std::pair{folder_ / "huge.gguf", model_}, std::pair{model_, folder_ / "huge.gguf"}}) {
    const Ended ended =
        Program(folder_.path(), {"eval", student.string(), "--data", (folder_ / "held_out.jsonl").string(),
                                 "--teacher", teacher.string()})
            .wait();
    EXPECT_EQ(ended.status, 3) << ended.out;
    EXPECT_NE(ended.err.find("no numbers"), std::string::npos) << ended.err;
  }
}

TEST_F(Serve, WeightsThatAreNoNumbersAreRefusedAtTheStart) {
  for (const char* tensor : {"output_norm.weight", "blk.0.attn_q.weight"}) {
    write_broken(model_, folder_ / "nan.gguf", tensor, std::numeric_limits<float>::quiet_NaN());
    // Twice: the first time must leave nothing in the cache that the second would serve.
    for (int turn = 0; turn < 2; ++turn) {
      const Ended ended =
          Program(folder_.path(), {"serve", (folder_ / "nan.gguf").string(), "--port", "0"}).wait();
      EXPECT_EQ(ended.status, 3) << ended.out;
      EXPECT_NE(ended.err.find(std::string("tensor '") + tensor + "' holds NaN"), std::string::npos)
          << ended.err;
    }
  }
}

/// From what is enough for the program's own libraries to what is enough for all.
TEST_F(Serve, MemoryThatTheSystemDoesNotGiveIsSaid) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer takes more address space than the limit";
#endif
  const auto with = [&](std::uint64_t mib, std::vector<std::string> arguments) {
    return Program(folder_.path(), std::move(arguments), {"prlimit", fmt::format("--as={}", mib << 20)})
        .wait();
  };
  std::uint64_t mib = 20;
  while (with(mib, {"--version"}).status != 0) ASSERT_LT(mib += 2, 2000u);
  for (bool done = false; !done; mib += mib < 100 ? 2 : 50) {
    ASSERT_LT(mib, 2000u);
    const Ended ended =
        with(mib, {"bench", model_.string(), "--prompt", "4", "--generate", "2", "--repeat", "1"});
    EXPECT_LT(ended.status, 128) << mib << " MiB: " << ended.err;
    if (ended.status != 0) {
      EXPECT_NE(ended.err, "") << mib;
    }
    done = ended.status == 0;
  }
}

TEST_F(Serve, EvalMeasuresAgainstATeacher) {
  ASSERT_OK(write_file_atomic(folder_ / "held_out.jsonl", testing::tiny_corpus_jsonl(40, 9)));
  const auto eval = [&](const std::filesystem::path& student, std::vector<std::string> more) -> json::value {
    std::vector<std::string> arguments{"eval", student, "--data", folder_ / "held_out.jsonl"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Ended ended = Program(folder_.path(), arguments).wait();
    EXPECT_EQ(ended.status, 0) << ended.err;
    return ended.status == 0 ? json::parse(ended.out) : json::value{};
  };
  const auto number = [](const json::value& v, const char* key) { return v.at(key).to_number<double>(); };
  const json::value alone = eval(model_, {});
  EXPECT_TRUE(alone.at("kl_divergence").is_null());
  EXPECT_GT(number(alone, "tokens"), 300);
  EXPECT_NEAR(number(alone, "perplexity"), std::exp(number(alone, "nll_per_token")),
              1e-3 * number(alone, "perplexity"));
  EXPECT_NEAR(
      number(alone, "bits_per_byte"),
      number(alone, "nll_per_token") * number(alone, "tokens") / number(alone, "bytes") / std::log(2.0),
      1e-3);

  // The same number, computed here token by token.
  const auto model = Model::open(model_);
  ASSERT_OK(model);
  ThreadTeam team(1);
  double nll = 0;
  std::uint64_t tokens = 0;
  const std::string corpus = *read_file(folder_ / "held_out.jsonl");
  for (std::size_t at = 0, end; (end = corpus.find('\n', at)) != std::string::npos; at = end + 1) {
    const std::string text(json::parse(corpus.substr(at, end - at)).at("text").as_string());
    auto ids = (*model)->tokenizer().encode(text, false);
    if (ids.size() > 100) continue;  // windows and eos are the program's affair: compare roughly
    if ((*model)->tokenizer().bos() >= 0) ids.insert(ids.begin(), (*model)->tokenizer().bos());
    auto session = Session::create(*model, team, {});
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto logits = (*session)->evaluate(std::span(&ids[i], 1));
      double sum = 0;
      for (const float x : *logits) sum += std::exp(double{x});
      nll += std::log(sum) - double{(*logits)[ids[i + 1]]};
      ++tokens;
    }
  }
  ASSERT_GT(tokens, 300u);
  EXPECT_NEAR(number(alone, "nll_per_token"), nll / static_cast<double>(tokens), 0.05);

  const json::value self = eval(model_, {"--teacher", model_});
  EXPECT_NEAR(number(self, "kl_divergence"), 0, 1e-9);
  EXPECT_EQ(number(self, "top1_agreement"), 1);
  EXPECT_EQ(number(self, "nll_per_token"), number(alone, "nll_per_token"));
  const json::value half = eval(write("h.gguf", TensorType::kF16, 128), {"--teacher", model_});
  EXPECT_LT(number(half, "kl_divergence"), 1e-4);
  EXPECT_GT(number(half, "top1_agreement"), 0.97);
  const json::value eight = eval(write("q.gguf", TensorType::kQ8_0, 128), {"--teacher", model_});
  EXPECT_LT(number(eight, "kl_divergence"), 1e-2);
  EXPECT_GT(number(eight, "kl_divergence"), number(half, "kl_divergence"));
  const json::value stranger =
      eval(write("o.gguf", TensorType::kF32, 128, ModelFamily::kGpt2, 8), {"--teacher", model_});
  EXPECT_GT(number(stranger, "kl_divergence"), number(eight, "kl_divergence"));
  const json::value few = eval(model_, {"--max-tokens", "100"});
  EXPECT_LE(number(few, "tokens"), 100);
}

TEST_F(Serve, BenchAndInfoDescribeTheModel) {
  const auto run = [&](std::vector<std::string> arguments) {
    const Ended ended = Program(folder_.path(), std::move(arguments)).wait();
    EXPECT_EQ(ended.status, 0) << ended.err;
    return json::parse(ended.out);
  };
  const json::value bench =
      run({"bench", model_, "--prompt", "32", "--generate", "16", "--repeat", "1", "--json"});
  for (const char* key : {"parameters", "file_bytes", "bits_per_weight", "prompt_tokens_per_second",
                          "generate_tokens_per_second", "first_token_ms", "per_token_ms", "resident_bytes",
                          "private_dirty_bytes"})
    EXPECT_GT(bench.at(key).to_number<double>(), 0) << key;
  const json::value info = run({"info", model_, "--json"});
  EXPECT_EQ(info.at("architecture").as_string(), "llama");
  EXPECT_EQ(info.at("parameters"), bench.at("parameters"));
}

class ServeClassifier : public Serve {
 protected:
  void SetUp() override {
    config_.family = ClassifierFamily::kCnn;
    config_.input = {1, 4, 4};
    config_.convolutions.push_back({.out_channels = 6, .kernel = 3, .padding = 1, .pooling = Pooling::kMax});
    config_.hidden = {9};
    config_.labels = {"shirt", "shoe", "bag"};
    config_.mean = {100}, config_.std = {50};
    model_ = folder_ / "eye.gguf";
    ASSERT_OK(
        write_gguf_classifier(model_, config_, testing::random_weights(config_, 4), TensorType::kQ8_0, {}));
    for (int i = 0; i < 32; ++i) pixels_.push_back(static_cast<std::uint8_t>(37 * i));
  }
  /// The probabilities of the test's two images, computed in this process.
  std::vector<float> expected() {
    const auto model = Classifier::open(model_);
    EXPECT_OK(model);
    ThreadTeam team(1);
    const auto session = ClassifierSession::create(*model, team, {});
    EXPECT_OK(session);
    const std::vector<float> inputs(pixels_.begin(), pixels_.end());
    const auto logits = (*session)->run(inputs);
    EXPECT_OK(logits);
    std::vector<float> out(6);
    for (std::size_t i = 0; i < 2; ++i)
      probabilities(logits->subspan(3 * i, 3), std::span(out).subspan(3 * i, 3));
    return out;
  }
  Result<HttpResponse> classify(const std::string& body) {
    return http_call({.method = "POST", .url = url_ + "/v1/classify", .body = body});
  }
  /// The probabilities in the order of the model's labels.
  std::vector<float> told(const std::string& body) {
    const auto response = classify(body);
    EXPECT_OK(response);
    EXPECT_EQ(response->status, 200) << response->body;
    std::vector<float> out;
    const json::value whole = json::parse(response->body);
    for (const json::value& one : whole.at("data").as_array()) {
      EXPECT_EQ(one.at("label"), one.at("labels").at(0).at("label"));
      for (const std::string& label : config_.labels)
        for (const json::value& entry : one.at("labels").as_array())
          if (entry.at("label").as_string() == label)
            out.push_back(static_cast<float>(entry.at("probability").to_number<double>()));
    }
    return out;
  }

  ClassifierConfig config_;
  std::vector<std::uint8_t> pixels_;
};

TEST_F(ServeClassifier, TensorsInEveryFormGiveTheModelsProbabilities) {
  start({"--pack-cache", "none"});
  const std::vector<float> wanted = expected(), first(wanted.begin(), wanted.begin() + 3);
  const auto list = [&](std::size_t from, std::size_t n) {
    return fmt::format("[{}]", fmt::join(std::span(pixels_).subspan(from, n), ","));
  };
  const auto rows = [&](std::size_t from) {
    return fmt::format("[{},{},{},{}]", list(from, 4), list(from + 4, 4), list(from + 8, 4),
                       list(from + 12, 4));
  };
  EXPECT_EQ(told(fmt::format("{{\"input\":{}}}", list(0, 16))), first);
  EXPECT_EQ(told(fmt::format("{{\"input\":{}}}", rows(0))), first);
  EXPECT_EQ(told(fmt::format("{{\"input\":[{}]}}", rows(0))), first);
  EXPECT_EQ(told(fmt::format("{{\"input\":[{},{}]}}", list(0, 16), list(16, 16))), wanted);
  EXPECT_EQ(told(fmt::format("{{\"input\":[[{}],[{}]]}}", rows(0), rows(16))), wanted);
  // 0, 37, 74, … 37 · 15 mod 256, as bytes.
  EXPECT_EQ(told(R"({"input":"ACVKb5S53gMoTXKXvOEGKw==","dtype":"uint8"})"), first);
  const auto best = classify(fmt::format("{{\"input\":{},\"top_k\":1}}", list(0, 16)));
  ASSERT_OK(best);
  EXPECT_EQ(json::parse(best->body).at("data").at(0).at("labels").as_array().size(), 1u);
  for (const char* bad :
       {"{}", "{\"input\":[1,2]}", "{\"input\":\"AA==\"}", "{\"input\":[1,2],\"top_k\":0}", "[]"}) {
    const auto response = classify(bad);
    ASSERT_OK(response);
    EXPECT_EQ(response->status, 400) << bad;
  }
  EXPECT_EQ(get("/v1/completions")->status, 404);
  EXPECT_NE(get("/v1/other")->body.find("/v1/classify"), std::string::npos);
  EXPECT_EQ(json::parse(get("/v1/models")->body).at("data").at(0).at("meta").at("architecture").as_string(),
            "cnn");
  EXPECT_NE(get("/metrics")->body.find("retort_serve_inputs_total 9"), std::string::npos);
  program_->signal(SIGTERM);
  EXPECT_EQ(program_->wait().status, 0);
}

TEST_F(ServeClassifier, EvalBenchAndInfoKnowIt) {
  std::string lines;
  for (int i = 0; i < 40; ++i)
    lines +=
        fmt::format("{{\"input\":[{}],\"label\":{}}}\n", fmt::join(std::vector<int>(16, 6 * i), ","), i % 3);
  ASSERT_OK(write_file_atomic(folder_ / "d.jsonl", lines));
  const auto run = [&](std::vector<std::string> arguments) {
    const auto ended = Program(folder_.path(), arguments).wait();
    EXPECT_EQ(ended.status, 0) << ended.err;
    return ended.out;
  };
  const json::value eval =
      json::parse(run({"eval", model_, "--data", folder_ / "d.jsonl", "--teacher", model_}));
  EXPECT_EQ(eval.at("examples").to_number<int>(), 40);
  EXPECT_EQ(eval.at("top1_agreement").to_number<double>(), 1);
  EXPECT_EQ(eval.at("confusion").as_array().size(), 3u);
  const json::value bench =
      json::parse(run({"bench", model_, "--json", "--repeat", "1", "--pack-cache", "none"}));
  EXPECT_GT(bench.at("inputs_per_second").to_number<double>(), 0);
  const json::value told = json::parse(run({"info", model_, "--json"}));
  EXPECT_EQ(told.at("layers").as_array().size(), 3u);
  EXPECT_EQ(told.at("layers").at(0).at("positions").to_number<int>(), 16);
  EXPECT_NE(run({"info", model_}).find("max pooling"), std::string::npos);
}

/// An encoder with a classification head, served.
class ServeEncoder : public Serve {
 protected:
  void SetUp() override { model_ = write_encoder({"light_on", "light_off", "music"}); }
  std::filesystem::path write_encoder(std::vector<std::string> labels, TensorType type = TensorType::kQ8_0) {
    testing::TinyModelOptions options;
    options.n_ctx = 32;
    options.encoder.pooler = !labels.empty();
    options.encoder.pooling = labels.empty() ? TextPooling::kMean : TextPooling::kCls;
    options.encoder.labels = std::move(labels);
    EXPECT_OK(
        testing::write_tiny_gguf(folder_ / "e.hf", folder_ / "e.gguf", ModelFamily::kBert, 5, type, options));
    return folder_ / "e.gguf";
  }
  HttpResponse post(const std::string& path, const json::value& body) {
    const auto response = http_call({.method = "POST", .url = url_ + path, .body = json::serialize(body)});
    EXPECT_OK(response);
    return response.value_or(HttpResponse{});
  }
  json::value good(const std::string& path, const json::value& body) {
    const HttpResponse response = post(path, body);
    EXPECT_EQ(response.status, 200) << response.body;
    return json::parse(response.body);
  }
  std::string refused(const std::string& path, const json::value& body, int status = 400) {
    const HttpResponse response = post(path, body);
    EXPECT_EQ(response.status, status) << response.body;
    return std::string(json::parse(response.body).at("error").at("message").as_string());
  }
  static std::vector<float> vector_of(const json::value& answer, std::size_t index) {
    std::vector<float> out;
    for (const json::value& x : answer.at("data").at(index).at("embedding").as_array())
      out.push_back(x.to_number<float>());
    return out;
  }
};

TEST_F(ServeEncoder, EmbeddingsAreThoseOfTheSession) {
  start({"--threads", "2"});
  const auto model = Model::open(model_);
  ASSERT_OK(model);
  ThreadTeam team(1);
  const auto session = EncoderSession::create(*model, team, {});
  ASSERT_OK(session);
  const json::value answer =
      good("/v1/embeddings", {{"input", {"turn the light on", "x", "Turn the light on"}}});
  EXPECT_EQ(answer.at("object").as_string(), "list");
  ASSERT_EQ(answer.at("data").as_array().size(), 3u);
  std::uint64_t tokens = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    const auto ids = (*model)->tokenizer().encode(i == 1 ? "x" : "turn the light on", true);
    tokens += ids.size();
    const EncoderSession::Text text = ids;
    const auto wanted = (*session)->embed({&text, 1});
    ASSERT_OK(wanted);
    EXPECT_EQ(vector_of(answer, i), std::vector<float>(wanted->begin(), wanted->end()));
    // Its token ids give the same, and so do the bytes in base64.
    json::array list(ids.begin(), ids.end());
    EXPECT_EQ(vector_of(good("/v1/embeddings", {{"input", list}}), 0), vector_of(answer, i));
  }
  EXPECT_EQ(answer.at("usage").at("prompt_tokens").to_number<std::uint64_t>(), tokens);
  const json::value coded = good("/v1/embeddings", {{"input", "x"}, {"encoding_format", "base64"}});
  const std::string text(coded.at("data").at(0).at("embedding").as_string());
  const auto bytes = decode_base64(text);
  ASSERT_TRUE(bytes && bytes->size() == 64 * sizeof(float));
  std::vector<float> decoded(64);
  std::memcpy(decoded.data(), bytes->data(), bytes->size());
  EXPECT_EQ(decoded, vector_of(answer, 1));
}

TEST_F(ServeEncoder, EmbeddingsAreThoseOfTheDefinition) {
  const auto model = Model::open(model_ = write_encoder({}, TensorType::kF32));
  ASSERT_OK(model);
  start();
  const testing::BertReference reference((*model)->file(), (*model)->config());
  const std::vector<std::string> texts{"turn the light on", "the server reads mail!", "x"};
  const json::value answer = good("/v1/embeddings", {{"input", json::array(texts.begin(), texts.end())}});
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto wanted = reference.embedding((*model)->tokenizer().encode(texts[i], true));
    const std::vector<float> got = vector_of(answer, i);
    ASSERT_EQ(got.size(), wanted.size());
    for (std::size_t j = 0; j < got.size(); ++j) EXPECT_NEAR(got[j], wanted[j], 1e-5) << texts[i];
  }
}

TEST_F(ServeEncoder, ClassesHaveProbabilitiesInOrder) {
  start();
  const json::value answer = good("/v1/classify", {{"input", "turn the light on"}});
  const json::value& entry = answer.at("data").at(0);
  const json::array& labels = entry.at("labels").as_array();
  ASSERT_EQ(labels.size(), 3u);
  double sum = 0, last = 1;
  std::set<std::string> names;
  for (const json::value& label : labels) {
    const double p = label.at("probability").to_number<double>();
    EXPECT_LE(p, last);
    sum += last = p;
    names.insert(std::string(label.at("label").as_string()));
  }
  EXPECT_NEAR(sum, 1, 1e-5);
  EXPECT_EQ(names, (std::set<std::string>{"light_off", "light_on", "music"}));
  EXPECT_EQ(entry.at("label"), labels[0].at("label"));
  const json::value best = good("/v1/classify", {{"input", {"turn the light on"}}, {"top_k", 1}});
  EXPECT_EQ(best.at("data").at(0).at("labels").as_array().size(), 1u);
  EXPECT_EQ(best.at("data").at(0).at("label"), entry.at("label"));
  const auto models = get("/v1/models");
  ASSERT_OK(models);
  const json::value meta = json::parse(models->body).at("data").at(0).at("meta");
  EXPECT_EQ(meta.at("architecture").as_string(), "bert");
  EXPECT_EQ(meta.at("n_labels").to_number<int>(), 3);
  EXPECT_EQ(meta.at("pooling").as_string(), "cls");
  const auto metrics = get("/metrics");
  ASSERT_OK(metrics);
  EXPECT_NE(metrics->body.find("retort_serve_first_token_seconds_count 2"), std::string::npos)
      << metrics->body;
}

TEST_F(ServeEncoder, RefusalsSayWhatAndWhatElse) {
  start();
  EXPECT_NE(refused("/v1/completions", {{"prompt", "x"}}, 404).find("/v1/embeddings, /v1/classify"),
            std::string::npos);
  EXPECT_NE(refused("/v1/embeddings", {{"inputs", "x"}}).find("'input'"), std::string::npos);
  EXPECT_NE(refused("/v1/embeddings", {{"input", json::array{}}}).find("0 texts"), std::string::npos);
  EXPECT_NE(refused("/v1/embeddings", {{"input", {1, 300}}}).find("vocabulary of 300"), std::string::npos);
  EXPECT_NE(refused("/v1/embeddings", {{"input", "x"}, {"dimensions", 8}}).find("64"), std::string::npos);
  EXPECT_NE(refused("/v1/embeddings", {{"input", "x"}, {"encoding_format", "hex"}}).find("hex"),
            std::string::npos);
  std::string long_text;
  for (int i = 0; i < 31; ++i) long_text += "x ";
  EXPECT_NE(refused("/v1/classify", {{"input", {"x", long_text}}})
                .find("text 1 of 'input' has 33 tokens; the model takes 32"),
            std::string::npos);
  EXPECT_NE(refused("/v1/classify", {{"input", "x"}, {"top_k", 0}}).find("top_k"), std::string::npos);
}

TEST_F(ServeEncoder, ManyClientsGetTheirOwnAnswers) {
  start({"--threads", "2"});
  std::vector<std::vector<float>> alone;
  for (int i = 0; i < 6; ++i)
    alone.push_back(vector_of(good("/v1/embeddings", {{"input", "x" + std::string(i, 'y')}}), 0));
  std::vector<std::thread> clients;
  std::atomic<int> right{0};
  for (int i = 0; i < 6; ++i)
    clients.emplace_back([&, i] {
      for (int round = 0; round < 10; ++round) {
        // More texts than are computed at once.
        const json::array inputs(70, json::value("x" + std::string(i, 'y')));
        const json::value answer = good("/v1/embeddings", {{"input", inputs}});
        if (vector_of(answer, 0) == alone[i] && vector_of(answer, 69) == alone[i]) ++right;
      }
    });
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(right, 60);
}

TEST_F(ServeEncoder, LongRequestsTakeTurnsWithShortOnesAndHaveADeadline) {
  const auto model = Model::open(model_);
  ASSERT_OK(model);
  ThreadTeam team(1);
  auto session = EncoderSession::create(*model, team, {});
  ASSERT_OK(session);
  ServeMetrics metrics;
  std::vector<std::string> ended;  // the engine's thread's, until it has joined
  {
    EncoderEngine engine(std::move(*session), 10, metrics);
    const std::vector<TokenId> text = (*model)->tokenizer().encode("the small server reads", true);
    const auto submit = [&](const std::string& name, std::size_t texts, std::chrono::seconds time) {
      const auto encoding = std::make_shared<Encoding>();
      encoding->call.texts.assign(texts, text);
      encoding->deadline = std::chrono::steady_clock::now() + time;
      encoding->on_end = [&ended, name](const EncodeCall&,
                                        const Result<std::vector<std::vector<float>>>& rows) {
        ended.push_back(rows ? name : name + " " + std::string(to_string(rows.error().code)));
      };
      EXPECT_TRUE(engine.submit(encoding));
    };
    submit("long", 5000, std::chrono::seconds(1000));
    submit("late", 1, std::chrono::seconds(-1));
    submit("short", 2, std::chrono::seconds(1000));
  }
  EXPECT_EQ(ended, (std::vector<std::string>{"late unavailable", "short", "long"}));
}

TEST_F(ServeEncoder, AFullQueueSaysSo) {
  start({"--queue", "1"});
  const json::array texts(2048, "the small server reads");
  std::atomic<int> answered{0}, refused{0};
  EXPECT_TRUE(eventually([&] {  // one is computed, one waits, the others find no room
    std::vector<std::thread> clients;
    for (int i = 0; i < 6; ++i)
      clients.emplace_back([&] {
        const HttpResponse response = post("/v1/embeddings", {{"input", texts}});
        if (response.status == 200) ++answered;
        if (response.status != 429) return;
        EXPECT_EQ(response.headers.at("retry-after"), "1");
        ++refused;
      });
    for (std::thread& client : clients) client.join();
    return answered > 0 && refused > 0;
  }));
}

TEST_F(ServeEncoder, WithoutLabelsItClassifiesNothing) {
  model_ = write_encoder({});
  start();
  EXPECT_NE(refused("/v1/classify", {{"input", "x"}}, 404)
                .find("see /health, /metrics, /v1/models, /v1/models/{id}, /v1/embeddings"),
            std::string::npos);
  good("/v1/embeddings", {{"input", "x"}});
}

TEST_F(Serve, ADecoderHasNoEmbeddings) {
  start();
  const auto response =
      http_call({.method = "POST", .url = url_ + "/v1/embeddings", .body = R"({"input":"x"})"});
  ASSERT_OK(response);
  EXPECT_EQ(response->status, 404);
  EXPECT_NE(response->body.find("/v1/completions"), std::string::npos);
}

TEST_F(ServeEncoder, BenchAndInfoDescribeIt) {
  Program bench(folder_.path(), {"bench", model_, "--json", "--repeat", "1"});
  const Ended measured = bench.wait();
  ASSERT_EQ(measured.status, 0) << measured.err;
  const json::value speed = json::parse(measured.out);
  ASSERT_EQ(speed.at("texts").as_array().size(), 1u);  // its context ends at 32 tokens
  EXPECT_EQ(speed.at("texts").at(0).at("tokens").to_number<int>(), 32);
  EXPECT_GT(speed.at("texts").at(0).at("ms").to_number<double>(), 0);
  Program info(folder_.path(), {"info", model_, "--json"});
  const Ended told = info.wait();
  ASSERT_EQ(told.status, 0) << told.err;
  EXPECT_EQ(json::parse(told.out).at("labels").as_array().size(), 3u);
  EXPECT_EQ(json::parse(told.out).at("memory").at("kv_cache_bytes").to_number<int>(), 0);
}

}  // namespace
}  // namespace retort
