#pragma once

#include <memory>

#include "coordinator/worker/plan.h"
#include "coordinator/worker/progress.h"
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

std::unique_ptr<RecipeRun> make_language_run(const RunOptions& options, Recipe recipe, Progress& progress);
std::unique_ptr<RecipeRun> make_classifier_run(const RunOptions& options, Recipe recipe, Progress& progress);

}  // namespace retort
