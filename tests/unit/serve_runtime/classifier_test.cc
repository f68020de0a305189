#include <algorithm>
#include <cmath>
#include <map>

#include "agent/serve/runtime/classifier.h"
#include "common/hf/classifier_model.h"
#include "tests/support/support.h"
#include "tests/support/tiny_classifier.h"
#include "tests/unit/serve_runtime/allocations.h"

namespace retort {
namespace {

using testing::TemporaryFolder;

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kGelu:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kTanh:
      return std::tanh(x);
  }
  return 0;
}

/// The definition, in double, over PyTorch's layouts: [channel][row][column]. `type` is what the weights were
/// stored as; with a block format inputs are rounded as the runtime rounds them, in its order of columns.
class Reference {
 public:
  Reference(const ClassifierConfig& config, const std::vector<TensorSource>& weights, TensorType type,
            std::map<std::string, double> input_scales = {})
      : c_(config), weights_(weights), type_(type), input_scales_(std::move(input_scales)) {}

  std::vector<double> logits(std::span<const float> input) {
    std::vector<double> map(input.begin(), input.end());
    MapShape shape = c_.input;
    for (std::size_t i = 0; i < map.size(); ++i)
      if (!c_.mean.empty()) {
        const std::size_t ch = i / shape.positions();
        map[i] = (map[i] - static_cast<double>(c_.mean[ch])) / static_cast<double>(c_.std[ch]);
      }
    for (std::size_t i = 0; i < c_.convolutions.size(); ++i) {
      map = convolution(i, map, shape);
      shape = feature_maps(c_)[i + 1];
    }
    for (std::size_t i = 0; i <= c_.hidden.size(); ++i) {
      const auto w = read(fmt::format("dense.{}.weight", i)), b = read(fmt::format("dense.{}.bias", i));
      const std::size_t columns = map.size(), channels = i == 0 ? shape.channels : columns;
      std::vector<double> out(b.size());
      for (std::size_t r = 0; r < out.size(); ++r) {
        std::vector<double> x, row;  // position by position
        for (std::size_t p = 0; p < columns / channels; ++p)
          for (std::size_t ch = 0; ch < channels; ++ch) {
            const std::size_t at = ch * (columns / channels) + p;
            x.push_back(map[at]);
            row.push_back(static_cast<double>(w[r * columns + at]));
          }
        out[r] = dot(row, x, fmt::format("dense.{}.weight", i)) + static_cast<double>(b[r]);
        if (i < c_.hidden.size()) out[r] = activated(c_.activation, out[r]);
      }
      map = out;
    }
    return map;
  }

 private:
  std::vector<float> read(const std::string& name) {
    for (const TensorSource& source : weights_)
      if (source.name == name) {
        std::size_t count = 1;
        for (const auto d : source.shape) count *= d;
        std::vector<float> out(count);
        EXPECT_OK(source.read(out));
        return out;
      }
    ADD_FAILURE() << name;
    return {};
  }

  double dot(std::vector<double> row, std::vector<double> x, const std::string& tensor) const {
    if (info(type_).block_values > 1) {
      row.resize((row.size() + 31) / 32 * 32);
      x.resize(row.size());
      const TensorType stored = stored_type(type_, row.size());
      std::vector<float> narrow(row.begin(), row.end());
      std::vector<std::byte> bytes(*row_bytes(stored, narrow.size()));
      encode_row(stored, narrow, bytes);
      decode_row(stored, bytes, narrow);
      row.assign(narrow.begin(), narrow.end());
      for (std::size_t b = 0; b < x.size(); b += 32) {
        double top = 0;
        for (std::size_t i = 0; i < 32; ++i) top = std::max(top, std::fabs(x[b + i]));
        const auto fixed = input_scales_.find(tensor);
        const bool dynamic = fixed == input_scales_.end();
        const double scale = dynamic ? top / 127 : fixed->second;
        const double kept = dynamic ? f16_to_f32(f32_to_f16(static_cast<float>(scale))) : scale;
        for (std::size_t i = 0; i < 32; ++i)
          x[b + i] = scale == 0 ? 0 : std::clamp(std::nearbyint(x[b + i] / scale), -127.0, 127.0) * kept;
      }
    }
    double sum = 0;
    for (std::size_t i = 0; i < row.size(); ++i) sum += row[i] * x[i];
    return sum;
  }

