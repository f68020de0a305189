#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "agent/serve/kernels/kernels.h"
#include "agent/serve/runtime/input_scales.h"
#include "agent/serve/runtime/packed_weights.h"
#include "common/core/result.h"
#include "common/gguf/gguf.h"
#include "common/model/model_config.h"
#include "common/tokenizer/tokenizer.h"

namespace retort {

class Model;

struct ModelOptions {
  /// Weights are brought into the kernels' own layout; otherwise they are used where the file is mapped
  /// (slower, but without a copy).
  bool pack = true;
  /// Folder that keeps the packed weights of a file for the next start, mapped and shared by every process
  /// that serves it. Empty: they are packed into this process's own memory.
  std::filesystem::path pack_cache;
  /// Asked, when it is set, once the file is open and the size of its packed weights is known.
  std::function<bool(const Model& unpacked, std::uint64_t packed_bytes)> pack_if;
  /// Told, when it is set, which bytes of the file were packed and are not looked at again. For a file that
  /// lies in memory; of one that is mapped, pages that nobody reads cost nothing.
  std::function<void(std::span<const std::byte>)> done_with;
};

/// A model file, opened and checked. Thread: any (read-only).
class Model {
 public:
  using Matrix = kernels::Matrix;
  static Result<std::shared_ptr<const Model>> open(const std::filesystem::path& gguf,
                                                   const ModelOptions& options = {});
  /// `source`: where the file is, for the cache of packed weights; empty: none is kept.
  static Result<std::shared_ptr<const Model>> from_file(GgufFile file, const ModelOptions& options = {},
                                                        const std::filesystem::path& source = {});

  /// One or more matrices that share an input, their outputs side by side: out = W x + bias.
  struct Projection {
    struct Part {
      Matrix matrix;
      std::uint32_t first = 0;  ///< of its outputs among those of all parts
      std::uint64_t bytes = 0;  ///< as the file has it
    };
    std::vector<Part> parts;
    const float* bias = nullptr;  ///< [rows], or null
    std::uint32_t rows = 0, columns = 0;
    std::uint64_t bytes = 0;  ///< as the file has them
    bool quantized = false;   ///< reads the quantized input
    float input_scale = 0;    ///< of that input, calibrated; 0: of each block's largest value
    explicit operator bool() const { return rows != 0; }
  };
  /// An encoder's norms stand after the additions: attn_norm after attention, ffn_norm after the FFN.
  struct Layer {
    const float *attn_norm = nullptr, *attn_norm_bias = nullptr, *ffn_norm = nullptr,
                *ffn_norm_bias = nullptr;
    Projection qkv, attn_output, ffn_gate /* llama only */, ffn_up, ffn_down;
  };

  const ModelConfig& config() const { return config_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }
  const GgufFile& file() const { return file_; }
  const std::vector<Layer>& layers() const { return layers_; }
  /// As it lies in the file: rows are looked up in it.
  const Matrix& token_embedding() const { return token_embedding_; }
  const Projection& output() const { return output_; }
  const float* position_embedding() const { return position_embedding_; }
  const float* output_norm() const { return output_norm_; }
  const float* output_norm_bias() const { return output_norm_bias_; }
  /// Calibrated scales of inputs, by the matrix's tensor.
  const InputScales& input_scales() const { return input_scales_; }
  /// Encoders: the norm of the embeddings, token type 0 (null: none) and the heads, as far as it has them;
  /// the masked-LM head ends in output(), which is empty without it.
  struct Encoder {
    const float *embedding_norm = nullptr, *embedding_norm_bias = nullptr, *token_type = nullptr;
    Projection pooler, classifier, mlm_dense;
    const float *mlm_norm = nullptr, *mlm_norm_bias = nullptr;
  };
  const Encoder& encoder() const { return encoder_; }
  std::uint64_t parameters() const { return parameter_count(config_); }
  std::uint64_t weight_bytes() const;
  /// Bytes of the file that are read while it serves: all of it, less the tensors that are packed.
  std::uint64_t file_bytes_in_use() const;
  /// Bytes of the packed weights (0: none), and whether they are mapped from the cache.
  std::uint64_t packed_bytes() const { return packed_.size(); }
  bool packed_is_shared() const { return packed_.shared(); }
  /// Of the tensors alone, per parameter.
  double bits_per_weight() const;

 private:
  Model(GgufFile file, ModelConfig config, Tokenizer tokenizer, InputScales input_scales);
  std::uint64_t lay_out(bool pack, std::byte* memory, bool fill,
                        const std::function<void(std::span<const std::byte>)>& done_with = nullptr);
  void join_biases(std::size_t layer);
  void scale_inputs();
  template <typename Placer>
  void lay_out_encoder(Placer& layout);

  GgufFile file_;
  ModelConfig config_;
  Tokenizer tokenizer_;
  InputScales input_scales_;
  PackedWeights packed_;
  bool own_formats_stay_ = false;  ///< of the file, beside what was packed of them
  std::vector<Layer> layers_;
  std::vector<std::vector<float>> joined_biases_;  ///< of Q, K and V, a layer each
  Matrix token_embedding_;
  Projection output_;
  Encoder encoder_;
  const float *position_embedding_ = nullptr, *output_norm_ = nullptr, *output_norm_bias_ = nullptr;
};

}  // namespace retort
