#include "coordinator/worker/recipe.h"
#include "common/core/documents.h"

#include "coordinator/worker/data.h"
#include "coordinator/worker/plan.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

using ::testing::AssertionFailure;
using ::testing::AssertionResult;
using ::testing::AssertionSuccess;

ModelConfig narrow_model() {
  ModelConfig c;
  c.n_vocab = 512, c.n_ctx = 64, c.n_embd = 128, c.head_dim = 16;
  c.layers.assign(2, {8, 8, 352});
  return c;
}

class RecipeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK(testing::write_tiny_model(folder_ / "teacher", ModelFamily::kLlama, 1));
    ASSERT_OK(write_file_atomic(folder_ / "d.jsonl", testing::tiny_corpus_jsonl(20, 1)));
  }
  Result<Recipe> parse(const std::string& passes,
                       const std::string& head =
                           "version: 1\nteacher: {model: teacher}\n"
                           "data: {train: {file: d.jsonl}, held_out: {file: d.jsonl}}\n") {
    return parse_recipe(head + "passes:\n" + passes, folder_.path(), "r.yaml");
  }
  /// Refused at this line (of the whole text) with all of these words.
  AssertionResult refused(const Result<Recipe>& recipe, int line, std::initializer_list<const char*> words) {
    if (recipe) return AssertionFailure() << "was accepted";
    const std::string text = recipe.error().describe();
    if (!text.starts_with("r.yaml:" + std::to_string(line) + ":")) return AssertionFailure() << text;
    for (const char* word : words)
      if (text.find(word) == std::string::npos)
        return AssertionFailure() << "no '" << word << "' in: " << text;
    return AssertionSuccess();
  }
  static constexpr const char* kExport = "  - export: {file: s.gguf}\n";
  testing::TemporaryFolder folder_;
};

TEST_F(RecipeTest, WholeRecipe) {
  const auto recipe = parse(R"(  - export: {file: cut.gguf, format: Q8_0, label: "cut only"}
  - prune.structured: {layers: 1, ffn: 64, heads: 2, kv_heads: 1, importance: magnitude}
  - distil.soft: {tokens: 3e5}
)");
  EXPECT_TRUE(refused(recipe, 7, {"'tokens' must be a whole number", "3e5"}));
  const auto good =
      parse(R"(  - prune.structured: {layers: 1, ffn: 64, heads: 2, kv_heads: 1, importance: magnitude}
  - distil.soft: {tokens: 300000, batch_tokens: 2048, temperature: 2.5, alpha: 0.9, learning_rate: 1e-3}
  - evaluate:
  - quantize.weights: {format: Q8_0}
  - export: {file: student.gguf, label: distilled, hf: false}
)");
  ASSERT_OK(good);
  ASSERT_EQ(good->passes.size(), 5u);
  const auto& distil = std::get<OptimisePass>(good->passes[1]);
  ASSERT_TRUE(distil.distil);
  EXPECT_EQ(distil.tokens, 300000u);
  EXPECT_EQ(distil.distil->temperature, 2.5);
  EXPECT_NEAR(distil.distil->labels, 0.1, 1e-12);
  EXPECT_FALSE(std::get<PrunePass>(good->passes[0]).activation);
}

TEST_F(RecipeTest, UnknownKeysNameLineAndNeighbour) {
  EXPECT_TRUE(refused(parse(std::string("  - prune.structured: {layer: 1}\n") + kExport), 5,
                      {"'layer'", "prune.structured", "did you mean 'layers'"}));
  EXPECT_TRUE(refused(parse(std::string("  - distill.soft: {tokens: 1}\n") + kExport), 5,
                      {"'distill.soft'", "did you mean 'distil.soft'"}));
  EXPECT_TRUE(
      refused(parse(kExport, "version: 1\nteachr: {model: teacher}\n"), 2, {"'teachr'", "'teacher'"}));
  EXPECT_TRUE(
      refused(parse(std::string("  - distil.soft:\n      tokens: 1\n      temprature: 2\n") + kExport), 7,
              {"'temprature'", "'temperature'"}));
}