  std::vector<double> convolution(std::size_t index, const std::vector<double>& in, const MapShape& shape) {
    const Convolution& conv = c_.convolutions[index];
    const auto w = read(fmt::format("conv.{}.weight", index)), b = read(fmt::format("conv.{}.bias", index));
    const MapShape out = convolved(conv, shape);
    std::vector<double> map(out.values());
    for (std::uint32_t y = 0; y < out.height; ++y)
      for (std::uint32_t x = 0; x < out.width; ++x)
        for (std::uint32_t o = 0; o < conv.out_channels; ++o) {
          std::vector<double> patch, row;
          for (std::uint32_t ky = 0; ky < conv.kernel; ++ky)
            for (std::uint32_t kx = 0; kx < conv.kernel; ++kx)
              for (std::uint32_t ch = 0; ch < shape.channels; ++ch) {
                const int iy = static_cast<int>(y * conv.stride + ky) - static_cast<int>(conv.padding),
                          ix = static_cast<int>(x * conv.stride + kx) - static_cast<int>(conv.padding);
                const bool inside = iy >= 0 && ix >= 0 && iy < static_cast<int>(shape.height) &&
                                    ix < static_cast<int>(shape.width);
                patch.push_back(
                    inside
                        ? in[(std::size_t{ch} * shape.height + static_cast<std::size_t>(iy)) * shape.width +
                             static_cast<std::size_t>(ix)]
                        : 0);
                row.push_back(static_cast<double>(
                    w[((std::size_t{o} * shape.channels + ch) * conv.kernel + ky) * conv.kernel + kx]));
              }
          map[(std::size_t{o} * out.height + y) * out.width + x] =
              activated(conv.activation,
                        dot(row, patch, fmt::format("conv.{}.weight", index)) + static_cast<double>(b[o]));
        }
    if (conv.pooling == Pooling::kNone) return map;
    const MapShape pooled = feature_maps(c_)[index + 1];
    std::vector<double> result(pooled.values());
    for (std::uint32_t o = 0; o < pooled.channels; ++o)
      for (std::uint32_t y = 0; y < pooled.height; ++y)
        for (std::uint32_t x = 0; x < pooled.width; ++x) {
          double most = -1e300, sum = 0;
          for (std::uint32_t wy = 0; wy < conv.pool_size; ++wy)
            for (std::uint32_t wx = 0; wx < conv.pool_size; ++wx) {
              const double v = map[(std::size_t{o} * out.height + y * conv.pool_stride + wy) * out.width +
                                   x * conv.pool_stride + wx];
              most = std::max(most, v);
              sum += v;
            }
          result[(std::size_t{o} * pooled.height + y) * pooled.width + x] =
              conv.pooling == Pooling::kMax ? most : sum / (conv.pool_size * conv.pool_size);
        }
    return result;
  }

  const ClassifierConfig& c_;
  const std::vector<TensorSource>& weights_;
  TensorType type_;
  std::map<std::string, double> input_scales_;
};

std::shared_ptr<const Classifier> written(const TemporaryFolder& folder, const ClassifierConfig& config,
                                          const std::vector<TensorSource>& weights, TensorType type,
                                          const ClassifierOptions& options = {}) {
  EXPECT_OK(write_gguf_classifier(folder / "c.gguf", config, weights, type, {}));
  auto model = Classifier::open(folder / "c.gguf", options);
  EXPECT_OK(model);
  return *model;
}

std::vector<float> random_inputs(const ClassifierConfig& config, std::size_t count, RandomSource& random) {
  std::vector<float> out(count * config.input.values());
  for (float& x : out) x = static_cast<float>(3 * random.next_unit() - 1.5);
  return out;
}

std::vector<float> run(const std::shared_ptr<const Classifier>& model, std::span<const float> inputs,
                       std::uint32_t batch, std::uint32_t threads) {
  ThreadTeam team(threads);
  const auto session = ClassifierSession::create(model, team, {.batch = batch});
  EXPECT_OK(session);
  const std::size_t values = model->config().input.values();
  std::vector<float> out;
  for (std::size_t at = 0; at < inputs.size();) {
    const std::size_t n = std::min<std::size_t>(batch, (inputs.size() - at) / values) * values;
    const auto logits = (*session)->run(inputs.subspan(at, n));
    EXPECT_OK(logits);
    out.insert(out.end(), logits->begin(), logits->end());
    at += n;
  }
  return out;
}

