#include "coordinator/worker/classifier.h"

#include <cmath>

#include "common/core/random.h"
#include "coordinator/worker/plan.h"
#include "coordinator/worker/prune.h"
#include "tests/support/bert_reference.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

using testing::TemporaryFolder;

ClassifierConfig small_cnn() {
  ClassifierConfig c;
  c.family = ClassifierFamily::kCnn;
  c.input = {2, 6, 5};
  c.convolutions = {{.out_channels = 4, .kernel = 3, .padding = 1, .pooling = Pooling::kMax},
                    {.out_channels = 3, .kernel = 2, .activation = Activation::kTanh}};
  c.hidden = {7};
  c.labels = {"a", "b", "c"};
  c.mean = {0.5f, -1}, c.std = {2, 0.25f};
  return c;
}

Network random_classifier(const ClassifierConfig& config, std::uint64_t seed) {
  Network n;
  n.classifier = config;
  randomize(n, seed);
  for (auto& [name, tensor] : n.weights)
    if (tensor.dim() == 1) tensor.copy_(at::arange(tensor.numel(), at::kFloat) * 0.1 - 0.2);
  return n;
}

ExampleBatch of(const at::Tensor& inputs) { return {inputs, {}, at::zeros({inputs.size(0)}, at::kLong)}; }

/// The definition, number by number: correlation with zeros around, then pooling, then the rows' products.
TEST(Classifier, LogitsAreTheDefinitions) {
  torch::NoGradGuard no_grad;
  const ClassifierConfig c = small_cnn();
  const Network n = random_classifier(c, 3);
  const at::Tensor inputs = at::randn({2, 60}, at::detail::createCPUGenerator(5));
  const at::Tensor logits = class_logits(n, of(inputs));
  for (std::int64_t example = 0; example < 2; ++example) {
    std::vector<std::vector<std::vector<double>>> map(2, std::vector(6, std::vector<double>(5)));
    for (int ch = 0; ch < 2; ++ch)
      for (int y = 0; y < 6; ++y)
        for (int x = 0; x < 5; ++x)
          map[ch][y][x] = (inputs[example][ch * 30 + y * 5 + x].item<double>() - c.mean[ch]) / c.std[ch];
    for (std::size_t layer = 0; layer < 2; ++layer) {
      const Convolution& conv = c.convolutions[layer];
      const at::Tensor w = n.weight(fmt::format("conv.{}.weight", layer)),
                       b = n.weight(fmt::format("conv.{}.bias", layer));
      const int pad = static_cast<int>(conv.padding), k = static_cast<int>(conv.kernel);
      const int height = static_cast<int>(map[0].size()) + 2 * pad - k + 1,
                width = static_cast<int>(map[0][0].size()) + 2 * pad - k + 1;
      std::vector<std::vector<std::vector<double>>> next(conv.out_channels,
                                                         std::vector(height, std::vector<double>(width)));
      for (std::size_t out = 0; out < next.size(); ++out)
        for (int y = 0; y < height; ++y)
          for (int x = 0; x < width; ++x) {
            double sum = b[static_cast<std::int64_t>(out)].item<double>();
            for (std::size_t in = 0; in < map.size(); ++in)
              for (int i = 0; i < k; ++i)
                for (int j = 0; j < k; ++j) {
                  const int yy = y + i - pad, xx = x + j - pad;
                  if (yy >= 0 && xx >= 0 && yy < static_cast<int>(map[0].size()) &&
                      xx < static_cast<int>(map[0][0].size()))
                    sum +=
                        map[in][yy][xx] *
                        w[static_cast<std::int64_t>(out)][static_cast<std::int64_t>(in)][i][j].item<double>();
                }
            next[out][y][x] = conv.activation == Activation::kTanh ? std::tanh(sum) : std::max(sum, 0.0);
          }
      if (conv.pooling == Pooling::kMax)
        for (auto& plane : next) {
          std::vector<std::vector<double>> pooled(plane.size() / 2, std::vector<double>(plane[0].size() / 2));
          for (std::size_t y = 0; y < pooled.size(); ++y)
            for (std::size_t x = 0; x < pooled[0].size(); ++x)
              pooled[y][x] = std::max({plane[2 * y][2 * x], plane[2 * y + 1][2 * x], plane[2 * y][2 * x + 1],
                                       plane[2 * y + 1][2 * x + 1]});
          plane = pooled;
        }
      map = next;
    }
    std::vector<double> flat;
    for (const auto& plane : map)
      for (const auto& line : plane) flat.insert(flat.end(), line.begin(), line.end());
    for (int layer = 0; layer < 2; ++layer) {
      const at::Tensor w = n.weight(fmt::format("dense.{}.weight", layer)),
                       b = n.weight(fmt::format("dense.{}.bias", layer));
      std::vector<double> next;
      for (std::int64_t row = 0; row < w.size(0); ++row) {
        double sum = b[row].item<double>();
        for (std::size_t i = 0; i < flat.size(); ++i)
          sum += flat[i] * w[row][static_cast<std::int64_t>(i)].item<double>();
        next.push_back(layer == 0 ? std::max(sum, 0.0) : sum);
      }
      flat = next;
    }
    for (std::int64_t i = 0; i < 3; ++i)
      EXPECT_NEAR(logits[example][i].item<double>(), flat[static_cast<std::size_t>(i)], 1e-4);
  }
}

