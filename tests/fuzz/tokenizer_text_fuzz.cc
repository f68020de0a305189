// Any bytes as text, through a byte-level tokenizer (which must give them back) and SentencePiece-type ones.
#include "common/core/file.h"
#include "common/core/json.h"
#include "common/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz_seeds.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  return {"the server and the client, in 12 ways; it's\n\n  here",
          "<|endoftext|>we'll they've I'd\t\xc2\xa0 \xe3\x80\x80x", "é漢字😀 naïve \xff\xfe ok",
          std::string(300, ' ') + std::string(300, 'a')};
}

namespace {

std::vector<Tokenizer> tokenizers() {
  std::vector<Tokenizer> out;
  out.push_back(*Tokenizer::from_huggingface_text(retort::testing::tiny_tokenizer_json(), "", "tiny"));
  // All the 256 byte tokens, so that nothing is lost.
  std::string json = R"({"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},)"
                     R"({"type":"Replace","pattern":{"String":" "},"content":"▁"}]},)"
                     R"("model":{"type":"BPE","byte_fallback":true,"vocab":{"▁":256,"t":257,"h":258,"e":259,)"
                     R"("th":260,"the":261,"▁the":262)";
  for (int b = 0; b < 256; ++b) json += fmt::format(",\"<0x{:02X}>\":{}", b, b);
  json += R"(},"merges":["t h","th e","▁ the"]}})";
  out.push_back(*Tokenizer::from_huggingface_text(json, "", "pieces"));
  // What expect.py made: each way of splitting, and unigram, straight and through GGUF.
  const auto text = read_file(retort::testing::source("tests/unit/tokenizer/cases.json"));
  fuzz::require(text.has_value());
  const json::value cases = *parse_json(*text, "cases.json");
  for (const auto& entry : cases.at("tokenizers").as_object())
    out.push_back(*Tokenizer::from_huggingface_text(json::serialize(entry.value()), "", "made"));
  out.push_back(*Tokenizer::from_huggingface_text(retort::testing::tiny_wordpiece_json(), "", "wordpiece"));
  for (const char* name : {"teachers/stories-260k", "teachers/babyllama-936k"}) {
    const auto folder = retort::testing::asset(name);
    if (!folder.empty()) out.push_back(*Tokenizer::from_huggingface(folder / "tokenizer.json"));
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::vector<Tokenizer> all = tokenizers();
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (const bool special : {false, true}) {
      const auto ids = all[i].encode(text, special, special);
      for (const TokenId id : ids)
        fuzz::require(id >= 0 && id < static_cast<TokenId>(all[i].vocabulary_size()));
      const std::string back = all[i].decode(ids);
      // A U+2581 in the text comes back as a space: SentencePiece cannot tell them apart.
      if (!special && i < 2 && (i == 0 || text.find("\xe2\x96\x81") == std::string_view::npos))
        fuzz::require(back == text);
    }
  }
  return 0;
}
