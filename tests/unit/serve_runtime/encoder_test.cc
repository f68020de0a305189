#include "agent/serve/runtime/encoder.h"
#include "agent/serve/runtime/evaluate_encoder.h"

#include <atomic>
#include <cmath>
#include <numeric>

#include "common/core/file.h"
#include "common/core/random.h"
#include "common/hf/hf_model.h"
#include "tests/support/bert_reference.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/serve_runtime/allocations.h"

namespace retort {
namespace {

using testing::TemporaryFolder;
using Row = std::vector<double>;
using Reference = testing::BertReference;

testing::TinyModelOptions tiny_bert(std::vector<std::string> labels, bool mlm_head,
                                    TextPooling pooling = TextPooling::kCls) {
  testing::TinyModelOptions options;
  options.encoder.pooler = !labels.empty();
  options.encoder.labels = std::move(labels);
  options.encoder.mlm_head = mlm_head;
  options.encoder.pooling = pooling;
  return options;
}

std::shared_ptr<const Model> write_model(const TemporaryFolder& folder,
                                         const testing::TinyModelOptions& options, TensorType type,
                                         const ModelOptions& how = {}) {
  EXPECT_OK(testing::write_tiny_gguf(folder / "m", folder / "m.gguf", ModelFamily::kBert, 3, type, options));
  auto model = Model::open(folder / "m.gguf", how);
  EXPECT_OK(model);
  return *model;
}

void expect_near(std::span<const float> got, const Row& wanted, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), wanted.size());
  double largest = 1e-30, off = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    largest = std::max(largest, std::abs(wanted[i]));
    off = std::max(off, std::abs(double(got[i]) - wanted[i]));
  }
  EXPECT_LT(off / largest, tolerance) << what;
}

constexpr const char* kTexts[] = {"turn the light on",
                                  "the server reads mail and the client writes it to the log!", "x", "off"};

std::vector<std::vector<TokenId>> encoded(const Model& model) {
  std::vector<std::vector<TokenId>> out;
  for (const char* text : kTexts) out.push_back(model.tokenizer().encode(text, true));
  return out;
}

TEST(Encoder, ComputesWhatTheDefinitionDoes) {
  for (const auto& [type, tolerance] :
       {std::pair(TensorType::kF32, 1e-5), std::pair(TensorType::kF16, 1e-5),
        std::pair(TensorType::kBF16, 1e-5), std::pair(TensorType::kQ8_0, 0.02),
        std::pair(TensorType::kQ4_0, 0.02)})
    for (const bool classifies : {true, false}) {
      TemporaryFolder folder;
      testing::TinyModelOptions options =
          classifies ? tiny_bert({"a", "b", "c"}, false) : tiny_bert({}, true, TextPooling::kNone);
      options.n_embd = 96, options.n_head = 3, options.n_ff = 160;  // heads of 32
      if (!classifies) options.encoder.gelu = Gelu::kTanh, options.tied = type != TensorType::kF32;
      const auto model = write_model(folder, options, type);
      const Reference reference(model->file(), model->config());
      ThreadTeam team(2);
      const auto session = EncoderSession::create(model, team, {});
      ASSERT_OK(session);
      const auto texts = encoded(*model);
      const std::vector<EncoderSession::Text> all(texts.begin(), texts.end());
      const auto states = (*session)->states(all);
      ASSERT_OK(states);
      const std::vector<float> got(states->begin(), states->end());
      std::size_t row = 0;
      for (const auto& text : texts) {
        const auto wanted = reference.states(text);
        for (const Row& state : wanted)
          expect_near(std::span(got).subspan(row++ * 96, 96), state, tolerance, std::string(info(type).name));
      }
      ASSERT_EQ(row * 96, got.size());
      for (std::size_t i = 0; i < texts.size(); ++i) {
        const auto wanted = reference.states(texts[i]);
        const EncoderSession::Text one = texts[i];
        const auto embedding = (*session)->embed({&one, 1});
        ASSERT_OK(embedding);
        expect_near(*embedding, reference.embedding(texts[i]), tolerance, "embedding");
        if (classifies) {
          const auto logits = (*session)->classify({&one, 1});
          ASSERT_OK(logits);
          expect_near(*logits, reference.classify(wanted[0]), 2 * tolerance, "classes");
          EXPECT_EQ((*session)->predict(one, std::vector<std::uint32_t>{0}).error().code,
                    ErrorCode::kUnsupported);
        } else {
          const std::vector<std::uint32_t> places{static_cast<std::uint32_t>(one.size() - 1), 0};
          const auto logits = (*session)->predict(one, places);
          ASSERT_OK(logits);
          const std::size_t n = model->config().n_vocab;
          expect_near(logits->first(n), reference.predict(wanted.back()), 2 * tolerance, "masked");
          expect_near(logits->subspan(n), reference.predict(wanted[0]), 2 * tolerance, "masked");
          EXPECT_EQ((*session)->classify({&one, 1}).error().code, ErrorCode::kUnsupported);
        }
      }
    }
}