TEST_F(RecipeTest, NumbersTextsAndEmptyPasses) {
  EXPECT_EQ(
      std::get<OptimisePass>(parse(std::string("  - train: {tokens: 0300}\n") + kExport)->passes[0]).tokens,
      300u);
  EXPECT_FALSE(parse(std::string("  - train: {tokens: 0x10}\n") + kExport));
  EXPECT_FALSE(parse(std::string("  - train: {tokens: 99999999999999999999}\n") + kExport));
  EXPECT_TRUE(
      refused(parse(std::string("  - evaluate:\n  - distil.soft:\n") + kExport), 6, {"needs 'tokens'"}));
  EXPECT_TRUE(
      refused(parse("  - export: {file: s.gguf, label: \"\\e[31mred\"}\n"), 5, {"control characters"}));
  EXPECT_TRUE(
      refused(parse(kExport, "version: 1\nteacher: {model: \"teacher\\0x\"}\n"), 2, {"control characters"}));
  EXPECT_TRUE(
      refused(parse("  - export: {file: eval.stderr, kind: huggingface}\n"), 5, {"the worker itself uses"}));
  EXPECT_TRUE(
      refused(parse(std::string("  - distil: {tokens: 9, labels: 1, soft: 0, on_policy: 0.5}\n") + kExport),
              5, {"has no labels"}));
}

TEST_F(RecipeTest, TypesAndRanges) {
  EXPECT_TRUE(
      refused(parse(std::string("  - distil.soft: {tokens: many}\n") + kExport), 5, {"'tokens'", "many"}));
  EXPECT_TRUE(
      refused(parse(std::string("  - distil.soft: {tokens: -5}\n") + kExport), 5, {"'tokens'", "-5"}));
  EXPECT_TRUE(
      refused(parse(std::string("  - distil.soft: {tokens: 5, alpha: 1.5}\n") + kExport), 5, {"'alpha'"}));
  EXPECT_TRUE(
      refused(parse(std::string("  - distil.soft: {tokens: 5, alpha: .nan}\n") + kExport), 5, {"'alpha'"}));
  EXPECT_TRUE(refused(parse(std::string("  - distil.soft: {}\n") + kExport), 5, {"needs 'tokens'"}));
  EXPECT_TRUE(refused(parse("  - export: {file: s.gguf, format: Q9}\n"), 5, {"'format'", "Q9", "Q8_0"}));
  EXPECT_TRUE(refused(parse("  - export: {file: ../s.gguf}\n"), 5, {"plain name"}));
  EXPECT_TRUE(refused(parse("  - export: {file: s.bin}\n"), 5, {".gguf"}));
  EXPECT_TRUE(refused(parse("  - export: {file: s.gguf}\n  - export: {file: s.gguf}\n"), 6, {"s.gguf"}));
  EXPECT_TRUE(refused(parse(kExport, "version: 2\n"), 1, {"'version'"}));
  EXPECT_TRUE(refused(parse("  - [1, 2\n"), 6, {"YAML"}));
}

TEST_F(RecipeTest, Order) {
  EXPECT_TRUE(refused(parse(std::string("  - quantize.weights:\n  - distil.soft: {tokens: 10}\n") + kExport),
                      6, {"quantize"}));
  EXPECT_TRUE(refused(parse("  - evaluate: {label: x}\n"), 5, {"export"}));
  EXPECT_TRUE(refused(parse(std::string("  - distil.soft: {tokens: 10}\n") + kExport,
                            "version: 1\nteacher: {model: teacher}\n"),
                      4, {"data.train"}));
  EXPECT_TRUE(refused(parse(kExport, "version: 1\n"), 3, {"no model"}));
}

