#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "agent/serve/kernels/kernels.h"
#include "common/core/result.h"
#include "common/gguf/gguf.h"
#include "common/model/model_config.h"
#include "common/tokenizer/tokenizer.h"

namespace retort {

/// A model file, opened and checked: weights stay where they are mapped. Thread: any (read-only).
class Model {
 public:
  using Matrix = kernels::Matrix;
  static Result<std::shared_ptr<const Model>> open(const std::filesystem::path& gguf);
  static Result<std::shared_ptr<const Model>> from_file(GgufFile file);

  struct Layer {
    const float *attn_norm = nullptr, *attn_norm_bias = nullptr, *ffn_norm = nullptr,
                *ffn_norm_bias = nullptr;
    Matrix q, k, v;  ///< llama
    Matrix qkv;      ///< gpt2, fused
    Matrix attn_output, ffn_gate, ffn_up, ffn_down;
    const float *qkv_bias = nullptr, *attn_output_bias = nullptr, *ffn_up_bias = nullptr,
                *ffn_down_bias = nullptr;
  };

  const ModelConfig& config() const { return config_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }
  const GgufFile& file() const { return file_; }
  const std::vector<Layer>& layers() const { return layers_; }
  const Matrix& token_embedding() const { return token_embedding_; }
  const Matrix& output() const { return output_; }
  const float* position_embedding() const { return position_embedding_; }
  const float* output_norm() const { return output_norm_; }
  const float* output_norm_bias() const { return output_norm_bias_; }
  std::uint64_t parameters() const { return parameter_count(config_); }
  std::uint64_t weight_bytes() const;
  /// Of the tensors alone, per parameter.
  double bits_per_weight() const;

 private:
  Model(GgufFile file, ModelConfig config, Tokenizer tokenizer);
  GgufFile file_;
  ModelConfig config_;
  Tokenizer tokenizer_;
  std::vector<Layer> layers_;
  Matrix token_embedding_, output_;
  const float *position_embedding_ = nullptr, *output_norm_ = nullptr, *output_norm_bias_ = nullptr;
};

}  // namespace retort
