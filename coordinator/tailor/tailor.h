#pragma once

#include <string>
#include <vector>

#include "common/blocks/tensor_type.h"
#include "common/core/json.h"
#include "common/model/classifier_config.h"
#include "common/model/device.h"
#include "common/model/model_config.h"

namespace retort {

/// A student's shape and format, and what it is predicted to cost.
struct StudentPlan {
  ModelConfig config;
  std::optional<ClassifierConfig> classifier;  ///< of tensors; `config` then says nothing
  TensorType format = TensorType::kQ8_0;
  std::uint64_t parameters = 0, file_bytes = 0, serving_memory_bytes = 0;
  double token_seconds =
      0;  ///< file bytes over the slowest device's measured bandwidth; 0: no device measured yet
};

/// What a teacher is: a language model or a classifier of texts (`config`), or a classifier of tensors.
struct TeacherShape {
  ModelConfig config;
  std::optional<ClassifierConfig> classifier;

  bool classifies() const { return classifier || !config.encoder.labels.empty(); }
  std::uint64_t parameters() const {
    return classifier ? parameter_count(*classifier) : parameter_count(config);
  }
};

/// What a file of this shape takes. `header_bytes`: metadata and tokenizer, as the teacher's own file has
/// them.
std::uint64_t predicted_file_bytes(const ModelConfig& config, TensorType format, std::uint64_t header_bytes);
/// retort-serve with it: file, F32 KV cache at full context, activations, and the program itself.
std::uint64_t predicted_serving_bytes(const ModelConfig& config, std::uint64_t file_bytes);

/// The largest cut of the teacher (by parameters; deeper wins a tie) that fits the class's budgets: layers,
/// FFN width in steps of 256 (32 where it is small), heads with their KV groups; Q8_0 before F16.
/// `bandwidth`: bytes/s of the class's slowest measured device, 0 when there is none. kOutOfBudget names the
/// smallest candidate. Of a classifier of tensors: all channels and hidden widths in one proportion, by
/// sixteenths.
Result<StudentPlan> plan_student(const TeacherShape& teacher, std::uint64_t header_bytes,
                                 const DeviceClass& device_class, double bandwidth);

/// The recipe that makes it: prune, export "cut only", distil, quantize, export "distilled". Paths are the
/// caller's.
struct RecipeInputs {
  std::string teacher_folder, train_file, held_out_file, base_name;
  std::uint64_t tokens = 300000;  ///< to distil on; of a classifier examples
  std::uint64_t held_out_tokens = 20000, seed = 7;
};
std::string write_recipe(const TeacherShape& teacher, const StudentPlan& plan, const RecipeInputs& inputs);

json::object to_json(const StudentPlan& plan);

}  // namespace retort