TEST(ClassifierSession, AgreesWithTheDefinitionOverRandomShapes) {
  SeededRandom random(11);
  for (int i = 0; i < 60; ++i) {
    const auto family = i % 3 == 0 ? ClassifierFamily::kMlp : ClassifierFamily::kCnn;
    const ClassifierConfig config = testing::random_classifier(family, random);
    const auto weights = testing::random_weights(config, static_cast<std::uint64_t>(i));
    const std::vector<float> inputs = random_inputs(config, 3, random);
    for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kQ8_0}) {
      for (const bool pack : {true, false}) {
        TemporaryFolder folder;
        const auto model = written(folder, config, weights, type, {.pack = pack});
        const std::vector<float> logits = run(model, inputs, 2, 2);
        ASSERT_EQ(logits.size(), 3 * config.labels.size());
        Reference reference(config, weights, type);
        for (std::size_t n = 0; n < 3; ++n) {
          const auto expected =
              reference.logits(std::span(inputs).subspan(n * config.input.values(), config.input.values()));
          // A value at the edge between two steps of 8 bits may be rounded to either.
          const double tolerance = type == TensorType::kF32 ? 2e-5 : type == TensorType::kF16 ? 5e-3 : 3e-2;
          for (std::size_t l = 0; l < expected.size(); ++l)
            ASSERT_NEAR(static_cast<double>(logits[n * expected.size() + l]), expected[l],
                        tolerance * (1 + std::fabs(expected[l])))
                << "case " << i << ", " << info(type).name << (pack ? ", packed" : "");
        }
      }
    }
  }
}

TEST(ClassifierSession, CalibratedInputScalesAreUsedAsTheyAre) {
  SeededRandom random(21);
  for (int i = 0; i < 30; ++i) {
    const auto family = i % 3 == 0 ? ClassifierFamily::kMlp : ClassifierFamily::kCnn;
    const ClassifierConfig config = testing::random_classifier(family, random);
    const auto weights = testing::random_weights(config, static_cast<std::uint64_t>(i));
    std::map<std::string, double> scales;
    GgufMetadata extra;
    for (const RepeatedOperation& op : operations(config))
      if (random.next_u64() % 3 != 0) {
        const auto scale = static_cast<float>(0.004 + 0.02 * random.next_unit());  // some cut values off
        scales[op.tensor] = static_cast<double>(scale);
        extra.emplace_back("retort.input_scale." + op.tensor, static_cast<double>(scale));
      }
    TemporaryFolder folder;
    ASSERT_OK(write_gguf_classifier(folder / "c.gguf", config, weights, TensorType::kQ8_0, extra));
    const auto model = Classifier::open(folder / "c.gguf");
    ASSERT_OK(model);
    const std::vector<float> inputs = random_inputs(config, 2, random);
    const std::vector<float> logits = run(*model, inputs, 2, 1);
    Reference reference(config, weights, TensorType::kQ8_0, scales);
    for (std::size_t n = 0; n < 2; ++n) {
      const auto expected =
          reference.logits(std::span(inputs).subspan(n * config.input.values(), config.input.values()));
      for (std::size_t l = 0; l < expected.size(); ++l)
        ASSERT_NEAR(static_cast<double>(logits[n * expected.size() + l]), expected[l],
                    3e-2 * (1 + std::fabs(expected[l])))
            << "case " << i;
    }
  }
}

TEST(InputScales, WhatDoesNotFitIsRefused) {
  SeededRandom random(22);
  const ClassifierConfig config = testing::random_classifier(ClassifierFamily::kMlp, random);
  TemporaryFolder folder;
  const auto refusal = [&](TensorType type, const char* key, double scale) {
    EXPECT_OK(write_gguf_classifier(folder / "c.gguf", config, testing::random_weights(config, 1), type,
                                    {{key, scale}}));
    const auto model = Classifier::open(folder / "c.gguf");
    return model ? std::string("opened") : model.error().message;
  };
  EXPECT_EQ(refusal(TensorType::kQ8_0, "retort.input_scale.dense.0.weight", 0.01), "opened");
  EXPECT_NE(refusal(TensorType::kQ8_0, "retort.input_scale.dense.9.weight", 0.01).find("no such tensor"),
            std::string::npos);
  for (const double bad : {0.0, -1.0, 1e38})
    EXPECT_NE(refusal(TensorType::kQ8_0, "retort.input_scale.dense.0.weight", bad).find("no positive scale"),
              std::string::npos);
  EXPECT_NE(refusal(TensorType::kF32, "retort.input_scale.dense.0.weight", 0.01).find("not quantized"),
            std::string::npos);
  const InputScales scales{{"a", 0.5f}, {"b", 0.5f}, {"c", 0.25f}};
  EXPECT_EQ(*shared_input_scale(scales, {"a", "b"}, "t"), 0.5f);
  EXPECT_EQ(*shared_input_scale(scales, {"d", "e"}, "t"), 0.0f);
  EXPECT_FALSE(shared_input_scale(scales, {"a", "c"}, "t"));
  EXPECT_FALSE(shared_input_scale(scales, {"a", "d"}, "t"));
}

