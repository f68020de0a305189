#include "common/core/file.h"
#include "common/core/json.h"
#include "common/hf/classifier_model.h"
#include "tests/support/support.h"
#include "tests/support/tiny_classifier.h"

namespace retort {
namespace {

using testing::TemporaryFolder;

TEST(Classifier, FoldersAndGgufKeepRandomArchitectures) {
  SeededRandom random(1);
  for (int i = 0; i < 40; ++i) {
    const auto family = i % 2 == 0 ? ClassifierFamily::kMlp : ClassifierFamily::kCnn;
    const ClassifierConfig config = testing::random_classifier(family, random);
    ASSERT_OK(validate(config, "test"));
    const auto weights = testing::random_weights(config, 7);
    TemporaryFolder folder;
    ASSERT_OK(write_classifier_folder(folder / "m", config, weights, SafeTensor::DType::kF32));
    EXPECT_TRUE(is_classifier_type(*model_type_of(folder / "m")));
    const auto model = open_classifier_model(folder / "m");
    ASSERT_OK(model);
    EXPECT_EQ(model->config, config);
    std::uint64_t counted = 0;
    for (const auto& [name, tensor] : model->weights.tensors()) counted += tensor.count();
    EXPECT_EQ(counted, parameter_count(config));
    for (const TensorType type : {TensorType::kF32, TensorType::kQ8_0, TensorType::kQ6K}) {
      ASSERT_OK(write_gguf_classifier(folder / "m.gguf", config, weight_sources(*model), type,
                                      {{"retort.test", std::string("x")}}));
      const auto file = GgufFile::open(folder / "m.gguf");
      ASSERT_OK(file);
      EXPECT_TRUE(is_gguf_classifier(*file));
      const auto read = read_gguf_classifier_config(*file);
      ASSERT_OK(read);
      EXPECT_EQ(*read, config);
      EXPECT_EQ(*file->text("retort.test"), "x");
    }
  }
}

TEST(Classifier, ColumnsGoFromChannelByChannelToPositionByPosition) {
  ClassifierConfig config;
  config.family = ClassifierFamily::kCnn;
  config.input = {2, 3, 3};
  config.convolutions.push_back({.out_channels = 3, .kernel = 2});  // leaves 3 × 2 × 2
  config.labels = {"a", "b"};
  std::vector<TensorSource> weights;
  for (WeightShape& w : classifier_weights(config))
    weights.push_back({w.name, w.shape, [](std::span<float> out) -> Result<void> {
                         for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(i);
                         return {};
                       }});
  TemporaryFolder folder;
  ASSERT_OK(write_gguf_classifier(folder / "m.gguf", config, weights, TensorType::kF32, {}));
  const auto file = GgufFile::open(folder / "m.gguf");
  ASSERT_OK(file);
  const auto row = [&](const char* name, std::size_t r) {
    const GgufTensor* t = file->tensor(name);
    std::vector<float> out(t->columns());
    const auto bytes = t->data.size() / t->rows();
    decode_row(t->type, t->data.subspan(r * bytes, bytes), out);
    return out;
  };
  // Row 1 was [channel][kernel row][kernel column] = 8 … 15.
  EXPECT_EQ(row("conv.0.weight", 1), (std::vector<float>{8, 12, 9, 13, 10, 14, 11, 15}));
  EXPECT_EQ(row("dense.0.weight", 0), (std::vector<float>{0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11}));
  // Blocks of 32 do not divide 8 columns: zeros behind them.
  ASSERT_OK(write_gguf_classifier(folder / "q.gguf", config, weights, TensorType::kQ8_0, {}));
  const auto quantized = GgufFile::open(folder / "q.gguf");
  ASSERT_OK(quantized);
  EXPECT_EQ(quantized->tensor("conv.0.weight")->shape, (std::vector<std::uint64_t>{32, 3}));
  EXPECT_EQ(quantized->tensor("conv.0.weight")->type, TensorType::kQ8_0);
}

TEST(ByteTensor, RoundsToTheNearestAndStaysInRange) {
  const ByteTensor u{false, 0.5f, 10}, s{true, 0.25f, -3};
  EXPECT_EQ(u.value(12), 1.0f);
  EXPECT_EQ(u.byte(1.0f), 12);
  EXPECT_EQ(u.byte(0.74f), 11);
  EXPECT_EQ(u.byte(-100), 0);
  EXPECT_EQ(u.byte(1e9f), 255);
  EXPECT_EQ(s.value(static_cast<std::uint8_t>(-7)), -1.0f);
  EXPECT_EQ(static_cast<std::int8_t>(s.byte(-1.0f)), -7);
  EXPECT_EQ(static_cast<std::int8_t>(s.byte(-1e9f)), -128);
  for (int q = 0; q < 256; ++q) EXPECT_EQ(u.byte(u.value(static_cast<std::uint8_t>(q))), q);
}

TEST(Classifier, BoundsAreNamed) {
  const auto refusal = [](auto change) {
    ClassifierConfig c;
    c.family = ClassifierFamily::kCnn;
    c.input = {1, 8, 8};
    c.convolutions.push_back({.out_channels = 4});
    c.labels = {"a", "b"};
    EXPECT_OK(validate(c, "t"));
    change(c);
    const auto result = validate(c, "t");
    EXPECT_FALSE(result);
    return result ? std::string() : result.error().message;
  };
  using C = ClassifierConfig;
  EXPECT_NE(refusal([](C& c) { c.labels.pop_back(); }).find("labels"), std::string::npos);
  EXPECT_NE(refusal([](C& c) { c.labels[1] = "a"; }).find("twice"), std::string::npos);
  EXPECT_NE(refusal([](C& c) { c.convolutions[0].kernel = 9; }).find("height of the output of convolution 0"),
            std::string::npos);
  EXPECT_NE(refusal([](C& c) { c.convolutions[0].stride = 0; }).find("stride"), std::string::npos);
  EXPECT_NE(refusal([](C& c) { c.convolutions[0].padding = 3; }).find("padding"), std::string::npos);
  EXPECT_NE(refusal([](C& c) { c.convolutions.clear(); }).find("convolutions"), std::string::npos);
  EXPECT_NE(refusal([](C& c) { c.input = {4096, 4096, 4096}; }).find("values"), std::string::npos);
  EXPECT_NE(refusal([](C& c) { c.hidden = {0}; }).find("dense"), std::string::npos);
  EXPECT_NE(refusal([](C& c) { c.hidden.assign(2, 1 << 16); }).find("size of dense"), std::string::npos);
  EXPECT_NE(refusal([](C& c) {
              c.input_bytes = ByteTensor{false, 1, -1};
            }).find("zero point"),
            std::string::npos);
  EXPECT_NE(refusal([](C& c) { c.output_bytes = ByteTensor{true, 0, 0}; }).find("scale"), std::string::npos);
  EXPECT_NE(refusal([](C& c) { c.mean = {0}; }).find("means"), std::string::npos);
  EXPECT_NE(refusal([](C& c) { c.mean = {0}, c.std = {0}; }).find("deviation"), std::string::npos);
  EXPECT_NE(refusal([](C& c) { c.family = ClassifierFamily::kMlp; }).find("one dimension"),
            std::string::npos);
}

TEST(Classifier, WhatDoesNotFitIsRefused) {
  SeededRandom random(3);
  const ClassifierConfig config = testing::random_classifier(ClassifierFamily::kMlp, random);
  auto weights = testing::random_weights(config, 1);
  TemporaryFolder folder;
  const auto message = [&] {
    EXPECT_OK(write_safetensors(folder / "m/model.safetensors", weights, SafeTensor::DType::kF32));
    const auto model = open_classifier_model(folder / "m");
    return model ? std::string("opened") : model.error().message;
  };
  ASSERT_OK(write_classifier_folder(folder / "m", config, weights, SafeTensor::DType::kF32));
  EXPECT_EQ(message(), "opened");
  weights.push_back({"dense.9.weight", {1, 1}, [](std::span<float>) -> Result<void> { return {}; }});
  EXPECT_NE(message().find("'dense.9.weight' has no place"), std::string::npos);
  weights.erase(weights.begin());
  EXPECT_NE(message().find("is missing"), std::string::npos);
  const auto refused = [](std::string_view text) { return read_classifier_config(text, "c").error(); };
  EXPECT_EQ(refused(R"({"model_type":"retort-rnn"})").code, ErrorCode::kUnsupported);
  EXPECT_NE(refused(R"({"model_type":"retort-mlp","input_shape":[2,2]})").message.find("input shape"),
            std::string::npos);
  EXPECT_NE(refused(R"({"model_type":"retort-mlp","input_shape":[2],"hidden_sizes":[],"hidden_act":"swish"})")
                .message.find("swish"),
            std::string::npos);
  EXPECT_NE(refused(R"({"model_type":"retort-mlp","input_shape":[2],"hidden_sizes":[],
                        "id2label":{"0":"a","1":"b"},"input_mean":[1e300,0],"input_std":[1,1]})")
                .message.find("finite"),
            std::string::npos);
}

}  // namespace
}  // namespace retort
