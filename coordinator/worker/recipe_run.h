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
#include "coordinator/worker/run_folder.h"
#include "coordinator/worker/training.h"

namespace retort {

/// A recipe of one task at work: its passes, one after another, each noted in the run's folder when it is
/// done, so that a run that is started again goes on behind the last. Thread: one.
class RecipeRun {
 public:
  virtual ~RecipeRun() = default;
  /// Everything that can be refused before work begins.
  virtual Result<Plan> prepare() = 0;
  /// Takes up what an earlier start has left in the folder. kConflict, kCorrupt: RunFolder::load's and
  /// learn_from's.
  Result<void> open();
  bool finished() const { return out_.state.pass == recipe_.passes.size(); }
  /// Whether all that a finished run has exported is still there. kCorrupt: what is not.
  Result<void> check_artifacts() const;
  /// Does what is left of it.
  Result<void> execute();
  /// The pass that it is at and its place in the recipe, for what a fault tells.
  std::string in_hand() const;
  /// What has been exported, in this start of the run or an earlier one; and what time they took.
  const json::array& artifacts() const { return out_.state.artifacts; }
  double seconds() const { return out_.seconds(); }

 protected:
  RecipeRun(const RunOptions& options, Recipe recipe, Progress& progress)
      : options_(options), recipe_(std::move(recipe)), progress_(progress), out_(options.out, progress) {}
  /// Opens what the passes need; network_ is then what the next of them begins with.
  virtual Result<void> begin() = 0;
  virtual Result<void> run_pass(std::size_t index) = 0;
  Result<void> pass_done(bool weights_changed);
  /// An optimisation that draws `per_step` tokens or examples a step.
  Training training_of(const OptimisePass& pass, std::size_t index, std::uint64_t per_step) const;
  /// The pass's steps, where options_.device says: the networks (`teacher`: nullptr, or one that is asked)
  /// and the moments go there, and are back on the CPU afterwards, whether it ended well or not.
  Result<void> train_there(const Training& training, Network* teacher);
  /// retort-serve's figures for a file on the held-out data, against `teacher`'s GGUF ("": none); `more`
  /// arguments.
  Result<json::object> judged(const std::filesystem::path& file, const std::filesystem::path& teacher,
                              const std::vector<std::string>& more) const;

  const RunOptions& options_;
  Recipe recipe_;
  Progress& progress_;
  RunFolder out_;
  std::filesystem::path serve_, tokenizer_folder_;
  std::string data_sha256_;  ///< of the training data; empty: there is none
  bool reference_ = false;   ///< this process has written teacher.gguf: one that was there is anyone's
  std::optional<Tokenizer> tokenizer_;
  std::optional<Network> teacher_;
  std::string teacher_model_sha256_;  ///< model_sha256, where there is a teacher
  Plan plan_;
  Network network_;
  Moments moments_;
};

std::uint64_t parameters_of(const Network& shape);
/// "4x256 …" of layers, "784→128→10" of a classifier of tensors.
std::string describe(const Network& shape);

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

/// What guessing costs, and how it is done.
struct Guess {
  double nll = 0;  ///< nats a token, or an example
  std::string by;
};
/// Warns of a student that does no better: training that went wrong, or a cut that took too much. `each`: "a
/// token", "an example".
void tell_if_guessing(Progress& progress, const std::string& label, double nll, std::string_view each,
                      const Guess& guess);

std::unique_ptr<RecipeRun> make_language_run(const RunOptions& options, Recipe recipe, Progress& progress);
std::unique_ptr<RecipeRun> make_classifier_run(const RunOptions& options, Recipe recipe, Progress& progress);

}  // namespace retort
