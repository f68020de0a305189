#include "agent/serve/runtime/classifier.h"

#include <algorithm>
#include <cstring>

#include "agent/serve/kernels/maps.h"
#include "agent/serve/kernels/own_formats.h"
#include "common/core/units.h"
#include "common/hf/classifier_model.h"

namespace retort {
namespace {

using kernels::kGroupRows;

constexpr std::uint64_t kPatchValues = 1 << 16;  // of the patches that a thread multiplies at a time: 256 KiB

/// Patches of a convolution that are multiplied together.
std::uint64_t patches_at_once(std::uint32_t columns) {
  return std::clamp<std::uint64_t>(kPatchValues / columns, 1, 64);
}

void activate(Activation activation, float* x, std::size_t n) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      return kernels::relu(x, n);
    case Activation::kGelu:
      return kernels::gelu(x, n);
    case Activation::kTanh:
      return kernels::hyperbolic_tangent(x, n);
  }
}

/// Nanoseconds of a product of `rows` and `columns` with `count` inputs, roughly.
std::uint64_t nanoseconds(std::uint64_t rows, std::uint64_t columns, std::uint64_t count) {
  return rows * columns * count / 100 + 1;
}

}  // namespace

// ---- the file ----

Result<std::shared_ptr<const Classifier>> Classifier::open(const std::filesystem::path& gguf,
                                                           const ClassifierOptions& options) {
  return from_file(RETORT_TRY(GgufFile::open(gguf)), options, gguf);
}

Result<std::shared_ptr<const Classifier>> Classifier::from_file(GgufFile file,
                                                                const ClassifierOptions& options,
                                                                const std::filesystem::path& source) {
  ClassifierConfig config = RETORT_TRY(read_gguf_classifier_config(file));
  RETORT_TRY(check_finite(file, false));
  InputScales scales = RETORT_TRY(read_input_scales(file));
  std::shared_ptr<Classifier> model(new Classifier(std::move(file), std::move(config), std::move(scales)));
  const std::uint64_t size = model->lay_out(options.pack, nullptr, false);
  if (size == 0) return model;
  model->packed_ = RETORT_TRY(
      PackedWeights::make(size, source, options.pack_cache, [&](std::byte* memory) -> Result<void> {
        RETORT_TRY(check_finite(model->file_, true));
        model->lay_out(true, memory, true);
        model->file_.drop_pages();  // what was packed is not read again
        return {};
      }));
  model->lay_out(true, const_cast<std::byte*>(model->packed_.data()), false);
  return model;
}

Classifier::Classifier(GgufFile file, ClassifierConfig config, InputScales input_scales)
    : file_(std::move(file)),
      config_(std::move(config)),
      input_scales_(std::move(input_scales)),
      maps_(feature_maps(config_)) {}

/// Points every weight to where it is: in the file, or in `memory` when it is packed (null: nowhere yet).
/// `fill` writes the packed ones there. Returns their size.
std::uint64_t Classifier::lay_out(bool pack, std::byte* memory, bool fill) {
  layers_.clear();
  std::uint64_t size = 0;
  for (const RepeatedOperation& op : operations(config_)) {
    // read_gguf_classifier_config has checked that both are there in the right shape.
    const GgufTensor& weight = *file_.tensor(op.tensor);
    const GgufTensor& bias = *file_.tensor(op.tensor.substr(0, op.tensor.size() - 6) + "bias");
    kernels::Matrix matrix{weight.type, op.rows, static_cast<std::uint32_t>(weight.columns()),
                           weight.data.data()};
    const std::uint64_t file_bytes = kernels::stored_bytes(matrix);
    if (const std::uint64_t bytes = pack ? kernels::packed_bytes(matrix) : 0; bytes != 0) {
      if (memory != nullptr) matrix = kernels::pack(matrix, memory + size, fill);
      size += aligned(bytes);
    }
    const auto scale = input_scales_.find(op.tensor);
    layers_.push_back({matrix, reinterpret_cast<const float*>(bias.data.data()),
                       info(weight.type).block_values > 1,
                       scale == input_scales_.end() ? 0.0f : scale->second, file_bytes});
  }
  return size;
}

std::uint64_t Classifier::weight_bytes() const {
  std::uint64_t bytes = 0;
  for (const GgufTensor& tensor : file_.tensors()) bytes += tensor.data.size();
  return bytes;
}

