#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "common/blocks/tensor_type.h"
#include "common/core/result.h"
#include "common/gguf/gguf.h"
#include "common/gguf/safetensors.h"
#include "common/model/model_config.h"
#include "common/tokenizer/tokenizer.h"

namespace retort {

/// A Hugging Face directory, opened and cross-checked: config.json, safetensors, tokenizer.json.
struct HfModel {
  ModelConfig config;
  Tokenizer tokenizer;
  Safetensors weights;
};

/// config.json alone. kUnsupported: another model_type (the message names ours), rope scaling, biases,
/// another activation, another of BERT's architectures; kInvalid names the field.
Result<ModelConfig> read_hf_config(std::string_view config_json, std::string_view where);

/// Opens a folder (a BERT's pooling comes from modules.json beside config.json) and checks that every tensor
/// of the architecture is there with the right shape, that none is left over unexplained, and that tokenizer
/// and model agree on the vocabulary's size. Reads no weights yet.
Result<HfModel> open_hf_model(const std::filesystem::path& folder);

/// Name and row-major shape of every weight in Hugging Face's layout (GPT-2's Conv1D weights are [in, out]);
/// the head is listed only when it is not tied. Per-layer widths are honoured.
struct WeightShape {
  std::string name;
  std::vector<std::uint64_t> shape;
};
std::vector<WeightShape> hf_weights(const ModelConfig& config);

/// Which of a weight's rows stands where in a GGUF file: the row of Hugging Face's layout at each place;
/// empty where the order is the same.
std::vector<std::int64_t> gguf_row_order(const ModelConfig& config, std::string_view name);

/// What a weight is called in a GGUF file.
std::string gguf_name(const ModelConfig& config, std::string_view hf_name);

/// Extra metadata for a GGUF file: general.name, lineage ("retort.teacher.sha256", "retort.recipe.sha256",
/// …).
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;

/// Writes a GGUF that llama.cpp loads unchanged. `weights` come in Hugging Face's names and layout; this
/// renames them, permutes Llama's Q and K from rotate-half to interleaved pairs, transposes GPT-2's Conv1D,
/// and encodes matrices as `matrix_type` (one-dimensional tensors, learned positions and token types stay
/// F32; a matrix whose rows the block does not divide stays F16). Per-layer widths become GGUF arrays, which
/// llama.cpp does not take for these architectures; widths equal in all layers become scalars.
Result<void> write_gguf_model(const std::filesystem::path& path, const ModelConfig& config,
                              const Tokenizer& tokenizer, const std::vector<TensorSource>& weights,
                              TensorType matrix_type, const GgufMetadata& extra);

/// TensorSources that read from an open model's safetensors.
std::vector<TensorSource> weight_sources(const HfModel& model);

/// The architecture that a GGUF file holds, checked against its tensors' shapes.
Result<ModelConfig> read_gguf_config(const GgufFile& file);

/// Writes a Hugging Face folder: config.json (per-layer widths under "retort_layers" where they differ),
/// model.safetensors in `dtype`, and the tokenizer files copied from `tokenizer_folder`.
Result<void> write_hf_model(const std::filesystem::path& folder, const ModelConfig& config,
                            const std::vector<TensorSource>& weights, SafeTensor::DType dtype,
                            const std::filesystem::path& tokenizer_folder);

}  // namespace retort
