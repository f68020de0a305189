#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/result.h"

namespace retort {

enum class ModelFamily { kLlama, kGpt2, kBert };
/// "llama", "gpt2", "bert": also GGUF's general.architecture and Hugging Face's model_type.
std::string_view to_string(ModelFamily family);

/// One transformer layer's widths. They may differ from layer to layer after pruning.
struct LayerShape {
  std::uint32_t n_head = 0;     ///< query heads
  std::uint32_t n_head_kv = 0;  ///< key/value heads; divides n_head
  std::uint32_t n_ff = 0;       ///< FFN neurons
  bool operator==(const LayerShape&) const = default;
};

/// How rotary embedding [Su 2021] turns each pair of a head's dimensions, where it is not plain.
struct RopeScaling {
  enum class Kind : std::uint8_t {
    kNone,
    kLinear,  ///< all angles divided by `factor`
    kLlama3,  ///< slow turns divided by `factor`, fast ones left, between them a ramp (Llama 3.1)
    kYarn,    ///< [Peng 2023] §3.3: ramp by turns in `original_ctx`, and attention scaled
  };
  Kind kind = Kind::kNone;
  float factor = 1;
  std::uint32_t original_ctx = 0;                   ///< llama3, yarn: context of the first training
  float low_freq_factor = 1, high_freq_factor = 4;  ///< llama3
  float beta_fast = 32, beta_slow = 1;              ///< yarn
  float attention_factor = 0;                       ///< yarn: of cosine and sine; 0: 0.1 ln(factor) + 1
  bool operator==(const RopeScaling&) const = default;
};

/// What a text's hidden states become one vector by.
enum class TextPooling {
  kNone,  ///< the model does not say
  kMean,  ///< their mean over all tokens, [CLS] and [SEP] included
  kCls,   ///< the first token's
};
/// x Φ(x) [Hendrycks 2016] exactly, or by its approximation with tanh (Hugging Face's "gelu_new").
enum class Gelu { kErf, kTanh };

/// What only encoders of the BERT family have [Devlin 2019]: bidirectional attention, learned positions,
/// token types, norms after the additions, and up to two heads.
struct EncoderConfig {
  std::uint32_t n_token_types = 2;  ///< 0: none; a text alone is of type 0
  Gelu gelu = Gelu::kErf;
  TextPooling pooling = TextPooling::kNone;  ///< kCls when there are labels
  /// Classification head, one output a label: classifier(tanh(pooler(first token's state))). None: no head.
  std::vector<std::string> labels;
  bool pooler = false;  ///< the dense layer with tanh before the classifier
  /// Masked-LM head: embedding · norm(gelu(dense(state))) + bias, or its own matrix when embeddings are not
  /// tied.
  bool mlm_head = false;
  bool operator==(const EncoderConfig&) const = default;
};

/// The architecture of a transformer: what config.json, GGUF metadata and a StudentSpec all come down to.
struct ModelConfig {
  ModelFamily family = ModelFamily::kLlama;
  std::uint32_t n_vocab = 0;
  std::uint32_t n_ctx = 0;  ///< longest context it was trained for, tokens
  std::uint32_t n_embd = 0;
  std::uint32_t head_dim =
      0;  ///< the same in all layers; n_head * head_dim need not equal n_embd after pruning
  std::vector<LayerShape> layers;
  float norm_eps = 1e-5f;       ///< RMS norm (llama) or layer norm (gpt2, bert)
  float rope_theta = 10000.0f;  ///< llama only
  std::uint32_t rope_dim = 0;   ///< llama only: the first dimensions of a head that turn; 0: all
  RopeScaling rope_scaling;
  /// By what each pair's angle is divided, [rope_dim / 2]; empty: nothing. GGUF's rope_freqs.weight.
  std::vector<float> rope_factors;
  /// Llama in Qwen2's files: model_type and general.architecture "qwen2", where GGUF keeps Hugging Face's
  /// order of a head's dimensions (the first half turns against the second; "llama" has neighbours).
  bool qwen2 = false;
  // llama only (gpt2 has them all):
  bool qkv_bias = false;  ///< on Q, K and V
  bool attn_output_bias = false;
  bool mlp_bias = false;        ///< on gate, up and down
  bool tied_embeddings = true;  ///< the output head is the token embedding
  std::int32_t bos_token = -1;  ///< -1: none; [CLS] of bert
  std::int32_t eos_token = -1;  ///< [SEP] of bert
  EncoderConfig encoder;        ///< bert only

  bool is_encoder() const { return family == ModelFamily::kBert; }
  std::uint32_t n_layer() const { return static_cast<std::uint32_t>(layers.size()); }
  bool operator==(const ModelConfig&) const = default;
};

/// Bounds that hold for anything read from outside (every count positive and below a sane limit, n_head_kv
/// divides n_head, …). kInvalid names the field.
Result<void> validate(const ModelConfig& config, std::string_view where);

/// general.architecture, and config.json's model_type.
std::string_view architecture(const ModelConfig& config);

/// Rotary embedding's angle per position of each pair, [rope_dim / 2] (or head_dim / 2), and what cosine and
/// sine are multiplied by.
struct RopeRates {
  std::vector<double> rates;
  double magnitude = 1;
};
RopeRates rope_rates(const ModelConfig& config);

/// One matrix-vector product (or other weight-bearing operation) of a forward pass over one token; an
/// encoder's pooler and classifier run once a text. Written once, here: the runtime's graph, the agent's
/// microbenchmark and the predictor all read this list.
struct Operation {
  std::string tensor;         ///< GGUF name of its weight, for example "blk.0.attn_q.weight"
  std::uint32_t rows = 0;     ///< N, output features
  std::uint32_t columns = 0;  ///< K, input features
};
std::vector<Operation> operations(const ModelConfig& config);

/// Parameters, with tied embeddings counted once.
std::uint64_t parameter_count(const ModelConfig& config);
/// Bytes of the K and V caches (encoders keep none: 0) for `n_ctx` tokens at `bytes_per_value` (4: F32, 2:
/// F16).
std::uint64_t kv_cache_bytes(const ModelConfig& config, std::uint32_t n_ctx, std::uint32_t bytes_per_value);

}  // namespace retort
