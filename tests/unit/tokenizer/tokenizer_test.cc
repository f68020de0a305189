#include "common/tokenizer/tokenizer.h"

#include <ctime>
#include <functional>
#include <map>

#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/random.h"
#include "common/hf/hf_model.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

using testing::TemporaryFolder;

Tokenizer tiny() {
  auto tokenizer = Tokenizer::from_huggingface_text(testing::tiny_tokenizer_json(), "", "tiny");
  EXPECT_OK(tokenizer);
  return *tokenizer;
}

std::vector<std::string> pieces(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::string> out;
  for (const TokenId id : tokenizer.encode(text, false)) out.push_back(tokenizer.piece(id));
  return out;
}

TEST(ByteLevel, SplitsAndMergesAsGpt2Does) {
  const Tokenizer t = tiny();
  using V = std::vector<std::string>;
  EXPECT_EQ(pieces(t, "the"), (V{"the"}));
  EXPECT_EQ(pieces(t, "x the"), (V{"x", " the"}));
  EXPECT_EQ(pieces(t, "and  the"), (V{"and", " ", " the"}));
  EXPECT_EQ(pieces(t, "the\n\nthe"), (V{"the", "\n", "\n", "the"}));
  EXPECT_EQ(pieces(t, "the  "), (V{"the", " ", " "}));
  EXPECT_EQ(pieces(t, "the'll"), (V{"the", "'", "ll"}));
  EXPECT_EQ(pieces(t, "in12er"), (V{"in", "1", "2", "er"}));
}

TEST(ByteLevel, EveryByteStringRoundTrips) {
  const Tokenizer t = tiny();
  SeededRandom random(5);
  for (int i = 0; i < 300; ++i) {
    std::string text(random.next_u64() % 60, '\0');
    random.fill(std::as_writable_bytes(std::span(text)));
    ASSERT_EQ(t.decode(t.encode(text, false)), text);
  }
  EXPECT_EQ(t.decode(t.encode("é漢字😀 ok\t'tis", false)), "é漢字😀 ok\t'tis");
}

TEST(ByteLevel, SpecialTokensAreTextUnlessAskedFor) {
  const Tokenizer t = tiny();
  EXPECT_GT(t.encode("<|endoftext|>", false).size(), 1u);
  EXPECT_EQ(t.encode("a<|endoftext|>", false, true).back(), 0);
  EXPECT_TRUE(t.is_special(0));
  EXPECT_EQ(t.piece(0), "");
  EXPECT_EQ(t.decode(std::vector<TokenId>{-5, 99999, 66}), "A");
}

TEST(ByteLevel, AMegabyteOfOneWordIsNotQuadratic) {
  const Tokenizer t = tiny();
  const std::clock_t start = std::clock();  // of this process: the machine may be busy
  const auto ids = t.encode(std::string(1 << 20, 'a') + std::string(1 << 20, 'n'), false);
  EXPECT_GT(ids.size(), 1u << 20);
  EXPECT_LT(std::clock() - start, 10 * CLOCKS_PER_SEC);
}

TEST(Tokenizer, BadFilesAreRefusedByName) {
  const auto message = [](std::string_view text) {
    return Tokenizer::from_huggingface_text(text, "", "t").error().message;
  };
  EXPECT_NE(message("{").find("JSON"), std::string::npos);
  EXPECT_NE(message(R"({"model":{"type":"WordLevel","vocab":[]}})").find("WordLevel"), std::string::npos);
  EXPECT_NE(message(R"({"model":{"type":"Unigram","vocab":[["a",0]]}})").find("Metaspace"),
            std::string::npos);
  EXPECT_NE(
      message(R"({"model":{"type":"BPE","vocab":{"a":0,"b":2},"merges":[]}})").find("no token has id 1"),
      std::string::npos);
  EXPECT_NE(message(R"({"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}})").find("merge 0"),
            std::string::npos);
  EXPECT_NE(message(R"({"model":{"type":"BPE","vocab":{"a":-3},"merges":[]}})").find("outside"),
            std::string::npos);
  EXPECT_NE(message(R"({"model":{"type":"BPE","vocab":{},"merges":[]}})").find("0 tokens"),
            std::string::npos);
}

TEST(Tokenizer, GgufCopyGivesTheSameIds) {
  TemporaryFolder folder;
  const Tokenizer t = tiny();
  GgufWriter writer;
  t.write_gguf(writer);
  ASSERT_OK(writer.write(folder / "t.gguf"));
  const auto file = GgufFile::open(folder / "t.gguf");
  ASSERT_OK(file);
  const auto copy = Tokenizer::from_gguf(*file);
  ASSERT_OK(copy);
  const std::string text = "the server and the client, in 12 ways; it's \xff here\n\n  end";
  EXPECT_EQ(copy->encode(text, true), t.encode(text, true));
}

