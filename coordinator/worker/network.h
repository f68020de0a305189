#pragma once

#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/core/result.h"
#include "common/gguf/safetensors.h"
#include "common/hf/encoded_weights.h"
#include "common/hf/hf_model.h"
#include "common/model/classifier_config.h"
#include "common/model/model_config.h"

namespace retort {

/// A model's weights in Hugging Face's names and layout, F32: a decoder's or an encoder's, or, where
/// `classifier` is set, those of a classifier of tensors, of which `config` says nothing. Thread: the
/// worker's own.
struct Network {
  ModelConfig config;
  std::map<std::string, at::Tensor> weights;
  /// What quantize.weights made of matrices, as the file will hold them; their `weights` are the same values
  /// decoded. A pass that changes weights leaves it empty.
  EncodedWeights encoded;
  /// Matrices whose zeros stay zero in training (prune.unstructured).
  std::set<std::string> sparse{};
  /// Of matrices' inputs, where quantize.activations found them beforehand.
  std::map<std::string, float> input_scales{};
  std::optional<ClassifierConfig> classifier{};
  /// Of a transformer that was cut: for each layer the one that it was in the uncut model, and which of that
  /// one's query heads are left. Empty: nothing was cut.
  struct Origin {
    std::int64_t layer = 0;
    std::vector<std::int64_t> heads;
  };
  std::vector<Origin> origins{};

  const at::Tensor& weight(const std::string& name) const;
  /// Where its weights are; all of them are in one place. Whatever a forward pass needs is taken there.
  at::Device device() const;
};

/// Weights that are elsewhere become copies, and nobody's gradients.
void move_to(Network& network, at::Device device);

/// A matrix as rows of outputs by columns of inputs, whatever the family's layout; and back.
at::Tensor matrix_of(const Network& network, const std::string& name);
void set_matrix(Network& network, const std::string& name, const at::Tensor& values);

/// The matrix that turns the last hidden state into logits, and whether that is the embedding (tied).
std::string head_weight(const ModelConfig& config);
bool head_is_embedding(const ModelConfig& config);

/// What structured pruning needs to know (Minitron, 2407.14679, section 2.2), summed over tokens seen.
struct ActivationStatistics {
  struct Layer {
    at::Tensor ffn;         ///< [n_ff]    Σ|input of the down projection|
    at::Tensor heads;       ///< [n_head]  Σ‖head output‖₂
    double similarity = 0;  ///< Σ cos(x_in, x_out) over the whole layer
  };
  std::vector<Layer> layers;
  at::Tensor channels;  ///< [n_embd] Σ|norm(x)|, over all norms
  std::int64_t tokens = 0;
};

/// What a forward pass notes down on its way.
struct Trace {
  ActivationStatistics* statistics = nullptr;  ///< added to
  /// Told each matrix's name and its input [batch, seq, columns] before the product, in the order of the
  /// computation; not of the embedding's look-up.
  std::function<void(const std::string& weight, const at::Tensor& input)> inputs;
  bool keep = false;                  ///< fill what follows
  std::vector<at::Tensor> hidden;     ///< [batch, seq, n_embd]: the embedding's, then each layer's output
  std::vector<at::Tensor> attention;  ///< each layer's [batch, n_head, seq, seq], rows sum to one
  std::vector<at::Tensor> query, key, value;  ///< each layer's [batch, seq, heads, head_dim], not yet rotated
  /// Each layer's keys (rotated) and values of the positions before; when given, a layer sees them and adds
  /// its own.
  struct Past {
    at::Tensor key, value;
  };
  std::vector<Past>* past = nullptr;
};

/// What all layers need to know of positions first … first + length − 1: which keys from 0 on each may see
/// (in an encoder all of them), and a Llama's rotations.
struct Positions {
  at::Tensor mask, cos, sin;
  Positions(const ModelConfig& config, std::int64_t length, std::int64_t first = 0,
            at::Device device = at::kCPU);
};

/// A forward pass in pieces. x: [batch, seq, n_embd]. Of an encoder: of texts that fill all of seq.
at::Tensor embed(const Network& network, const at::Tensor& ids,
                 std::int64_t first = 0);  ///< position of the first
at::Tensor run_layer(const Network& network, std::size_t layer, const at::Tensor& x,
                     const Positions& positions, Trace* trace = nullptr);
/// Of a decoder and of a masked language model [batch, seq, vocabulary], of a classifier [batch, labels].
at::Tensor logits_of(const Network& network, const at::Tensor& x, Trace* trace = nullptr);
/// A masked language model's head over hidden states [..., n_embd] ([Devlin 2019], and Hugging Face's
/// transform before the embedding).
at::Tensor masked_logits(const Network& network, const at::Tensor& hidden, Trace* trace = nullptr);
/// A text classifier's, over the first tokens' states [batch, n_embd].
at::Tensor text_class_logits(const Network& network, const at::Tensor& first, Trace* trace = nullptr);

/// Calibration text on its way through a network that is changed layer by layer: hidden states of all of it,
/// and one layer at work. The network and the ids must outlive it. No gradient.
class CalibrationText {
 public:
  /// `ids`: [batch, seq] each; of an encoder, texts that fill all of seq.
  CalibrationText(const Network& network, const std::vector<at::Tensor>& ids);
  /// Sends the text through one layer, or through what follows the last, for the trace alone.
  void look(std::size_t layer, Trace& trace) const;
  void look_at_head(Trace& trace) const;
  /// Goes on: the next layer reads what this one, as it is now, makes of the text.
  void advance(std::size_t layer);

