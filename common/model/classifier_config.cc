#include "common/model/classifier_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

namespace retort {
namespace {

constexpr std::array<std::string_view, 4> kActivations{"none", "relu", "gelu_new", "tanh"};
constexpr std::array<std::string_view, 3> kPoolings{"none", "max", "average"};

template <typename Enum, std::size_t n>
std::optional<Enum> from_name(const std::array<std::string_view, n>& names, std::string_view name) {
  for (std::size_t i = 0; i < n; ++i)
    if (names[i] == name) return static_cast<Enum>(i);
  return std::nullopt;
}

/// Whole windows of `size` at every `stride`-th place of `length`; 0 where there is none.
std::uint32_t windows(std::uint64_t length, std::uint32_t size, std::uint32_t stride) {
  return length < size ? 0 : static_cast<std::uint32_t>((length - size) / stride + 1);
}

MapShape pooled(const Convolution& c, MapShape map) {
  if (c.pooling == Pooling::kNone) return map;
  map.height = windows(map.height, c.pool_size, c.pool_stride);
  map.width = windows(map.width, c.pool_size, c.pool_stride);
  return map;
}

}  // namespace

std::string_view to_string(ClassifierFamily family) {
  return family == ClassifierFamily::kMlp ? "mlp" : "cnn";
}
std::string_view to_string(Activation activation) {
  return kActivations[static_cast<std::size_t>(activation)];
}
std::optional<Activation> activation_from(std::string_view name) {
  return from_name<Activation>(kActivations, name);
}
std::string_view to_string(Pooling pooling) { return kPoolings[static_cast<std::size_t>(pooling)]; }
std::optional<Pooling> pooling_from(std::string_view name) { return from_name<Pooling>(kPoolings, name); }

std::uint8_t ByteTensor::byte(float real) const {
  const float least = is_signed ? -128.0f : 0.0f;
  const float q = std::nearbyint(real / scale) + static_cast<float>(zero_point);
  const auto whole = static_cast<std::int32_t>(std::clamp(std::isnan(q) ? 0.0f : q, least, least + 255));
  return static_cast<std::uint8_t>(whole);
}

MapShape convolved(const Convolution& c, const MapShape& input) {
  return {c.out_channels, windows(std::uint64_t{input.height} + 2 * c.padding, c.kernel, c.stride),
          windows(std::uint64_t{input.width} + 2 * c.padding, c.kernel, c.stride)};
}

std::vector<MapShape> feature_maps(const ClassifierConfig& config) {
  std::vector<MapShape> maps{config.input};
  for (const Convolution& c : config.convolutions) maps.push_back(pooled(c, convolved(c, maps.back())));
  return maps;
}

Result<void> validate(const ClassifierConfig& config, std::string_view where) {
  const auto check = [&](std::uint64_t value, std::uint64_t low, std::uint64_t high,
                         std::string_view name) -> Result<void> {
    if (value >= low && value <= high) return {};
    return fail(ErrorCode::kInvalid, std::string(where), "{} is {}, outside {}…{}", name, value, low, high);
  };
  const auto check_map = [&](const MapShape& map, const std::string& name) -> Result<void> {
    RETORT_TRY(check(map.channels, 1, 1u << 20, "the channels of " + name));
    RETORT_TRY(check(map.height, 1, 1u << 14, "the height of " + name));
    RETORT_TRY(check(map.width, 1, 1u << 14, "the width of " + name));
    return check(map.values(), 1, 1u << 24, "the number of values of " + name);
  };
  RETORT_TRY(check_map(config.input, "the input"));
  const bool mlp = config.family == ClassifierFamily::kMlp;
  if (mlp && (config.input.height != 1 || config.input.width != 1))
    return fail(ErrorCode::kInvalid, std::string(where), "the input of an mlp has one dimension");
  RETORT_TRY(check(config.convolutions.size(), mlp ? 0 : 1, mlp ? 0 : 64, "the number of convolutions"));
  MapShape map = config.input;
  for (std::size_t i = 0; i < config.convolutions.size(); ++i) {
    const Convolution& c = config.convolutions[i];
    const std::string name = fmt::format("convolution {}", i);
    RETORT_TRY(check(c.out_channels, 1, 1u << 14, "the output channels of " + name));
    RETORT_TRY(check(c.kernel, 1, 64, "the kernel of " + name));
    RETORT_TRY(check(c.stride, 1, 64, "the stride of " + name));
    RETORT_TRY(check(c.padding, 0, c.kernel - 1, "the padding of " + name));
    RETORT_TRY(check(std::uint64_t{c.kernel} * c.kernel * map.channels, 1, 1u << 20,
                     "the inputs of an output of " + name));
    if (c.pooling != Pooling::kNone) {
      RETORT_TRY(check(c.pool_size, 1, 64, "the pool size of " + name));
      RETORT_TRY(check(c.pool_stride, 1, 64, "the pool stride of " + name));
    }
    map = convolved(c, map);
    RETORT_TRY(check_map(map, "the output of " + name));
    map = pooled(c, map);
    RETORT_TRY(check_map(map, "the pooled output of " + name));
  }
  RETORT_TRY(check(map.values(), 1, 1u << 20, "the number of inputs of the first dense layer"));
  RETORT_TRY(check(config.hidden.size(), 0, 64, "the number of hidden dense layers"));
  for (const std::uint32_t width : config.hidden)
    RETORT_TRY(check(width, 1, 1u << 16, "the width of a dense layer"));
  RETORT_TRY(check(config.labels.size(), 2, 1u << 16, "the number of labels"));
  std::set<std::string_view> seen;
  for (const std::string& label : config.labels) {
    RETORT_TRY(check(label.size(), 1, 1024, "the length of a label"));
    if (!seen.insert(label).second)
      return fail(ErrorCode::kInvalid, std::string(where), "label '{}' is there twice", label);
  }
  for (const Operation& op : operations(config))
    RETORT_TRY(check(std::uint64_t{op.rows} * op.columns, 1, 1u << 28, "the size of " + op.tensor));
  if (config.mean.size() != config.std.size() ||
      (!config.mean.empty() && config.mean.size() != config.input.channels))
    return fail(ErrorCode::kInvalid, std::string(where),
                "{} means and {} standard deviations for {} {}: give none, or one of each",
                config.mean.size(), config.std.size(), config.input.channels, mlp ? "features" : "channels");
  for (const float value : config.mean)
    if (!std::isfinite(value)) return fail(ErrorCode::kInvalid, std::string(where), "a mean is not finite");
  for (const float value : config.std)
    if (!(value > 0 && std::isfinite(value)))
      return fail(ErrorCode::kInvalid, std::string(where), "a standard deviation is {}, not positive", value);
  if (!config.feature_names.empty() && (!mlp || config.feature_names.size() != config.input.channels))
    return fail(ErrorCode::kInvalid, std::string(where), "{} feature names for {} features",
                config.feature_names.size(), mlp ? config.input.channels : 0);
  for (const auto& bytes : {config.input_bytes, config.output_bytes}) {
    if (!bytes) continue;
    if (!(bytes->scale > 1e-30f && bytes->scale < 1e30f))
      return fail(ErrorCode::kInvalid, std::string(where), "the scale of {} values is {}, not positive",
                  bytes->type(), bytes->scale);
    const std::int32_t least = bytes->is_signed ? -128 : 0;
    if (bytes->zero_point < least || bytes->zero_point > least + 255)
      return fail(ErrorCode::kInvalid, std::string(where), "zero point {} is outside {}", bytes->zero_point,
                  bytes->type());
  }
  for (const std::string& name : config.feature_names)
    RETORT_TRY(check(name.size(), 1, 1024, "the length of a feature's name"));
  return {};
}

std::vector<RepeatedOperation> operations(const ClassifierConfig& config) {
  std::vector<RepeatedOperation> ops;
  const std::vector<MapShape> maps = feature_maps(config);
  for (std::size_t i = 0; i < config.convolutions.size(); ++i) {
    const Convolution& c = config.convolutions[i];
    ops.push_back({{fmt::format("conv.{}.weight", i), c.out_channels, c.kernel * c.kernel * maps[i].channels},
                   static_cast<std::uint32_t>(convolved(c, maps[i]).positions())});
  }
  auto columns = static_cast<std::uint32_t>(maps.back().values());
  for (std::size_t i = 0; i <= config.hidden.size(); ++i) {
    const auto rows =
        i < config.hidden.size() ? config.hidden[i] : static_cast<std::uint32_t>(config.labels.size());
    ops.push_back({{fmt::format("dense.{}.weight", i), rows, columns}});
    columns = rows;
  }
  return ops;
}

std::uint64_t parameter_count(const ClassifierConfig& config) {
  std::uint64_t count = 0;
  for (const Operation& op : operations(config)) count += std::uint64_t{op.rows} * (op.columns + 1);
  return count;
}

}  // namespace retort