Result<Tokenizer> through_gguf(
    const Tokenizer& tokenizer, const std::function<void(GgufWriter&)>& change = [](GgufWriter&) {}) {
  TemporaryFolder folder;
  GgufWriter writer;
  tokenizer.write_gguf(writer);
  change(writer);
  RETORT_TRY(writer.write(folder / "t.gguf"));
  const GgufFile file = RETORT_TRY(GgufFile::open(folder / "t.gguf"));
  return Tokenizer::from_gguf(file);
}

TEST(Tokenizer, GivesTheIdsThatFollowFromTheDefinitions) {  // cases.json is made by expect.py
  const auto text = read_file(testing::source("tests/unit/tokenizer/cases.json"));
  ASSERT_OK(text);
  const json::value all = *parse_json(*text, "cases.json");
  std::map<std::string, std::pair<Tokenizer, Tokenizer>> tokenizers;
  for (const auto& entry : all.at("tokenizers").as_object()) {
    const auto t =
        Tokenizer::from_huggingface_text(json::serialize(entry.value()), "", std::string(entry.key()));
    ASSERT_OK(t);
    const auto copy = through_gguf(*t);
    ASSERT_OK(copy);
    tokenizers.emplace(std::string(entry.key()), std::pair(*t, *copy));
  }
  std::size_t count = 0;
  for (const json::value& entry : all.at("cases").as_array()) {
    std::string bytes;  // written as Latin-1
    const std::string written(entry.at("bytes").as_string());
    for (std::size_t i = 0; i < written.size(); ++i) {
      const bool two = (written[i] & 0x80) != 0;
      bytes += two ? static_cast<char>((written[i] & 3) << 6 | (written[i + 1] & 0x3f)) : written[i];
      i += two;
    }
    std::vector<TokenId> expected;
    for (const json::value& id : entry.at("ids").as_array())
      expected.push_back(static_cast<TokenId>(id.as_int64()));
    const std::string name(entry.at("tokenizer").as_string());
    const auto& [t, copy] = tokenizers.at(name);
    EXPECT_EQ(t.encode(bytes, true, true), expected) << name << ": " << json::serialize(entry.at("bytes"));
    EXPECT_EQ(copy.encode(bytes, true, true), expected) << name << ": " << json::serialize(entry.at("bytes"));
    ++count;
  }
  EXPECT_GT(count, 200u);
}

TEST(Tokenizer, PreTokenizersOfGgufAreKnownByNameOrRefused) {
  const auto with = [](const char* name) {
    return through_gguf(tiny(),
                        [&](GgufWriter& writer) { writer.set("tokenizer.ggml.pre", std::string(name)); });
  };
  EXPECT_EQ(with("gpt-2")->encode("it'S 12345", false).size(),
            with("phi-2")->encode("it'S 12345", false).size());
  for (const char* name : {"llama-bpe", "qwen2", "smollm", "default", "stablelm2"}) {
    const auto t = with(name);
    ASSERT_OK(t);
    EXPECT_EQ(t->decode(t->encode("a1234 b's\r\n \xff e\xcc\x81!", false)),
              std::string("a1234 b's\r\n \xff ") + (name == std::string("qwen2") ? "é" : "e\xcc\x81") + "!")
        << name;
  }
  const auto unknown = with("tekken");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(unknown.error().message.find("unsupported pre-tokenizer 'tekken'"), std::string::npos);
  EXPECT_NE(unknown.error().message.find("llama-bpe"), std::string::npos);
}

