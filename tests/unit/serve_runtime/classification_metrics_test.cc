#include "agent/serve/runtime/classification_metrics.h"

#include <cmath>

#include "agent/serve/runtime/evaluate_classifier.h"
#include "common/core/file.h"
#include "common/hf/classifier_model.h"
#include "tests/support/support.h"
#include "tests/support/tiny_classifier.h"

namespace retort {
namespace {

TEST(ClassificationMetrics, AgreeWithTheirDefinitions) {
  ClassificationMetrics metrics({"a", "b", "c", "never"});
  const auto add = [&](std::size_t label, std::vector<float> p) { metrics.add(label, p); };
  add(0, {0.7f, 0.2f, 0.1f, 0});
  add(0, {0.6f, 0.3f, 0.1f, 0});
  add(0, {0.1f, 0.8f, 0.1f, 0});  // a taken for b
  add(1, {0.2f, 0.72f, 0.08f, 0});
  add(2, {0.5f, 0.3f, 0.2f, 0});  // c taken for a
  EXPECT_EQ(metrics.examples(), 5u);
  EXPECT_DOUBLE_EQ(metrics.accuracy(), 3.0 / 5);
  // F1: a 2·2/(3+3), b 2·1/(1+2), c 0; "never" is neither there nor given.
  EXPECT_NEAR(metrics.macro_f1(), (2.0 / 3 + 2.0 / 3 + 0) / 3, 1e-12);
  EXPECT_NEAR(metrics.nll(),
              -(std::log(0.7) + std::log(0.6) + std::log(0.1) + std::log(0.72) + std::log(0.2)) / 5, 1e-6);
  // Bins of 1/15: 0.7 and 0.72 in (0.667, 0.733], 0.6 in (0.533, 0.6], 0.8 in (0.733, 0.8], 0.5 in (0.467,
  // 0.533].
  EXPECT_NEAR(metrics.expected_calibration_error(),
              (std::fabs(2 - (0.7 + 0.72)) + std::fabs(1 - 0.6) + 0.8 + 0.5) / 5, 1e-6);
  const json::object out = metrics.to_json();
  EXPECT_EQ(json::serialize(out.at("confusion")), "[[2,1,0,0],[0,1,0,0],[1,0,0,0],[0,0,0,0]]");
  const json::object& a = out.at("per_class").at(0).get_object();
  EXPECT_DOUBLE_EQ(a.at("precision").to_number<double>(), 2.0 / 3);
  EXPECT_DOUBLE_EQ(a.at("recall").to_number<double>(), 2.0 / 3);
  EXPECT_TRUE(out.at("per_class").at(2).at("precision").is_null());
  EXPECT_TRUE(out.at("per_class").at(3).at("f1").is_null());
}

TEST(EvaluateClassifier, CountsWhatTheModelSays) {
  testing::TemporaryFolder folder;
  ClassifierConfig config;
  config.input = {2, 1, 1};
  config.labels = {"first", "second"};  // the larger input wins
  const auto write = [&](const char* name, float sharpness) {
    std::vector<TensorSource> weights{{"dense.0.weight",
                                       {2, 2},
                                       [=](std::span<float> out) -> Result<void> {
                                         out[0] = out[3] = sharpness, out[1] = out[2] = 0;
                                         return {};
                                       }},
                                      {"dense.0.bias", {2}, [](std::span<float> out) -> Result<void> {
                                         out[0] = out[1] = 0;
                                         return {};
                                       }}};
    EXPECT_OK(write_gguf_classifier(folder / name, config, weights, TensorType::kF32, {}));
    return *Classifier::open(folder / name);
  };
  std::string lines;
  for (int i = 0; i < 50; ++i)  // every tenth is labelled wrongly
    lines += fmt::format("{{\"input\":[{},{}],\"label\":\"{}\"}}\n", i % 7, 7 - i % 5,
                         (i % 7 >= 7 - i % 5) == (i % 10 != 0) ? "first" : "second");
  ASSERT_OK(write_file_atomic(folder / "d.jsonl", lines));
  ThreadTeam team(2);
  const auto student = write("s.gguf", 1), teacher = write("t.gguf", 2);
  const auto result = evaluate_classifier(student, teacher, folder / "d.jsonl", {}, 0, team);
  ASSERT_OK(result);
  EXPECT_EQ(result->metrics.examples(), 50u);
  EXPECT_DOUBLE_EQ(result->metrics.accuracy(), 0.9);
  EXPECT_DOUBLE_EQ(result->top1_agreement, 1);
  EXPECT_GT(result->kl_divergence, 0.01);
  const auto some = evaluate_classifier(student, nullptr, folder / "d.jsonl", {}, 40, team);
  ASSERT_OK(some);
  EXPECT_EQ(some->metrics.examples(), 40u);
  EXPECT_LT(some->kl_divergence, 0);
  config.labels = {"other", "second"};
  EXPECT_FALSE(evaluate_classifier(student, write("u.gguf", 1), folder / "d.jsonl", {}, 0, team));
}

}  // namespace
}  // namespace retort
