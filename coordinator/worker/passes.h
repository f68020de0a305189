#pragma once

#include <functional>

#include "coordinator/worker/data.h"
#include "coordinator/worker/network.h"
#include "coordinator/worker/recipe.h"

namespace retort {

/// AdamW's first and second moments, by weight.
struct Moments {
  std::map<std::string, at::Tensor> first, second;
};

struct StepReport {
  double loss = 0, learning_rate = 0;
};

/// The learning rate's factor at `step` of `steps`: linear warm-up, then cosine down to a tenth, or constant
/// and (wsd) linear to zero over the last `decay` of the steps (2405.18392, section 3).
double schedule_factor(const OptimisePass& pass, std::uint64_t step, std::uint64_t steps);

/// One step of AdamW (1711.05101, algorithm 2; β 0.9 and 0.95) on `windows` windows of the stream. Matrices
/// decay, vectors do not. The result depends only on the arguments and on the number of threads. `teacher`
/// for distilling.
StepReport optimise_step(Network& network, Moments& moments, const Network* teacher, TokenStream& stream,
                         const OptimisePass& pass, std::uint64_t seed, std::uint64_t step,
                         std::uint64_t steps, std::uint32_t window, std::uint32_t windows);

/// Cuts the network down to `target`'s widths and depth by the statistics (activation) or by weight norms.
/// With the present shape it changes nothing.
Network prune(const Network& network, const ModelConfig& target, const ActivationStatistics* statistics);

/// What writing the matrices as `format` and reading them again makes of the weights.
void round_weights(Network& network, TensorType format);

struct Evaluation {
  std::uint64_t tokens = 0, bytes = 0;
  double nll = 0;                               ///< sum over tokens, nats
  std::optional<double> divergence, agreement;  ///< mean KL(teacher ‖ student), share of equal top tokens
  double seconds = 0;
};
/// Each document as bos + text + eos in windows of the context, predicted from position 1: as `retort-serve
/// eval`. `stop` is asked after each document.
Evaluation evaluate(const Network& network, const Network* teacher, const Tokenizer& tokenizer,
                    const std::vector<std::string>& documents, std::uint64_t max_tokens,
                    const std::function<bool()>& stop);

/// Floating-point operations per second of a 512×512 F32 product.
double matrix_product_rate();

}  // namespace retort