TEST_F(RecipeTest, Quantization) {
  const auto good = parse(
      R"(  - distil: {tokens: 100, soft: 1, labels: 0, attention: 10, relation: 1, divergence: jsd, beta: 0.3, on_policy: 0.25}
  - quantize.aware: {tokens: 100, format: Q4_K}
  - quantize.weights:
      bits: 4.75
      candidates: [Q4_0, Q8_0]
      method: gptq
      act_order: true
      formats: [{match: "*embed*", format: Q6_K}]
  - export: {file: s.gguf}
)");
  ASSERT_OK(good);
  const auto& mixture = *std::get<OptimisePass>(good->passes[0]).distil;
  EXPECT_EQ(mixture.attention, 10);
  EXPECT_EQ(mixture.divergence, Divergence::kJensenShannon);
  EXPECT_EQ(mixture.on_policy, 0.25);
  EXPECT_EQ(std::get<OptimisePass>(good->passes[1]).aware->format, TensorType::kQ4K);
  const auto& rounding = std::get<QuantizePass>(good->passes[2]);
  EXPECT_EQ(rounding.bits, 4.75);
  EXPECT_EQ(rounding.method, QuantizePass::Method::kGptq);
  EXPECT_EQ(format_of(rounding, "model.embed_tokens.weight"), TensorType::kQ6K);
  EXPECT_EQ(rounding.candidates.size(), 2u);
  const auto with = [&](const std::string& pass) { return parse("  - " + pass + "\n" + kExport); };
  EXPECT_TRUE(refused(with("quantize.weights: {format: Q9}"), 5, {"Q8_0", "SPARSE24_Q8", "CODEBOOK4"}));
  EXPECT_TRUE(refused(with("quantize.activations: {smooth: 2}"), 5, {"'smooth'", "from 0 to 1"}));
  EXPECT_TRUE(refused(with("quantize.activations: {smoth: 1}"), 5, {"did you mean 'smooth'"}));
  EXPECT_TRUE(refused(with("quantize.activations: {bytes: true}"), 5, {"unknown key 'bytes'"}));
  EXPECT_TRUE(refused(with("quantize.activations: {dynamic: x}"), 5, {"a list of texts"}));
  EXPECT_TRUE(refused(
      parse(std::string("  - quantize.weights:\n  - quantize.activations: {smooth: 0.5}\n") + kExport), 6,
      {"smooth before"}));
  EXPECT_TRUE(
      refused(parse(std::string("  - quantize.activations:\n  - quantize.weights: {awq: true}\n") + kExport),
              6, {"'awq'"}));
  EXPECT_TRUE(refused(with("quantize.weights: {method: gtpq}"), 5, {"'method'", "did you mean 'gptq'"}));
  EXPECT_TRUE(refused(with("quantize.weights: {act_order: true}"), 5, {"gptq"}));
  EXPECT_TRUE(refused(with("quantize.weights: {format: Q4_K, bits: 4}"), 5, {"'bits'"}));
  EXPECT_TRUE(refused(with("quantize.weights: {candidates: [Q4_K]}"), 5, {"'bits'"}));
  EXPECT_TRUE(refused(with("quantize.weights: {formats: [{match: x}]}"), 5, {"needs 'format'"}));
  EXPECT_TRUE(refused(with("distil: {tokens: 5, on_policy: 0.5, teacher_outputs: top_k}"), 5, {"full"}));
  EXPECT_TRUE(refused(with("distil: {tokens: 5, labels: 0, soft: 0}"), 5, {"no part"}));
  EXPECT_TRUE(refused(with("distil.soft: {tokens: 5, k: 3}"), 5, {"'k'"}));
  EXPECT_TRUE(refused(parse(std::string("  - quantize.weights:\n  - quantize.weights:\n") + kExport), 6,
                      {"earlier"}));
  EXPECT_TRUE(refused(parse(std::string("  - quantize.weights: {method: gptq}\n") + kExport,
                            "version: 1\nteacher: {model: teacher}\n"),
                      4, {"data.train"}));
}

