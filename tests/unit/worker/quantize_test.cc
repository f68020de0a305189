#include "coordinator/worker/quantize.h"

#include <cmath>

#include "coordinator/worker/matrix_quantizer.h"
#include "coordinator/worker/plan.h"
#include "tests/support/support.h"
#include "tests/unit/worker/small_network.h"

namespace retort {
namespace {

using at::Tensor;

/// Rows of normal weights and inputs whose features hang together, as hidden states do.
struct Problem {
  Tensor weight, inputs;
  InputStatistics statistics;
  explicit Problem(std::int64_t rows = 24, std::int64_t columns = 256) {
    at::Generator generator = at::detail::createCPUGenerator(11);
    weight = at::empty({rows, columns}, at::kFloat).normal_(0, 0.05, generator);
    const Tensor mix = at::empty({columns / 4, columns}, at::kFloat).normal_(0, 1, generator);
    const Tensor size = at::empty({columns}, at::kFloat).normal_(0, 1, generator).exp();
    inputs = (at::empty({1000, columns / 4}, at::kFloat).normal_(0, 1, generator).mm(mix) +
              at::empty({1000, columns}, at::kFloat).normal_(0, 1, generator)) *
             size;
    statistics.add(inputs.slice(0, 0, 600));  // streamed in two pieces
    statistics.add(inputs.slice(0, 600).view({4, 100, columns}));
  }
  /// ‖ΔX‖² / ‖WX‖², from the inputs themselves.
  double error(const EncodedMatrix& encoded) const {
    const Tensor lost = inputs.mm((decode_matrix(encoded) - weight).t());
    return (lost.square().sum() / inputs.mm(weight.t()).square().sum()).item<double>();
  }
};

/// ‖ΔX‖² / ‖WX‖².
double output_error(const Tensor& weight, const Tensor& rounded, const InputStatistics& input) {
  return output_power_of(rounded - weight, input) / output_power_of(weight, input);
}

TEST(InputStatistics, AreTheSumsOverAllTokens) {
  const Problem p;
  EXPECT_EQ(p.statistics.tokens, 1000);
  const Tensor sums = p.inputs.t().mm(p.inputs);
  EXPECT_LT((p.statistics.second_moment - sums).abs().max().item<float>(), 1e-5 * sums.max().item<float>());
  EXPECT_TRUE(at::allclose(p.statistics.importance(), p.inputs.square().mean(0), 1e-4));
  EXPECT_TRUE(at::allclose(p.statistics.magnitude, p.inputs.abs().sum(0), 1e-4));
  const EncodedMatrix encoded = encode_matrix(p.weight, TensorType::kQ4K);
  EXPECT_NEAR(output_error(p.weight, decode_matrix(encoded), p.statistics), p.error(encoded),
              1e-3 * p.error(encoded));
}

TEST(Importance, LowersTheOutputsErrorOnEveryFormat) {
  const Problem p;
  for (const TensorType type : {TensorType::kQ3K, TensorType::kQ4K, TensorType::kQ5K, TensorType::kQ6K,
                                TensorType::kQ4_0, TensorType::kIq4Nl})
    EXPECT_LT(p.error(encode_matrix(p.weight, type, p.statistics.importance())),
              p.error(encode_matrix(p.weight, type)))
        << info(type).name;
}

TEST(Gptq, LowersTheOutputsErrorOnEveryFormat) {
  const Problem p;
  for (const TensorType type : {TensorType::kQ3K, TensorType::kQ4K, TensorType::kQ5K, TensorType::kQ6K,
                                TensorType::kQ4_0, TensorType::kIq4Nl, TensorType::kQ8_0})
    for (const bool act_order : {false, true})
      EXPECT_LT(p.error(gptq(p.weight, p.statistics, type, {0.01, act_order})),
                0.5 * p.error(encode_matrix(p.weight, type)))
          << info(type).name << (act_order ? ", act_order" : "");
  // A type without levels has nothing to choose.
  EXPECT_EQ(gptq(p.weight, p.statistics, TensorType::kF16).bytes,
            encode_matrix(p.weight, TensorType::kF16).bytes);
}

/// Two inputs that always agree, rounded to whole steps of Q8_0's d = 127/127 = 1: w₀ = 0.4 rounds to 0, and
/// w₁ = 0.3 must take its 0.4 over: 0.7 rounds to 1. Nearest would give 0 and 0.
TEST(Gptq, PassesAColumnsErrorOn) {
  Tensor weight = at::zeros({1, 32});
  weight[0][0] = 0.4f, weight[0][1] = 0.3f, weight[0][31] = 127.0f;
  Tensor inputs = at::eye(32).slice(0, 2).clone();  // the others are seen alone
  inputs = at::cat({inputs, at::zeros({1, 32})});
  inputs[30][0] = inputs[30][1] = 1;
  InputStatistics statistics;
  statistics.add(inputs);
  const Tensor rounded = decode_matrix(gptq(weight, statistics, TensorType::kQ8_0, {1e-4, false}));
  EXPECT_EQ(rounded[0][0].item<float>(), 0);
  EXPECT_EQ(rounded[0][1].item<float>(), 1);
  EXPECT_EQ(decode_matrix(encode_matrix(weight, TensorType::kQ8_0))[0][1].item<float>(), 0);
}

/// With independent inputs of one size H is a multiple of the identity, nothing can be made up for, and the
/// cost of every column is the same: GPTQ is round-to-nearest.
TEST(Gptq, IsNearestWhereInputsAreIndependent) {
  const Problem p;
  InputStatistics white;
  white.add(at::eye(256) * 3);
  for (const TensorType type : {TensorType::kQ4K, TensorType::kQ3K, TensorType::kIq4Nl}) {
    const auto error = [&](const EncodedMatrix& encoded) {
      return (decode_matrix(encoded) - p.weight).square().sum().item<double>();
    };
    const double nearest = error(encode_matrix(p.weight, type));  // but for ties between scales
    EXPECT_NEAR(error(gptq(p.weight, white, type)), nearest, 1e-3 * nearest) << info(type).name;
  }
}

/// One pass of algorithm 1 as the paper prints it, in double precision and without blocks of columns.
TEST(Gptq, IsThePapersAlgorithm) {
  const Problem p(4, 64);
  const EncodedMatrix encoded = gptq(p.weight, p.statistics, TensorType::kQ8_0, {0.01, false});
  Tensor hessian = p.statistics.second_moment.to(at::kDouble) * 2;
  hessian.diagonal().add_(0.01 * hessian.diagonal().mean());
  Tensor inverse = at::linalg_inv(hessian), w = p.weight.to(at::kDouble).clone();
  const Tensor result = decode_matrix(encoded).to(at::kDouble);
  int differ = 0;
  for (std::int64_t j = 0; j < 64; ++j) {
    const Tensor from = w.select(1, j).clone(), to = result.select(1, j);
    for (std::int64_t r = 0; r < 4; ++r) {  // the step of row r's block: max|w| / 127 when it was reached
      const double gap = std::fabs(from[r].item<double>() - to[r].item<double>());
      const double end = result[r].slice(0, j / 32 * 32, j / 32 * 32 + 32).abs().max().item<double>();
      const bool clamped =
          std::fabs(to[r].item<double>()) >= end;  // what was passed on may lie beyond the range
      differ += !clamped && gap > 0.05 / 127 * 4;
    }
    // δ = (w − q) / [H⁻¹]ⱼⱼ · (H⁻¹)ⱼ,: ; then H⁻¹ without row and column j (equations 2 and 3).
    const Tensor row = inverse.select(0, j).clone();
    w -= ((from - to) / row[j]).unsqueeze(1) * row.unsqueeze(0);
    inverse -= row.unsqueeze(1) * row.unsqueeze(0) / row[j];
  }
  EXPECT_EQ(differ, 0);  // every value that was chosen is the nearest to what the errors before made of it
}

TEST(Awq, NeverWorseThanUnscaledAndBetterWithOutliers) {
  const Problem p;
  Tensor inputs = p.inputs.clone();
  inputs.select(1, 5) *= 60;  // a salient channel
  InputStatistics statistics;
  statistics.add(inputs);
  for (const bool weighted : {false, true}) {
    const AwqScale found = awq_scale({{p.weight, TensorType::kQ4_0}}, statistics, weighted);
    EXPECT_GT(found.alpha, 0);
    const Tensor mean = inputs.abs().mean(0), wanted = mean.pow(found.alpha);
    EXPECT_TRUE(at::allclose(found.scale, wanted / (wanted.max() * wanted.min()).sqrt(), 1e-3));
    const Tensor counts = weighted ? (statistics.importance() / found.scale.square()).contiguous() : Tensor();
    const Tensor rounded =
        decode_matrix(encode_matrix(p.weight * found.scale, TensorType::kQ4_0, counts)) / found.scale;
    EXPECT_LT(output_error(p.weight, rounded, statistics),
              output_error(p.weight, decode_matrix(encode_matrix(p.weight, TensorType::kQ4_0)), statistics));
  }
}

using testing::small;

const auto kGoOn = [] { return Result<void>{}; };

ModelConfig wide(ModelFamily family) {
  ModelConfig c = small(family);
  c.n_embd = 64, c.head_dim = 16;
  for (LayerShape& layer : c.layers) layer.n_ff = 96;
  return c;
}

std::vector<at::Tensor> text() {
  at::Generator generator = at::detail::createCPUGenerator(3);
  std::vector<at::Tensor> out;
  for (int i = 0; i < 4; ++i) out.push_back(at::empty({8, 16}, at::kLong).random_(0, 50, generator));
  return out;
}

double divergence(const Network& a, const Network& b) {
  torch::NoGradGuard no_grad;
  const at::Tensor ids = text()[0];
  const at::Tensor p = at::log_softmax(forward(a, ids), -1), q = at::log_softmax(forward(b, ids), -1);
  return (p.exp() * (p - q)).sum(-1).mean().item<double>();
}

/// Random weights, larger than an untrained model's, so that rounding them shows.
Network network_of(ModelFamily family) {
  Network n = random_network(wide(family), 5);
  for (auto& [name, tensor] : n.weights)
    if (tensor.dim() > 1) tensor *= 6;
  return n;
}

class Quantize : public ::testing::TestWithParam<ModelFamily> {};
INSTANTIATE_TEST_SUITE_P(Families, Quantize,
                         ::testing::Values(ModelFamily::kLlama, ModelFamily::kGpt2, ModelFamily::kBert));

class QuantizeTo : public ::testing::TestWithParam<std::tuple<ModelFamily, TensorType>> {};
INSTANTIATE_TEST_SUITE_P(
    Families, QuantizeTo,
    ::testing::Combine(::testing::Values(ModelFamily::kLlama, ModelFamily::kGpt2, ModelFamily::kBert),
                       ::testing::Values(TensorType::kQ8_0, TensorType::kSparseQ8, TensorType::kCodebook8)));

TEST_P(QuantizeTo, EncodesEveryMatrixAndLeavesVectors) {
  const auto [family, type] = GetParam();
  const Network n = network_of(family);
  Network rounded = n;
  const auto report = quantize(rounded, {.format = type}, {}, kGoOn);
  ASSERT_OK(report);
  EXPECT_EQ(report->size(), rounded.encoded.size());
  for (const auto& [name, tensor] : n.weights) {
    const StoredAs stored = stored_as(n.config.family, name, static_cast<std::size_t>(tensor.dim()));
    ASSERT_EQ(rounded.encoded.contains(name), stored.matrix) << name;
    if (!stored.matrix) {
      EXPECT_TRUE(rounded.weight(name).equal(tensor)) << name;
      continue;
    }
    const EncodedMatrix& encoded = rounded.encoded.at(name);
    EXPECT_EQ(static_cast<std::int64_t>(encoded.columns), tensor.size(stored.transposed ? 0 : 1));
    EXPECT_LT((rounded.weight(name) - tensor).norm().item<float>(), 0.01f * tensor.norm().item<float>())
        << name;
  }
}

TEST_P(Quantize, MethodsThatSeeTextComeNearerToTheTeacher) {
  const Network n = network_of(GetParam());
  using Method = QuantizePass::Method;
  std::map<Method, double> found, head;
  for (const Method method : {Method::kNearest, Method::kImportance, Method::kGptq}) {
    Network rounded = n;
    QuantizePass pass;
    pass.format = TensorType::kQ4_0;
    pass.method = method;
    const auto report = quantize(rounded, pass, text(), kGoOn);
    ASSERT_OK(report);
    for (const QuantizedMatrix& line : *report)
      if (line.name == head_weight(n.config)) head[method] = line.output_error.value_or(0);
    found[method] = divergence(n, rounded);
  }
  EXPECT_LT(found[Method::kImportance], found[Method::kNearest]);
  EXPECT_LT(found[Method::kGptq], 0.6 * found[Method::kNearest]);
  EXPECT_LT(head[Method::kGptq], 0.9 * head[Method::kImportance]) << "a tied embedding's too";
}

/// Folding scales into norms and preceding matrices must not change the model: with 32-bit matrices AWQ is
/// free to scale, and all that may differ is the last bits.
TEST_P(Quantize, AwqsFoldingChangesNothing) {
  Network n = network_of(GetParam());
  for (auto& [name, tensor] : n.weights)  // norms and biases that a forgotten factor would show in
    if (tensor.dim() == 1) tensor += at::linspace(0.1, 0.5, tensor.numel());
  Network scaled = n;
  QuantizePass pass;
  pass.format = TensorType::kQ8_0;  // fine enough that α > 0 is chosen now and then
  pass.awq = true;
  const auto report = quantize(scaled, pass, text(), kGoOn);
  ASSERT_OK(report);
  Network plain = n;
  pass.awq = false;
  ASSERT_OK(quantize(plain, pass, text(), kGoOn));
  bool any = false;
  for (const QuantizedMatrix& line : *report) any |= line.alpha > 0;
  EXPECT_TRUE(any);
  EXPECT_LT(divergence(n, scaled), 1.5 * divergence(n, plain) + 1e-6);
}

/// A text classifier's texts have lengths of their own; its head and the layer before it take part.
TEST(Quantize, ClassifiersOfTexts) {
  ModelConfig config = wide(ModelFamily::kBert);
  config.encoder.mlm_head = false, config.encoder.pooler = true;
  config.encoder.labels = {"a", "b", "c"};
  Network n = random_network(config, 5);
  for (auto& [name, tensor] : n.weights)
    if (tensor.dim() > 1) tensor *= 6;
  at::Generator generator = at::detail::createCPUGenerator(3);
  std::vector<at::Tensor> texts;
  for (int i = 0; i < 60; ++i)
    texts.push_back(at::empty({1, 3 + i % 10}, at::kLong).random_(0, 50, generator));
  const auto lost = [&](const Network& rounded) {
    torch::NoGradGuard no_grad;
    double sum = 0;
    for (const at::Tensor& ids : texts) {
      const at::Tensor p = at::log_softmax(forward(n, ids), -1),
                       q = at::log_softmax(forward(rounded, ids), -1);
      sum += (p.exp() * (p - q)).sum().item<double>();
    }
    return sum;
  };
  using Method = QuantizePass::Method;
  std::map<Method, double> found;
  for (const Method method : {Method::kNearest, Method::kGptq}) {
    Network rounded = n;
    const auto report = quantize(rounded, {.format = TensorType::kQ4_0, .method = method}, texts, kGoOn);
    ASSERT_OK(report);
    for (const char* head : {"classifier.weight", "bert.pooler.dense.weight"})
      EXPECT_TRUE(rounded.encoded.contains(head)) << head;
    for (const QuantizedMatrix& line : *report)
      EXPECT_EQ(line.output_error.has_value(),
                method == Method::kGptq && line.name != "bert.embeddings.word_embeddings.weight")
          << line.name;
    found[method] = lost(rounded);
  }
  EXPECT_LT(found[Method::kGptq], found[Method::kNearest]);
  Network rounded = n;
  QuantizePass budget;
  budget.bits = 6;
  budget.candidates = {TensorType::kQ4_0, TensorType::kQ8_0};
  budget.sensitivity_tokens = 100;
  ASSERT_OK(quantize(rounded, budget, texts, kGoOn));
  EXPECT_LT(lost(rounded), found[Method::kNearest]);
}

TEST(Quantize, PatternsAndBudget) {
  const Network n = network_of(ModelFamily::kLlama);
  Network rounded = n;
  QuantizePass pass;
  pass.format = TensorType::kQ4_0;
  pass.formats = {{"*.mlp.down_proj.weight", TensorType::kQ8_0}, {"model.embed*", TensorType::kF16}};
  ASSERT_OK(quantize(rounded, pass, {}, kGoOn));
  EXPECT_EQ(rounded.encoded.at("model.layers.1.mlp.down_proj.weight").type, TensorType::kQ8_0);
  EXPECT_EQ(rounded.encoded.at("model.layers.1.mlp.up_proj.weight").type, TensorType::kQ4_0);
  EXPECT_EQ(rounded.encoded.at("model.embed_tokens.weight").type, TensorType::kF16);

  pass = {};
  pass.candidates = {TensorType::kQ4_0, TensorType::kQ8_0};
  std::map<double, double> found;
  for (const double bits : {4.5, 6.0, 8.5}) {
    pass.bits = bits;
    rounded = n;
    const auto report = quantize(rounded, pass, text(), kGoOn);
    ASSERT_OK(report);
    std::uint64_t bytes = 0, values = 0;
    for (const QuantizedMatrix& line : *report) {
      bytes += line.bytes, values += line.values;
      ASSERT_EQ(line.sensitivity.size(), 2u);
      EXPECT_GT(line.sensitivity[0].second, line.sensitivity[1].second) << line.name;
    }
    EXPECT_LE(8.0 * static_cast<double>(bytes), bits * static_cast<double>(values));
    found[bits] = divergence(n, rounded);
  }
  EXPECT_LT(found[6.0], found[4.5]);
  EXPECT_LT(found[8.5], found[6.0]);
  pass.bits = 4;
  rounded = n;
  const auto refused = quantize(rounded, pass, text(), kGoOn);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfBudget);
}

}  // namespace
}  // namespace retort
