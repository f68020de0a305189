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
  const std::string unigram =
      R"({"added_tokens":[{"id":0,"content":"<unk>","special":true},{"id":7,"content":"th","normalized":true,"lstrip":true,"rstrip":true,"single_word":true}],
"normalizer":{"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":"CAAAAAAEAAAAAQAAQQBCAA=="},
{"type":"Strip","strip_left":false,"strip_right":true},{"type":"Replace","pattern":{"Regex":" {2,}"},"content":"▁"}]},
"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},
"model":{"type":"Unigram","unk_id":0,"byte_fallback":true,"vocab":[["<unk>",0],["▁",-2],["▁the",-1.5],["t",-3],["h",-3],["<0x41>",0],["<0xFF>",0]]}})";
  const std::string split =
      R"J({"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"},"behavior":"Isolated","invert":false},
{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]},"model":{"type":"BPE","ignore_merges":true,"vocab":{"t":0,"h":1,"e":2,"th":3,"Ġthe":4},"merges":["t h"]}})J";
  return {
      R"({"pre_tokenizer":{"type":"Metaspace"},"model":{"type":"Unigram","unk_id":4,"vocab":[]}})",
      unigram,
      split,
      retort::testing::tiny_tokenizer_json(),
      retort::testing::tiny_wordpiece_json(),
      retort::testing::tiny_tokenizer_json() + config,
      pieces,
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
