#include "common/tokenizer/tokenizer.h"

#include <chrono>

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
  const auto start = std::chrono::steady_clock::now();
  const auto ids = t.encode(std::string(1 << 20, 'a') + std::string(1 << 20, 'n'), false);
  EXPECT_GT(ids.size(), 1u << 20);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST(Tokenizer, BadFilesAreRefusedByName) {
  const auto message = [](std::string_view text) {
    return Tokenizer::from_huggingface_text(text, "", "t").error().message;
  };
  EXPECT_NE(message("{").find("JSON"), std::string::npos);
  EXPECT_NE(message(R"({"model":{"type":"Unigram","vocab":[]}})").find("Unigram"), std::string::npos);
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

TEST(Tokenizer, OptionsThatWouldChangeTheIdsAreRefused) {
  const auto with = [](const std::string& model, const std::string& root) {
    return Tokenizer::from_huggingface_text(
        R"({"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"<s>":3},"merges":["a b"])" + model + "}" +
            root + "}",
        "", "t");
  };
  EXPECT_OK(with(R"(,"dropout":null,"continuing_subword_prefix":"","end_of_word_suffix":null)", ""));
  for (const char* option :
       {R"(,"ignore_merges":true)", R"(,"dropout":0.1)", R"(,"end_of_word_suffix":"</w>")"})
    EXPECT_EQ(with(option, "").error().code, ErrorCode::kUnsupported) << option;
  EXPECT_EQ(with("", R"(,"post_processor":{"type":"BertProcessing"})").error().code, ErrorCode::kUnsupported);
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
