#include "coordinator/tailor/tailor.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "common/blocks/matrix.h"
#include "common/core/units.h"
#include "common/hf/classifier_model.h"
#include "common/hf/hf_model.h"

namespace retort {
namespace {

constexpr std::uint64_t kProgramBytes = 4 << 20;  // retort-serve without a model, measured

std::string quoted(const std::string& text) {
  return json::serialize(json::string(text));
}  // JSON text is YAML text

/// What a student's file says of its teacher, data and recipe, which the teacher's own does not: some 700
/// bytes.
constexpr std::uint64_t kLineageBytes = 1024;

/// Widths to try, widest first: the teacher's own, then multiples of `step` below it.
std::vector<std::uint32_t> widths(std::uint32_t own) {
  const std::uint32_t step = own >= 512 ? 256 : 32;
  std::set<std::uint32_t, std::greater<>> out{own};
  for (std::uint32_t w = own / step * step; w >= step; w -= step) out.insert(w);
  return {out.begin(), out.end()};
}

}  // namespace

std::uint64_t predicted_file_bytes(const ModelConfig& config, TensorType format, std::uint64_t header_bytes) {
  std::uint64_t bytes = header_bytes;
  for (const WeightShape& weight : hf_weights(config)) {
    std::uint64_t count = 1;
    for (const std::uint64_t d : weight.shape) count *= d;
    if (weight.shape.size() == 1 || weight.name == "transformer.wpe.weight" ||
        weight.name.ends_with("position_embeddings.weight") ||
        weight.name.ends_with("token_type_embeddings.weight")) {
      bytes += 4 * count;
      continue;
    }
    const bool transposed =
        config.family == ModelFamily::kGpt2 && weight.name.find(".h.") != std::string::npos;
    const std::uint64_t columns = transposed ? weight.shape[0] : weight.shape[1];
    bytes += most_matrix_bytes(stored_type(format, columns), count / columns, columns);
    bytes = (bytes + 31) / 32 * 32;
  }
  return bytes;
}

std::uint64_t predicted_serving_bytes(const ModelConfig& config, std::uint64_t file_bytes) {
  std::uint64_t widest = config.n_embd;
  for (const LayerShape& layer : config.layers)
    widest = std::max<std::uint64_t>({widest, layer.n_ff, std::uint64_t{layer.n_head} * config.head_dim});
  const std::uint64_t activations = 4ull * 32 * (2 * config.n_embd + 4 * widest) + 4ull * config.n_vocab;
  return file_bytes + kv_cache_bytes(config, config.n_ctx, 4) + activations + kProgramBytes;
}

namespace {

/// retort-serve with it: file, two maps of the widest kind, and the program itself.
std::uint64_t predicted_serving_bytes(const ClassifierConfig& config, std::uint64_t file_bytes) {
  std::uint64_t widest = config.input.values();
  const std::vector<MapShape> maps = feature_maps(config);
  for (std::size_t i = 0; i < config.convolutions.size(); ++i)
    widest = std::max<std::uint64_t>(widest, convolved(config.convolutions[i], maps[i]).values());
  for (const std::uint32_t width : config.hidden) widest = std::max<std::uint64_t>(widest, width);
  return file_bytes + 8 * widest + kProgramBytes;
}

/// Every shape that a student of this teacher may have.
std::vector<StudentPlan> shapes_of(const TeacherShape& teacher) {
  std::vector<StudentPlan> out;
  if (teacher.classifier) {
    const ClassifierConfig& own = *teacher.classifier;
    const bool fixed = own.convolutions.empty() && own.hidden.empty();
    for (std::uint32_t sixteenths = 16; sixteenths >= (fixed ? 16u : 1u); --sixteenths) {
      const auto part = [&](std::uint32_t width) { return std::max(1u, width * sixteenths / 16); };
      StudentPlan& plan = out.emplace_back();
      plan.classifier = own;
      for (Convolution& conv : plan.classifier->convolutions) conv.out_channels = part(conv.out_channels);
      for (std::uint32_t& width : plan.classifier->hidden) width = part(width);
    }
    return out;
  }
  const LayerShape own = teacher.config.layers[0];
  const std::uint32_t group = own.n_head / own.n_head_kv;
  for (std::uint32_t layers = teacher.config.n_layer(); layers >= 1; --layers)
    for (const std::uint32_t ff : widths(own.n_ff))
      for (std::uint32_t kv = own.n_head_kv; kv >= 1; kv = kv == 1 ? 0 : kv / 2) {
        StudentPlan& plan = out.emplace_back();
        plan.config = teacher.config;
        plan.config.layers.assign(layers, {kv * group, kv, ff});
      }
  return out;
}

}  // namespace

ClassSpeed slowest(std::span<const DeviceProfile* const> devices) {
  ClassSpeed out;
  const DeviceProfile* last = nullptr;
  double most = 0;
  for (const DeviceProfile* device : devices) {
    if (device->memory_bandwidth_bytes_per_second > 0)
      out.bandwidth = out.bandwidth == 0 ? device->memory_bandwidth_bytes_per_second
                                         : std::min(out.bandwidth, device->memory_bandwidth_bytes_per_second);
    double logs = 0;
    std::size_t count = 0;
    for (const DecodeSample& sample : device->decode)
      if (sample.format == "Q8_0" && sample.hidden <= 256 && is_measured(sample))
        logs += std::log(sample.seconds), ++count;
    if (count == 0) continue;
    if (const double mean = logs / static_cast<double>(count); last == nullptr || mean > most)
      last = device, most = mean;
  }
  if (last != nullptr) out.decode = DecodePredictor::fit(last->decode);
  return out;
}

namespace {

/// What a student may be stored as, the most bits first. Q4_K before Q4_0: as many bits, and its error is a
/// fifth less.
std::span<const TensorType> formats_of(const TeacherShape& teacher) {
  static constexpr std::array kTensors{TensorType::kQ8_0, TensorType::kF16};
  static constexpr std::array kText{TensorType::kQ8_0, TensorType::kQ6K,  TensorType::kQ5K,
                                    TensorType::kQ4K,  TensorType::kQ4_0, TensorType::kQ3K};
  return teacher.classifier ? std::span<const TensorType>(kTensors) : std::span<const TensorType>(kText);
}

}  // namespace

Result<StudentPlan> plan_student(const TeacherShape& teacher, std::uint64_t header_bytes,
                                 const DeviceClass& budget, const ClassSpeed& speed) {
  std::optional<StudentPlan> best, smallest;
  for (StudentPlan& plan : shapes_of(teacher))
    for (const TensorType format : formats_of(teacher)) {
      plan.format = format;
      if (plan.classifier) {
        plan.parameters = parameter_count(*plan.classifier);
        plan.file_bytes = header_bytes + kLineageBytes +
                          gguf_classifier_bytes(*plan.classifier, [&](const std::string&) { return format; });
        plan.serving_memory_bytes = predicted_serving_bytes(*plan.classifier, plan.file_bytes);
      } else {
        plan.parameters = parameter_count(plan.config);
        plan.file_bytes = predicted_file_bytes(plan.config, format, header_bytes + kLineageBytes);
        plan.serving_memory_bytes = predicted_serving_bytes(plan.config, plan.file_bytes);
      }
      if (speed.measured(teacher))
        plan.token_seconds = speed.decode->token_seconds(plan.config, format, plan.config.n_ctx / 2);
      else if (speed.bandwidth > 0)
        plan.token_seconds = static_cast<double>(plan.file_bytes) / speed.bandwidth;
      if (!smallest || plan.file_bytes < smallest->file_bytes) smallest = plan;
      const bool fits =
          (budget.artifact_bytes == 0 || plan.file_bytes <= budget.artifact_bytes) &&
          (budget.serving_memory_bytes == 0 || plan.serving_memory_bytes <= budget.serving_memory_bytes) &&
          (budget.p95_token_seconds == 0 || plan.token_seconds <= budget.p95_token_seconds);
      if (!fits) continue;
      const auto rank = [](const StudentPlan& p) { return std::tuple(p.parameters, p.config.n_layer()); };
      if (!best || rank(plan) > rank(*best)) best = plan;  // of equal ones the first, of the most bits
    }
  if (best) return *best;
  return fail(
      ErrorCode::kOutOfBudget, "class " + budget.name,
      "no cut of the teacher fits: the smallest takes {} on disk, {} of memory{}; the budgets are {}, {}{}",
      format_bytes(smallest->file_bytes), format_bytes(smallest->serving_memory_bytes),
      smallest->token_seconds == 0 ? ""
                                   : fmt::format(" and {:.3g} ms a token", smallest->token_seconds * 1e3),
      budget.artifact_bytes == 0 ? "none" : format_bytes(budget.artifact_bytes),
      budget.serving_memory_bytes == 0 ? "none" : format_bytes(budget.serving_memory_bytes),
      budget.p95_token_seconds == 0 ? "" : fmt::format(" and {:.3g} ms", budget.p95_token_seconds * 1e3));
}

namespace {

/// The keys of prune.structured that make the plan of the teacher; empty: nothing to cut.
std::string cut_keys(const TeacherShape& teacher, const StudentPlan& plan) {
  std::string knobs;
  const auto knob = [&](const char* name, const std::string& value) {
    knobs += fmt::format("{}{}: {}", knobs.empty() ? "" : ", ", name, value);
  };
  if (teacher.classifier) {
    std::vector<std::uint32_t> channels;
    for (const Convolution& conv : plan.classifier->convolutions) channels.push_back(conv.out_channels);
    if (parameter_count(*plan.classifier) == parameter_count(*teacher.classifier)) return "";
    if (!channels.empty()) knob("channels", fmt::format("[{}]", fmt::join(channels, ", ")));
    if (!plan.classifier->hidden.empty())
      knob("hidden", fmt::format("[{}]", fmt::join(plan.classifier->hidden, ", ")));
    return knobs;
  }
  const LayerShape own = teacher.config.layers[0], cut = plan.config.layers[0];
  if (plan.config.n_layer() != teacher.config.n_layer())
    knob("layers", std::to_string(plan.config.n_layer()));
  if (cut.n_ff != own.n_ff) knob("ffn", std::to_string(cut.n_ff));
  if (cut.n_head != own.n_head) {
    knob("heads", std::to_string(cut.n_head));
    if (!teacher.config.is_encoder()) knob("kv_heads", std::to_string(cut.n_head_kv));
  }
  return knobs;
}

}  // namespace

std::string write_recipe(const TeacherShape& teacher, const StudentPlan& plan, const RecipeInputs& in) {
  const std::string format(info(plan.format).name);
  const bool classifies = teacher.classifies();
  std::string out = fmt::format(
      "version: 1\n{}seed: {}\nteacher: {{model: {}}}\ndata:\n  train: {{file: {}}}\n  held_out: {{file: "
      "{}{}}}\npasses:\n",
      classifies ? "task: classification\n" : "", in.seed, quoted(in.teacher_folder), quoted(in.train_file),
      quoted(in.held_out_file), classifies ? "" : fmt::format(", max_tokens: {}", in.held_out_tokens));
  const std::string cut = cut_keys(teacher, plan);
  if (!cut.empty()) out += fmt::format("  - prune.structured: {{{}}}\n", cut);
  out += fmt::format("  - export: {{file: {}, format: {}, label: {} only}}\n",
                     quoted(in.base_name + (cut.empty() ? "-rounded.gguf" : "-cut.gguf")), format,
                     cut.empty() ? "rounded" : "cut");
  // A student that kept most of its teacher is only harmed by a high rate; one that lost most of it needs one
  // to heal. Between 1e-4 and 1e-3 by the share that is gone (docs/recipes.md has the measurement).
  const double gone = 1 - static_cast<double>(plan.parameters) / static_cast<double>(teacher.parameters());
  const std::string rate = fmt::format("{:.1e}", 1e-4 + 9e-4 * gone);
  if (classifies) {
    out += fmt::format("  - distil.soft: {{examples: {}, temperature: 2.0, alpha: 0.9, learning_rate: {}}}\n",
                       in.tokens, rate);
  } else {
    // The same text, windows and temperature for every class, so that the first one's teacher outputs are all
    // that the others need (docs/recipes.md, "A cache"). What a masked model hides is new each time.
    const std::string outputs =
        teacher.config.is_encoder()
            ? ""
            : fmt::format(", teacher_outputs: top_k, k: {}", std::min(64u, teacher.config.n_vocab - 1));
    out += fmt::format(
        "  - distil.soft: {{tokens: {}, batch_tokens: 2048, temperature: 2.0, alpha: 0.9, learning_rate: "
        "{}{}}}\n",
        in.tokens, rate, outputs);
  }
  const bool coarse = plan.format != TensorType::kQ8_0 && plan.format != TensorType::kF16;
  out += fmt::format("  - quantize.weights: {{format: {}{}}}\n", format, coarse ? ", method: gptq" : "");
  out += fmt::format("  - export: {{file: {}, label: distilled}}\n",
                     quoted(in.base_name + "-" + format + ".gguf"));
  return out;
}

json::object to_json(const StudentPlan& plan) {
  json::object out{
      {"format", info(plan.format).name},
      {"parameters", plan.parameters},
      {"file_bytes", plan.file_bytes},
      {"serving_memory_bytes", plan.serving_memory_bytes},
      {"token_seconds", plan.token_seconds > 0 ? json::value(plan.token_seconds) : json::value()}};
  if (plan.classifier) {
    json::array channels;
    for (const Convolution& conv : plan.classifier->convolutions) channels.push_back(conv.out_channels);
    out["channels"] = std::move(channels);
    out["hidden"] = json::array(plan.classifier->hidden.begin(), plan.classifier->hidden.end());
    return out;
  }
  const LayerShape& layer = plan.config.layers[0];
  out["layers"] = plan.config.n_layer();
  out["ffn"] = layer.n_ff;
  out["heads"] = layer.n_head;
  out["kv_heads"] = layer.n_head_kv;
  return out;
}

}  // namespace retort
