// Does llama.cpp read what we write, and answer as the teacher does? Its Node binding is the peer.
#include <algorithm>
#include <cstdlib>

#include "common/core/file.h"
#include "common/core/json.h"
#include "common/hf/hf_model.h"
#include "tests/support/plain_llama.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

using testing::TemporaryFolder;
using Ids = std::vector<TokenId>;

std::filesystem::path package_folder() {
  std::vector<std::filesystem::path> candidates;
  if (const char* folder = std::getenv("RETORT_NODE_LLAMA_CPP")) candidates.emplace_back(folder);
  if (const char* home = std::getenv("HOME"))
    candidates.push_back(std::filesystem::path(home) / ".cache/retort/node-llama-cpp");
  for (const auto& folder : candidates)
    if (std::filesystem::exists(folder / "node_modules/node-llama-cpp/package.json")) return folder;
  return {};
}

#define NEED_PEER(variable)                                                   \
  const std::filesystem::path variable = package_folder();                    \
  if (variable.empty() || std::system("node --version >/dev/null 2>&1") != 0) \
  GTEST_SKIP() << "node or its package node-llama-cpp is not here (RETORT_NODE_LLAMA_CPP names the folder)"

struct Answer {
  std::vector<Ids> greedy;  ///< of each prompt
  std::vector<Ids> tokens;  ///< of each text, without bos
};

Ids to_ids(const json::value& list) {
  Ids out;
  for (const json::value& id : list.as_array()) out.push_back(static_cast<TokenId>(id.as_int64()));
  return out;
}

Result<Answer> ask(const std::filesystem::path& package, const std::filesystem::path& model,
                   const std::vector<Ids>& prompts, std::size_t count,
                   const std::vector<std::string>& texts) {
  TemporaryFolder folder;
  json::object question{
      {"prompts", json::value_from(prompts)}, {"count", count}, {"texts", json::value_from(texts)}};
  RETORT_TRY(write_file_atomic(folder / "ask.json", json::serialize(question)));
  const std::string command = fmt::format("node '{}' '{}' '{}' <'{}' >'{}' 2>'{}'",
                                          testing::source("tests/e2e/llama_cpp_peer/peer.mjs").string(),
                                          package.string(), model.string(), (folder / "ask.json").string(),
                                          (folder / "out").string(), (folder / "err").string());
  const int status = std::system(command.c_str());
  const std::string out = RETORT_TRY(read_file(folder / "out"));
  const std::size_t at = out.find("ANSWER ");
  if (status != 0 || at == std::string::npos)
    return fail(ErrorCode::kInternal, "llama.cpp", "status {}: {}{}", status, out,
                RETORT_TRY(read_file(folder / "err")));
  const json::value answer =
      RETORT_TRY(parse_json(std::string_view(out).substr(at + 7), "llama.cpp's answer"));
  Answer result;
  for (const json::value& list : answer.at("greedy").as_array()) result.greedy.push_back(to_ids(list));
  for (const json::value& list : answer.at("tokens").as_array()) result.tokens.push_back(to_ids(list));
  return result;
}

/// Chosen for what tokenizers stumble over; where the shared texts are, paragraphs of a book as well.
std::vector<std::string> texts() {
  std::vector<std::string> out{"Once upon a time, Lily's dog ran.\n\nThe end",
                               "two  spaces,   three;\tand a tab",
                               "naïve 漢字 😀",
                               "we'll they've I'd don't 12345 x1y2",
                               "trailing \n ",
                               "!!! ... (a)[b]{c} — \"quoted\""};
  const auto book = testing::asset("data/text/peter_pan_pg16.txt");
  if (book.empty()) return out;
  const std::string all = *read_file(book);
  for (std::size_t at = 0; at < all.size() && out.size() < 300;) {
    const std::size_t end = std::min(all.find("\n\n", at + 1), all.size());
    if (all.find_first_not_of(" \r\n", at) < end) out.push_back(all.substr(at, end - at));
    at = end;
  }
  return out;
}

TEST(LlamaCppPeer, StoriesAnswersAsItsTeacher) {
  NEED_PEER(package);
  RETORT_NEED_ASSET(teacher, "teachers/stories-260k");
  const auto model = open_hf_model(teacher);
  ASSERT_OK(model);
  const auto golden = parse_json(*read_file(teacher / "golden.json"), "golden.json");
  ASSERT_OK(golden);
  std::vector<Ids> prompts, expected;
  for (const json::value& entry : golden->as_array()) {
    prompts.push_back(to_ids(entry.at("prompt_ids")));
    expected.push_back(to_ids(entry.at("greedy_ids")));
  }
  const std::vector<std::string> all_texts = texts();
  TemporaryFolder folder;
  for (const TensorType type : {TensorType::kF32, TensorType::kQ8_0}) {
    ASSERT_OK(write_gguf_model(folder / "m.gguf", model->config, model->tokenizer, weight_sources(*model),
                               type, {}));
    const auto answer = ask(package, folder / "m.gguf", prompts, expected[0].size(), all_texts);
    ASSERT_OK(answer);
    ASSERT_EQ(answer->greedy.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      // Eight bits may turn a near tie later on.
      const std::size_t compared =
          type == TensorType::kF32 ? expected[i].size() : std::min<std::size_t>(8, expected[i].size());
      ASSERT_GE(answer->greedy[i].size(), compared);
      EXPECT_EQ(Ids(answer->greedy[i].begin(), answer->greedy[i].begin() + static_cast<long>(compared)),
                Ids(expected[i].begin(), expected[i].begin() + static_cast<long>(compared)));
    }
    for (std::size_t i = 0; i < all_texts.size(); ++i)
      EXPECT_EQ(answer->tokens[i], model->tokenizer.encode(all_texts[i], false)) << all_texts[i];
  }
}