TEST_F(RecipeTest, PruningInStepsAndSingleWeights) {
  const auto good =
      parse(R"(  - prune.structured: {ffn: [64, 32], steps: 3, distil: {tokens: 100, temperature: 3}}
  - prune.unstructured: {sparsity: 0.5, steps: 2, distil: {tokens: 200}}
  - export: {file: s.gguf}
)");
  ASSERT_OK(good);
  ASSERT_EQ(good->passes.size(), 3 * 2 + 2 * 2 + 1u);
  for (std::uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(std::get<PrunePass>(good->passes[2 * i]).steps_left, 3 - i);
    EXPECT_EQ(std::get<OptimisePass>(good->passes[2 * i + 1]).distil->temperature, 3);
  }
  EXPECT_NEAR(std::get<SparsePass>(good->passes[6]).sparsity, 0.5 * (1 - 0.125), 1e-12);
  EXPECT_NEAR(std::get<SparsePass>(good->passes[8]).sparsity, 0.5, 1e-12);
  const auto pattern =
      parse(std::string("  - prune.unstructured: {pattern: \"2:4\", method: magnitude}\n") + kExport);
  ASSERT_OK(pattern);
  EXPECT_EQ(std::get<SparsePass>(pattern->passes[0]).m, 4u);
  const auto with = [&](const std::string& pass) { return parse("  - " + pass + "\n" + kExport); };
  EXPECT_TRUE(refused(with("prune.structured: {ffn: 32, steps: 3}"), 5, {"'steps'", "'distil'"}));
  EXPECT_TRUE(refused(with("prune.structured: {ffn: [32, x]}"), 5, {"'ffn'", "'x'"}));
  EXPECT_TRUE(refused(with("prune.structured: {ffn: []}"), 5, {"empty"}));
  EXPECT_TRUE(refused(with("prune.structured: {ffn: 9, steps: 2, distil: {tokns: 3}}"), 5, {"'tokens'"}));
  EXPECT_TRUE(refused(with("prune.unstructured: {}"), 5, {"'sparsity'", "2:4"}));
  EXPECT_TRUE(refused(with("prune.unstructured: {pattern: \"4:2\"}"), 5, {"'pattern'", "4:2"}));
  EXPECT_TRUE(refused(with("prune.unstructured: {pattern: \"x\"}"), 5, {"'pattern'"}));
  EXPECT_TRUE(refused(with("prune.unstructured: {sparsity: 1}"), 5, {"'sparsity'"}));
  EXPECT_TRUE(refused(
      parse(std::string("  - prune.unstructured: {sparsity: 0.5}\n  - prune.structured: {ffn: 32}\n") +
            kExport),
      6, {"whole parts first"}));
}

TEST_F(RecipeTest, VocabularyEarlyStoppingAndPrecision) {
  const auto good = parse(R"(  - prune.vocabulary: {min_count: 2}
  - distil.soft: {tokens: 100, evaluate_every: 5, patience: 2, precision: auto}
  - export: {file: s.gguf}
)");
  ASSERT_OK(good);
  EXPECT_EQ(std::get<VocabularyPass>(good->passes[0]).min_count, 2u);
  EXPECT_EQ(std::get<OptimisePass>(good->passes[1]).patience, 2u);
  const auto with = [&](const std::string& pass) { return parse("  - " + pass + "\n" + kExport); };
  EXPECT_TRUE(refused(with("train: {tokens: 5, patience: 2}"), 5, {"evaluate_every"}));
  EXPECT_TRUE(refused(with("train: {tokens: 5, precision: f16}"), 5, {"'precision'", "bf16"}));
  EXPECT_TRUE(refused(with("evaluate:\n  - prune.vocabulary:"), 6, {"first"}));
}

