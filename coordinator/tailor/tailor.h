#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/blocks/tensor_type.h"
#include "common/core/json.h"
#include "common/model/classifier_config.h"
#include "common/model/device.h"
#include "common/model/model_config.h"
#include "coordinator/tailor/decode_predictor.h"

namespace retort {

/// What a teacher is: a language model or a classifier of texts (`config`), or a classifier of tensors.
struct TeacherShape {
  ModelConfig config;
  std::optional<ClassifierConfig> classifier;

  bool classifies() const { return classifier || !config.encoder.labels.empty(); }
  std::uint64_t parameters() const {
    return classifier ? parameter_count(*classifier) : parameter_count(config);
  }
};

/// A student's shape and format, and what it is predicted to cost.
struct StudentPlan {
  ModelConfig config;
  std::optional<ClassifierConfig> classifier;  ///< of tensors; `config` then says nothing
  TensorType format = TensorType::kQ8_0;
  std::uint64_t parameters = 0, file_bytes = 0, serving_memory_bytes = 0;
  double token_seconds = 0;  ///< predicted for the class's slowest device; 0: none is measured yet
};

/// What is known of the speed of a class's slowest device.
struct ClassSpeed {
  /// From its retort-serve's own measurements: a token of a language model behind half of its context.
  std::optional<DecodePredictor> decode;
  /// Bytes/s, one thread: with no more than this a token takes as long as the file is read. 0: not measured.
  double bandwidth = 0;

  /// Whether tokens of such a teacher's students are predicted by `decode`.
  bool measured(const TeacherShape& teacher) const {
    return decode && !teacher.classifier && !teacher.config.is_encoder();
  }
};
/// `decode` of the device whose geometric mean over the small shapes in Q8_0, which even small devices
/// measure, is the longest; `bandwidth` of the lowest.
ClassSpeed slowest(std::span<const DeviceProfile* const> devices);

/// What a file of this shape takes. `header_bytes`: metadata and tokenizer, as the teacher's own file has
/// them.
std::uint64_t predicted_file_bytes(const ModelConfig& config, TensorType format, std::uint64_t header_bytes);
/// retort-serve with it: file, F32 KV cache at full context, activations, and the program itself.
std::uint64_t predicted_serving_bytes(const ModelConfig& config, std::uint64_t file_bytes);

/// The largest cut of the teacher (by parameters; deeper wins a tie) that fits the class's budgets, in the
/// format of the most bits that does: layers, FFN width in steps of 256 (32 where it is small), heads with
/// their KV groups. Fewer bits cost a student far less than fewer weights, down to Q3_K (docs/benchmarks.md,
/// "Tailored students"). kOutOfBudget names the smallest candidate. Of a classifier of tensors: all channels
/// and hidden widths in one proportion, by sixteenths, in Q8_0 or F16.
Result<StudentPlan> plan_student(const TeacherShape& teacher, std::uint64_t header_bytes,
                                 const DeviceClass& device_class, const ClassSpeed& speed);

/// The recipe that makes it: prune, export "cut only" ("rounded only" where nothing is cut), distil, quantize
/// (by GPTQ below eight bits), export "distilled". Paths are the caller's.
struct RecipeInputs {
  std::string teacher_folder, train_file, held_out_file, base_name;
  std::uint64_t tokens = 300000;  ///< to distil on; of a classifier examples
  std::uint64_t held_out_tokens = 20000, seed = 7;
};
std::string write_recipe(const TeacherShape& teacher, const StudentPlan& plan, const RecipeInputs& inputs);

json::object to_json(const StudentPlan& plan);

}  // namespace retort
