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
  std::uint64_t seed = 0;
};

/// Picks the next token from logits. The order of the cuts is temperature, top-k, top-p [Holtzman 2020],
/// min-p. Only as many tokens are put in order as a cut needs. Allocates at construction only. Thread: one.
class Sampler {
 public:
  Sampler(SamplingOptions options, std::uint32_t n_vocab);
  /// `recent`: the tokens that the repetition penalty counts. Ties go to the lowest id.
  TokenId sample(std::span<const float> logits, std::span<const TokenId> recent);

 private:
  TokenId draw(std::size_t count, double sum);

  SamplingOptions options_;
  SeededRandom random_;
  std::vector<float> logits_, shares_;  ///< [n_vocab]; exp((logit − largest) / temperature)
  std::vector<TokenId> candidates_;     ///< [n_vocab]
};

}  // namespace retort
