#pragma once

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "agent/serve/kernels/kernels.h"
#include "agent/serve/runtime/arena.h"
#include "agent/serve/runtime/input_scales.h"
#include "agent/serve/runtime/packed_weights.h"
#include "agent/serve/runtime/thread_team.h"
#include "common/core/result.h"
#include "common/gguf/gguf.h"
#include "common/model/classifier_config.h"

namespace retort {

struct ClassifierOptions {
  /// Weights are brought into the kernels' own layout; otherwise they are used where the file is mapped.
  bool pack = true;
  /// Folder that keeps the packed weights for the next start; empty: in this process's own memory.
  std::filesystem::path pack_cache;
};

/// A classifier of tensors ("mlp", "cnn"), its file opened and checked. Thread: any (read-only).
class Classifier {
 public:
  static Result<std::shared_ptr<const Classifier>> open(const std::filesystem::path& gguf,
                                                        const ClassifierOptions& options = {});
  /// `source`: where the file is, for the cache of packed weights; empty: none is kept.
  static Result<std::shared_ptr<const Classifier>> from_file(GgufFile file,
                                                             const ClassifierOptions& options = {},
                                                             const std::filesystem::path& source = {});

  /// A convolution's or a dense layer's product: out = W x + bias. The matrix has at least as many columns as
  /// the layer has inputs: zeros fill its rows.
  struct Layer {
    kernels::Matrix matrix;
    const float* bias = nullptr;  ///< [rows]
    bool quantized = false;       ///< reads the quantized input
    float input_scale = 0;        ///< of that input, calibrated; 0: of each block's largest value
    std::uint64_t bytes = 0;      ///< of the matrix as the file has it
  };
  const ClassifierConfig& config() const { return config_; }
  const GgufFile& file() const { return file_; }
  /// The convolutions, then the dense layers.
  const std::vector<Layer>& layers() const { return layers_; }
  /// What stands before each convolution, and before the first dense layer.
  const std::vector<MapShape>& maps() const { return maps_; }
  std::uint64_t parameters() const { return parameter_count(config_); }
  std::uint64_t weight_bytes() const;
  double bits_per_weight() const;  ///< of the tensors alone
  std::uint64_t packed_bytes() const { return packed_.size(); }
  bool packed_is_shared() const { return packed_.shared(); }

 private:
  Classifier(GgufFile file, ClassifierConfig config, InputScales input_scales);
  std::uint64_t lay_out(bool pack, std::byte* memory, bool fill);

  GgufFile file_;
  ClassifierConfig config_;
  InputScales input_scales_;
  std::vector<MapShape> maps_;
  std::vector<Layer> layers_;
  PackedWeights packed_;
};

struct ClassifierSessionOptions {
  std::uint32_t batch = 32;        ///< inputs computed together
  std::uint64_t memory_limit = 0;  ///< 0: none
};

struct ClassifierMemoryPlan {
  std::uint64_t weights_mapped_bytes = 0;  ///< shared with every process that maps the same files
  std::uint64_t weights_packed_bytes = 0;  ///< this process's own
  std::uint64_t activation_bytes = 0;
  std::uint64_t total() const { return weights_mapped_bytes + weights_packed_bytes + activation_bytes; }
};
ClassifierMemoryPlan plan_memory(const Classifier& model, std::uint32_t batch, std::uint32_t threads);

/// Batches of inputs through a classifier. All memory is one arena taken at creation; run() allocates
/// nothing. An input's logits do not depend on what it is batched with, nor on the threads, to the bit.
/// Convolutions are matrix products over the patches of each output position (im2col), a few dozen
/// positions at a time. Thread: one.
class ClassifierSession {
 public:
  /// kOutOfBudget says how much is needed when it is more than the limit.
  static Result<std::unique_ptr<ClassifierSession>> create(std::shared_ptr<const Classifier> model,
                                                           ThreadTeam& team,
                                                           ClassifierSessionOptions options);
  /// inputs: [count][channels][height][width] in the input's own units, 1 ≤ count ≤ batch (else kInvalid).
  /// Returns logits [count][labels], valid until the next call.
  Result<std::span<const float>> run(std::span<const float> inputs);

  std::uint32_t batch() const { return options_.batch; }
  const Classifier& model() const { return *model_; }

 private:
  ClassifierSession(std::shared_ptr<const Classifier> model, ThreadTeam& team,
                    ClassifierSessionOptions options);
  static void multiply(const Classifier::Layer& layer, const float* x, const QuantizedRows& quantized,
                       std::size_t count, std::uint32_t begin, std::uint32_t end, float* out,
                       std::size_t stride);
  void take_inputs(std::span<const float> inputs, std::size_t count, std::size_t stride);
  void convolve(std::size_t index, std::size_t count);
  void pool(std::size_t index, std::size_t count);
  void dense(std::size_t index, std::size_t count);

  std::shared_ptr<const Classifier> model_;
  ThreadTeam& team_;
  ClassifierSessionOptions options_;
  Arena arena_;
  std::uint64_t map_size_ = 0, patch_size_ = 0;  // values of the widest map, of a thread's patches
  // In the arena. B: batch.
  float *current_, *next_;           // [B, map_size_]
  float* patches_;                   // [threads, patch_size_]
  QuantizedRows quantized_patches_;  // the same
  QuantizedRows quantized_;          // [B, widest dense input]
  float* logits_;                    // [B, labels]
};

/// The probabilities of one input's logits: softmax, written to `out`.
void probabilities(std::span<const float> logits, std::span<float> out);

}  // namespace retort
