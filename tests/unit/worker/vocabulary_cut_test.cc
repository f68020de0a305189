#include "coordinator/worker/vocabulary_cut.h"

#include "common/core/json.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

/// Latin-1 text in UTF-8, as cases.json writes bytes.
std::string bytes_of(std::string_view written) {
  std::string bytes;
  for (std::size_t i = 0; i < written.size(); ++i) {
    const bool two = (written[i] & 0x80) != 0;
    bytes += two ? static_cast<char>((written[i] & 3) << 6 | (written[i + 1] & 0x3f)) : written[i];
    i += two;
  }
  return bytes;
}

/// The cut tokenizer gives each text the tokens that the whole one does.
void check(const Tokenizer& whole, const std::string& file, const std::vector<std::string>& texts,
           std::size_t below) {
  std::set<TokenId> used;
  for (const std::string& text : texts)
    for (const TokenId id : whole.encode(text, true, true)) used.insert(id);
  const auto cut = cut_vocabulary(file, "", used, "t");
  ASSERT_OK(cut);
  EXPECT_LT(cut->kept.size(), below);
  const auto small = Tokenizer::from_huggingface_text(cut->tokenizer_json, "", "t");
  ASSERT_OK(small);
  ASSERT_EQ(small->vocabulary_size(), cut->kept.size());
  for (TokenId id = 0; id < static_cast<TokenId>(cut->kept.size()); ++id)
    ASSERT_EQ(small->text(id), whole.text(cut->kept[static_cast<std::size_t>(id)]));
  EXPECT_EQ(small->bos(), cut->renamed(whole.bos()));
  EXPECT_EQ(small->eos(), cut->renamed(whole.eos()));
  for (const std::string& text : texts) {
    std::vector<TokenId> expected = whole.encode(text, true, true);
    for (TokenId& id : expected) id = cut->renamed(id);
    EXPECT_EQ(small->encode(text, true, true), expected) << text;
  }
}

TEST(VocabularyCut, TextsOverTheKeptVocabularyTokenizeAsBefore) {
  const json::value all =
      *parse_json(*read_file(testing::source("tests/unit/tokenizer/cases.json")), "cases.json");
  std::map<std::string, std::vector<std::string>> texts;
  for (const json::value& entry : all.at("cases").as_array())
    texts[std::string(entry.at("tokenizer").as_string())].push_back(bytes_of(entry.at("bytes").as_string()));
  for (const auto& entry : all.at("tokenizers").as_object()) {
    const std::string file = json::serialize(entry.value());
    const auto whole = Tokenizer::from_huggingface_text(file, "", "t");
    ASSERT_OK(whole);
    const std::vector<std::string>& some = texts.at(entry.key());
    check(*whole, file, some, whole->vocabulary_size() + 1);
    for (const std::string& text : some) check(*whole, file, {text}, whole->vocabulary_size());
  }
}

TEST(VocabularyCut, SentencePieceOfStories) {
  RETORT_NEED_ASSET(folder, "teachers/stories-260k");
  const std::string file = *read_file(folder / "tokenizer.json");
  const auto whole = Tokenizer::from_huggingface_text(file, "", "t");
  ASSERT_OK(whole);
  check(*whole, file, {"Once upon a time, there was a little girl.", "She had a dog."}, 400);
}

TEST(VocabularyCut, WordPiece) {
  const std::string file = testing::tiny_wordpiece_json();
  const auto whole = Tokenizer::from_huggingface_text(file, "", "t");
  ASSERT_OK(whole);
  check(*whole, file, {"the land, singing"}, whole->vocabulary_size());
  check(*whole, file, {"Q? 7 hands"}, whole->vocabulary_size());
}

TEST(VocabularyCut, WordPieceAndIdsElsewhereInTheFiles) {
  const std::string file = R"({"added_tokens": [{"id": 0, "content": "[PAD]"}, {"id": 3, "content": "[SEP]"}],
    "post_processor": {"type": "Sequence", "processors": [
      {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[PAD]", 0]},
      {"type": "TemplateProcessing", "special_tokens": {"[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}}]},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[PAD]": 0, "play": 1, "[UNK]": 2, "[SEP]": 3,
      "work": 4, "##ing": 5, "##s": 6, "a": 7}}})";
  const auto cut =
      cut_vocabulary(file, R"({"added_tokens_decoder": {"3": {"content": "[SEP]"}}})", {4, 5}, "t");
  ASSERT_OK(cut);
  EXPECT_EQ(cut->kept, (std::vector<TokenId>{0, 2, 3, 4, 5, 6, 7}));  // without "play"
  const json::value now = json::parse(cut->tokenizer_json);
  EXPECT_EQ(now.at("model").at("vocab").at("##ing"), 4);
  EXPECT_EQ(now.at("added_tokens").at(1).at("id"), 2);
  const json::array& processors = now.at("post_processor").at("processors").as_array();
  EXPECT_EQ(processors[0].at("sep").at(1), 2);
  EXPECT_EQ(processors[1].at("special_tokens").at("[SEP]").at("ids").at(0), 2);
  EXPECT_TRUE(json::parse(cut->tokenizer_config).at("added_tokens_decoder").as_object().contains("2"));
  EXPECT_EQ(cut_vocabulary("{}", "", {}, "t").error().code, ErrorCode::kInvalid);
  EXPECT_EQ(cut_vocabulary(R"({"model": {"type": "WordLevel", "vocab": {}}})", "", {}, "t").error().code,
            ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace retort
