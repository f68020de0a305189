#pragma once

#include "coordinator/worker/optimise.h"

namespace retort::testing {

/// A step of training on text, as a recipe's pass takes it.
inline StepReport text_step(Network& network, Moments& moments, Teacher* teacher, TokenStream& stream,
                            const OptimisePass& pass, std::uint64_t seed, std::uint64_t step,
                            std::uint64_t steps, std::uint32_t window, std::uint32_t windows,
                            const Tokenizer* tokenizer = nullptr) {
  begin_step(network);
  const double loss = text_loss(network, teacher, stream, pass, seed, step, window, windows, tokenizer);
  return finish_step(network, moments, pass, loss, step, steps);
}

}  // namespace retort::testing
