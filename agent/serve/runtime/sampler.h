#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "common/core/random.h"
#include "common/tokenizer/tokenizer.h"

namespace retort {

struct SamplingOptions {
  float temperature = 0;    ///< 0: greedy
  std::uint32_t top_k = 0;  ///< 0: all
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;  ///< [Keskar 2019] §4.1, over the tokens given to sample()
  /// OpenAI's: taken off the logit of a token that this sampler has returned, once and for each time.
  float presence_penalty = 0, frequency_penalty = 0;
  std::uint64_t seed = 0;
};

/// Picks the next token from logits. The order of the cuts is temperature, top-k, top-p [Holtzman 2020],
/// min-p. Only as many tokens are put in order as a cut needs. Allocates at construction only. Thread: one.
class Sampler {
 public:
  Sampler(SamplingOptions options, std::uint32_t n_vocab);
  /// `recent`: the tokens that the repetition penalty counts. `allowed`: a bit for each token that may be
  /// chosen, at least one of them; empty: all may. Ties go to the lowest id.
  TokenId sample(std::span<const float> logits, std::span<const TokenId> recent,
                 std::span<const std::uint64_t> allowed = {});

 private:
  TokenId choose(std::span<const float> logits);
  TokenId draw(std::size_t count, double sum);

  SamplingOptions options_;
  SeededRandom random_;
  std::vector<float> logits_, shares_;   ///< [n_vocab]; exp((logit − largest) / temperature)
  std::vector<std::uint32_t> returned_;  ///< [n_vocab] when a penalty needs it: how often each was returned
  std::vector<TokenId> candidates_;      ///< [n_vocab]
};

}  // namespace retort
