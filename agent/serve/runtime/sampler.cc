#include "agent/serve/runtime/sampler.h"

#include <algorithm>
#include <cmath>

namespace retort {

Sampler::Sampler(SamplingOptions options, std::uint32_t n_vocab) : options_(options), random_(options.seed) {
  logits_.reserve(n_vocab);
  candidates_.reserve(n_vocab);
}

TokenId Sampler::sample(std::span<const float> given, std::span<const TokenId> recent) {
  std::span<const float> logits = given;
  if (options_.repetition_penalty != 1.0f) {
    logits_.assign(given.begin(), given.end());
    for (std::size_t i = 0; i < recent.size(); ++i) {
      const TokenId id = recent[i];
      if (id < 0 || static_cast<std::size_t>(id) >= logits_.size()) continue;
      if (std::find(recent.begin(), recent.begin() + static_cast<std::ptrdiff_t>(i), id) !=
          recent.begin() + static_cast<std::ptrdiff_t>(i))
        continue;
      float& x = logits_[static_cast<std::size_t>(id)];
      x = x > 0 ? x / options_.repetition_penalty : x * options_.repetition_penalty;
    }
    logits = logits_;
  }
  if (options_.temperature <= 0)
    return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());

  candidates_.clear();
  for (std::size_t i = 0; i < logits.size(); ++i)
    candidates_.emplace_back(logits[i] / options_.temperature, static_cast<TokenId>(i));
  const auto better = [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  };
  std::size_t keep =
      options_.top_k == 0 ? candidates_.size() : std::min<std::size_t>(options_.top_k, candidates_.size());
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(keep),
                    candidates_.end(), better);
  candidates_.resize(keep);
  const float largest = candidates_[0].first;
  double sum = 0;
  for (auto& [value, id] : candidates_) sum += static_cast<double>(value = std::exp(value - largest));
  double kept = 0;
  std::size_t end = 0;
  while (end < candidates_.size()) {
    const double probability =
        static_cast<double>(candidates_[end].first);  // relative to the best, which has 1
    if (end > 0 && (kept >= static_cast<double>(options_.top_p) * sum ||
                    probability < static_cast<double>(options_.min_p)))
      break;
    kept += probability;
    ++end;
  }
  double point = random_.next_unit() * kept;
  for (std::size_t i = 0; i < end; ++i) {
    point -= static_cast<double>(candidates_[i].first);
    if (point < 0) return candidates_[i].second;
  }
  return candidates_[end - 1].second;
}

}  // namespace retort
