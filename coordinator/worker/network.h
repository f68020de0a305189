#pragma once

#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <map>
#include <string>
#include <vector>

#include "common/core/result.h"
#include "common/gguf/safetensors.h"
#include "common/hf/hf_model.h"
#include "common/model/model_config.h"

namespace retort {

/// A decoder's weights in Hugging Face's names and layout, F32. Thread: the worker's own.
struct Network {
  ModelConfig config;
  std::map<std::string, at::Tensor> weights;

  const at::Tensor& weight(const std::string& name) const;
};

/// What structured pruning needs to know (Minitron, 2407.14679, section 2.2), summed over tokens seen.
struct ActivationStatistics {
  struct Layer {
    at::Tensor ffn;         ///< [n_ff]    Σ|input of the down projection|
    at::Tensor heads;       ///< [n_head]  Σ‖head output‖₂
    double similarity = 0;  ///< Σ cos(x_in, x_out) over the whole layer
  };
  std::vector<Layer> layers;
  std::int64_t tokens = 0;
};

/// Logits [batch, seq, vocabulary] of token ids [batch, seq] (int64), causal, positions from 0. Autograd
/// follows unless a NoGradGuard is in force. `statistics`, when given, is added to.
at::Tensor forward(const Network& network, const at::Tensor& ids, ActivationStatistics* statistics = nullptr);

/// α T² KL(softmax(z_t/T) ‖ softmax(z_s/T)) + (1−α) CE, mean per token (Hinton et al., 1503.02531, section
/// 2). Logits [tokens, vocabulary], targets [tokens] int64.
at::Tensor distillation_loss(const at::Tensor& student_logits, const at::Tensor& teacher_logits,
                             const at::Tensor& targets, double temperature, double alpha);

/// Every weight of the opened folder, copied to F32.
Result<Network> load_network(const HfModel& model);
/// From tensors of a checkpoint named `prefix` + the weight's name.
Result<Network> load_network(const ModelConfig& config, const Safetensors& file, const std::string& prefix);
/// Normal(0, 0.02), residual outputs divided by √(2·layers), norms one, biases zero (GPT-2's recipe); the
/// same for the same seed.
Network random_network(const ModelConfig& config, std::uint64_t seed);

/// Reads from the network when asked, so it must outlive the sources.
std::vector<TensorSource> sources_of(const std::map<std::string, at::Tensor>& tensors,
                                     const std::string& prefix);
std::vector<TensorSource> weight_sources(const Network& network);

}  // namespace retort