TEST(Encoder, BatchesThreadsAndPackingChangeNoBit) {
  for (const TensorType type : {TensorType::kF32, TensorType::kQ8_0, TensorType::kQ4_0}) {
    TemporaryFolder folder;
    const auto model = write_model(folder, tiny_bert({}, false, TextPooling::kMean), type);
    ThreadTeam one(1), three(3);
    const auto alone = EncoderSession::create(model, one, {});
    const auto together = EncoderSession::create(model, three, {});
    ASSERT_OK(alone);
    ASSERT_OK(together);
    const auto texts = encoded(*model);
    const std::vector<EncoderSession::Text> all(texts.begin(), texts.end());
    const auto rows = (*together)->embed(all);
    ASSERT_OK(rows);
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const EncoderSession::Text text = texts[i];
      const auto row = (*alone)->embed({&text, 1});
      ASSERT_OK(row);
      EXPECT_TRUE(
          std::equal(row->begin(), row->end(), rows->begin() + static_cast<std::ptrdiff_t>(i * row->size())))
          << i;
    }
  }
}

TEST(Encoder, LayersMayDifferAndWidthsBeOdd) {
  TemporaryFolder folder;
  testing::TinyModelOptions options = tiny_bert({"a", "b"}, false);
  options.n_embd = 40, options.n_head = 2, options.n_ff = 50;  // heads of 20; no width is a multiple of 32
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kBert, 3, options));
  const auto hf = open_hf_model(folder / "m");
  ASSERT_OK(hf);
  ModelConfig cut = hf->config;
  cut.layers[1] = {1, 1, 30};
  std::vector<TensorSource> weights;
  std::uint64_t seed = 1;
  for (WeightShape& w : hf_weights(cut))
    weights.push_back({w.name, w.shape, [number = seed++](std::span<float> out) -> Result<void> {
                         SeededRandom random(number);
                         for (float& x : out) x = static_cast<float>(random.next_unit() - 0.5);
                         return {};
                       }});
  ASSERT_OK(write_gguf_model(folder / "c.gguf", cut, hf->tokenizer, weights, TensorType::kF32, {}));
  const auto model = Model::open(folder / "c.gguf");
  ASSERT_OK(model);
  const Reference reference((*model)->file(), (*model)->config());
  ThreadTeam team(1);
  const auto session = EncoderSession::create(*model, team, {});
  ASSERT_OK(session);
  const auto ids = (*model)->tokenizer().encode(kTexts[1], true);
  const EncoderSession::Text text = ids;
  expect_near(*(*session)->classify({&text, 1}), reference.classify(reference.states(ids)[0]), 1e-5,
              "classes");
}