TEST_F(RecipeTest, TeachersTextAndLayers) {
  const auto sequence =
      parse(std::string("  - distil.sequence: {tokens: 9, text_temperature: 0.5}\n") + kExport);
  ASSERT_OK(sequence);
  const Mixture& made = *std::get<OptimisePass>(sequence->passes[0]).distil;
  EXPECT_EQ(made.teacher_text, 1);
  EXPECT_EQ(made.labels, 1);
  EXPECT_EQ(made.soft, 0);
  EXPECT_EQ(made.text_temperature, 0.5);
  const auto mixed = parse(
      std::string(
          "  - distil: {tokens: 9, hidden: 1, layer_map: [0, 1], teacher_text: 0.5, on_policy: 0.5}\n") +
      kExport);
  ASSERT_OK(mixed);
  EXPECT_EQ(std::get<OptimisePass>(mixed->passes[0]).distil->layer_map, (std::vector<std::uint32_t>{0, 1}));
  for (const auto& [keys, word] :
       {std::pair{"distil.sequence: {tokens: 9, alpha: 1}", "alpha"},
        {"distil: {tokens: 9, layer_map: [0, 1]}", "belongs to attention"},
        {"distil: {tokens: 9, text_temperature: 1}", "belongs to teacher_text"},
        {"distil: {tokens: 9, teacher_text: 0.6, on_policy: 0.6}", "at most 1"},
        {"distil: {tokens: 9, teacher_text: 1, teacher_outputs: top_k}", "teacher_outputs: full"}})
    EXPECT_TRUE(refused(parse(fmt::format("  - {}\n{}", keys, kExport)), 5, {word})) << keys;
  const ModelConfig teacher = narrow_model();
  const auto plan = [&](const char* map) {
    auto recipe = parse(fmt::format("  - distil: {{tokens: 9, hidden: 1, layer_map: {}}}\n{}", map, kExport));
    return make_plan(*recipe, teacher, &teacher, 1000, 1000);
  };
  EXPECT_OK(plan("[1, 0]"));
  EXPECT_NE(plan("[1]").error().message.find("2 layers: one for each"), std::string::npos);
  EXPECT_NE(plan("[0, 2]").error().message.find("the teacher's are 0 to 1"), std::string::npos);
}

TEST_F(RecipeTest, KeepsNoTeacherOutputsThatNobodyAsksFor) {
  const auto outputs = [&](const std::string& keys) {
    const auto recipe = parse("  - " + keys + "\n" + kExport);
    return std::get<OptimisePass>(recipe->passes[0]).distil->outputs;
  };
  EXPECT_EQ(outputs("distil.soft: {tokens: 9, alpha: 0.5, teacher_outputs: top_k}"), TeacherOutputs::kTopK);
  EXPECT_EQ(outputs("distil.soft: {tokens: 9, alpha: 0, teacher_outputs: top_k}"), TeacherOutputs::kFull);
  EXPECT_EQ(outputs("distil: {tokens: 9, soft: 0, labels: 1, teacher_outputs: sampled}"),
            TeacherOutputs::kFull);
}

TEST_F(RecipeTest, Classification) {
  const std::string head =
      "version: 1\ntask: classification\ndata: {train: {file: d.jsonl}, held_out: {file: d.jsonl}}\n";
  const auto with = [&](const std::string& pass) { return parse("  - " + pass + "\n" + kExport, head); };
  const auto good = with(
      "train: {examples: 100, batch_examples: 8, init: {family: cnn, input: [3, 8, 8], convolutions: "
      "[{channels: 4, "
      "kernel: 3, padding: 1, pooling: max}], hidden: 16, labels: [a, b], normalize: all}}\n  - "
      "prune.structured: "
      "{channels: 2, hidden: [8]}\n  - quantize.weights: {format: Q8_0}");
  ASSERT_OK(good);
  const auto& init = *std::get<OptimisePass>(good->passes[0]).classifier;
  EXPECT_EQ(init.tensors.convolutions[0].pool_stride, 2u);
  EXPECT_EQ(init.tensors.hidden, (std::vector<std::uint32_t>{16}));
  EXPECT_EQ(std::get<PrunePass>(good->passes[1]).dense, (std::vector<std::uint32_t>{8}));
  EXPECT_TRUE(refused(with("train: {tokens: 100}"), 5, {"'tokens'", "examples"}));
  EXPECT_TRUE(refused(with("train: {examples: 9, init: {family: mpl}}"), 5, {"'family'", "mlp"}));
  EXPECT_TRUE(
      refused(with("train: {examples: 9, init: {family: cnn, input: [3, 8], convolutions: [{channels: 1}]}}"),
              5, {"'input'", "three"}));
  EXPECT_TRUE(refused(with("train: {examples: 9, init: {family: mlp, labels: x}}"), 5, {"'labels'", "list"}));
  EXPECT_TRUE(refused(with("train: {examples: 9, init: {family: bert, model: none-such}}"), 5, {"'model'"}));
  EXPECT_TRUE(refused(with("train: {examples: 9, init: {family: bert, model: ., hidden: 8}}"), 5,
                      {"'hidden'", "model"}));
  EXPECT_TRUE(refused(with("distil: {tokens: 9}"), 5, {"distil.soft", "classification"}));
  EXPECT_TRUE(refused(with("train: {examples: 9}"), 5, {"no model"}));
}

