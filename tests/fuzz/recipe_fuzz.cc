// fuzz-links: retort_recipe
// Recipes: refused with a place, or taken with at least one export and every width and share in its range.
#include "coordinator/worker/recipe.h"
#include "tests/fuzz/fuzz_seeds.h"

using namespace retort;

namespace {
constexpr const char* kHead =
    "version: 1\nseed: 3\nteacher: {model: tmp}\ndata: {train: {file: etc/passwd, limit_documents: 9}, "
    "held_out: "
    "{file: etc/passwd, max_tokens: 5}}\npasses:\n";
}  // namespace

std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> out;
  for (const char* passes :
       {"  - prune.structured: {layers: 1, hidden: 32, ffn: [64, 32], heads: 2, kv_heads: 1, importance: "
        "magnitude, steps: 2, distil: {tokens: 9}}\n",
        "  - prune.unstructured: {sparsity: 0.5, method: wanda, match: \"*down*\", steps: 3, distil: "
        "{tokens: 9, "
        "temperature: 2}}\n  - prune.unstructured: {pattern: \"2:4\", calibration_tokens: 99}\n",
        "  - train: {tokens: 9, batch_tokens: 4, context: 8, learning_rate: 1e-3, warmup: 0.1, schedule: "
        "wsd, "
        "decay: 0.2, clip: 1, weight_decay: 0.1, checkpoint_seconds: 5, evaluate_every: 3, patience: 2, "
        "precision: bf16}\n",
        "  - prune.vocabulary: {min_count: 2}\n",
        "  - distil: {tokens: 9, labels: 0, soft: 1, divergence: jsd, beta: 0.3, attention: 1, hidden: 1, "
        "relation: 1, relation_heads: 2, on_policy: 0.5}\n  - evaluate: {label: x}\n",
        "  - distil.sequence: {tokens: 9, text_temperature: 0.5}\n  - distil: {tokens: 9, hidden: 1, "
        "layer_map: "
        "[0, 3], teacher_text: 0.5, on_policy: 0.5}\n",
        "  - distil.soft: {tokens: 9, alpha: 1, teacher_outputs: top_k, k: 8}\n  - quantize.aware: {tokens: "
        "9, "
        "format: Q4_K}\n  - quantize.activations: {method: kl, smooth: 0.5, dynamic: [\"*down*\"], "
        "calibration_tokens: 99}\n  - quantize.weights: {bits: 4.5, candidates: [Q4_K, Q8_0], method: gptq, "
        "act_order: "
        "true, damping: 0.1, awq: false, formats: [{match: \"*\", format: Q8_0}], sensitivity_tokens: 64}\n"})
    out.push_back(std::string(kHead) + passes +
                  "  - export: {file: s.gguf, format: Q8_0, label: l, hf: true}\n");
  out.push_back(
      "version: 1\npasses:\n  - train: {tokens: 9, init: {family: bert, hidden: 8, layers: 1, heads: 2, ffn: "
      "8, context: 9, tokenizer: tmp}}\n  - export: {file: s.gguf}\n");
  const std::string classification =
      "version: 1\ntask: classification\ndata: {train: {file: etc/passwd, labels: etc/passwd, "
      "limit_examples: 9}, held_out: {file: etc/passwd}}\npasses:\n";
  for (const char* passes :
       {"  - train: {examples: 9, batch_examples: 4, init: {family: cnn, input: [3, 8, 8], convolutions: "
        "[{channels: 4, kernel: 3, stride: 1, padding: 1, activation: tanh, pooling: max, pool_size: 2, "
        "pool_stride: 2}], hidden: [9], activation: relu, labels: [a, b], normalize: all}}\n"
        "  - prune.structured: {channels: [2], hidden: 3, calibration_examples: 99}\n",
        "  - train: {examples: 9, init: {family: mlp, features: [a, b], hidden: [9, 3]}}\n"
        "  - quantize.activations: {method: percentile, percentile: 99.9, calibration_examples: 99, bytes: "
        "true}\n  - quantize.weights: {format: Q8_0}\n",
        "  - train: {examples: 9, init: {family: bert, hidden: 8, layers: 1, heads: 2, ffn: 8, context: 9, "
        "tokenizer: tmp, labels: [x, y]}}\n  - prune.structured: {ffn: 4, heads: 1, layers: 1}\n",
        "  - train: {examples: 9, init: {family: bert, model: tmp, labels: [x, y]}}\n  - quantize.weights: "
        "{method: gptq, bits: 4.5, calibration_examples: 64, sensitivity_examples: 16}\n"})
    out.push_back(classification + passes + "  - evaluate: {label: x}\n  - export: {file: s.gguf}\n");
  return out;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto recipe = parse_recipe({reinterpret_cast<const char*>(data), size}, "/", "r.yaml");
  if (!recipe) {
    fuzz::require(!recipe.error().message.empty() && recipe.error().where.starts_with("r.yaml"));
    return 0;
  }
  bool exports = false;
  for (const Pass& pass : recipe->passes) {
    fuzz::require(!pass_name(pass).empty());
    exports |= std::holds_alternative<ExportPass>(pass);
    if (const auto* zeros = std::get_if<SparsePass>(&pass))
      fuzz::require(zeros->sparsity > 0 && zeros->sparsity < 1 && (zeros->m == 0 || zeros->n < zeros->m));
    if (const auto* cut = std::get_if<PrunePass>(&pass)) {
      fuzz::require(cut->steps_left >= 1);
      for (const auto* widths : {&cut->ffn, &cut->channels, &cut->dense})
        for (const std::uint32_t width : *widths) fuzz::require(width > 0);
    }
  }
  fuzz::require(exports);
  return 0;
}
