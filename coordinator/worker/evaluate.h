#pragma once

#include <functional>
#include <optional>

#include "coordinator/worker/network.h"

namespace retort {

struct Evaluation {
  std::uint64_t tokens = 0, bytes = 0;
  double nll = 0;                               ///< sum over tokens, nats
  std::optional<double> divergence, agreement;  ///< mean KL(teacher ‖ student), share of equal top tokens
  double seconds = 0;
};
/// An encoder tells what masked_text.h hides for judging. Else each document as bos + text + eos in windows
/// of the context, predicted from position 1: as `retort-serve eval`. `stop` is asked after each document.
Evaluation evaluate(const Network& network, const Network* teacher, const Tokenizer& tokenizer,
                    const std::vector<std::string>& documents, std::uint64_t max_tokens,
                    const std::function<bool()>& stop);

}  // namespace retort