double Classifier::bits_per_weight() const {
  return static_cast<double>(weight_bytes()) * 8 / static_cast<double>(parameters());
}

// ---- memory ----

namespace {

/// The sizes, in values, of what a session keeps.
struct Sizes {
  std::uint64_t map = 0;      ///< the widest map or dense input
  std::uint64_t patches = 0;  ///< the most of a thread's patches at a time, in whole blocks of 32
  std::uint64_t dense = 0;    ///< the widest dense input
};

Sizes sizes_of(const Classifier& model) {
  const ClassifierConfig& c = model.config();
  Sizes s;
  for (std::size_t i = 0; i < c.convolutions.size(); ++i) {
    const std::uint32_t columns = model.layers()[i].matrix.columns;
    s.patches = std::max(s.patches, (patches_at_once(columns) * columns + 31) / 32 * 32);
    s.map =
        std::max({s.map, model.maps()[i].values(), convolved(c.convolutions[i], model.maps()[i]).values()});
  }
  for (std::size_t i = c.convolutions.size(); i < model.layers().size(); ++i)
    s.dense = std::max<std::uint64_t>(s.dense, model.layers()[i].matrix.columns);
  s.map = std::max(s.map, s.dense);
  return s;
}

}  // namespace

ClassifierMemoryPlan plan_memory(const Classifier& model, std::uint32_t batch, std::uint32_t threads) {
  const Sizes s = sizes_of(model);
  ClassifierMemoryPlan plan;
  std::uint64_t in_file = model.file().file_length();
  for (const Classifier::Layer& layer : model.layers())
    if (layer.matrix.packed) in_file -= layer.bytes;
  plan.weights_mapped_bytes = in_file + (model.packed_is_shared() ? model.packed_bytes() : 0);
  plan.weights_packed_bytes = model.packed_is_shared() ? 0 : model.packed_bytes();
  plan.activation_bytes = 2 * aligned(4 * batch * s.map) + aligned(4 * threads * s.patches) +
                          QuantizedRows::bytes(threads, s.patches) + QuantizedRows::bytes(batch, s.dense) +
                          aligned(4 * batch * model.config().labels.size()) + 64;
  return plan;
}

Result<std::unique_ptr<ClassifierSession>> ClassifierSession::create(std::shared_ptr<const Classifier> model,
                                                                     ThreadTeam& team,
                                                                     ClassifierSessionOptions options) {
  options.batch = std::max(options.batch, 1u);
  const ClassifierMemoryPlan plan = plan_memory(*model, options.batch, team.size());
  if (options.memory_limit != 0 && plan.total() > options.memory_limit)
    return fail(
        ErrorCode::kOutOfBudget, model->file().where(),
        "needs {} ({} weights, {} activations of {} inputs), the limit is {}; --memory-limit {} is enough",
        format_bytes(plan.total()), format_bytes(plan.weights_mapped_bytes + plan.weights_packed_bytes),
        format_bytes(plan.activation_bytes), options.batch, format_bytes(options.memory_limit), plan.total());
  const std::string where = model->file().where();
  return within_memory(where, plan.total(), [&] {
    return std::unique_ptr<ClassifierSession>(new ClassifierSession(std::move(model), team, options));
  });
}

ClassifierSession::ClassifierSession(std::shared_ptr<const Classifier> model, ThreadTeam& team,
                                     ClassifierSessionOptions options)
    : model_(std::move(model)), team_(team), options_(options) {
  arena_ = take_arena(plan_memory(*model_, options_.batch, team_.size()).activation_bytes);
  ArenaCursor arena(arena_);
  const Sizes s = sizes_of(*model_);
  const std::uint64_t b = options_.batch, threads = team_.size();
  current_ = arena.floats(b * s.map);
  next_ = arena.floats(b * s.map);
  map_size_ = s.map;
  patch_size_ = s.patches;
  patches_ = arena.floats(threads * s.patches);
  quantized_patches_ = QuantizedRows::take(arena, threads, s.patches);
  quantized_ = QuantizedRows::take(arena, b, s.dense);
  logits_ = arena.floats(b * model_->config().labels.size());
}

// ---- the forward pass ----

void ClassifierSession::multiply(const Classifier::Layer& layer, const float* x,
                                 const QuantizedRows& quantized, std::size_t count, std::uint32_t begin,
                                 std::uint32_t end, float* out, std::size_t stride) {
  kernels::matmul(layer.matrix,
                  {static_cast<std::uint32_t>(count), layer.matrix.columns, x, quantized.q, quantized.scale,
                   quantized.start, quantized.half_start},
                  begin, end, {out, stride, layer.bias, false});
}