 private:
  const Network& network_;
  std::vector<at::Tensor> hidden_;
  std::map<std::int64_t, Positions> positions_;  ///< by length
};

/// `count` tokens that the network writes after each prompt [batch, seq], drawn at a temperature, of 0 the
/// likeliest: [batch, count], on the CPU. Each text is drawn by a seed of its own, so that what is written
/// does not depend on what is written beside it (but for rounding). Keys and values are kept from token to
/// token. No gradient.
at::Tensor write_on(const Network& network, const at::Tensor& prompts, std::int64_t count,
                    const std::vector<std::uint64_t>& seeds, double temperature = 1);

/// Logits (logits_of) of token ids [batch, seq] (int64), a decoder's causal, positions from 0. Autograd
/// follows unless a NoGradGuard is in force.
at::Tensor forward(const Network& network, const at::Tensor& ids, Trace* trace = nullptr);

/// An encoder's hidden states [batch, seq, n_embd] of token ids [batch, seq], of which the first `tokens`
/// [batch] of each row are text and the rest fills it up. [Devlin 2019], token type 0.
at::Tensor encode_text(const Network& network, const at::Tensor& ids, const at::Tensor& tokens,
                       Trace* trace = nullptr);

/// Every weight of the opened folder, copied to F32. kCorrupt: one is NaN or infinite; `where` is named.
Result<Network> load_network(const HfModel& model, const std::string& where = "weights");
/// The weights of a network's shape, from tensors named `prefix` + a weight's name, copied to F32.
Result<void> load_weights(Network& network, const Safetensors& file, const std::string& prefix);
/// Normal(0, 0.02), residual outputs of decoders divided by √(2·layers), norms one, biases zero (GPT-2's
/// recipe, and BERT's); a classifier's weights Normal(0, √(2 / inputs)) (He et al., 1502.01852, equation 10).
/// The same for the same seed.
void randomize(Network& network, std::uint64_t seed);
Network random_network(const ModelConfig& config, std::uint64_t seed);

/// Read from the tensors when asked, so these must outlive the sources.
std::vector<TensorSource> sources_of(const std::map<std::string, at::Tensor>& tensors,
                                     const std::string& prefix);
std::vector<TensorSource> weight_sources(const Network& network);

}  // namespace retort
