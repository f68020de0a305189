#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/blocks/tensor_type.h"
#include "common/core/result.h"
#include "common/gguf/safetensors.h"

namespace retort {

/// The shape of a model that is trained from random weights (a Llama).
struct InitShape {
  std::uint32_t hidden = 0, layers = 0, heads = 0, kv_heads = 0, ffn = 0, context = 0;
  std::filesystem::path tokenizer;  ///< folder with tokenizer.json
};

/// train and distil.soft: AdamW over `tokens` tokens. Units and sources: docs/recipes.md.
struct OptimisePass {
  bool distil = false;
  std::optional<InitShape> init;
  std::uint64_t tokens = 0;
  std::uint32_t batch_tokens = 2048, context = 0;  ///< context 0: the model's own
  double learning_rate = 1e-3, warmup = 0.03, weight_decay = 0.1, clip = 1.0;
  enum class Schedule { kCosine, kWsd, kConstant } schedule = Schedule::kCosine;
  double decay = 0.2;  ///< of a wsd schedule: the share of steps over which the rate falls to zero
  double temperature = 2.0, alpha = 0.9;
  std::uint32_t checkpoint_seconds = 60;
};

struct PrunePass {
  std::optional<std::uint32_t> layers, ffn, heads, kv_heads;
  bool activation = true;  ///< else by magnitude
  std::uint64_t calibration_tokens = 8192;
};

struct QuantizePass {
  TensorType format = TensorType::kQ8_0;
};

struct EvaluatePass {
  std::string label = "in-training";
};

struct ExportPass {
  std::string file, label;
  bool huggingface = false;
  std::optional<TensorType> format;  ///< of a GGUF; without one what quantize.weights said, else F16
  SafeTensor::DType dtype = SafeTensor::DType::kF16;  ///< of a Hugging Face folder
  bool also_huggingface = false;  ///< a GGUF's weights besides as a Hugging Face folder of the same stem
};

using Pass = std::variant<OptimisePass, PrunePass, QuantizePass, EvaluatePass, ExportPass>;
std::string_view pass_name(const Pass& pass);

struct DataFile {
  std::filesystem::path file;
  std::uint64_t limit_documents = 0;  ///< 0: all
  std::uint64_t max_tokens = 0;       ///< held_out only; 0: all
};

struct Recipe {
  std::string where;  ///< the file, for messages
  std::string sha256;
  std::uint64_t seed = 1;
  std::filesystem::path teacher;  ///< empty: none
  std::optional<DataFile> train, held_out;
  std::vector<Pass> passes;
};

/// Reads and checks a recipe by itself: every key, type and range, the passes' order, and that the files it
/// names are there. Errors name file, line and key, and the nearest valid key for an unknown one. Relative
/// paths are taken from `folder`.
Result<Recipe> parse_recipe(const std::string& text, const std::filesystem::path& folder,
                            const std::string& where);
Result<Recipe> read_recipe(const std::filesystem::path& file);

}  // namespace retort