/// (input − mean) / std, channels last, zeros behind, into current_: `stride` values an input.
void ClassifierSession::take_inputs(std::span<const float> inputs, std::size_t count, std::size_t stride) {
  const ClassifierConfig& c = model_->config();
  const std::size_t channels = c.input.channels, positions = c.input.positions(),
                    values = channels * positions;
  team_.share(count, values / 4 + 1, [&](std::uint32_t, std::uint64_t first, std::uint64_t last) {
    for (std::uint64_t i = first; i < last; ++i) {
      const float* const from = inputs.data() + i * values;
      float* const to = current_ + i * stride;
      for (std::size_t ch = 0; ch < channels; ++ch) {
        const float mean = c.mean.empty() ? 0.0f : c.mean[ch], std = c.std.empty() ? 1.0f : c.std[ch];
        for (std::size_t p = 0; p < positions; ++p)
          to[p * channels + ch] = (from[ch * positions + p] - mean) / std;
      }
      std::fill(to + values, to + stride, 0.0f);
    }
  });
}

/// A convolution with its activation. The batch's maps lie map_size_ values apart.
void ClassifierSession::convolve(std::size_t index, std::size_t count) {
  const Convolution& conv = model_->config().convolutions[index];
  const Classifier::Layer& layer = model_->layers()[index];
  const MapShape& in = model_->maps()[index];
  const MapShape out = convolved(conv, in);
  const std::uint32_t columns = layer.matrix.columns;
  const std::size_t used = std::size_t{conv.kernel} * conv.kernel * in.channels,
                    row = std::size_t{conv.kernel} * in.channels, most = patches_at_once(columns);
  // Pieces of so many positions; those of an input do not reach into the next.
  const std::size_t positions = out.positions(), pieces = (positions + most - 1) / most;
  const auto piece = [&](std::uint32_t member, std::uint64_t number) {
    const std::size_t image = number / pieces, first = number % pieces * most,
                      n = std::min(most, positions - first);
    const float* const map = current_ + image * map_size_;
    float* const patches = patches_ + member * patch_size_;
    for (std::size_t i = 0; i < n; ++i) {
      float* to = patches + i * columns;
      const std::int64_t y0 = static_cast<std::int64_t>((first + i) / out.width) * conv.stride - conv.padding,
                         x0 = static_cast<std::int64_t>((first + i) % out.width) * conv.stride - conv.padding;
      // Columns of the patch that lie inside the map.
      const std::int64_t left = std::clamp<std::int64_t>(-x0, 0, conv.kernel),
                         right = std::clamp<std::int64_t>(in.width - x0, left, conv.kernel);
      for (std::uint32_t ky = 0; ky < conv.kernel; ++ky, to += row) {
        const std::int64_t y = y0 + ky;
        if (y < 0 || y >= in.height) {
          std::fill_n(to, row, 0.0f);
          continue;
        }
        const std::size_t before = static_cast<std::size_t>(left) * in.channels,
                          inside = static_cast<std::size_t>(right - left) * in.channels;
        std::fill_n(to, before, 0.0f);
        if (inside > 0)
          std::memcpy(to + before,
                      map + (static_cast<std::size_t>(y) * in.width + static_cast<std::size_t>(x0 + left)) *
                                in.channels,
                      inside * sizeof(float));
        std::fill(to + before + inside, to + row, 0.0f);
      }
      std::fill_n(to, columns - used, 0.0f);
    }
    QuantizedRows quantized;
    if (layer.quantized) {
      quantized = quantized_patches_.from(member);
      for (std::size_t i = 0; i < n; ++i)
        quantized.quantize(i, patches, columns, 0, columns, layer.input_scale);
    }
    float* const to = next_ + image * map_size_ + first * conv.out_channels;
    multiply(layer, patches, quantized, n, 0, layer.matrix.rows, to, conv.out_channels);
    activate(conv.activation, to, n * conv.out_channels);
  };
  team_.share(count * pieces, nanoseconds(layer.matrix.rows, columns, most),
              [&](std::uint32_t member, std::uint64_t first, std::uint64_t last) {
                for (std::uint64_t i = first; i < last; ++i) piece(member, i);
              });
  std::swap(current_, next_);
}