/// [Li 2017] §3.1 goes by Σ|w| of a filter; filters and neurons that are zero go without any change.
TEST(Classifier, SilentFiltersAndNeuronsGoFirst) {
  torch::NoGradGuard no_grad;
  const ClassifierConfig c = small_cnn();
  Network n = random_classifier(c, 4);
  const auto silence = [&](const std::string& layer, std::int64_t place) {
    n.weights.at(layer + ".weight")[place].zero_();
    n.weights.at(layer + ".bias")[place] = 0;
  };
  silence("conv.0", 1), silence("conv.0", 2), silence("conv.1", 0), silence("dense.0", 3);
  ClassifierConfig target = c;
  target.convolutions[0].out_channels = 2, target.convolutions[1].out_channels = 2, target.hidden = {6};
  const at::Tensor inputs = at::randn({5, 60}, at::detail::createCPUGenerator(6));
  OutputSums sums;
  const at::Tensor before = class_logits(n, of(inputs), &sums);
  EXPECT_EQ(sums.channels.size(), 2u);
  EXPECT_EQ(sums.channels[0][1].item<float>(), 0);
  for (const OutputSums* given :
       {static_cast<const OutputSums*>(nullptr), static_cast<const OutputSums*>(&sums)}) {
    const Network cut = prune_classifier(n, target, given);
    EXPECT_EQ(cut.weight("conv.1.weight").sizes().vec(), (std::vector<std::int64_t>{2, 2, 2, 2}));
    EXPECT_LT((class_logits(cut, of(inputs)) - before).abs().max().item<float>(), 1e-5);
  }
  // By magnitude the order is that of L1 norms.
  target = c;
  target.convolutions[0].out_channels = 1;
  Network loud = random_classifier(c, 5);
  loud.weights.at("conv.0.weight")[3] *= 10;
  EXPECT_TRUE(prune_classifier(loud, target, nullptr)
                  .weight("conv.0.weight")[0]
                  .equal(loud.weight("conv.0.weight")[3]));
}

ModelConfig small_bert() {
  ModelConfig c;
  c.family = ModelFamily::kBert;
  c.n_vocab = 40, c.n_ctx = 16, c.n_embd = 24, c.head_dim = 6;
  c.layers.assign(2, {4, 4, 32});
  c.norm_eps = 1e-12f;
  c.encoder.labels = {"x", "y", "z"};
  c.encoder.pooler = true;
  return c;
}

ExampleBatch texts(const std::vector<std::vector<std::int64_t>>& rows) {
  ExampleBatch out;
  std::size_t longest = 0;
  for (const auto& row : rows) longest = std::max(longest, row.size());
  out.inputs =
      at::zeros({static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(longest)}, at::kLong);
  out.tokens = at::empty({static_cast<std::int64_t>(rows.size())}, at::kLong);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t j = 0; j < rows[i].size(); ++j)
      out.inputs[static_cast<std::int64_t>(i)][static_cast<std::int64_t>(j)] = rows[i][j];
    out.tokens[static_cast<std::int64_t>(i)] = static_cast<std::int64_t>(rows[i].size());
  }
  return out;
}

/// Against Hugging Face's modelling code written out in F64 (tests/support), of a folder and its GGUF.
TEST(Bert, GivesTheReferencesLogits) {
  torch::NoGradGuard no_grad;
  for (const Gelu gelu : {Gelu::kErf, Gelu::kTanh}) {
    TemporaryFolder folder;
    testing::TinyModelOptions options;
    options.encoder.labels = {"x", "y", "z"};
    options.encoder.pooler = true;
    options.encoder.pooling = TextPooling::kCls;
    options.encoder.gelu = gelu;
    ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kBert, 1, options));
    const auto model = open_hf_model(folder / "m");
    ASSERT_OK(model);
    const auto network = load_network(*model);
    ASSERT_OK(network);
    ASSERT_OK(write_gguf_model(folder / "m.gguf", model->config, model->tokenizer, weight_sources(*network),
                               TensorType::kF32, {}));
    const auto file = GgufFile::open(folder / "m.gguf");
    ASSERT_OK(file);
    const testing::BertReference reference(*file, model->config);
    const std::vector<TokenId> ids = model->tokenizer.encode("the sea and the land", true);
    const auto wanted = reference.classify(reference.states(ids).front());
    const at::Tensor got = class_logits(*network, texts({{ids.begin(), ids.end()}, {2, 7, 3}}))[0];
    for (std::size_t i = 0; i < 3; ++i)
      EXPECT_NEAR(got[static_cast<std::int64_t>(i)].item<double>(), wanted[i], 1e-4);
  }
}