TEST(Unigram, AForeignCharsmapIsFollowedLongestFirstAndADamagedOneRefused) {
  // A table by hand, in Darts' packing: "A" -> "x", "AB" -> "yz".
  std::vector<std::uint32_t> units(256);
  const auto node = [](std::uint32_t offset, bool value, unsigned label) {
    return offset << 10 | (value ? 1u << 8 : 0) | label;
  };
  units[0] = node(1, false, 0);         // children at 1 ^ label
  units[1 ^ 'A'] = node(3, true, 'A');  // at 64; children at 67 ^ label, the value at 67
  units[64 ^ 3] = 1u << 31 | 0;
  units[67 ^ 'B'] = node(5, true, 'B');  // at 1; the value at 4
  units[1 ^ 5] = 1u << 31 | 2;
  std::vector<std::int64_t> table;
  const auto put = [&](std::uint32_t value) {
    for (int i = 0; i < 4; ++i) table.push_back(value >> (8 * i) & 0xff);
  };
  put(static_cast<std::uint32_t>(4 * units.size()));
  for (const std::uint32_t unit : units) put(unit);
  for (const char c : std::string_view("x\0yz\0", 5)) table.push_back(c);
  const auto base = Tokenizer::from_huggingface_text(
      R"({"pre_tokenizer":{"type":"Metaspace","split":false},"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0],
          ["x",-1],["y",-2],["z",-3],["A",-1],["B",-4],["▁",-1],["C",-5],["xB",-0.5]]}})",
      "", "t");
  ASSERT_OK(base);
  EXPECT_EQ(base->encode("ABC", false), (std::vector<TokenId>{6, 4, 5, 7}));
  EXPECT_EQ(base->encode("A??B", false), (std::vector<TokenId>{6, 4, 0, 5}));
  const auto with = [&](const std::vector<std::int64_t>& map) {
    return through_gguf(*base, [&](GgufWriter& writer) {
      writer.set("tokenizer.ggml.precompiled_charsmap", map);
      writer.set("retort.tokenizer.by_grapheme", false);
    });
  };
  const auto mapped = with(table);
  ASSERT_OK(mapped);
  EXPECT_EQ(mapped->encode("ABCA", false), (std::vector<TokenId>{6, 2, 3, 7, 1}));
  EXPECT_EQ(mapped->decode(mapped->encode("C ABCA", false)), "C yzCx");
  EXPECT_EQ(with({1, 2, 3}).error().code, ErrorCode::kInvalid);
  table[0] = table[1] = 0xff;
  EXPECT_EQ(with(table).error().code, ErrorCode::kInvalid);
}

void check_golden(const std::filesystem::path& folder, std::size_t sample_bytes) {
  const auto t = Tokenizer::from_huggingface(folder / "tokenizer.json");
  ASSERT_OK(t);
  const auto golden = parse_json(*read_file(folder / "golden.json"), "golden.json");
  ASSERT_OK(golden);
  TemporaryFolder temporary;
  GgufWriter writer;
  t->write_gguf(writer);
  ASSERT_OK(writer.write(temporary / "t.gguf"));
  const auto file = GgufFile::open(temporary / "t.gguf");
  ASSERT_OK(file);
  const auto copy = Tokenizer::from_gguf(*file);
  ASSERT_OK(copy);
  for (const json::value& entry : golden->as_array()) {
    std::vector<TokenId> expected, all;
    for (const json::value& id : entry.at("prompt_ids").as_array())
      expected.push_back(static_cast<TokenId>(id.as_int64()));
    const std::string prompt(entry.at("prompt").as_string());
    EXPECT_EQ(t->encode(prompt, true), expected) << prompt;
    EXPECT_EQ(copy->encode(prompt, true), expected) << prompt;
    all = expected;
    for (const json::value& id : entry.at("greedy_ids").as_array())
      all.push_back(static_cast<TokenId>(id.as_int64()));
    EXPECT_EQ(t->decode(all), entry.at("greedy_text").as_string().c_str());
  }
  const auto corpus = testing::asset("data/text/tinystories_944k.txt");
  if (corpus.empty()) return;
  const std::string text = read_file(corpus)->substr(0, sample_bytes);
  EXPECT_EQ(t->encode(text, true), copy->encode(text, true));
}

TEST(SentencePiece, GoldenIdsOfStories) {
  RETORT_NEED_ASSET(folder, "teachers/stories-260k");
  check_golden(folder, 200000);
  const auto t = Tokenizer::from_huggingface(folder / "tokenizer.json");
  EXPECT_EQ(t->decode(t->encode("naïve 漢 \xff!", true)), "naïve 漢 \xff!");
}

TEST(SentencePiece, GoldenIdsOfBabyllama) {
  RETORT_NEED_ASSET(folder, "teachers/babyllama-936k");
  check_golden(folder, 200000);
}

TEST(SentencePiece, PlainVocabularyOfLettersRoundTripsThroughGguf) {
  RETORT_NEED_ASSET(folder, "teachers/gpt2-sort-85k");
  const auto t = Tokenizer::from_huggingface(folder / "tokenizer.json");
  ASSERT_OK(t);
  EXPECT_EQ(t->encode("CABBAC", true), (std::vector<TokenId>{2, 0, 1, 1, 0, 2}));
  EXPECT_EQ(t->decode(std::vector<TokenId>{0, 1, 2}), "ABC");
  TemporaryFolder temporary;
  GgufWriter writer;
  t->write_gguf(writer);
  ASSERT_OK(writer.write(temporary / "t.gguf"));
  const auto file = GgufFile::open(temporary / "t.gguf");
  const auto copy = Tokenizer::from_gguf(*file);
  ASSERT_OK(copy);
  EXPECT_EQ(copy->encode("CAB BAC", true), t->encode("CAB BAC", true));
}

