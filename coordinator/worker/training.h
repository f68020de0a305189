#pragma once

#include <functional>
#include <string>

#include "coordinator/worker/optimise.h"
#include "coordinator/worker/run_folder.h"

namespace retort {

/// One pass of training, whatever it learns from.
struct Training {
  const OptimisePass& pass;
  std::size_t index = 0, passes = 0;  ///< of the pass, in the recipe
  std::uint64_t steps = 0;
  std::uint64_t per_step = 0;  ///< tokens, or examples
  const char* each = "token";  ///< one of these
  std::string where;           ///< the pass's place in the recipe, for errors
  /// Of the batch that `step` is to learn from, with the weights of now. Adds the gradient to the weights,
  /// unless a torch::NoGradGuard says that none is wanted.
  std::function<double(std::uint64_t step)> loss;
  /// The mean negative log-likelihood of that batch's tokens or labels, nats; empty: the loss is that.
  std::function<double(std::uint64_t step)> nll;
  std::function<Result<double>()> held_out_loss;  ///< mean, where the pass looks at it (evaluate_every)
};

/// Does the steps that are left: events, checkpoints, the end that DIR/finish asks for, a loss that runs away
/// (kInvalid, and the last good checkpoint stays), early stopping with the best weights. Weights that have
/// run away are in no checkpoint and are never the best. folder.state.step is then the last one. The pass is
/// not done yet: next_pass() and a checkpoint are the caller's.
Result<void> train(RunFolder& folder, Progress& progress, Network& network, Moments& moments,
                   const Training& training);

}  // namespace retort
