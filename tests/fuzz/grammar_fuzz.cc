// fuzz-links: retort_grammar
// A JSON schema and, after a zero byte, bytes that steer which of the allowed tokens are taken: what comes to
// its end must be JSON.
#include "agent/serve/grammar/json_schema.h"
#include "agent/serve/grammar/matcher.h"
#include "tests/fuzz/fuzz_seeds.h"
#include "tests/support/tiny_model.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  const std::string steps = std::string(1, '\0') + "abcdefghijklmnopqrstuvwxyz0123456789";
  return {
      R"({"type":"object","properties":{"a":{"type":"integer","minimum":-3,"maximum":500},"b":{"type":"string","minLength":1,"maxLength":4}},"required":["a"],"additionalProperties":false})" +
          steps,
      R"({"anyOf":[{"type":"array","items":{"enum":["x",1,null]},"minItems":1,"maxItems":3},{"$ref":"#/$defs/t"}],"$defs":{"t":{"type":"object","properties":{"t":{"$ref":"#/$defs/t"}}}}})" +
          steps,
      R"({"type":"string","pattern":"^(a|[b-d]{2,3})+\\d?[^x]$"})" + steps,
      R"({"type":["number","null"],"exclusiveMinimum":0,"maximum":1})" + steps, "true" + steps};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto trie = std::make_shared<grammar::TokenTrie>(*Tokenizer::from_huggingface_text(
      retort::testing::tiny_tokenizer_json(), R"({"eos_token":"<|endoftext|>"})", "tiny"));
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const std::size_t cut = std::min(all.find('\0'), all.size());
  const auto schema = parse_json(all.substr(0, cut), "fuzz");
  if (!schema) return 0;
  const auto network = grammar::compile_schema(*schema, {.ascii = size % 2 == 0, .max_depth = 6});
  if (!network) return 0;
  grammar::Matcher matcher(std::make_shared<grammar::Masks>(*network, trie));
  static const Tokenizer tokenizer = *Tokenizer::from_huggingface_text(
      retort::testing::tiny_tokenizer_json(), R"({"eos_token":"<|endoftext|>"})", "tiny");
  std::string text;
  for (std::size_t i = cut + 1; i < std::min(size, cut + 60); ++i) {
    const auto allowed = matcher.allowed();
    std::vector<TokenId> choices;
    for (TokenId id = 0; id < static_cast<TokenId>(trie->vocabulary_size()); ++id)
      if ((allowed[static_cast<std::size_t>(id) / 64] >> (id % 64) & 1) != 0) choices.push_back(id);
    fuzz::require(!choices.empty());
    const TokenId id = choices[data[i] % choices.size()];
    if (tokenizer.ends_generation(id)) {
      fuzz::require(matcher.may_end() && parse_json(text, "text").has_value());
      return 0;
    }
    fuzz::require(matcher.read(tokenizer.piece(id)));
    text += tokenizer.piece(id);
    if (!matcher.complete()) continue;
    fuzz::require(matcher.may_end() && parse_json(text, "text").has_value());
    return 0;
  }
  return 0;
}