TEST_F(RecipeTest, MissingFiles) {
  const auto recipe =
      parse(kExport, "version: 1\nteacher: {model: teacher}\ndata: {train: {file: nothing.jsonl}}\n");
  EXPECT_TRUE(refused(recipe, 3, {"nothing.jsonl"}));
  EXPECT_EQ(recipe.error().code, ErrorCode::kNotFound);
}

TEST(Data, WindowsDependOnSeedAndIndexAlone) {
  testing::TemporaryFolder folder;
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 1));
  const auto tokenizer = Tokenizer::from_huggingface(folder / "m" / "tokenizer.json");
  ASSERT_OK(tokenizer);
  ASSERT_OK(write_file_atomic(folder / "d.jsonl", testing::tiny_corpus_jsonl(50, 1)));
  const auto documents = read_documents(folder / "d.jsonl");
  auto a = TokenStream::make(*documents, *tokenizer), b = TokenStream::make(*documents, *tokenizer);
  ASSERT_OK(a);
  std::vector<std::int64_t> x(17), y(17);
  const std::uint64_t many = 3 * a->tokens() / 16;
  for (std::uint64_t i = 0; i < many; ++i) a->window(5, i, 16, x.data());
  b->window(5, many - 1, 16, y.data());  // straight there, as after a crash
  EXPECT_EQ(x, y);
  b->window(6, many - 1, 16, y.data());
  EXPECT_NE(x, y);
}

/// From a file as from memory; the file of tokens has no name any more.
TEST(Data, AStreamOfAFileIsThatOfItsDocuments) {
  testing::TemporaryFolder folder;
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 1));
  const auto tokenizer = Tokenizer::from_huggingface(folder / "m" / "tokenizer.json");
  ASSERT_OK(tokenizer);
  ASSERT_OK(write_file_atomic(folder / "d.jsonl", testing::tiny_corpus_jsonl(50, 1)));
  for (const std::uint64_t limit : {std::uint64_t{0}, std::uint64_t{7}}) {
    auto held = TokenStream::make(*read_documents(folder / "d.jsonl", limit), *tokenizer);
    auto mapped =
        TokenStream::make(folder / "d.jsonl", limit, *tokenizer, folder / "tokens", limit == 0 ? 3 : 1);
    ASSERT_OK(held);
    ASSERT_OK(mapped);
    ASSERT_EQ(mapped->tokens(), held->tokens());
    std::vector<std::int64_t> x(17), y(17);
    for (std::uint64_t i = 0; i < held->windows(16); ++i) {
      held->window(5, i, 16, x.data()), mapped->window(5, i, 16, y.data());
      ASSERT_EQ(x, y);
    }
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "tokens"));
}