TEST(ClassifierSession, NeitherBatchNorThreadsChangeABit) {
  SeededRandom random(12);
  for (const ClassifierFamily family : {ClassifierFamily::kMlp, ClassifierFamily::kCnn})
    for (const TensorType type : {TensorType::kF32, TensorType::kQ8_0}) {
      ClassifierConfig config = testing::random_classifier(family, random);
      config.hidden = {300, 300};  // enough work to be shared
      TemporaryFolder folder;
      const auto model = written(folder, config, testing::random_weights(config, 2), type);
      const std::vector<float> inputs = random_inputs(config, 13, random);
      const std::vector<float> alone = run(model, inputs, 1, 1);
      EXPECT_EQ(run(model, inputs, 13, 1), alone);
      EXPECT_EQ(run(model, inputs, 5, 3), alone);
    }
}

TEST(ClassifierSession, NothingIsAllocatedAfterCreation) {
  SeededRandom random(13);
  for (const TensorType type : {TensorType::kF32, TensorType::kQ8_0}) {
    const ClassifierConfig config = testing::random_classifier(ClassifierFamily::kCnn, random);
    TemporaryFolder folder;
    const auto model = written(folder, config, testing::random_weights(config, 3), type);
    ThreadTeam team(2);
    const auto session = ClassifierSession::create(model, team, {.batch = 4});
    ASSERT_OK(session);
    const std::vector<float> inputs = random_inputs(config, 4, random);
    const std::size_t before = allocations;
    for (int i = 0; i < 20; ++i) ASSERT_OK((*session)->run(inputs));
    EXPECT_EQ(allocations - before, 0u);
  }
}

TEST(ClassifierSession, LimitsAreRefusedWithNumbers) {
  SeededRandom random(14);
  const ClassifierConfig config = testing::random_classifier(ClassifierFamily::kCnn, random);
  TemporaryFolder folder;
  const auto model = written(folder, config, testing::random_weights(config, 3), TensorType::kF32);
  ThreadTeam team(1);
  const auto refused = ClassifierSession::create(model, team, {.memory_limit = 1000});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfBudget);
  EXPECT_NE(refused.error().message.find("the limit is 1000 B"), std::string::npos);
  const auto session = ClassifierSession::create(model, team, {.batch = 2});
  ASSERT_OK(session);
  EXPECT_FALSE((*session)->run({}));
  const std::vector<float> inputs(3 * config.input.values());
  EXPECT_FALSE((*session)->run(inputs));
  EXPECT_FALSE((*session)->run(std::span(inputs).first(config.input.values() + 1)));
}

TEST(ClassifierSession, PackedWeightsAreKeptForTheNextStart) {
  SeededRandom random(15);
  const ClassifierConfig config = testing::random_classifier(ClassifierFamily::kMlp, random);
  TemporaryFolder folder;
  const auto weights = testing::random_weights(config, 3);
  const auto first = written(folder, config, weights, TensorType::kQ8_0, {.pack_cache = folder / "cache"});
  const auto again = Classifier::open(folder / "c.gguf", {.pack_cache = folder / "cache"});
  ASSERT_OK(again);
  EXPECT_EQ((*again)->packed_is_shared(), (*again)->packed_bytes() != 0);
  const std::vector<float> inputs = random_inputs(config, 2, random);
  EXPECT_EQ(run(first, inputs, 2, 1), run(*again, inputs, 2, 1));
}

TEST(Probabilities, AreSoftmax) {
  const std::vector<float> logits{1000, 999, -1000};
  std::vector<float> p(3);
  probabilities(logits, p);
  EXPECT_NEAR(p[0], 1 / (1 + std::exp(-1.0)), 1e-6);
  EXPECT_NEAR(p[1], 1 - 1 / (1 + std::exp(-1.0)), 1e-6);
  EXPECT_NEAR(p[2], 0, 1e-6);
}

}  // namespace
}  // namespace retort
