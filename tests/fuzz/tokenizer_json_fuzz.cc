// tokenizer.json and, after a zero byte, tokenizer_config.json.
#include "common/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz_seeds.h"
#include "tests/support/tiny_model.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  const std::string config =
      std::string(1, '\0') +
      R"({"bos_token":"<|endoftext|>","eos_token":{"content":"<|endoftext|>"},"add_bos_token":true})";
  const std::string pieces =
      R"({"added_tokens":[{"id":0,"content":"<unk>","special":true},{"id":1,"content":"<s>","special":true}],
"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},
"pre_tokenizer":null,"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}]},
"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,
"vocab":{"<unk>":0,"<s>":1,"<0x41>":2,"<0xFF>":3,"▁":4,"t":5,"h":6,"e":7,"th":8,"the":9,"▁the":10},
"merges":["t h",["th","e"],"▁ the"]}})";
  return {
      retort::testing::tiny_tokenizer_json(), retort::testing::tiny_tokenizer_json() + config, pieces,
      R"({"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":false},"model":{"type":"BPE","vocab":{"a":0},"merges":[]}})"};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const std::size_t cut = all.find('\0');
  const auto tokenizer = Tokenizer::from_huggingface_text(
      all.substr(0, cut), cut == std::string_view::npos ? std::string_view() : all.substr(cut + 1), "fuzz");
  if (!tokenizer) return 0;
  for (const bool special : {false, true}) {
    const auto ids = tokenizer->encode("the  A\xff <s> <|endoftext|> th\xe2", special, special);
    for (const TokenId id : ids)
      fuzz::require(id >= 0 && id < static_cast<TokenId>(tokenizer->vocabulary_size()));
    (void)tokenizer->decode(ids);
  }
  GgufWriter writer;
  tokenizer->write_gguf(writer);
  return 0;
}
