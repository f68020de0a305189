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
  const auto all = plan_student(teacher, 100'000, roomy, {});
  ASSERT_OK(all);
  EXPECT_EQ(all->config.layers, teacher.config.layers);
  const auto cut = plan_student(teacher, 100'000, tight, {});
  ASSERT_OK(cut);
  EXPECT_LE(cut->file_bytes, tight.artifact_bytes);
  EXPECT_LT(cut->parameters, all->parameters);
  EXPECT_EQ(all->format, TensorType::kQ8_0);
  EXPECT_EQ(cut->format, TensorType::kQ3K);
  // Nothing larger fits: the same shape with one more step of FFN in every layer does not.
  ModelConfig wider = cut->config;
  for (LayerShape& layer : wider.layers) layer.n_ff += 256;
  if (wider.layers[0].n_ff <= 768) {
    EXPECT_GT(predicted_file_bytes(wider, TensorType::kQ3K, 100'000), tight.artifact_bytes);
  }
}

TEST(Tailor, BitsGoBeforeWeights) {
  const TeacherShape teacher{demo_like(), {}};
  const auto bytes = [&](TensorType format) {
    return predicted_file_bytes(teacher.config, format, 100'000) + 1024;  // lineage
  };
  DeviceClass budget;
  for (const TensorType format :
       {TensorType::kQ8_0, TensorType::kQ6K, TensorType::kQ5K, TensorType::kQ4K, TensorType::kQ3K}) {
    budget.artifact_bytes = bytes(format) + 1000;
    const auto plan = plan_student(teacher, 100'000, budget, {});
    ASSERT_OK(plan);
    EXPECT_EQ(plan->format, format);
    EXPECT_EQ(plan->config.layers, teacher.config.layers);
    const std::string recipe = write_recipe(teacher, *plan, {});
    EXPECT_NE(recipe.find("label: rounded only"), std::string::npos) << recipe;
    EXPECT_EQ(recipe.find("method: gptq") != std::string::npos, format != TensorType::kQ8_0) << recipe;
  }
  // Rows of 64 hold no block of 256: eight bits, or four in blocks of 32.
  TeacherShape narrow = teacher;
  narrow.config.n_embd = 64, narrow.config.head_dim = 8;
  for (LayerShape& layer : narrow.config.layers) layer.n_ff = 192;
  budget.artifact_bytes = predicted_file_bytes(narrow.config, TensorType::kQ8_0, 1000) - 1;
  const auto plan = plan_student(narrow, 1000, budget, {});
  ASSERT_OK(plan);
  EXPECT_EQ(plan->format, TensorType::kQ4_0);
  EXPECT_EQ(plan->config.layers, narrow.config.layers);
}

TEST(Tailor, EveryBudgetBinds) {
  const TeacherShape teacher{demo_like(), {}};
  const std::uint64_t whole = plan_student(teacher, 100'000, {}, {})->parameters;
  DeviceClass memory;
  memory.serving_memory_bytes = 7 << 20;
  const auto by_memory = plan_student(teacher, 100'000, memory, {});
  ASSERT_OK(by_memory);
  EXPECT_LE(by_memory->serving_memory_bytes, memory.serving_memory_bytes);
  EXPECT_LT(by_memory->parameters, whole);
  DeviceClass speed;
  speed.p95_token_seconds = 1e-3;
  const auto by_speed = plan_student(teacher, 100'000, speed, {{}, 1e9});  // 1 MB per token
  ASSERT_OK(by_speed);
  EXPECT_LE(by_speed->token_seconds, 1e-3);
  EXPECT_LT(by_speed->parameters, whole);
  EXPECT_EQ(plan_student(teacher, 100'000, speed, {})->parameters, whole)
      << "without a measured device nothing can be said of speed";
  speed.p95_token_seconds = 1e-9;
  const auto impossible = plan_student(teacher, 100'000, speed, {{}, 1e9});
  ASSERT_FALSE(impossible);
  EXPECT_NE(impossible.error().message.find("ms a token"), std::string::npos) << impossible.error().message;
}

TEST(Tailor, NothingFitsNamesTheSmallest) {
  DeviceClass impossible;
  impossible.name = "ring";
  impossible.artifact_bytes = 1000;
  const auto plan = plan_student({demo_like(), {}}, 100'000, impossible, {});
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code, ErrorCode::kOutOfBudget);
  EXPECT_NE(plan.error().message.find("the smallest takes"), std::string::npos);
  EXPECT_EQ(plan.error().where, "class ring");
}

TEST(Tailor, RecipeHoldsTheCutAndQuotesPaths) {
  const TeacherShape teacher{demo_like(), {}};
  DeviceClass tight;
  tight.artifact_bytes = 1'500'000;
  const auto plan = plan_student(teacher, 100'000, tight, {});
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
  const auto whole = plan_student(teacher, 1000, {}, {});
  ASSERT_OK(whole);
  EXPECT_EQ(whole->classifier->hidden, teacher.classifier->hidden);
  EXPECT_EQ(write_recipe(teacher, *whole, {}).find("prune"), std::string::npos);
  DeviceClass tight;
  tight.artifact_bytes = whole->file_bytes / 2;
  const auto cut = plan_student(teacher, 1000, tight, {});
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
  EXPECT_EQ(plan_student(teacher, 1000, tight, {}).error().code, ErrorCode::kOutOfBudget);
}

TEST(Tailor, TextClassifiersAndMaskedModelsHaveRecipesOfTheirOwn) {
  TeacherShape teacher{demo_like(), {}};
  teacher.config.family = ModelFamily::kBert;
  teacher.config.encoder.labels = {"on", "off"};
  DeviceClass tight;
  tight.artifact_bytes = 2'000'000;
  const auto plan = plan_student(teacher, 100'000, tight, {});
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
