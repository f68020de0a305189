#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/core/json.h"
#include "common/core/result.h"
#include "common/model/model_config.h"
#include "coordinator/worker/recipe.h"

namespace retort {

/// What a pass will do to the model, known before anything runs.
struct PlannedPass {
  std::string name;
  std::string shape_before, shape_after;  ///< in words
  std::uint64_t parameters = 0;           ///< afterwards
  ModelConfig after;                      ///< of a language model
  std::string format;                     ///< export: its matrices' type, or "mixed"
  std::optional<TensorType>
      rewritten;  ///< export: the type that matrices are encoded in, unless they already are
  std::uint64_t tokens = 0, steps = 0, file_bytes = 0, peak_bytes = 0;
  double flops = 0;         ///< of matrix products
  double loop_seconds = 0;  ///< of one thread, beside them: searches for the scales of rounded values
};

struct Plan {
  std::vector<PlannedPass> passes;
  std::vector<std::string> warnings;  ///< what is not as a recipe's words let one think
  std::uint64_t peak_bytes = 0;
  int threads = 1;

  /// At `flops_per_second` of matrix products.
  double seconds(const PlannedPass& pass, double flops_per_second) const {
    return pass.flops / flops_per_second + pass.loop_seconds / threads;
  }
  double seconds(double flops_per_second) const;  ///< of all passes
};

/// The model's shape after a cut. kInvalid when a target is larger than what is there or heads do not divide.
Result<ModelConfig> pruned_config(const ModelConfig& config, const PrunePass& pass, const std::string& where);
/// The matrices whose weights a prune.unstructured takes: the layers' (Wanda, section 4: not the embedding,
/// not the head) that its pattern matches. kInvalid when that is none, or rows are not whole groups.
Result<std::vector<std::string>> sparse_matrices(const ModelConfig& config, const SparsePass& pass,
                                                 const std::string& where);
/// A transformer of the recipe's shape over a vocabulary, without heads of an encoder.
ModelConfig init_config(const InitShape& shape, std::uint32_t vocabulary, std::int32_t bos, std::int32_t eos);

/// Length of one training window and windows in a step.
std::uint32_t window_of(const OptimisePass& pass, const ModelConfig& config);
std::uint32_t windows_per_step(const OptimisePass& pass, std::uint32_t window);
/// Windows that go through the model at once, so that logits stay below 64 MiB.
std::uint32_t micro_batch(std::uint32_t windows, std::uint32_t window, std::uint32_t vocabulary);

/// `teacher`: nullptr when there is none. `data_bytes`: size of the training text, `vocabulary_bytes`: of
/// tokenizer.json.
Result<Plan> make_plan(const Recipe& recipe, const ModelConfig& start, const ModelConfig* teacher,
                       std::uint64_t data_bytes, std::uint64_t vocabulary_bytes, int threads = 1);

/// Windows of calibration text that go through the model at once.
std::uint32_t calibration_batch(const ModelConfig& config, std::uint64_t window);

/// "model.layers.3.", "transformer.h.3." or "bert.encoder.layer.3."
std::string layer_prefix(const ModelConfig& config, std::size_t layer);
std::string layers_prefix(const ModelConfig& config);  ///< what all layers' names begin with

/// How a GGUF stores a weight: as a matrix of the export's type (GPT-2's Conv1D transposed), or in F32.
struct StoredAs {
  bool matrix = false, transposed = false;
};
StoredAs stored_as(ModelFamily family, const std::string& name, std::size_t dimensions);

/// kInvalid: a rule of quantize.weights matches no matrix; the message names some that there are.
Result<void> check_rules(const QuantizePass& pass, const std::vector<std::string>& matrices,
                         const std::string& where);
/// Hugging Face's names of the matrices that a GGUF holds in the export's type.
std::vector<std::string> matrix_names(const ModelConfig& config);
/// Memory of the statistics of an input of so many columns, and of GPTQ's matrices over them.
std::uint64_t statistics_bytes(std::uint64_t columns);
/// Memory of a quantize.weights beside the network: encoded matrices, the statistics of one layer at a time
/// and the text's hidden states (quantize.h).
std::uint64_t quantize_bytes(const QuantizePass& pass, const ModelConfig& config);

/// Time of a quantize.weights: seconds that one thread takes to search for scales, and operations of what
/// GPTQ and AWQ do with each matrix's statistics over `tokens`.
struct RoundingCost {
  double loop_seconds = 0, flops = 0;
};
RoundingCost rounding_cost(const QuantizePass& pass, const ModelConfig& config, std::uint64_t tokens);

/// How a file's matrices come to be stored when these formats are asked for.
struct WrittenAs {
  std::string format;    ///< the one that most values are in; "mixed" where several were asked for
  std::string fallback;  ///< what is told of matrices whose rows no whole blocks fill; empty: there are none
};
WrittenAs written_as(const ModelConfig& config, const QuantizePass& formats);

/// Bytes of a GGUF of this shape, to within a few per cent. `zeros`: by matrix, the share of its weights that
/// prune.unstructured has set to zero.
std::uint64_t predicted_file_bytes(const ModelConfig& config, const QuantizePass& formats,
                                   std::uint64_t vocabulary_bytes,
                                   const std::map<std::string, double>& zeros = {});

json::object to_json(const Plan& plan, double flops_per_second);
std::string to_table(const Plan& plan, double flops_per_second);
/// "5 layers, 128 wide, 8/4 heads, FFN 352"
std::string describe(const ModelConfig& config);

}  // namespace retort
