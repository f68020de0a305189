#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/result.h"
#include "common/model/model_config.h"

namespace retort {

/// Retort's own small classifiers of tensors: multi-layer perceptrons and convolutional networks.
enum class ClassifierFamily { kMlp, kCnn };
std::string_view to_string(ClassifierFamily family);  ///< "mlp", "cnn": also GGUF's general.architecture

/// kGelu is the tanh form, Hugging Face's "gelu_new".
enum class Activation { kNone, kRelu, kGelu, kTanh };
std::string_view to_string(Activation activation);  ///< "none", "relu", "gelu_new", "tanh"
std::optional<Activation> activation_from(std::string_view name);

enum class Pooling { kNone, kMax, kAverage };
std::string_view to_string(Pooling pooling);  ///< "none", "max", "average"
std::optional<Pooling> pooling_from(std::string_view name);

/// What stands between two convolutions, for one input.
struct MapShape {
  std::uint32_t channels = 0, height = 0, width = 0;
  std::uint64_t positions() const { return std::uint64_t{height} * width; }
  std::uint64_t values() const { return channels * positions(); }
  bool operator==(const MapShape&) const = default;
};

/// A convolution with a square kernel (PyTorch's Conv2d: not mirrored, zeros as padding) and a bias, then its
/// activation, then pooling over whole windows (no padding, what is left over at the edges is dropped).
struct Convolution {
  std::uint32_t out_channels = 0, kernel = 3, stride = 1, padding = 0;
  Activation activation = Activation::kRelu;
  Pooling pooling = Pooling::kNone;
  std::uint32_t pool_size = 2, pool_stride = 2;  ///< where there is pooling
  bool operator==(const Convolution&) const = default;
};

/// How real values stand in bytes: value = scale · (q − zero_point), as ONNX's QuantizeLinear has it.
struct ByteTensor {
  bool is_signed = false;  ///< int8, else uint8
  float scale = 1;
  std::int32_t zero_point = 0;
  bool operator==(const ByteTensor&) const = default;

  std::string_view type() const { return is_signed ? "int8" : "uint8"; }
  float value(std::uint8_t byte) const {
    return scale *
           static_cast<float>((is_signed ? static_cast<std::int8_t>(byte) : std::int32_t{byte}) - zero_point);
  }
  /// Rounded to the nearest, half to even; cut off at the type's ends.
  std::uint8_t byte(float value) const;
};

/// The architecture of a classifier: (input − mean) / std, convolutions (cnn), the last map flattened channel
/// by channel, hidden dense layers each with its activation, and a dense layer of one output (logit) a label.
struct ClassifierConfig {
  ClassifierFamily family = ClassifierFamily::kMlp;
  /// mlp: {features, 1, 1}; cnn: the image, [channels, height, width] row-major.
  MapShape input;
  std::vector<Convolution> convolutions;      ///< cnn: at least one
  std::vector<std::uint32_t> hidden;          ///< widths of the dense layers before the last; may be empty
  Activation activation = Activation::kRelu;  ///< of the hidden dense layers
  std::vector<std::string> labels;            ///< of the outputs, in order; each once
  /// Of each feature (mlp) or channel (cnn), in the input's own units; both empty: the input as it is.
  std::vector<float> mean, std;
  std::vector<std::string> feature_names;  ///< mlp: none, or one a feature
  /// Of inputs and logits that come and go as bytes (an INT8 model); none: inputs are real, bytes mean
  /// themselves.
  std::optional<ByteTensor> input_bytes, output_bytes;

  bool operator==(const ClassifierConfig&) const = default;
};

/// Bounds that hold for anything read from outside: at least two labels, every map at least one position, no
/// map above 2^24 values, no matrix above 2^28 … kInvalid names the field.
Result<void> validate(const ClassifierConfig& config, std::string_view where);

/// What convolution i leaves before pooling.
MapShape convolved(const Convolution& convolution, const MapShape& input);
/// The input of each convolution, then that of the first dense layer: convolutions + 1 entries.
std::vector<MapShape> feature_maps(const ClassifierConfig& config);

/// A matrix product that a forward pass of one input does so many times: a convolution, at every position.
struct RepeatedOperation : Operation {
  std::uint32_t times = 1;
};
/// Those of a forward pass: "conv.0.weight", …, "dense.0.weight", … Columns are [kernel row, kernel column,
/// channel] in a convolution.
std::vector<RepeatedOperation> operations(const ClassifierConfig& config);
std::uint64_t parameter_count(const ClassifierConfig& config);  ///< weights and biases

}  // namespace retort