TEST(LlamaCppPeer, Gpt2SortsAsItsTeacher) {
  NEED_PEER(package);
  RETORT_NEED_ASSET(teacher, "teachers/gpt2-sort-85k");
  const auto model = open_hf_model(teacher);
  ASSERT_OK(model);
  // The same three tokens as a byte-level vocabulary: llama.cpp's other kind wants byte tokens.
  const auto tokenizer = Tokenizer::from_huggingface_text(
      R"({"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},
          "model":{"type":"BPE","vocab":{"A":0,"B":1,"C":2},"merges":[]}})",
      "", "letters");
  ASSERT_OK(tokenizer);
  std::vector<Ids> prompts, sorted;
  for (TokenId i = 0; i < 729; i += 13) {
    Ids letters;
    for (TokenId rest = i, n = 0; n < 6; ++n, rest /= 3) letters.push_back(rest % 3);
    prompts.push_back(letters);
    std::sort(letters.begin(), letters.end());
    sorted.push_back(letters);
  }
  TemporaryFolder folder;
  ASSERT_OK(write_gguf_model(folder / "m.gguf", model->config, *tokenizer, weight_sources(*model),
                             TensorType::kF32, {}));
  const auto answer = ask(package, folder / "m.gguf", prompts, 6, {});
  ASSERT_OK(answer);
  EXPECT_EQ(answer->greedy, sorted);
}

TEST(LlamaCppPeer, ByteLevelModelsLoadAndTokenizeAlike) {
  NEED_PEER(package);
  const std::vector<std::string> all_texts = texts();
  for (const ModelFamily family : {ModelFamily::kLlama, ModelFamily::kGpt2}) {
    TemporaryFolder folder;
    ASSERT_OK(testing::write_tiny_model(folder / "m", family, 3));
    const auto model = open_hf_model(folder / "m");
    ASSERT_OK(model);
    ASSERT_OK(write_gguf_model(folder / "m.gguf", model->config, model->tokenizer, weight_sources(*model),
                               TensorType::kF16, {{"retort.test", std::string("x")}}));
    const auto answer = ask(package, folder / "m.gguf", {{10, 20, 30}}, 4, all_texts);
    ASSERT_OK(answer);
    EXPECT_EQ(answer->greedy.at(0).size(), 4u);
    for (std::size_t i = 0; i < all_texts.size(); ++i)
      EXPECT_EQ(answer->tokens[i], model->tokenizer.encode(all_texts[i], false)) << all_texts[i];
  }
}

TEST(LlamaCppPeer, LlamaVariantsAnswerAlike) {
  NEED_PEER(package);
  auto variants = testing::llama_variants();
  for (const auto& [name, change] : variants) {
    TemporaryFolder folder;
    testing::TinyModelOptions options;
    options.change = change;
    const auto model = testing::write_tiny_gguf(folder / "m", folder / "m.gguf", ModelFamily::kLlama, 3,
                                                TensorType::kF32, options);
    ASSERT_OK(model);
    Ids prompt, expected;
    for (TokenId i = 0; i < 60; ++i) prompt.push_back(1 + (i * 37) % 299);
    Ids text = prompt;
    while (expected.size() < 8) {  // each token is that of a whole forward pass in double precision
      const auto logits = testing::plain_llama(folder / "m", text);
      ASSERT_OK(logits);
      const auto last = logits->end() - 300;
      expected.push_back(static_cast<TokenId>(std::max_element(last, logits->end()) - last));
      text.push_back(expected.back());
    }
    const auto answer = ask(package, folder / "m.gguf", {prompt}, expected.size(), {});
    ASSERT_OK(answer);
    EXPECT_EQ(answer->greedy.at(0), expected) << name;
  }
}

TEST(LlamaCppPeer, PrunedWidthsLoad) {
  NEED_PEER(package);
  TemporaryFolder folder;
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 3));
  const auto model = open_hf_model(folder / "m");
  ASSERT_OK(model);
  ModelConfig cut = model->config;
  // Fewer heads than the hidden width holds. (Widths that differ from layer to layer are beyond llama.cpp.)
  cut.layers.assign(2, {2, 1, 64});
  std::vector<TensorSource> weights;
  for (WeightShape& w : hf_weights(cut))
    weights.push_back({w.name, w.shape, [](std::span<float> out) -> Result<void> {
                         for (std::size_t i = 0; i < out.size(); ++i)
                           out[i] = 0.05f * static_cast<float>((i * 2654435761u) % 101) / 101.0f;
                         return {};
                       }});
  ASSERT_OK(write_gguf_model(folder / "c.gguf", cut, model->tokenizer, weights, TensorType::kQ8_0, {}));
  const auto answer = ask(package, folder / "c.gguf", {{10, 20, 30}}, 4, {});
  ASSERT_OK(answer);
  EXPECT_EQ(answer->greedy.at(0).size(), 4u);
}

}  // namespace
}  // namespace retort
