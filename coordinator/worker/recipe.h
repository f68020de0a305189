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
#include "common/model/classifier_config.h"
#include "common/model/model_config.h"

namespace retort {

/// The shape of a transformer that is trained from random weights.
struct InitShape {
  ModelFamily family = ModelFamily::kLlama;
  std::uint32_t hidden = 0, layers = 0, heads = 0, kv_heads = 0, ffn = 0, context = 0;
  std::filesystem::path tokenizer;  ///< folder with tokenizer.json
};

/// A new classifier: from random weights, or with a trained body.
struct ClassifierInit {
  std::optional<InitShape> text;  ///< a bert from random weights, or
  std::filesystem::path body;     ///< a Hugging Face folder whose BERT gets a new head; else of tensors:
  ClassifierConfig tensors;       ///< input {0, 1, 1}: as long as the data's examples; labels: below
  /// What goes into it of the training data's mean and deviation: each feature's or channel's, or all
  /// values'.
  enum class Normalize { kEach, kAll, kNone } normalize = Normalize::kEach;
  std::vector<std::string> labels;  ///< empty: the training data's
};

/// quantize.weights. Units and sources: docs/recipes.md.
struct QuantizePass {
  TensorType format = TensorType::kQ8_0;
  struct Rule {
    std::string match;  ///< shell pattern of Hugging Face's names
    TensorType format;
  };
  std::vector<Rule> formats;  ///< the first that matches wins over `format` and over the budget
  enum class Method { kNearest, kImportance, kGptq } method = Method::kNearest;
  bool awq = false, act_order = false;
  double damping = 0.01;
  std::uint64_t calibration_tokens = 16384;  ///< in classification examples, as sensitivity_tokens
  std::optional<double> bits;                ///< budget: mean bits a weight over all matrices
  std::vector<TensorType> candidates{TensorType::kQ3K, TensorType::kQ4K, TensorType::kQ5K, TensorType::kQ6K,
                                     TensorType::kQ8_0};
  std::uint64_t sensitivity_tokens = 2048;

  bool needs_statistics() const { return method != Method::kNearest || awq; }
  bool needs_calibration() const { return needs_statistics() || bits; }
};

/// How much of a teacher's distribution a distillation sees for each token.
enum class TeacherOutputs {
  kFull,  ///< all of it, computed at each step
  kTopK,  ///< the k largest probabilities and what is left as one; once for a corpus, where there is a cache
  kSampled,  ///< k draws, unbiased (Sparse Logit Sampling, 2503.16870); likewise
  kWritten,  ///< of a cache alone: the text that it writes (Mixture::teacher_text)
};

/// Which way round student and teacher are compared (distil.h).
enum class Divergence { kForward, kReverse, kJensenShannon };

/// What a distillation minimizes: a weighted sum, each part a mean per token.
struct Mixture {
  double labels = 0.1;  ///< cross-entropy on the text
  double soft = 0.9;    ///< T² divergence from the teacher
  double temperature = 2.0;
  Divergence divergence = Divergence::kForward;
  double beta = 0.5;  ///< of the generalized Jensen–Shannon divergence
  double attention = 0, hidden = 0, relation = 0;
  std::uint32_t relation_heads = 0;      ///< 0: the student's last layer's key/value heads
  std::vector<std::uint32_t> layer_map;  ///< the teacher's layer for each of the student's; empty: distil.h
  double on_policy = 0;                  ///< share of windows that the student itself writes on
  double teacher_text = 0;               ///< share of windows that the teacher writes on, once for a corpus
  double text_temperature = 1;           ///< at which it does; 0: always the likeliest token
  TeacherOutputs outputs = TeacherOutputs::kFull;
  std::uint32_t k = 64;

