#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "agent/serve/runtime/classification_metrics.h"
#include "agent/serve/runtime/classifier.h"
#include "agent/serve/runtime/thread_team.h"
#include "common/core/json.h"
#include "common/core/labelled_tensors.h"
#include "common/core/result.h"

namespace retort {

/// How well a classifier of tensors does on labelled examples, with the kernels that serve it.
struct ClassifierEvaluation {
  ClassificationMetrics metrics;
  /// Against a teacher: mean KL(teacher ‖ student) in nats, and the share of examples where both give the
  /// same label. Negative where no teacher was given.
  double kl_divergence = -1, top1_agreement = -1;
  double inputs_per_second = 0;

  json::object to_json() const;
};

/// The shape of a classifier's input, for reading one.
TensorShape input_shape(const ClassifierConfig& config);

/// `data`, `labels_file`: as visit_labelled_tensors takes them. Stops after `max_examples` (0: never). A
/// teacher must have the same input and labels (kInvalid).
Result<ClassifierEvaluation> evaluate_classifier(std::shared_ptr<const Classifier> student,
                                                 std::shared_ptr<const Classifier> teacher,
                                                 const std::filesystem::path& data,
                                                 const std::filesystem::path& labels_file,
                                                 std::uint64_t max_examples, ThreadTeam& team);

}  // namespace retort
