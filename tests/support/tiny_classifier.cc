#include "tests/support/tiny_classifier.h"

#include <cmath>

#include "common/hf/classifier_model.h"

namespace retort::testing {

ClassifierConfig random_classifier(ClassifierFamily family, RandomSource& random) {
  const auto between = [&](std::uint32_t low, std::uint32_t high) {
    return low + static_cast<std::uint32_t>(random.next_u64() % (high - low + 1));
  };
  ClassifierConfig c;
  c.family = family;
  if (family == ClassifierFamily::kMlp) {
    c.input = {between(1, 70), 1, 1};
    if (between(0, 1) == 1)
      for (std::uint32_t i = 0; i < c.input.channels; ++i)
        c.feature_names.push_back("feature " + std::to_string(i));
  } else {
    c.input = {between(1, 4), between(6, 17), between(6, 17)};
    MapShape map = c.input;
    for (std::uint32_t i = between(1, 3); i > 0 && map.height > 2 && map.width > 2; --i) {
      Convolution conv;
      conv.out_channels = between(1, 24);
      conv.kernel = between(1, std::min(3u, std::min(map.height, map.width)));
      conv.stride = between(1, 2);
      conv.padding = between(0, conv.kernel - 1);
      conv.activation = static_cast<Activation>(between(0, 3));
      map = convolved(conv, map);
      if (map.height >= 2 && map.width >= 2) {
        conv.pooling = static_cast<Pooling>(between(0, 2));
        if (conv.pooling != Pooling::kNone) conv.pool_size = between(1, 2), conv.pool_stride = between(1, 2);
      }
      c.convolutions.push_back(conv);
      map = feature_maps(c).back();
    }
  }
  for (std::uint32_t i = between(0, 2); i > 0; --i) c.hidden.push_back(between(1, 90));
  c.activation = static_cast<Activation>(between(0, 3));
  for (std::uint32_t i = between(2, 20); i > 0; --i) c.labels.push_back("label " + std::to_string(i));
  if (between(0, 1) == 1)
    for (std::uint32_t i = 0; i < c.input.channels; ++i) {
      c.mean.push_back(static_cast<float>(random.next_unit() - 0.5));
      c.std.push_back(static_cast<float>(random.next_unit() + 0.5));
    }
  for (auto* bytes : {&c.input_bytes, &c.output_bytes})
    if (between(0, 2) == 0) {
      const bool is_signed = between(0, 1) == 1;
      *bytes = ByteTensor{is_signed, static_cast<float>(0.01 + random.next_unit()),
                          static_cast<std::int32_t>(between(0, 255)) - (is_signed ? 128 : 0)};
    }
  return c;
}

std::vector<TensorSource> random_weights(const ClassifierConfig& config, std::uint64_t seed) {
  std::vector<TensorSource> out;
  for (WeightShape& weight : classifier_weights(config)) {
    std::uint64_t inputs = 1;
    for (std::size_t i = 1; i < weight.shape.size(); ++i) inputs *= weight.shape[i];
    const double spread = weight.shape.size() == 1 ? 0.1 : std::sqrt(6.0 / static_cast<double>(inputs));
    const std::uint64_t tensor_seed = seed * 1000003 + out.size();
    out.push_back(
        {std::move(weight.name), std::move(weight.shape), [=](std::span<float> values) -> Result<void> {
           SeededRandom random(tensor_seed);
           for (float& x : values) x = static_cast<float>((2 * random.next_unit() - 1) * spread);
           return {};
         }});
  }
  return out;
}

}  // namespace retort::testing
