#include "common/hf/classifier_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "common/blocks/matrix.h"
#include "common/core/file.h"
#include "common/core/json.h"

namespace retort {
namespace {

constexpr std::uint64_t kMaxConfigBytes = 64u << 20, kMaxNumber = 1u << 24;

/// A weight in GGUF and its shape in PyTorch, row-major.
struct Mapping : ClassifierMatrix {
  std::vector<std::uint64_t> shape;

  bool is_bias() const { return shape.size() == 1; }
};

std::vector<Mapping> mappings(const ClassifierConfig& config) {
  std::vector<Mapping> out;
  const std::vector<MapShape> maps = feature_maps(config);
  const auto bias = [&](const std::string& layer, std::uint64_t rows) {
    out.push_back({{layer + "bias", rows, 1}, {rows}});
  };
  for (std::size_t i = 0; i < config.convolutions.size(); ++i) {
    const Convolution& c = config.convolutions[i];
    const std::string layer = fmt::format("conv.{}.", i);
    const std::uint64_t kernel = c.kernel, channels = maps[i].channels;
    out.push_back({{layer + "weight", c.out_channels, channels, kernel * kernel},
                   {c.out_channels, channels, kernel, kernel}});
    bias(layer, c.out_channels);
  }
  std::uint64_t channels = maps.back().channels, positions = maps.back().positions();
  for (std::size_t i = 0; i <= config.hidden.size(); ++i) {
    const std::uint64_t rows = i < config.hidden.size() ? config.hidden[i] : config.labels.size();
    const std::string layer = fmt::format("dense.{}.", i);
    out.push_back({{layer + "weight", rows, channels, positions}, {rows, channels * positions}});
    bias(layer, rows);
    channels = rows;
    positions = 1;
  }
  return out;
}

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

/// The weight among `weights`, its shape checked.
Result<const TensorSource*> source_of(const Mapping& m, const std::vector<TensorSource>& weights,
                                      const std::string& where) {
  const auto source =
      std::find_if(weights.begin(), weights.end(), [&](const TensorSource& s) { return s.name == m.name; });
  if (source == weights.end()) return fail(ErrorCode::kInvalid, where, "tensor '{}' is missing", m.name);
  if (source->shape != m.shape)
    return fail(ErrorCode::kInvalid, where, "tensor '{}' has shape {}, not {}", m.name,
                shape_text(source->shape), shape_text(m.shape));
  return &*source;
}

/// A weight's rows with the positions' channels side by side, from `values`, which have them channel by
/// channel; zeros where a row is filled up to `columns`.
std::vector<float> channels_last(const Mapping& m, std::uint64_t columns, std::span<const float> values) {
  std::vector<float> out(m.rows * columns);
  for (std::uint64_t r = 0; r < m.rows; ++r)
    for (std::uint64_t c = 0; c < m.channels; ++c)
      for (std::uint64_t p = 0; p < m.positions; ++p)
        out[r * columns + p * m.channels + c] = values[r * m.columns() + c * m.positions + p];
  return out;
}

Result<std::uint32_t> number(const json::object& object, const char* key, std::string_view where) {
  return static_cast<std::uint32_t>(RETORT_TRY(json_uint(object, key, where, kMaxNumber)));
}

/// Infinity where a float cannot hold it, which validate refuses.
float narrow(double x) {
  constexpr float kMost = std::numeric_limits<float>::max();
  return std::abs(x) <= static_cast<double>(kMost) ? static_cast<float>(x)
                                                   : std::numeric_limits<float>::infinity();
}

Result<std::vector<float>> floats(const json::object& root, const char* key, std::string_view where) {
  std::vector<float> out;
  if (!json_has(root, key)) return out;
  for (const json::value& value : *RETORT_TRY(json_array(root, key, where))) {
    if (!value.is_number())
      return fail(ErrorCode::kInvalid, std::string(where), "'{}' holds something else than numbers", key);
    out.push_back(narrow(value.to_number<double>()));
  }
  return out;
}

Result<Convolution> read_convolution(const json::value& value, std::string_view where) {
  const json::object& entry = *RETORT_TRY(as_object(value, where));
  Convolution c;
  c.out_channels = RETORT_TRY(number(entry, "out_channels", where));
  c.kernel = RETORT_TRY(number(entry, "kernel_size", where));
  if (json_has(entry, "stride")) c.stride = RETORT_TRY(number(entry, "stride", where));
  if (json_has(entry, "padding")) c.padding = RETORT_TRY(number(entry, "padding", where));
  if (json_has(entry, "activation")) {
    const std::string name = RETORT_TRY(json_string(entry, "activation", where));
    const auto activation = activation_from(name);
    if (!activation)
      return fail(ErrorCode::kUnsupported, std::string(where),
                  "activation '{}'; none, relu, gelu_new and tanh are supported", name);
    c.activation = *activation;
  }
  if (json_has(entry, "pooling")) {
    const std::string name = RETORT_TRY(json_string(entry, "pooling", where));
    const auto pooling = pooling_from(name);
    if (!pooling)
      return fail(ErrorCode::kUnsupported, std::string(where),
                  "pooling '{}'; none, max and average are supported", name);
    c.pooling = *pooling;
  }
  if (json_has(entry, "pool_size")) c.pool_size = RETORT_TRY(number(entry, "pool_size", where));
  c.pool_stride =
      json_has(entry, "pool_stride") ? RETORT_TRY(number(entry, "pool_stride", where)) : c.pool_size;
  return c;
}

/// What a shape of one or three numbers means to a family.
Result<MapShape> input_of(ClassifierFamily family, const std::vector<std::uint64_t>& shape,
                          std::string_view where) {
  const bool mlp = family == ClassifierFamily::kMlp;
  if (shape.size() != (mlp ? 1 : 3))
    return fail(ErrorCode::kInvalid, std::string(where), "the input shape {} must be {}", shape_text(shape),
                mlp ? "[features]" : "[channels, height, width]");
  for (const std::uint64_t d : shape)
    if (d > kMaxNumber)
      return fail(ErrorCode::kInvalid, std::string(where), "the input shape {} is beyond any sane limit",
                  shape_text(shape));
  const auto at = [&](std::size_t i) { return static_cast<std::uint32_t>(i < shape.size() ? shape[i] : 1); };
  return MapShape{at(0), at(1), at(2)};
}

/// From a type's name and its numbers, which validate bounds.
Result<ByteTensor> byte_tensor(const std::string& type, double scale, std::int64_t zero_point,
                               std::string_view where) {
  if (type != "uint8" && type != "int8")
    return fail(ErrorCode::kUnsupported, std::string(where),
                "bytes of type '{}'; uint8 and int8 are supported", type);
  return ByteTensor{type == "int8", narrow(scale),
                    static_cast<std::int32_t>(std::clamp<std::int64_t>(zero_point, -1024, 1024))};
}

}  // namespace

bool is_classifier_type(std::string_view model_type) {
  return model_type == "retort-mlp" || model_type == "retort-cnn";
}

Result<std::string> model_type_of(const std::filesystem::path& folder) {
  const std::string where = (folder / "config.json").string();
  const json::value document =
      RETORT_TRY(parse_json(RETORT_TRY(read_file(folder / "config.json", kMaxConfigBytes)), where));
  return json_string(*RETORT_TRY(as_object(document, where)), "model_type", where);
}

Result<ClassifierConfig> read_classifier_config(std::string_view text, std::string_view where) {
  const json::value document = RETORT_TRY(parse_json(text, where));
  const json::object& root = *RETORT_TRY(as_object(document, where));
  const std::string type = RETORT_TRY(json_string(root, "model_type", where));
  if (!is_classifier_type(type))
    return fail(ErrorCode::kUnsupported, std::string(where),
                "model family '{}'; 'retort-mlp' and 'retort-cnn' are classifiers", type);
  ClassifierConfig c;
  c.family = type == "retort-mlp" ? ClassifierFamily::kMlp : ClassifierFamily::kCnn;
  std::vector<std::uint64_t> shape;
  for (const json::value& d : *RETORT_TRY(json_array(root, "input_shape", where))) {
    if (!d.is_int64() || d.get_int64() < 0)
      return fail(ErrorCode::kInvalid, std::string(where), "'input_shape' must hold positive integers");
    shape.push_back(static_cast<std::uint64_t>(d.get_int64()));
  }
  c.input = RETORT_TRY(input_of(c.family, shape, where));
  if (c.family == ClassifierFamily::kCnn) {
    const json::array& list = *RETORT_TRY(json_array(root, "convolutions", where));
    for (std::size_t i = 0; i < list.size(); ++i)
      c.convolutions.push_back(
          RETORT_TRY(read_convolution(list[i], fmt::format("{}: convolution {}", where, i))));
  }
  for (const json::value& width : *RETORT_TRY(json_array(root, "hidden_sizes", where))) {
    if (!width.is_int64() || width.get_int64() < 1 ||
        width.get_int64() > static_cast<std::int64_t>(kMaxNumber))
      return fail(ErrorCode::kInvalid, std::string(where), "'hidden_sizes' must hold positive integers");
    c.hidden.push_back(static_cast<std::uint32_t>(width.get_int64()));
  }
  if (json_has(root, "hidden_act")) {
    const std::string name = RETORT_TRY(json_string(root, "hidden_act", where));
    const auto activation = activation_from(name);
    if (!activation)
      return fail(ErrorCode::kUnsupported, std::string(where),
                  "hidden_act '{}'; none, relu, gelu_new and tanh are supported", name);
    c.activation = *activation;
  }
  const json::object& labels = *RETORT_TRY(json_object(root, "id2label", where));
  for (std::size_t i = 0; i < labels.size(); ++i)
    c.labels.push_back(RETORT_TRY(json_string(labels, std::to_string(i), std::string(where) + ": id2label")));
  c.mean = RETORT_TRY(floats(root, "input_mean", where));
  c.std = RETORT_TRY(floats(root, "input_std", where));
  if (json_has(root, "feature_names"))
    for (const json::value& name : *RETORT_TRY(json_array(root, "feature_names", where))) {
      if (!name.is_string())
        return fail(ErrorCode::kInvalid, std::string(where), "'feature_names' must hold texts");
      c.feature_names.emplace_back(name.get_string());
    }
  for (const auto& [key, bytes] :
       {std::pair{"input_bytes", &c.input_bytes}, std::pair{"output_bytes", &c.output_bytes}})
    if (json_has(root, key)) {
      const json::object& entry = *RETORT_TRY(json_object(root, key, where));
      const std::string inside = fmt::format("{}: {}", where, key);
      *bytes = RETORT_TRY(byte_tensor(RETORT_TRY(json_string(entry, "type", inside)),
                                      RETORT_TRY(json_number(entry, "scale", inside)),
                                      RETORT_TRY(json_int(entry, "zero_point", inside)), inside));
    }
  RETORT_TRY(validate(c, where));
  return c;
}

Result<ClassifierModel> open_classifier_model(const std::filesystem::path& folder) {
  const std::string where = (folder / "config.json").string();
  ClassifierConfig config = RETORT_TRY(
      read_classifier_config(RETORT_TRY(read_file(folder / "config.json", kMaxConfigBytes)), where));
  Safetensors weights = RETORT_TRY(Safetensors::open_folder(folder));
  const std::vector<Mapping> wanted = mappings(config);
  std::set<std::string_view> known;
  for (const Mapping& m : wanted) {
    const SafeTensor* tensor = weights.find(m.name);
    if (tensor == nullptr)
      return fail(ErrorCode::kInvalid, folder.string(), "tensor '{}' is missing", m.name);
    if (tensor->shape != m.shape)
      return fail(ErrorCode::kInvalid, folder.string(), "tensor '{}' has shape {}, config.json asks for {}",
                  m.name, shape_text(tensor->shape), shape_text(m.shape));
    known.insert(m.name);
  }
  for (const auto& [name, tensor] : weights.tensors())
    if (known.count(name) == 0)
      return fail(ErrorCode::kUnsupported, folder.string(), "tensor '{}' has no place in this {} model", name,
                  to_string(config.family));
  return ClassifierModel{std::move(config), std::move(weights)};
}

std::vector<WeightShape> classifier_weights(const ClassifierConfig& config) {
  std::vector<WeightShape> out;
  for (Mapping& m : mappings(config)) out.push_back({std::move(m.name), std::move(m.shape)});
  return out;
}

std::vector<TensorSource> weight_sources(const ClassifierModel& model) {
  std::vector<TensorSource> out;
  for (const Mapping& m : mappings(model.config)) {
    const SafeTensor* tensor = model.weights.find(m.name);
    out.push_back({m.name, m.shape, [tensor](std::span<float> values) -> Result<void> {
                     tensor->read_f32(0, values);
                     return {};
                   }});
  }
  return out;
}

Result<void> write_classifier_folder(const std::filesystem::path& folder, const ClassifierConfig& c,
                                     const std::vector<TensorSource>& weights, SafeTensor::DType dtype) {
  RETORT_TRY(validate(c, folder.string()));
  RETORT_TRY(make_folders(folder));
  const bool mlp = c.family == ClassifierFamily::kMlp;
  json::object config;
  config["architectures"] = json::array{mlp ? "RetortMlp" : "RetortCnn"};
  config["model_type"] = mlp ? "retort-mlp" : "retort-cnn";
  config["input_shape"] =
      mlp ? json::array{c.input.channels} : json::array{c.input.channels, c.input.height, c.input.width};
  if (!mlp) {
    json::array list;
    for (const Convolution& conv : c.convolutions) {
      json::object entry{{"out_channels", conv.out_channels},
                         {"kernel_size", conv.kernel},
                         {"stride", conv.stride},
                         {"padding", conv.padding},
                         {"activation", to_string(conv.activation)},
                         {"pooling", to_string(conv.pooling)}};
      if (conv.pooling != Pooling::kNone) {
        entry["pool_size"] = conv.pool_size;
        entry["pool_stride"] = conv.pool_stride;
      }
      list.push_back(std::move(entry));
    }
    config["convolutions"] = std::move(list);
  }
  config["hidden_sizes"] = json::array(c.hidden.begin(), c.hidden.end());
  config["hidden_act"] = to_string(c.activation);
  json::object labels;
  for (std::size_t i = 0; i < c.labels.size(); ++i) labels[std::to_string(i)] = c.labels[i];
  config["id2label"] = std::move(labels);
  if (!c.mean.empty()) {
    config["input_mean"] = json::array(c.mean.begin(), c.mean.end());
    config["input_std"] = json::array(c.std.begin(), c.std.end());
  }
  if (!c.feature_names.empty())
    config["feature_names"] = json::array(c.feature_names.begin(), c.feature_names.end());
  for (const auto& [key, bytes] :
       {std::pair{"input_bytes", c.input_bytes}, std::pair{"output_bytes", c.output_bytes}})
    if (bytes)
      config[key] =
          json::object{{"type", bytes->type()}, {"scale", bytes->scale}, {"zero_point", bytes->zero_point}};
  config["torch_dtype"] = dtype == SafeTensor::DType::kF32   ? "float32"
                          : dtype == SafeTensor::DType::kF16 ? "float16"
                                                             : "bfloat16";
  std::vector<TensorSource> ordered;
  for (const Mapping& m : mappings(c)) ordered.push_back(*RETORT_TRY(source_of(m, weights, folder.string())));
  RETORT_TRY(write_safetensors(folder / "model.safetensors", ordered, dtype));
  return write_file_atomic(folder / "config.json", pretty_json(config), 0644);
}

Result<void> write_gguf_classifier(const std::filesystem::path& path, const ClassifierConfig& c,
                                   const std::vector<TensorSource>& weights, TensorType matrix_type,
                                   const GgufMetadata& extra, const EncodedWeights& encoded) {
  RETORT_TRY(validate(c, path.string()));
  GgufWriter writer;
  const std::string arch(to_string(c.family));
  const auto key = [&](const char* name) { return arch + "." + name; };
  using Integers = std::vector<std::int64_t>;
  using Texts = std::vector<std::string>;
  const bool mlp = c.family == ClassifierFamily::kMlp;
  writer.set("general.architecture", arch);
  writer.set("general.name", path.stem().string());
  writer.set("general.quantization_version", std::uint64_t{2});
  writer.set(key("input_shape"),
             mlp ? Integers{c.input.channels} : Integers{c.input.channels, c.input.height, c.input.width});
  if (!mlp) {
    const auto numbers = [&](const char* name, std::uint32_t Convolution::*field) {
      Integers values;
      for (const Convolution& conv : c.convolutions) values.push_back(conv.*field);
      writer.set(key(name), values);
    };
    const auto names = [&](const char* name, auto Convolution::*field) {
      Texts values;
      for (const Convolution& conv : c.convolutions) values.emplace_back(to_string(conv.*field));
      writer.set(key(name), values);
    };
    numbers("conv.out_channels", &Convolution::out_channels);
    numbers("conv.kernel_size", &Convolution::kernel);
    numbers("conv.stride", &Convolution::stride);
    numbers("conv.padding", &Convolution::padding);
    names("conv.activation", &Convolution::activation);
    names("conv.pooling", &Convolution::pooling);
    numbers("conv.pool_size", &Convolution::pool_size);
    numbers("conv.pool_stride", &Convolution::pool_stride);
  }
  writer.set(key("hidden_lengths"), Integers(c.hidden.begin(), c.hidden.end()));
  writer.set(key("hidden_activation"), std::string(to_string(c.activation)));
  writer.set(key("classifier.output_labels"), c.labels);
  if (!c.mean.empty()) {
    writer.set(key("input_mean"), std::vector<double>(c.mean.begin(), c.mean.end()));
    writer.set(key("input_std"), std::vector<double>(c.std.begin(), c.std.end()));
  }
  if (!c.feature_names.empty()) writer.set(key("feature_names"), c.feature_names);
  for (const auto& [name, bytes] :
       {std::pair{"input_bytes", c.input_bytes}, std::pair{"output_bytes", c.output_bytes}})
    if (bytes) {
      writer.set(arch + "." + name + ".type", std::string(bytes->type()));
      writer.set(arch + "." + name + ".scale", static_cast<double>(bytes->scale));
      writer.set(arch + "." + name + ".zero_point", std::int64_t{bytes->zero_point});
    }
  for (const auto& [name, value] : extra) writer.set(name, value);
  for (const Mapping& m : mappings(c)) {
    const TensorSource* source = RETORT_TRY(source_of(m, weights, path.string()));
    if (m.is_bias()) {
      writer.add_tensor(m.name, {m.rows}, TensorType::kF32,
                        [m, source](std::span<std::byte> out) -> Result<void> {
                          std::vector<float> values(m.rows);
                          RETORT_TRY(source->read(values));
                          encode_row(TensorType::kF32, values, out);
                          return {};
                        });
      continue;
    }
    if (const auto found = encoded.find(m.name); found != encoded.end()) {
      const EncodedMatrix& made = found->second;
      writer.add_matrix(m.name, made.columns, made.rows, made.type,
                        [&made]() -> Result<std::vector<std::byte>> { return made.bytes; });
      continue;
    }
    const TensorType type = stored_type(matrix_type, m.filled());
    const std::uint64_t columns = info(type).block_values > 1 ? m.filled() : m.columns();
    writer.add_matrix(m.name, columns, m.rows, type,
                      [m, source, type, columns]() -> Result<std::vector<std::byte>> {
                        std::vector<float> values(m.rows * m.columns());
                        RETORT_TRY(source->read(values));
                        return encode_matrix(type, m.rows, columns, channels_last(m, columns, values));
                      });
  }
  return writer.write(path);
}

std::vector<ClassifierMatrix> classifier_matrices(const ClassifierConfig& config) {
  std::vector<ClassifierMatrix> out;
  for (const Mapping& m : mappings(config))
    if (!m.is_bias()) out.push_back(m);
  return out;
}

std::uint64_t gguf_classifier_bytes(const ClassifierConfig& config,
                                    const std::function<TensorType(const std::string&)>& type_of) {
  std::uint64_t bytes = 0;
  for (const Mapping& m : mappings(config)) {
    const TensorType type = m.is_bias() ? TensorType::kF32 : stored_type(type_of(m.name), m.filled());
    const std::uint64_t columns = info(type).block_values > 1 ? m.filled() : m.columns();
    bytes += (most_matrix_bytes(type, m.rows, columns) + 31) / 32 * 32;
  }
  return bytes;
}

bool is_gguf_classifier(const GgufFile& file) {
  const auto* arch = std::get_if<std::string>(file.find("general.architecture"));
  return arch != nullptr && (*arch == "mlp" || *arch == "cnn");
}

Result<ClassifierConfig> read_gguf_classifier_config(const GgufFile& file) {
  const std::string& where = file.where();
  const std::string arch = RETORT_TRY(file.text("general.architecture"));
  if (!is_gguf_classifier(file))
    return fail(ErrorCode::kUnsupported, where,
                "architecture '{}' is no classifier of tensors; mlp and cnn are", arch);
  ClassifierConfig c;
  c.family = arch == "mlp" ? ClassifierFamily::kMlp : ClassifierFamily::kCnn;
  const auto key = [&](const char* name) { return arch + "." + name; };
  const auto numbers = [&](const char* name) -> Result<std::vector<std::uint64_t>> {
    std::vector<std::uint64_t> out;
    for (const std::int64_t x : RETORT_TRY(file.integers(key(name)))) {
      if (x < 0 || x > static_cast<std::int64_t>(kMaxNumber))
        return fail(ErrorCode::kInvalid, where, "metadata '{}' holds {}, outside 0…{}", key(name), x,
                    kMaxNumber);
      out.push_back(static_cast<std::uint64_t>(x));
    }
    return out;
  };
  const auto texts = [&](const char* name, bool required) -> Result<std::vector<std::string>> {
    if (!required && !file.has(key(name))) return std::vector<std::string>();
    return file.texts(key(name));
  };
  const auto statistics = [&](const char* name) -> Result<std::vector<float>> {
    std::vector<float> out;
    if (!file.has(key(name))) return out;
    for (const double x : RETORT_TRY(file.numbers(key(name)))) out.push_back(narrow(x));
    return out;
  };
  c.input = RETORT_TRY(input_of(c.family, RETORT_TRY(numbers("input_shape")), where));
  if (c.family == ClassifierFamily::kCnn) {
    c.convolutions.resize(RETORT_TRY(numbers("conv.out_channels")).size());
    const auto fill = [&](const char* name, std::uint32_t Convolution::*field) -> Result<void> {
      const std::vector<std::uint64_t> values = RETORT_TRY(numbers(name));
      if (values.size() != c.convolutions.size())
        return fail(ErrorCode::kInvalid, where, "metadata '{}' lists {} convolutions, not {}", key(name),
                    values.size(), c.convolutions.size());
      for (std::size_t i = 0; i < values.size(); ++i)
        c.convolutions[i].*field = static_cast<std::uint32_t>(values[i]);
      return {};
    };
    RETORT_TRY(fill("conv.out_channels", &Convolution::out_channels));
    RETORT_TRY(fill("conv.kernel_size", &Convolution::kernel));
    RETORT_TRY(fill("conv.stride", &Convolution::stride));
    RETORT_TRY(fill("conv.padding", &Convolution::padding));
    RETORT_TRY(fill("conv.pool_size", &Convolution::pool_size));
    RETORT_TRY(fill("conv.pool_stride", &Convolution::pool_stride));
    const auto fill_names = [&](const char* name, auto Convolution::*field, auto from) -> Result<void> {
      const std::vector<std::string> values = RETORT_TRY(texts(name, true));
      if (values.size() != c.convolutions.size())
        return fail(ErrorCode::kInvalid, where, "metadata '{}' lists {} convolutions, not {}", key(name),
                    values.size(), c.convolutions.size());
      for (std::size_t i = 0; i < values.size(); ++i) {
        const auto meant = from(values[i]);
        if (!meant)
          return fail(ErrorCode::kUnsupported, where, "metadata '{}': '{}' is not supported", key(name),
                      values[i]);
        c.convolutions[i].*field = *meant;
      }
      return {};
    };
    RETORT_TRY(fill_names("conv.activation", &Convolution::activation, activation_from));
    RETORT_TRY(fill_names("conv.pooling", &Convolution::pooling, pooling_from));
  }
  for (const std::uint64_t width : RETORT_TRY(numbers("hidden_lengths")))
    c.hidden.push_back(static_cast<std::uint32_t>(width));
  const std::string activation_name = RETORT_TRY(file.text(key("hidden_activation")));
  const auto activation = activation_from(activation_name);
  if (!activation)
    return fail(ErrorCode::kUnsupported, where, "metadata '{}': '{}' is not supported",
                key("hidden_activation"), activation_name);
  c.activation = *activation;
  c.labels = RETORT_TRY(texts("classifier.output_labels", true));
  c.mean = RETORT_TRY(statistics("input_mean"));
  c.std = RETORT_TRY(statistics("input_std"));
  c.feature_names = RETORT_TRY(texts("feature_names", false));
  for (const auto& [name, bytes] :
       {std::pair{"input_bytes", &c.input_bytes}, std::pair{"output_bytes", &c.output_bytes}}) {
    const std::string prefix = arch + "." + name;
    if (file.find(prefix + ".type") == nullptr) continue;
    const auto* zero = std::get_if<std::int64_t>(file.find(prefix + ".zero_point"));
    if (zero == nullptr)
      return fail(ErrorCode::kInvalid, where, "metadata '{}.zero_point' is missing or no signed integer",
                  prefix);
    *bytes = RETORT_TRY(byte_tensor(RETORT_TRY(file.text(prefix + ".type")),
                                    RETORT_TRY(file.number(prefix + ".scale")), *zero, where));
  }
  RETORT_TRY(validate(c, where));
  const std::vector<Mapping> wanted = mappings(c);
  for (const Mapping& m : wanted) {
    const GgufTensor* tensor = file.tensor(m.name);
    if (tensor == nullptr) return fail(ErrorCode::kInvalid, where, "tensor '{}' is missing", m.name);
    std::vector<std::uint64_t> shape = tensor->shape;
    while (shape.size() > 1 && shape.back() == 1 && shape.size() > (m.is_bias() ? 1u : 2u)) shape.pop_back();
    const std::vector<std::uint64_t> exact =
        m.is_bias() ? std::vector<std::uint64_t>{m.rows} : std::vector<std::uint64_t>{m.columns(), m.rows};
    const std::vector<std::uint64_t> padded{m.filled(), m.rows};
    if (shape != exact && (m.is_bias() || shape != padded))
      return fail(ErrorCode::kInvalid, where, "tensor '{}' has shape {}, its metadata asks for {}", m.name,
                  shape_text(shape), shape_text(exact));
    if (m.is_bias() && tensor->type != TensorType::kF32)
      return fail(ErrorCode::kUnsupported, where, "tensor '{}' is {}; biases must be F32", m.name,
                  info(tensor->type).name);
  }
  for (const GgufTensor& tensor : file.tensors())
    if (std::none_of(wanted.begin(), wanted.end(), [&](const Mapping& m) { return m.name == tensor.name; }))
      return fail(ErrorCode::kUnsupported, where, "tensor '{}' has no place in this {} model", tensor.name,
                  arch);
  return c;
}

}  // namespace retort
