#include "coordinator/worker/recipe_run.h"

#include <cmath>

#include "common/core/sha256.h"
#include "coordinator/worker/judge.h"

namespace retort {

namespace {
/// Of a file, and of its labels where they have one of their own; "" of none.
Result<std::string> data_sha256(const std::optional<DataFile>& data) {
  if (!data) return std::string();
  const std::string file = RETORT_TRY(sha256_file_hex(data->file));
  return data->labels.empty() ? file : sha256_hex(file + RETORT_TRY(sha256_file_hex(data->labels)));
}
}  // namespace

Result<void> RecipeRun::open() {
  RETORT_TRY(out_.load({recipe_.sha256, teacher_model_sha256_, recipe_.passes.size(), options_.threads}));
  data_sha256_ = RETORT_TRY(data_sha256(recipe_.train));
  return out_.learn_from(data_sha256_, RETORT_TRY(data_sha256(recipe_.held_out)));
}

std::string RecipeRun::in_hand() const {
  if (finished()) return recipe_.where;
  return fmt::format("{}: {}", recipe_.place(out_.state.pass), pass_name(recipe_.passes[out_.state.pass]));
}

Result<void> RecipeRun::check_artifacts() const {
  for (const json::value& artifact : artifacts()) {
    const std::string where = out_.path().string();
    const json::object& told = *RETORT_TRY(as_object(artifact, where));
    std::filesystem::path file = out_ / RETORT_TRY(json_string(told, "file", where));
    if (std::filesystem::is_directory(file)) file /= "model.safetensors";
    const auto sum = sha256_file_hex(file);
    if (!sum || *sum != RETORT_TRY(json_string(told, "sha256", where)))
      return fail(ErrorCode::kCorrupt, file.string(),
                  "{}, and the run that made it is finished: empty {} to make it again",
                  sum ? "this is not what was exported" : "it is not there any more", where);
  }
  return {};
}

Result<void> RecipeRun::execute() {
  if (!finished()) RETORT_TRY(begin());
  while (!finished()) {
    const std::size_t index = out_.state.pass;
    progress_.emit("pass_start", {{"pass", pass_name(recipe_.passes[index])},
                                  {"pass_index", index},
                                  {"pass_count", recipe_.passes.size()},
                                  {"model", describe(network_)},
                                  {"parameters", parameters_of(network_)},
                                  {"resumed_at_step", out_.state.step}});
    RETORT_TRY(out_.check_stop());
    RETORT_TRY(run_pass(index));
  }
  return out_.finish();
}

Result<void> RecipeRun::pass_done(bool weights_changed) {
  out_.next_pass();
  moments_ = {};
  return weights_changed ? out_.save(network_, moments_) : out_.save_state();
}

Training RecipeRun::training_of(const OptimisePass& pass, std::size_t index, std::uint64_t per_step) const {
  const std::uint64_t steps = std::max<std::uint64_t>(1, pass.tokens / per_step);
  return {.pass = pass,
          .index = index,
          .passes = recipe_.passes.size(),
          .steps = steps,
          .per_step = per_step,
          .each = recipe_.task == Task::kClassification ? "example" : "token",
          .where = recipe_.place(index)};
}

Result<void> RecipeRun::train_there(const Training& training, Network* teacher) {
  const bool gpu = RETORT_TRY(trains_on_gpu(options_.device));
  const auto move_all = [&](at::Device device) {
    move_to(network_, device);
    if (teacher != nullptr) move_to(*teacher, device);
    for (auto* moments : {&moments_.first, &moments_.second})
      for (auto& [name, tensor] : *moments) tensor = tensor.to(device);
  };
  if (gpu) move_all(at::kCUDA);
  Result<void> done = train(out_, progress_, network_, moments_, training);
  if (gpu) move_all(at::kCPU);
  return done;
}

Result<json::object> RecipeRun::judged(const std::filesystem::path& file,
                                       const std::filesystem::path& teacher,
                                       const std::vector<std::string>& more) const {
  std::vector<std::string> arguments{"--data", recipe_.held_out->file.string(), "--threads",
                                     std::to_string(options_.threads)};
  if (!teacher.empty()) arguments.insert(arguments.end(), {"--teacher", teacher.string()});
  arguments.insert(arguments.end(), more.begin(), more.end());
  return serve_eval(serve_, file, arguments, out_.path(), [&] { return out_.check_stop(); });
}

std::uint64_t parameters_of(const Network& shape) {
  return shape.classifier ? parameter_count(*shape.classifier) : parameter_count(shape.config);
}

std::string describe(const Network& shape) {
  if (!shape.classifier) return describe(shape.config);
  const ClassifierConfig& c = *shape.classifier;
  std::string out = fmt::format("{}", c.input.values());
  for (const Convolution& conv : c.convolutions)
    out += fmt::format("→{}×{}²", conv.out_channels, conv.kernel);
  for (const std::uint32_t width : c.hidden) out += fmt::format("→{}", width);
  return out + fmt::format("→{}", c.labels.size());
}

GgufMetadata lineage(const Recipe& recipe, const std::filesystem::path& file, const Sources& sources) {
  GgufMetadata out{{"general.name", file.stem().string()},
                   {"retort.recipe.sha256", recipe.sha256},
                   {"retort.seed", static_cast<std::uint64_t>(recipe.seed)},
                   {"retort.tool_version", std::string(RETORT_VERSION)}};
  for (const auto& [name, sha256] : {std::pair{"retort.teacher.sha256", sources.teacher_sha256},
                                     {"retort.init.sha256", sources.init_sha256},
                                     {"retort.data.sha256", sources.data_sha256}})
    if (!sha256.empty()) out.emplace_back(name, sha256);
  return out;
}

Result<json::object> exported(const ExportPass& pass, const std::filesystem::path& bytes_of,
                              std::uint64_t parameters, std::string_view format) {
  std::error_code error;
  const auto size = std::filesystem::file_size(bytes_of, error);
  const std::uint64_t bytes = error ? 0 : size;
  const std::string sha256 = RETORT_TRY(sha256_file_hex(bytes_of));
  return json::object{{"file", pass.file},
                      {"label", pass.label},
                      {"sha256", sha256},
                      {"bytes", bytes},
                      {"parameters", parameters},
                      {"bits_per_weight", 8.0 * static_cast<double>(bytes) / static_cast<double>(parameters)},
                      {"format", format}};
}

void tell_calibrated(Progress& progress, std::size_t pass_index, const std::vector<CalibratedInput>& inputs) {
  json::array tensors;
  for (const CalibratedInput& input : inputs)
    for (const std::string& name : input.matrices) {
      json::object line{{"tensor", name}, {"largest", input.largest}, {"clipped_at", input.clip}};
      if (input.largest_before) line["largest_before_smoothing"] = *input.largest_before;
      tensors.push_back(std::move(line));
    }
  progress.emit("calibrated", {{"pass_index", pass_index}, {"tensors", std::move(tensors)}});
}

void tell_quantized(Progress& progress, std::size_t pass_index, const QuantizePass& pass,
                    const std::vector<QuantizedMatrix>& matrices) {
  json::array tensors;
  std::uint64_t values = 0, bytes = 0;
  for (const QuantizedMatrix& matrix : matrices) {
    json::object line{
        {"tensor", matrix.name},
        {"format", info(matrix.type).name},
        {"bits_per_weight", 8.0 * static_cast<double>(matrix.bytes) / static_cast<double>(matrix.values)},
        {"weight_error", matrix.weight_error}};
    if (matrix.output_error) line["output_error"] = *matrix.output_error;
    if (pass.awq) line["alpha"] = matrix.alpha;
    if (!matrix.sensitivity.empty()) {
      json::object each;
      for (const auto& [type, divergence] : matrix.sensitivity) each[info(type).name] = divergence;
      line["kl_divergence_alone"] = std::move(each);
    }
    tensors.push_back(std::move(line));
    values += matrix.values;
    bytes += matrix.bytes;
  }
  progress.emit("quantized",
                {{"pass_index", pass_index},
                 {"bits_per_weight", 8.0 * static_cast<double>(bytes) / static_cast<double>(values)},
                 {"tensors", std::move(tensors)}});
}

void tell_evaluation(Progress& progress, const std::string& label, json::value file,
                     const json::object& figures) {
  json::object event{{"label", label}, {"file", std::move(file)}};
  for (const auto& member : figures) event[member.key()] = member.value();
  progress.emit("evaluation", std::move(event));
}

void tell_if_guessing(Progress& progress, const std::string& label, double nll, std::string_view each,
                      const Guess& guess) {
  if (nll < guess.nll || !std::isfinite(nll)) return;
  progress.warning(
      fmt::format("{}: {:.4g} nats {}, and guessing {} costs {:.4g}: no better than a guess. Look at the "
                  "passes before it: "
                  "a learning_rate that is too high or too low, too little to learn from, or a cut without "
                  "training after it",
                  label, nll, each, guess.by, guess.nll));
}

}  // namespace retort