void ClassifierSession::pool(std::size_t index, std::size_t count) {
  const Convolution& conv = model_->config().convolutions[index];
  const MapShape in = convolved(conv, model_->maps()[index]), out = model_->maps()[index + 1];
  const std::size_t in_row = std::size_t{in.width} * in.channels,
                    out_row = std::size_t{out.width} * out.channels;
  team_.share(count * out.height, std::uint64_t{conv.pool_size} * conv.pool_size * out_row / 8 + 1,
              [&](std::uint32_t, std::uint64_t first, std::uint64_t last) {
                for (std::uint64_t i = first; i < last; ++i) {
                  const std::size_t image = i / out.height, y = i % out.height;
                  const float* const from = current_ + image * map_size_ + y * conv.pool_stride * in_row;
                  float* const to = next_ + image * map_size_ + y * out_row;
                  (conv.pooling == Pooling::kMax ? kernels::max_pool : kernels::average_pool)(
                      from, in_row, in.channels, {conv.pool_size, conv.pool_stride}, out.width, to);
                }
              });
  std::swap(current_, next_);
}

/// Dense layer `index`, its inputs in current_ as many values apart as its matrix has columns. Its outputs go
/// to next_, or are the logits.
void ClassifierSession::dense(std::size_t index, std::size_t count) {
  const std::size_t at = model_->config().convolutions.size() + index;
  const Classifier::Layer& layer = model_->layers()[at];
  const bool last_layer = at + 1 == model_->layers().size();
  const std::size_t columns = layer.matrix.columns, rows = layer.matrix.rows,
                    stride = last_layer ? rows : model_->layers()[at + 1].matrix.columns;
  float* const out = last_layer ? logits_ : next_;
  if (layer.quantized)
    team_.share(count, columns / 8 + 1, [&](std::uint32_t, std::uint64_t first, std::uint64_t last) {
      for (std::uint64_t i = first; i < last; ++i)
        quantized_.quantize(i, current_, columns, 0, columns, layer.input_scale);
    });
  team_.share((rows + kGroupRows - 1) / kGroupRows, nanoseconds(kGroupRows, columns, count),
              [&](std::uint32_t, std::uint64_t first, std::uint64_t last) {
                const std::size_t begin = first * kGroupRows,
                                  end = std::min<std::size_t>(last * kGroupRows, rows);
                multiply(layer, current_, quantized_, count, static_cast<std::uint32_t>(begin),
                         static_cast<std::uint32_t>(end), out, stride);
                if (!last_layer)
                  for (std::size_t i = 0; i < count; ++i)
                    activate(model_->config().activation, out + i * stride + begin, end - begin);
              });
  if (last_layer) return;
  for (std::size_t i = 0; i < count; ++i) std::fill_n(out + i * stride + rows, stride - rows, 0.0f);
  std::swap(current_, next_);
}

Result<std::span<const float>> ClassifierSession::run(std::span<const float> inputs) {
  const ClassifierConfig& c = model_->config();
  const std::size_t values = c.input.values(), count = inputs.size() / values;
  if (count == 0 || count > options_.batch || inputs.size() != count * values)
    return fail(ErrorCode::kInvalid, "", "{} values are not 1 to {} inputs of {}", inputs.size(),
                options_.batch, values);
  const std::size_t columns = model_->layers()[c.convolutions.size()].matrix.columns;
  take_inputs(inputs, count, c.convolutions.empty() ? columns : map_size_);
  for (std::size_t i = 0; i < c.convolutions.size(); ++i) {
    convolve(i, count);
    if (c.convolutions[i].pooling != Pooling::kNone) pool(i, count);
  }
  if (!c.convolutions.empty()) {  // flattened, zeros behind
    const std::size_t flat = model_->maps().back().values();
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(next_ + i * columns, current_ + i * map_size_, flat * sizeof(float));
      std::fill_n(next_ + i * columns + flat, columns - flat, 0.0f);
    }
    std::swap(current_, next_);
  }
  for (std::size_t i = 0; i <= c.hidden.size(); ++i) dense(i, count);
  return std::span<const float>(logits_, count * c.labels.size());
}

void probabilities(std::span<const float> logits, std::span<float> out) {
  const float top = logits[kernels::best(logits.data(), logits.size())];
  const double sum = kernels::exponentials(logits.data(), logits.size(), 1.0f, top, out.data());
  const auto share = static_cast<float>(1.0 / sum);
  for (float& p : out) p *= share;
}

}  // namespace retort
