
#include "common/core/file.h"
#include "common/core/json.h"
#include "common/tokenizer/tokenizer.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

/// tiny_wordpiece_json with another vocabulary and other options.
std::string tokenizer_json(const json::array& vocabulary, const json::object& options) {
  json::value document = json::parse(testing::tiny_wordpiece_json());
  json::object vocab;
  for (const json::value& token : vocabulary) vocab[token.as_string()] = vocab.size();
  document.at("model").as_object()["vocab"] = std::move(vocab);
  for (const char* name : {"lowercase", "strip_accents", "clean_text", "handle_chinese_chars"})
    document.at("normalizer").as_object()[name] = options.at(name);
  return json::serialize(document);
}

Tokenizer through_gguf(const Tokenizer& tokenizer) {
  testing::TemporaryFolder folder;
  GgufWriter writer;
  writer.set("general.architecture", std::string("bert"));
  tokenizer.write_gguf(writer);
  EXPECT_OK(writer.write(folder / "t.gguf"));
  const auto file = GgufFile::open(folder / "t.gguf");
  EXPECT_OK(file);
  auto back = Tokenizer::from_gguf(*file);
  EXPECT_OK(back);
  return *back;
}

// The cases come from wordpiece_expect.py, an implementation of its own.
TEST(WordPiece, GivesTheIdsOfTheDefinition) {
  const auto text = read_file(testing::source("tests/unit/tokenizer/wordpiece_cases.json"));
  ASSERT_OK(text);
  const json::value document = json::parse(*text);
  const json::array& vocabulary = document.at("vocabulary").as_array();
  for (const json::value& value : document.at("cases").as_array()) {
    const json::object& entry = value.as_object();
    const auto tokenizer = Tokenizer::from_huggingface_text(tokenizer_json(vocabulary, entry), "", "cases");
    ASSERT_OK(tokenizer);
    std::vector<TokenId> ids;
    for (const json::value& id : entry.at("ids").as_array())
      ids.push_back(static_cast<TokenId>(id.as_int64()));
    const std::string_view input = entry.at("text").as_string();
    EXPECT_EQ(tokenizer->encode(input, true), ids) << json::serialize(entry);
  }
}

TEST(WordPiece, GgufGivesTheSame) {
  const auto text = read_file(testing::source("tests/unit/tokenizer/wordpiece_cases.json"));
  ASSERT_OK(text);
  const json::value document = json::parse(*text);
  const json::array& cases = document.at("cases").as_array();
  for (std::size_t i = 0; i < 4; ++i) {  // the four sets of options
    const auto first = Tokenizer::from_huggingface_text(
        tokenizer_json(document.at("vocabulary").as_array(), cases[i].as_object()), "", "cases");
    ASSERT_OK(first);
    const Tokenizer second = through_gguf(*first);
    EXPECT_EQ(second.vocabulary_size(), first->vocabulary_size());
    EXPECT_EQ(second.bos(), first->bos());
    EXPECT_EQ(second.eos(), first->eos());
    EXPECT_EQ(second.mask(), 4);
    for (TokenId id = 0; id < static_cast<TokenId>(first->vocabulary_size()); ++id)
      EXPECT_EQ(second.text(id), first->text(id)) << id;
    for (const json::value& entry : cases) {
      const std::string_view input = entry.at("text").as_string();
      EXPECT_EQ(second.encode(input, true), first->encode(input, true));
    }
  }
}

TEST(WordPiece, WordsComeBackWithSpaces) {
  const auto t = Tokenizer::from_huggingface_text(testing::tiny_wordpiece_json(), "", "tiny");
  ASSERT_OK(t);
  const auto ids = t->encode("The Servers are \xff reading\xc3\x28", true);
  EXPECT_EQ(ids.front(), t->bos());
  EXPECT_EQ(ids.back(), t->eos());
  EXPECT_EQ(t->decode(ids), "the servers are reading (");
  EXPECT_EQ(t->encode("it's [MASK]", false, true).back(), t->mask());
  EXPECT_EQ(t->encode("漢", false), (std::vector<TokenId>{1}));
}

TEST(WordPiece, RefusalsSayWhat) {
  const auto with = [](const char* pointer, json::value value) {
    json::value document = json::parse(testing::tiny_wordpiece_json());
    document.at_pointer(pointer) = std::move(value);
    const auto t = Tokenizer::from_huggingface_text(json::serialize(document), "", "t");
    return t ? std::string("accepted") : t.error().message;
  };
  EXPECT_NE(with("/normalizer/type", "NFC").find("NFC"), std::string::npos);
  EXPECT_NE(with("/pre_tokenizer/type", "Whitespace").find("Whitespace"), std::string::npos);
  EXPECT_NE(with("/model/continuing_subword_prefix", "@@").find("continuing_subword_prefix"),
            std::string::npos);
  EXPECT_NE(with("/model/unk_token", "<none>").find("<none>"), std::string::npos);
  EXPECT_NE(with("/normalizer/lowercase", 3).find("lowercase"), std::string::npos);
  EXPECT_EQ(with("/model/max_input_chars_per_word", 7), "accepted");
}

}  // namespace
}  // namespace retort
