#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "common/hf/hf_model.h"
#include "coordinator/worker/activations.h"
#include "coordinator/worker/plan.h"
#include "coordinator/worker/progress.h"
#include "coordinator/worker/quantize.h"
#include "coordinator/worker/run.h"

namespace retort {

/// A recipe of one task at work. Thread: one.
class RecipeRun {
 public:
  virtual ~RecipeRun() = default;
  /// Everything that can be refused before work begins.
  virtual Result<Plan> prepare() = 0;
  /// Does what is left of it; the artifacts.
  virtual Result<json::array> execute() = 0;
};

// What runs of every task do alike.

/// What an exported GGUF comes from, beside its recipe. An empty hash: there is none.
struct Sources {
  std::string teacher_sha256, init_sha256, data_sha256;  ///< init: the model whose body a new one began with
};
GgufMetadata lineage(const Recipe& recipe, const std::filesystem::path& file, const Sources& sources);
/// What the event "exported" and the run's list say of a file; `bytes_of` is the one that is measured.
Result<json::object> exported(const ExportPass& pass, const std::filesystem::path& bytes_of,
                              std::uint64_t parameters, std::string_view format);
/// The event "calibrated".
void tell_calibrated(Progress& progress, std::size_t pass_index, const std::vector<CalibratedInput>& inputs);
/// The event "quantized".
void tell_quantized(Progress& progress, std::size_t pass_index, const QuantizePass& pass,
                    const std::vector<QuantizedMatrix>& matrices);
/// The event "evaluation". `file`: null where nothing is exported.
void tell_evaluation(Progress& progress, const std::string& label, json::value file,
                     const json::object& figures);

std::unique_ptr<RecipeRun> make_language_run(const RunOptions& options, Recipe recipe, Progress& progress);
std::unique_ptr<RecipeRun> make_classifier_run(const RunOptions& options, Recipe recipe, Progress& progress);

}  // namespace retort