  bool needs_trace() const { return attention > 0 || hidden > 0 || relation > 0; }
};

/// train, distil.soft, distil.sequence and distil: AdamW over `tokens` tokens, `batch_tokens` a step; in
/// classification both count examples. Units and sources: docs/recipes.md.
struct OptimisePass {
  std::string name = "train";
  std::optional<Mixture> distil;
  std::optional<InitShape> init;
  std::optional<ClassifierInit> classifier;  ///< init, where the task is classification
  std::uint64_t tokens = 0;
  std::uint32_t batch_tokens = 2048, context = 0;  ///< context 0: the model's own
  double learning_rate = 1e-3, warmup = 0.03, weight_decay = 0.1, clip = 1.0;
  enum class Schedule { kCosine, kWsd, kConstant } schedule = Schedule::kCosine;
  double decay = 0.2;  ///< of a wsd schedule: the share of steps over which the rate falls to zero
  std::uint32_t checkpoint_seconds = 60;
  std::uint64_t evaluate_every = 0;  ///< steps between looks at the held-out loss; 0: none
  std::uint32_t patience = 0;        ///< looks without a lower loss after which to stop; 0: to the end
  /// kBf16: products in bfloat16, weights, sums and losses in F32. kAuto: that where the CPU has AVX512-BF16.
  enum class Precision { kF32, kBf16, kAuto } precision = Precision::kF32;
  /// quantize.aware: matrices are rounded in the forward pass, the gradient passes straight through.
  std::optional<QuantizePass> aware;
};

/// prune.vocabulary: the teacher and its student forget the tokens that the training text does not use
/// (vocabulary_cut.h).
struct VocabularyPass {
  std::uint64_t min_count = 1;  ///< tokens seen less often go as well
};

struct PrunePass {
  std::optional<std::uint32_t> layers, hidden, heads, kv_heads;
  std::vector<std::uint32_t> channels, dense;  ///< of convolutions and of hidden dense layers (mlp, cnn)
  std::vector<std::uint32_t> ffn;              ///< none, one for all layers, or one for each that is kept
  bool activation = true;                      ///< else by magnitude
  std::uint64_t calibration_tokens = 8192;
  std::uint32_t steps_left = 1;  ///< this one included: it takes 1/steps_left of what is still to go
};

/// prune.unstructured: single weights of the layers' matrices become zero, and stay so (prune.h).
struct SparsePass {
  double sparsity = 0.5;       ///< share of zeros, without a pattern
  std::uint32_t n = 0, m = 0;  ///< n of each m neighbours in a row stay; 0: no pattern
  bool wanda = true;           ///< else by magnitude
  std::string match = "*";     ///< shell pattern of Hugging Face's names
  std::uint64_t calibration_tokens = 8192;
};

/// quantize.activations: scales of matrices' inputs that are found beforehand (activations.h).
struct ActivationPass {
  enum class Method { kMinMax, kPercentile, kMse, kKl } method = Method::kMinMax;
  double percentile = 99.99;
  std::uint64_t calibration = 0;  ///< tokens, or examples
  bool bytes = false;             ///< of classifiers of tensors: inputs and logits come and go as int8 too
  std::optional<double> smooth;   ///< SmoothQuant's α; none: no migration
  /// Patterns of matrices whose inputs the runtime scales anew each time. Llama's down projections read
  /// outliers that no norm stands before.
  std::vector<std::string> dynamic{"*.down_proj.weight"};
};

/// The format that a rule fixes for a matrix; nothing where none does.
std::optional<TensorType> fixed_format(const QuantizePass& pass, const std::string& name);
/// fixed_format's, else `format`.
TensorType format_of(const QuantizePass& pass, const std::string& name);

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

using Pass = std::variant<OptimisePass, VocabularyPass, PrunePass, SparsePass, QuantizePass, ActivationPass,
                          EvaluatePass, ExportPass>;
std::string_view pass_name(const Pass& pass);

/// What a recipe's model is to do.
enum class Task { kLanguage, kClassification };

struct DataFile {
  std::filesystem::path file;
  std::filesystem::path labels;       ///< classification: of idx images; empty: they are in `file`
  std::uint64_t limit_documents = 0;  ///< 0: all
  std::uint64_t max_tokens = 0;       ///< held_out only; 0: all
};

struct Recipe {
  std::string where;  ///< the file, for messages
  std::string sha256;
  std::uint64_t seed = 1;
  Task task = Task::kLanguage;
  std::filesystem::path teacher;  ///< empty: none
  std::optional<DataFile> train, held_out;
  std::vector<Pass> passes;
  std::vector<std::string> places;  ///< file and line of each pass

  /// For messages about a pass.
  const std::string& place(std::size_t pass) const { return pass < places.size() ? places[pass] : where; }
};

/// Reads and checks a recipe by itself: every key, type and range, the passes' order, and that the files it
/// names are there. Errors name file, line and key, and the nearest valid key for an unknown one. Relative
/// paths are taken from `folder`.
Result<Recipe> parse_recipe(const std::string& text, const std::filesystem::path& folder,
                            const std::string& where);
Result<Recipe> read_recipe(const std::filesystem::path& file);

}  // namespace retort