TEST(Tokenizer, AnEmptyVocabularyIsRefused) {
  for (const char* model :
       {R"({"type":"Unigram","unk_id":4,"vocab":[]})", R"({"type":"Unigram","vocab":[]})"}) {
    const auto none = Tokenizer::from_huggingface_text(
        fmt::format(R"({{"pre_tokenizer":{{"type":"Metaspace","split":true}},"model":{}}})", model), "", "t");
    ASSERT_FALSE(none) << model;
    EXPECT_EQ(none.error().code, ErrorCode::kInvalid);
  }
}

TEST(Tokenizer, OptionsThatWouldChangeTheIdsAreRefused) {
  const auto with = [](const std::string& model, const std::string& root) {
    return Tokenizer::from_huggingface_text(
        R"({"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"<s>":3},"merges":["a b"])" + model + "}" +
            root + "}",
        "", "t");
  };
  EXPECT_OK(with(R"(,"dropout":null,"continuing_subword_prefix":"","end_of_word_suffix":null)", ""));
  for (const char* option : {R"(,"ignore_merges":true)" /* without ByteLevel */, R"(,"dropout":0.1)",
                             R"(,"end_of_word_suffix":"</w>")"})
    EXPECT_EQ(with(option, "").error().code, ErrorCode::kUnsupported) << option;
  EXPECT_EQ(with("", R"(,"post_processor":{"type":"RobertaProcessing"})").error().code,
            ErrorCode::kUnsupported);
  EXPECT_EQ(with("", R"(,"post_processor":{"type":"BertProcessing"})").error().code, ErrorCode::kInvalid);
  const auto sequence = with(
      "",
      R"(,"post_processor":{"type":"Sequence","processors":[{"type":"ByteLevel"},)"
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>"}},{"Sequence":{"id":"A"}}]}]})");
  ASSERT_OK(sequence);
  EXPECT_EQ(sequence->encode("ab", true), (std::vector<TokenId>{3, 2}));
}

TEST(Tokenizer, ChatTemplateAndEndsOfTurnsComeFromTheFilesAndGoIntoGguf) {
  std::string tokenizer = testing::tiny_tokenizer_json();
  tokenizer.insert(tokenizer.find('[', tokenizer.find("\"added_tokens\"")) + 1,
                   R"({"id":300,"content":"<|im_end|>","special":true},)");
  const auto t = Tokenizer::from_huggingface_text(
      tokenizer, R"({"eos_token": "<|endoftext|>", "chat_template": [{"name": "tools", "template": "x"},
                     {"name": "default", "template": "{{ messages }}"}]})",
      "t");
  ASSERT_OK(t);
  EXPECT_EQ(t->chat_template(), "{{ messages }}");
  EXPECT_TRUE(t->ends_generation(t->eos()));
  EXPECT_TRUE(t->ends_generation(300));
  EXPECT_FALSE(t->ends_generation(5));
  EXPECT_EQ(t->text(300), "<|im_end|>");
  EXPECT_EQ(t->text(-1), "");
  TemporaryFolder folder;
  GgufWriter writer;
  t->write_gguf(writer);
  writer.set("tokenizer.ggml.eot_token_id", std::uint64_t{7});
  ASSERT_OK(writer.write(folder / "t.gguf"));
  const auto copy = Tokenizer::from_gguf(*GgufFile::open(folder / "t.gguf"));
  ASSERT_OK(copy);
  EXPECT_EQ(copy->chat_template(), t->chat_template());
  EXPECT_TRUE(copy->ends_generation(300));
  EXPECT_TRUE(copy->ends_generation(7));

  ASSERT_OK(write_file_atomic(folder / "tokenizer.json", tokenizer, 0644));
  ASSERT_OK(write_file_atomic(folder / "chat_template.jinja", "{{ 'apart' }}", 0644));
  EXPECT_EQ(Tokenizer::from_huggingface(folder / "tokenizer.json")->chat_template(), "{{ 'apart' }}");
}

TEST(Tokenizer, AddedTokensThatAreNotSpecialAreFoundInAnyText) {
  std::string json = testing::tiny_tokenizer_json();
  const std::string list = "\"added_tokens\":[";
  std::size_t at = json.find(list);
  if (at == std::string::npos) at = json.find("\"added_tokens\": [");
  ASSERT_NE(at, std::string::npos);
  at = json.find('[', at) + 1;
  json.insert(at, R"({"id":300,"content":"[tool]","special":false},)");
  const auto t = Tokenizer::from_huggingface_text(json, "", "t");
  ASSERT_OK(t);
  const auto ids = t->encode("the[tool]the<|endoftext|>", false);
  EXPECT_EQ(ids[1], 300);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 0), 0);
  EXPECT_EQ(t->decode(ids), "the[tool]the<|endoftext|>");
}

}  // namespace
}  // namespace retort