TEST(Bert, WhatFillsATextUpChangesNothing) {
  torch::NoGradGuard no_grad;
  const Network n = random_network(small_bert(), 3);
  const std::vector<std::int64_t> brief{2, 17, 3}, lengthy{2, 5, 9, 30, 12, 3};
  const at::Tensor both = class_logits(n, texts({brief, lengthy}));
  EXPECT_LT((both[0] - class_logits(n, texts({brief}))[0]).abs().max().item<float>(), 1e-5);
  EXPECT_LT((both[1] - class_logits(n, texts({lengthy}))[0]).abs().max().item<float>(), 1e-5);
}

TEST(Bert, DeadNeuronsAndHeadsGoFirst) {
  torch::NoGradGuard no_grad;
  Network n = random_network(small_bert(), 7);
  for (int layer = 0; layer < 2; ++layer) {
    const std::string p = fmt::format("bert.encoder.layer.{}.", layer);
    n.weights.at(p + "intermediate.dense.weight").slice(0, 0, 32, 2).zero_();
    n.weights.at(p + "attention.self.value.weight").slice(0, 6, 18).zero_();  // heads 1 and 2
  }
  PrunePass pass;
  pass.ffn = {16}, pass.heads = 2;
  const auto target = pruned_config(n.config, pass, "test");
  ASSERT_OK(target);
  const ExampleBatch batch = texts({{2, 17, 3}, {2, 5, 9, 30, 12, 3}});
  ActivationStatistics statistics;
  Trace trace{.statistics = &statistics};
  const at::Tensor before = class_logits(n, batch, nullptr, &trace);
  const Network cut = prune(n, *target, &statistics);
  for (const WeightShape& w : hf_weights(*target))
    EXPECT_EQ(cut.weight(w.name).sizes().vec(), std::vector<std::int64_t>(w.shape.begin(), w.shape.end()))
        << w.name;
  EXPECT_LT((class_logits(cut, batch) - before).abs().max().item<float>(), 1e-5);
}

TEST(Examples, LabelsOrderAndShape) {
  TemporaryFolder folder;
  ASSERT_OK(
      write_file_atomic(folder / "d.jsonl",
                        "{\"input\": [1, 2], \"label\": \"no\"}\n{\"input\": [3, 6], \"label\": \"yes\"}\n"
                        "{\"input\": [5, 4], \"label\": \"no\"}\n"));
  const DataFile file{folder / "d.jsonl", {}};
  EXPECT_EQ(*labels_in(file), (std::vector<std::string>{"no", "yes"}));
  EXPECT_EQ(*values_in(file), 2u);
  ClassifierConfig config;
  config.input = {2, 1, 1};
  config.labels = {"no", "yes"};
  auto examples = Examples::tensors(file, config);
  ASSERT_OK(examples);
  examples->normalize(config, true);
  EXPECT_EQ(config.mean, (std::vector<float>{3, 4}));
  EXPECT_NEAR(config.std[0], std::sqrt(8.0 / 3), 1e-6);
  examples->normalize(config, false);
  EXPECT_EQ(config.mean, (std::vector<float>{3.5, 3.5}));
  std::multiset<float> epoch;
  for (std::uint64_t i = 3; i < 6; ++i) epoch.insert(examples->draw(9, i, 1).inputs[0][0].item<float>());
  EXPECT_EQ(epoch, (std::multiset<float>{1, 3, 5})) << "each once an epoch";
  EXPECT_TRUE(examples->draw(9, 2, 3).inputs[1].equal(examples->draw(9, 3, 1).inputs[0]));
  EXPECT_TRUE(examples->labels_without_example(2).empty());
  // Two of three are "no", and each might come once more.
  const auto [nll, right] = examples->guessed_by_frequency(*examples, 2);
  EXPECT_NEAR(nll, -(2 * std::log(3.0 / 5) + std::log(2.0 / 5)) / 3, 1e-12);
  EXPECT_NEAR(right, 2.0 / 3, 1e-12);
  auto first = Examples::tensors({folder / "d.jsonl", {}, 1}, config);
  ASSERT_OK(first);
  EXPECT_EQ(first->labels_without_example(3), (std::vector<std::size_t>{1, 2}));
  config.labels = {"no", "maybe"};
  const auto unseen = Examples::tensors(file, config);
  ASSERT_FALSE(unseen);
  EXPECT_NE(unseen.error().where.find("d.jsonl:2"), std::string::npos);
  ASSERT_OK(write_file_atomic(folder / "one.jsonl", "{\"input\": [1], \"label\": \"no\"}\n"));
  EXPECT_NE(labels_in({folder / "one.jsonl", {}}).error().message.find("have the label"), std::string::npos);
}

}  // namespace
}  // namespace retort
