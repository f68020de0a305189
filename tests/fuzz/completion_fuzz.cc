// fuzz-links: retort_serve_http
// What a client sends and what a model writes: request bodies, URL escapes, and text that is let out piece by
// piece (never half a character, never a stop string, the same however it was cut).
#include "agent/serve/http/api.h"
#include "agent/serve/http/encode_api.h"
#include "common/http/http.h"
#include "tests/fuzz/fuzz_seeds.h"
#include "tests/support/tiny_model.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  return {
      R"({"prompt":"the server","max_tokens":16,"temperature":0.5,"top_k":4,"top_p":0.9,"seed":1,"stop":["\n","a b"],"stream":true})",
      R"({"prompt":"x","response_format":{"type":"json_schema","json_schema":{"strict":true,"schema":{"type":"object"}}}})",
      R"({"prompt":[1,2,3],"stream_options":{"include_usage":true},"stop":"x"})",
      R"({"messages":[{"role":"user","content":[{"type":"text","text":"the server"}]},{"role":"tool","content":null}],"max_completion_tokens":9,"logprobs":true,"top_logprobs":3,"tools":[],"chat_template_kwargs":{"x":1}})",
      R"({"input":["the server",[2,5,3],"x"],"encoding_format":"base64","dimensions":64,"top_k":2})",
      R"({"input":[2,7,3],"top_k":1})",
      "/v1/jobs/a%20b%2Fc?x=%41&y",
      "na\xc3\xafve \xe2\x82\xac \xf0\x9f\x98\x80 stop st\xf0\x9f",
  };
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Tokenizer tokenizer =
      *Tokenizer::from_huggingface_text(retort::testing::tiny_tokenizer_json(), "", "tiny");
  const std::string text(reinterpret_cast<const char*>(data), size);
  SeededRandom random(size);
  if (const auto call = parse_completion(text, tokenizer, 128, random)) {
    const GenerationRequest& r = call->generation;
    fuzz::require(!r.prompt.empty() && r.prompt.size() < 128 && r.max_tokens > 0);
    fuzz::require(r.sampling.temperature >= 0 && r.sampling.top_p >= 0 && r.sampling.top_p <= 1);
  }
  static const ChatTemplate chat =
      *ChatTemplate::parse("{% for m in messages %}{{ m.role ~ m.content ~ x }}{% endfor %}", "chat");
  if (const auto call = parse_chat(text, chat, tokenizer, 128, random))
    fuzz::require(call->generation.prompt.size() < 128 && call->generation.max_tokens > 0);
  ModelConfig encoder;
  encoder.family = ModelFamily::kBert;
  encoder.n_embd = 64;
  static const Tokenizer wordpiece =
      *Tokenizer::from_huggingface_text(retort::testing::tiny_wordpiece_json(), "", "tiny");
  for (const EncodeKind kind : {EncodeKind::kEmbed, EncodeKind::kClassify})
    if (const auto call = parse_encode(kind, text, wordpiece, encoder, 16)) {
      fuzz::require(!call->texts.empty());
      for (const auto& ids : call->texts) fuzz::require(!ids.empty() && ids.size() <= 16);
      const std::vector<std::vector<float>> rows(call->texts.size(), {0.25f, 0.75f});
      fuzz::require(encode_answer(*call, rows, {"a", "b"}, "m").at("data").as_array().size() == rows.size());
    }
  if (const auto decoded = percent_decode(text)) fuzz::require(decoded->size() <= text.size());

  const std::vector<std::string> stops{"stop", "\xf0\x9f\x98\x80x"};
  TextGate whole(stops), parts(stops);
  std::string expected = whole.push(text);
  expected += whole.finish();
  std::string given;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t n = std::min<std::size_t>(1 + random.next_u64() % 4, text.size() - at);
    const std::string piece = parts.push(text.substr(at, n));
    boost::system::error_code error;
    (void)json::parse(json::serialize(json::string(piece)), error);  // Boost.JSON refuses what is not UTF-8
    fuzz::require(!error);
    given += piece;
    at += n;
  }
  given += parts.finish();
  fuzz::require(given == expected);
  fuzz::require(given.find("stop") == std::string::npos);
  return 0;
}