TEST_F(RecipeTest, ExportsKeepOffTheRunsOwnFiles) {
  for (const char* file : {R"("worker.lock\0.gguf")", R"("a\nb.gguf")", "checkpoint-0-1.safetensors.gguf"})
    EXPECT_FALSE(parse(fmt::format("  - export: {{file: {}}}\n", file))) << file;
  EXPECT_FALSE(parse("  - export: {file: " + std::string(250, 'x') + ".gguf}\n"));
  for (const char* stem : {"cancel", "tokenizer", "state.json", "progress.jsonl", "worker.lock"}) {
    EXPECT_TRUE(refused(parse(fmt::format("  - export: {{file: {}.gguf, hf: true}}\n", stem)), 5,
                        {"the worker itself uses", stem}));
    EXPECT_OK(parse(fmt::format("  - export: {{file: {}.gguf}}\n", stem)));
  }
  const auto twice =
      parse("  - export: {file: s.gguf, hf: true}\n  - export: {file: s, kind: huggingface}\n");
  ASSERT_FALSE(twice);
  EXPECT_NE(twice.error().message.find("two exports write 's'"), std::string::npos);
}

TEST(Plan, WhatAFileIsWrittenAsIsTold) {
  const ModelConfig narrow = narrow_model();
  const WrittenAs q3 = written_as(narrow, {.format = TensorType::kQ3K});
  EXPECT_EQ(q3.format, "Q8_0");
  EXPECT_NE(q3.fallback.find("15 of 15 matrices"), std::string::npos) << q3.fallback;
  EXPECT_NE(q3.fallback.find("8.50 bits a weight instead of 3.44"), std::string::npos) << q3.fallback;
  const WrittenAs q4 = written_as(narrow, {.format = TensorType::kQ4_0});
  EXPECT_EQ(q4.format, "Q4_0");
  EXPECT_EQ(q4.fallback, "");
  ModelConfig wide = narrow;
  wide.n_embd = 256, wide.head_dim = 32;  // its FFN's 352 columns hold no whole block
  const WrittenAs most = written_as(wide, {.format = TensorType::kQ4K});
  EXPECT_EQ(most.format, "Q4_K");
  EXPECT_NE(most.fallback.find("2 of 15 matrices"), std::string::npos) << most.fallback;
  QuantizePass several;
  several.formats = {{"*embed*", TensorType::kF16}};
  EXPECT_EQ(written_as(narrow, several).format, "mixed");
}

TEST(Plan, ABudgetThatNoCandidateMeetsIsRefusedBeforeAnythingIsTrained) {
  Recipe recipe;
  recipe.where = "r.yaml";
  QuantizePass pass;
  pass.bits = 5.5;
  pass.candidates = {TensorType::kQ3K, TensorType::kQ4K, TensorType::kQ8_0};
  recipe.passes = {pass, ExportPass{.file = "s.gguf"}};
  const auto plan = make_plan(recipe, narrow_model(), nullptr, 1000, 1000);
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code, ErrorCode::kOutOfBudget);
  EXPECT_NE(plan.error().message.find("Q4_0"), std::string::npos) << plan.error().message;
  std::get<QuantizePass>(recipe.passes[0]).candidates.push_back(TensorType::kQ4_0);
  EXPECT_OK(make_plan(recipe, narrow_model(), nullptr, 1000, 1000));
}

TEST_F(RecipeTest, WhatThePlanRefusesNamesItsLine) {
  const auto planned = [&](const std::string& passes) -> Result<Plan> {
    return make_plan(RETORT_TRY(parse(passes)), narrow_model(), nullptr, 1000, 1000);
  };
  for (const auto& [pass, words] :
       {std::pair{"prune.structured: {layers: 7}", "7 layers asked for"},
        {"prune.unstructured: {sparsity: 0.5, match: nothing}", "'nothing' matches no"},
        {"quantize.weights: {formats: [{match: nothing, format: F16}]}", "'nothing' matches no"}}) {
    const auto plan = planned(std::string("  - evaluate:\n  - ") + pass + "\n" + kExport);
    ASSERT_FALSE(plan);
    EXPECT_TRUE(plan.error().describe().starts_with("r.yaml:6: ")) << plan.error().describe();
    EXPECT_NE(plan.error().message.find(words), std::string::npos) << plan.error().describe();
  }
}

