#include "common/hf/classifier_model.h"
#include "coordinator/worker/classifier.h"
#include "coordinator/worker/quantize.h"
#include "tests/support/support.h"

namespace retort {
namespace {

using at::Tensor;
using Method = QuantizePass::Method;

const auto kGoOn = [] { return Result<void>{}; };

/// Rows of 18, 72, 16 and 256 columns: none, one and eight whole blocks, and some that are filled up.
Network small_cnn() {
  ClassifierConfig c;
  c.family = ClassifierFamily::kCnn;
  c.input = {2, 8, 8};
  c.convolutions = {{.out_channels = 8, .kernel = 3, .padding = 1, .pooling = Pooling::kMax},
                    {.out_channels = 16, .kernel = 3, .stride = 2, .padding = 2}};
  c.hidden = {256};
  c.labels = {"a", "b", "c", "d"};
  c.mean = {0.5f, -1}, c.std = {2, 0.25f};
  Network n;
  n.classifier = c;
  randomize(n, 3);
  for (auto& [name, tensor] : n.weights)
    tensor *= tensor.dim() > 1 ? 6 : 1;  // larger than an untrained model's, so that rounding shows
  return n;
}

/// Images whose pixels hang together with their neighbours and with the other channel.
std::vector<Tensor> images() {
  at::Generator generator = at::detail::createCPUGenerator(9);
  std::vector<Tensor> out;
  for (int i = 0; i < 4; ++i) {
    const Tensor coarse = at::empty({64, 1, 3, 3}, at::kFloat).normal_(0, 1, generator);
    const Tensor smooth = at::upsample_bilinear2d(coarse, {8, 8}, true).expand({64, 2, 8, 8});
    out.push_back((smooth + at::empty({64, 2, 8, 8}, at::kFloat).normal_(0, 0.2, generator)).flatten(1));
  }
  return out;
}

/// What goes into each matrix of `network`, in PyTorch's layout.
std::map<std::string, Tensor> inputs_of(const Network& network) {
  torch::NoGradGuard no_grad;
  std::map<std::string, std::vector<Tensor>> seen;
  Trace trace;
  trace.inputs = [&](const std::string& name, const Tensor& input) { seen[name].push_back(input); };
  for (const Tensor& batch : images()) class_logits(network, {batch, {}, {}}, nullptr, &trace);
  std::map<std::string, Tensor> out;
  for (const auto& [name, pieces] : seen) out.emplace(name, at::cat(pieces));
  return out;
}

/// One layer's product without its bias, by PyTorch's own convolution and product.
Tensor product(const Network& network, const std::string& name, const Tensor& weight, const Tensor& input) {
  if (!name.starts_with("conv.")) return at::linear(input, weight);
  const Convolution& c = network.classifier->convolutions[std::stoul(name.substr(5))];
  return at::conv2d(input, weight, {}, c.stride, c.padding);
}

struct LayerErrors {
  double output = 0;    ///< ‖ΔX‖² / ‖WX‖²
  double weighted = 0;  ///< Σ Δ² x², what importance makes least
};
LayerErrors layer_errors(const Network& whole, const Network& rounded, const std::string& name,
                         const Tensor& input) {
  const Tensor lost = rounded.weight(name) - whole.weight(name);
  const auto power = [&](const Tensor& weight) {
    return product(whole, name, weight, input).square().sum().item<double>();
  };
  return {power(lost) / power(whole.weight(name)),
          product(whole, name, lost.square(), input.square()).sum().item<double>()};
}

double divergence(const Network& a, const Network& b) {
  torch::NoGradGuard no_grad;
  const ExampleBatch batch{images()[0], {}, {}};
  const Tensor p = at::log_softmax(class_logits(a, batch), -1),
               q = at::log_softmax(class_logits(b, batch), -1);
  return (p.exp() * (p - q)).sum(-1).mean().item<double>();
}

/// Bytes of a tensor in the file that write_gguf_classifier makes.
std::map<std::string, std::vector<std::byte>> written(const Network& network, TensorType type,
                                                      const EncodedWeights& encoded) {
  testing::TemporaryFolder folder;
  EXPECT_OK(write_gguf_classifier(folder / "c.gguf", *network.classifier, weight_sources(network), type, {},
                                  encoded));
  const auto file = GgufFile::open(folder / "c.gguf");
  EXPECT_OK(file);
  EXPECT_OK(read_gguf_classifier_config(*file));
  std::map<std::string, std::vector<std::byte>> out;
  for (const GgufTensor& tensor : file->tensors())
    out[tensor.name] = {tensor.data.begin(), tensor.data.end()};
  return out;
}

/// Rounded to nearest beforehand or when the file is written: the same file, and the network holds its
/// values.
TEST(QuantizeClassifier, NearestIsWhatTheWriterWrites) {
  const Network n = small_cnn();
  for (const TensorType type : {TensorType::kQ8_0, TensorType::kQ4_0, TensorType::kQ4K, TensorType::kF16,
                                TensorType::kSparseQ8, TensorType::kCodebook8}) {
    Network rounded = n;
    const auto report = quantize_classifier(rounded, {.format = type}, {}, kGoOn);
    ASSERT_OK(report);
    EXPECT_EQ(report->size(), 4u);
    EXPECT_EQ(rounded.encoded.size(), 4u);
    const auto file = written(rounded, TensorType::kF32, rounded.encoded);
    EXPECT_EQ(file, written(n, type, {})) << info(type).name;
    for (const ClassifierMatrix& m : classifier_matrices(*n.classifier)) {
      EXPECT_EQ(rounded.weight(m.name).sizes(), n.weight(m.name).sizes());
      EXPECT_LT((rounded.weight(m.name) - n.weight(m.name)).norm().item<float>(),
                0.15f * n.weight(m.name).norm().item<float>())
          << m.name << ", " << info(type).name;
    }
  }
}

TEST(QuantizeClassifier, MethodsThatSeeExamplesComeNearerToTheTeacher) {
  const Network n = small_cnn();
  std::map<Method, double> lost;
  std::map<Method, std::map<std::string, LayerErrors>> errors;
  for (const Method method : {Method::kNearest, Method::kImportance, Method::kGptq}) {
    Network rounded = n;
    const auto report =
        quantize_classifier(rounded, {.format = TensorType::kQ4_0, .method = method}, images(), kGoOn);
    ASSERT_OK(report);
    const auto inputs = inputs_of(rounded);  // as each matrix saw them: those before it are rounded
    for (const QuantizedMatrix& line : *report) {
      errors[method][line.name] = layer_errors(n, rounded, line.name, inputs.at(line.name));
      const double error = errors[method][line.name].output;
      ASSERT_EQ(line.output_error.has_value(), method != Method::kNearest);
      if (line.output_error) {
        EXPECT_NEAR(*line.output_error, error, 2e-3 * error) << line.name;
      }
    }
    lost[method] = divergence(n, rounded);
  }
  for (const auto& [name, nearest] : errors[Method::kNearest]) {
    EXPECT_LT(errors[Method::kImportance][name].weighted, nearest.weighted) << name;
    EXPECT_LT(errors[Method::kGptq][name].output, 0.7 * nearest.output) << name;
  }
  EXPECT_LT(lost[Method::kGptq], lost[Method::kNearest]);
}

TEST(QuantizeClassifier, PatternsAndBudget) {
  const Network n = small_cnn();
  Network rounded = n;
  QuantizePass pass;
  pass.format = TensorType::kQ4_0;
  pass.formats = {{"conv.0.*", TensorType::kF16}};
  ASSERT_OK(quantize_classifier(rounded, pass, {}, kGoOn));
  EXPECT_EQ(rounded.encoded.at("conv.0.weight").type, TensorType::kF16);
  EXPECT_EQ(rounded.encoded.at("conv.0.weight").columns, 18u) << "nothing is filled up";
  EXPECT_EQ(rounded.encoded.at("conv.1.weight").type, TensorType::kQ4_0);

  pass = {};
  pass.candidates = {TensorType::kQ4_0, TensorType::kQ8_0, TensorType::kF16};
  std::map<double, double> found;
  for (const double bits : {5.5, 8.0, 12.0}) {
    pass.bits = bits;
    rounded = n;
    const auto report = quantize_classifier(rounded, pass, images(), kGoOn);
    ASSERT_OK(report);
    std::uint64_t bytes = 0, values = 0;
    for (const QuantizedMatrix& line : *report) {
      EXPECT_EQ(line.values, static_cast<std::uint64_t>(n.weight(line.name).numel()));
      EXPECT_EQ(line.bytes, rounded.encoded.at(line.name).bytes.size());
      EXPECT_EQ(line.sensitivity.size(), 3u) << line.name;
      bytes += line.bytes, values += line.values;
    }
    EXPECT_LE(8.0 * static_cast<double>(bytes), bits * static_cast<double>(values));
    found[bits] = divergence(n, rounded);
  }
  EXPECT_LT(found[8.0], found[5.5]);
  EXPECT_LT(found[12.0], found[8.0]);
  pass.bits = 4.5;  // Q4_0 itself, but for the columns that fill rows up
  rounded = n;
  const auto refused = quantize_classifier(rounded, pass, images(), kGoOn);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfBudget);
}

}  // namespace
}  // namespace retort
