#include "coordinator/tailor/tailor.h"

#include "common/hf/hf_model.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

ModelConfig demo_like() {
  ModelConfig c;
  c.n_vocab = 4096;
  c.n_ctx = 256;
  c.n_embd = 256;
  c.head_dim = 32;
  c.layers.assign(4, {8, 8, 768});
  return c;
}

TEST(Tailor, PredictedSizesAreTheFilesSizes) {
  for (const ModelFamily family : {ModelFamily::kLlama, ModelFamily::kGpt2}) {
    testing::TemporaryFolder folder;
    ASSERT_OK(testing::write_tiny_model(folder / "m", family, 1));
    const auto model = open_hf_model(folder / "m");
    ASSERT_OK(model);
    for (const TensorType format : {TensorType::kF16, TensorType::kQ8_0}) {
      ASSERT_OK(write_gguf_model(folder / "m.gguf", model->config, model->tokenizer, weight_sources(*model),
                                 format, {}));
      const auto file = GgufFile::open(folder / "m.gguf");
      ASSERT_OK(file);
      const double predicted =
          static_cast<double>(predicted_file_bytes(model->config, format, file->header_length()));
      EXPECT_NEAR(predicted / static_cast<double>(file->file_length()), 1.0, 0.01);
    }
  }
}

TEST(Tailor, TheLargestCutThatFitsIsTaken) {
  const TeacherShape teacher{demo_like(), {}};
  DeviceClass roomy, tight;
  roomy.artifact_bytes = 100 << 20;
  tight.artifact_bytes = 1'500'000;
  const auto all = plan_student(teacher, 100'000, roomy, 0);
  ASSERT_OK(all);
  EXPECT_EQ(all->config.layers, teacher.config.layers);
  const auto cut = plan_student(teacher, 100'000, tight, 0);
  ASSERT_OK(cut);
  EXPECT_LE(cut->file_bytes, tight.artifact_bytes);
  EXPECT_LT(cut->parameters, all->parameters);
  EXPECT_EQ(cut->format, TensorType::kQ8_0);
  // Nothing larger fits: the same shape with one more step of FFN in every layer does not.
  ModelConfig wider = cut->config;
  for (LayerShape& layer : wider.layers) layer.n_ff += 256;
  if (wider.layers[0].n_ff <= 768) {
    EXPECT_GT(predicted_file_bytes(wider, TensorType::kQ8_0, 100'000), tight.artifact_bytes);
  }
}

TEST(Tailor, EveryBudgetBinds) {
  const TeacherShape teacher{demo_like(), {}};
  const std::uint64_t whole = plan_student(teacher, 100'000, {}, 0)->parameters;
  DeviceClass memory;
  memory.serving_memory_bytes = 8 << 20;
  const auto by_memory = plan_student(teacher, 100'000, memory, 0);
  ASSERT_OK(by_memory);
  EXPECT_LE(by_memory->serving_memory_bytes, memory.serving_memory_bytes);
  EXPECT_LT(by_memory->parameters, whole);
  DeviceClass speed;
  speed.p95_token_seconds = 1e-3;
  const auto by_speed = plan_student(teacher, 100'000, speed, 2e9);  // 2 MB per token
  ASSERT_OK(by_speed);
  EXPECT_LE(by_speed->token_seconds, 1e-3);
  EXPECT_EQ(plan_student(teacher, 100'000, speed, 0)->parameters, whole)
      << "without a measured device nothing can be said of speed";
}

TEST(Tailor, NothingFitsNamesTheSmallest) {
  DeviceClass impossible;
  impossible.name = "ring";
  impossible.artifact_bytes = 1000;
  const auto plan = plan_student({demo_like(), {}}, 100'000, impossible, 0);
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code, ErrorCode::kOutOfBudget);
  EXPECT_NE(plan.error().message.find("the smallest takes"), std::string::npos);
  EXPECT_EQ(plan.error().where, "class ring");
}

TEST(Tailor, RecipeHoldsTheCutAndQuotesPaths) {
  const TeacherShape teacher{demo_like(), {}};
  DeviceClass tight;
  tight.artifact_bytes = 1'500'000;
  const auto plan = plan_student(teacher, 100'000, tight, 0);
  ASSERT_OK(plan);
  const std::string recipe = write_recipe(teacher, *plan, {"/data/a \"b\": c", "/t.jsonl", "/h.jsonl", "x"});
  EXPECT_NE(recipe.find("prune.structured"), std::string::npos);
  EXPECT_NE(recipe.find(R"(model: "/data/a \"b\": c")"), std::string::npos) << recipe;
  EXPECT_NE(recipe.find("label: distilled"), std::string::npos);
  EXPECT_NE(recipe.find("teacher_outputs: top_k, k: 64"), std::string::npos) << recipe;
  StudentPlan same;
  same.config = teacher.config;
  same.parameters = teacher.parameters();
  EXPECT_EQ(write_recipe(teacher, same, {}).find("prune"), std::string::npos);
}

TEST(Tailor, ClassifiersAreCutInOneProportion) {
  TeacherShape teacher;
  teacher.classifier.emplace();
  teacher.classifier->family = ClassifierFamily::kMlp;
  teacher.classifier->input = {30, 1, 1};
  teacher.classifier->hidden = {160, 80};
  teacher.classifier->labels = {"a", "b"};
  const auto whole = plan_student(teacher, 1000, {}, 0);
  ASSERT_OK(whole);
  EXPECT_EQ(whole->classifier->hidden, teacher.classifier->hidden);
  EXPECT_EQ(write_recipe(teacher, *whole, {}).find("prune"), std::string::npos);
  DeviceClass tight;
  tight.artifact_bytes = whole->file_bytes / 2;
  const auto cut = plan_student(teacher, 1000, tight, 0);
  ASSERT_OK(cut);
  EXPECT_LE(cut->file_bytes, tight.artifact_bytes);
  EXPECT_EQ(cut->classifier->hidden[0], 2 * cut->classifier->hidden[1]);
  const std::string recipe = write_recipe(teacher, *cut, {.tokens = 5000});
  EXPECT_NE(recipe.find("task: classification"), std::string::npos) << recipe;
  EXPECT_NE(
      recipe.find(fmt::format("hidden: [{}, {}]", cut->classifier->hidden[0], cut->classifier->hidden[1])),
      std::string::npos)
      << recipe;
  EXPECT_NE(recipe.find("examples: 5000"), std::string::npos) << recipe;
  tight.artifact_bytes = 100;
  EXPECT_EQ(plan_student(teacher, 1000, tight, 0).error().code, ErrorCode::kOutOfBudget);
}

TEST(Tailor, TextClassifiersAndMaskedModelsHaveRecipesOfTheirOwn) {
  TeacherShape teacher{demo_like(), {}};
  teacher.config.family = ModelFamily::kBert;
  teacher.config.encoder.labels = {"on", "off"};
  DeviceClass tight;
  tight.artifact_bytes = 2'000'000;
  const auto plan = plan_student(teacher, 100'000, tight, 0);
  ASSERT_OK(plan);
  const std::string texts = write_recipe(teacher, *plan, {});
  EXPECT_NE(texts.find("task: classification"), std::string::npos) << texts;
  EXPECT_EQ(texts.find("kv_heads"), std::string::npos) << texts;
  teacher.config.encoder.labels.clear();
  teacher.config.encoder.mlm_head = true;
  const std::string masked = write_recipe(teacher, *plan, {});
  EXPECT_NE(masked.find("tokens: 300000"), std::string::npos) << masked;
  EXPECT_EQ(masked.find("teacher_outputs"), std::string::npos) << masked;
}

}  // namespace
}  // namespace retort