TEST(Plan, SparseFilesArePlannedWithoutTheirZeros) {
  ModelConfig config = narrow_model();
  const QuantizePass formats{.format = TensorType::kQ8_0,
                             .formats = {{"*down_proj*", TensorType::kSparseQ8}}};
  const std::uint64_t full = predicted_file_bytes(config, formats, 1000);
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  const std::uint64_t count = std::uint64_t{config.n_embd} * config.layers[0].n_ff;
  EXPECT_EQ(full - predicted_file_bytes(config, formats, 1000, {{name, 0.5}}), count / 2);
  EXPECT_EQ(full, predicted_file_bytes(config, formats, 1000, {{"model.layers.0.mlp.up_proj.weight", 0.5}}))
      << "its zeros are stored like other values";
}

/// What searches for scales, and what looks at text, takes longer than what does not.
TEST(Plan, RoundingTakesItsTime) {
  ModelConfig config = narrow_model();
  config.n_embd = 256, config.head_dim = 32;
  const auto cost = [&](QuantizePass pass) { return rounding_cost(pass, config, 1000); };
  using Method = QuantizePass::Method;
  const RoundingCost q8 = cost({.format = TensorType::kQ8_0}), q4 = cost({.format = TensorType::kQ4K}),
                     gptq = cost({.format = TensorType::kQ4K, .method = Method::kGptq}),
                     awq = cost({.format = TensorType::kQ4K, .awq = true}), bits = cost({.bits = 4.5});
  EXPECT_GT(q4.loop_seconds, 10 * q8.loop_seconds);
  EXPECT_EQ(q4.flops, 0);
  EXPECT_GT(gptq.flops, 0);
  EXPECT_GT(awq.loop_seconds, 4 * q4.loop_seconds);
  EXPECT_GT(bits.loop_seconds, 4 * q4.loop_seconds);
  Plan plan;
  plan.threads = 2;
  plan.passes.resize(2);
  plan.passes[0].flops = 3e9, plan.passes[1].loop_seconds = 4;
  EXPECT_EQ(plan.seconds(1e9), 5);
}

TEST(Plan, ShapesOfCuts) {
  ModelConfig c;
  c.n_vocab = 100, c.n_ctx = 32, c.n_embd = 64, c.head_dim = 8;
  c.layers.assign(4, {8, 4, 96});
  PrunePass pass;
  pass.heads = 4, pass.kv_heads = 2, pass.layers = 3;
  const auto cut = pruned_config(c, pass, "r");
  ASSERT_OK(cut);
  EXPECT_EQ(cut->layers, (std::vector<LayerShape>(3, {4, 2, 96})));
  pass.heads = 6;  // three in a group, where two were
  EXPECT_FALSE(pruned_config(c, pass, "r"));
  pass = {};
  pass.ffn = {97};
  EXPECT_NE(pruned_config(c, pass, "r").error().message.find("97"), std::string::npos);
  pass.ffn = {64, 64, 64};
  EXPECT_NE(pruned_config(c, pass, "r").error().message.find("3 widths for 4 layers"), std::string::npos);
  pass.ffn = {96, 64, 32, 32};
  EXPECT_EQ(pruned_config(c, pass, "r")->layers[2].n_ff, 32u);
}

TEST(Plan, StepsEndWhereOneCutDoes) {
  ModelConfig c;
  c.n_vocab = 100, c.n_ctx = 32, c.n_embd = 64, c.head_dim = 8;
  c.layers.assign(4, {8, 4, 96});
  PrunePass pass;
  pass.hidden = 40, pass.ffn = {33}, pass.heads = 2, pass.kv_heads = 2, pass.layers = 2;
  const ModelConfig wanted = *pruned_config(c, pass, "r");
  ModelConfig at = c;
  for (pass.steps_left = 3; pass.steps_left > 0; --pass.steps_left) {
    const auto next = pruned_config(at, pass, "r");
    ASSERT_OK(next);
    EXPECT_LE(at.n_embd - next->n_embd, 9u) << "a third of what goes in all, about";
    EXPECT_LE(at.layers[0].n_ff - next->layers[0].n_ff, 21u);
    at = *next;
  }
  EXPECT_EQ(at, wanted);
}

}  // namespace
}  // namespace retort
