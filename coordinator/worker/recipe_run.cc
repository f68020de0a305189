#include "coordinator/worker/recipe_run.h"

#include "common/core/sha256.h"

namespace retort {

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

}  // namespace retort