TEST(Encoder, AllocatesNothingOnceItIsWarm) {
  TemporaryFolder folder;
  const auto model = write_model(folder, tiny_bert({"a", "b"}, false), TensorType::kQ8_0);
  ThreadTeam team(2);
  const auto session = EncoderSession::create(model, team, {});
  ASSERT_OK(session);
  const auto texts = encoded(*model);
  const std::vector<EncoderSession::Text> all(texts.begin(), texts.end());
  ASSERT_OK((*session)->classify(all));
  const std::size_t before = allocations;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE((*session)->classify(all).has_value());
    ASSERT_TRUE((*session)->embed(all).has_value());
  }
  EXPECT_EQ(allocations, before);
}

TEST(Encoder, RefusesWhatItCannotDo) {
  TemporaryFolder folder;
  const auto model = write_model(folder, tiny_bert({}, false), TensorType::kF32);
  ThreadTeam team(1);
  const auto session = EncoderSession::create(model, team, {.n_ctx = 16, .batch = 20, .texts = 3});
  ASSERT_OK(session);
  const std::vector<TokenId> long_text(17, 5), fits(10, 5), outside{2, 300, 3}, negative{-1};
  const auto fails = [&](std::vector<EncoderSession::Text> texts) {
    return !(*session)->states(texts).has_value();
  };
  EXPECT_TRUE(fails({}));
  EXPECT_TRUE(fails({{}}));
  EXPECT_TRUE(fails({long_text}));
  EXPECT_TRUE(fails({outside}));
  EXPECT_TRUE(fails({negative}));
  EXPECT_TRUE(fails({fits, fits, negative}));
  EXPECT_TRUE(fails({fits, fits, fits}));  // 30 tokens
  EXPECT_FALSE(fails({fits, fits}));
  const std::uint64_t needed = plan_encoder_memory(*model, {}, 1).total();
  EXPECT_OK(EncoderSession::create(model, team, {.memory_limit = needed}));
  const auto refused = EncoderSession::create(model, team, {.memory_limit = needed - 1});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfBudget);
  EXPECT_FALSE(EncoderSession::create(model, team, {.n_ctx = 129}));
}

TEST(EvaluateEncoder, ExamplesAreReadByLabelAndCutToTheContext) {
  TemporaryFolder folder;
  const auto model = write_model(folder, tiny_bert({"on", "off"}, false), TensorType::kF32);
  ThreadTeam team(1);
  const auto run = [&](const std::string& lines) {
    EXPECT_OK(write_file_atomic(folder / "d.jsonl", lines));
    return evaluate_labels(model, folder / "d.jsonl", 0, 16, team);
  };
  std::string long_text;
  for (int i = 0; i < 30; ++i) long_text += "x ";
  const auto good =
      run("{\"text\":\"turn on\",\"label\":\"on\"}\n\n{\"text\":\"" + long_text + "\",\"label\":1}");
  ASSERT_OK(good);
  EXPECT_EQ(good->at("examples").to_number<int>(), 2);
  EXPECT_EQ(good->at("texts_cut").to_number<int>(), 1);
  EXPECT_NE(run(R"({"text":"x","label":"dim"})").error().message.find("dim"), std::string::npos);
  EXPECT_NE(run(R"({"text":"x","label":2})").error().message.find("2 labels"), std::string::npos);
  EXPECT_FALSE(run(R"({"label":"on"})"));
  EXPECT_FALSE(run("\n"));
}

TEST(EvaluateEncoder, MaskedTokensAreTold) {
  TemporaryFolder folder;
  const auto model = write_model(folder, tiny_bert({}, true, TextPooling::kNone), TensorType::kF32);
  ThreadTeam team(1);
  const auto result =
      evaluate_masked(model, {"the server reads mail and the client writes it", "x"}, 0, 0, team);
  ASSERT_OK(result);
  EXPECT_GE(result->at("tokens").to_number<int>(), 1);
  EXPECT_NEAR(std::log(result->at("perplexity").to_number<double>()),
              result->at("nll_per_token").to_number<double>(), 1e-9);
}

}  // namespace
}  // namespace retort
