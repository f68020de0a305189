#include "agent/serve/runtime/sampler.h"

#include <algorithm>

#include "agent/serve/kernels/kernels.h"

namespace retort {

namespace {

constexpr float kForbidden = -1e30f;  // as a logit: no temperature brings it back

}  // namespace

Sampler::Sampler(SamplingOptions options, std::uint32_t n_vocab) : options_(options), random_(options.seed) {
  logits_.reserve(n_vocab);
  if (options_.presence_penalty != 0 || options_.frequency_penalty != 0) returned_.resize(n_vocab);
  shares_.resize(n_vocab);
  candidates_.reserve(n_vocab);
}

TokenId Sampler::sample(std::span<const float> given, std::span<const TokenId> recent,
                        std::span<const std::uint64_t> allowed) {
  std::span<const float> logits = given;
  if (options_.repetition_penalty != 1.0f || !returned_.empty() || !allowed.empty()) {
    logits_.assign(given.begin(), given.end());
    logits = logits_;
  }
  if (options_.repetition_penalty != 1.0f)
    for (std::size_t i = 0; i < recent.size(); ++i) {
      const TokenId id = recent[i];
      if (id < 0 || static_cast<std::size_t>(id) >= logits_.size()) continue;
      if (std::find(recent.begin(), recent.begin() + static_cast<std::ptrdiff_t>(i), id) !=
          recent.begin() + static_cast<std::ptrdiff_t>(i))
        continue;
      float& x = logits_[static_cast<std::size_t>(id)];
      x = x > 0 ? x / options_.repetition_penalty : x * options_.repetition_penalty;
    }
  for (std::size_t id = 0; id < returned_.size(); ++id)
    if (returned_[id] != 0)
      logits_[id] -=
          options_.presence_penalty + options_.frequency_penalty * static_cast<float>(returned_[id]);
  const auto may_be = [&](std::size_t id) { return (allowed[id / 64] >> (id % 64) & 1) != 0; };
  if (!allowed.empty())
    for (std::size_t id = 0; id < logits_.size(); ++id)
      if (!may_be(id)) logits_[id] = kForbidden;
  TokenId chosen = choose(logits);
  // A share of zero can be drawn at the end of the sum's rounding.
  if (!allowed.empty() && !may_be(static_cast<std::size_t>(chosen)))
    chosen = static_cast<TokenId>(kernels::best(logits.data(), logits.size()));
  if (!returned_.empty()) ++returned_[static_cast<std::size_t>(chosen)];
  return chosen;
}

TokenId Sampler::choose(std::span<const float> logits) {
  const std::size_t best = kernels::best(logits.data(), logits.size());
  if (options_.temperature < 1e-6f) return static_cast<TokenId>(best);

  const std::size_t n = logits.size();
  double sum =
      kernels::exponentials(logits.data(), n, 1 / options_.temperature, logits[best], shares_.data());
  const bool all = options_.top_k == 0 || options_.top_k >= n;
  candidates_.clear();
  if (all && options_.top_p >= 1) {  // no order is needed
    if (options_.min_p > 0) sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
      if (shares_[i] < options_.min_p) continue;
      candidates_.push_back(static_cast<TokenId>(i));
      if (options_.min_p > 0) sum += static_cast<double>(shares_[i]);
    }
    return draw(candidates_.size(), sum);
  }
  for (std::size_t i = 0; i < n; ++i) candidates_.push_back(static_cast<TokenId>(i));
  const auto better = [this](TokenId a, TokenId b) {
    const float x = shares_[static_cast<std::size_t>(a)], y = shares_[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  const auto share = [this](std::size_t rank) {
    return static_cast<double>(shares_[static_cast<std::size_t>(candidates_[rank])]);
  };
  /// Puts ranks [from, to) in order; those before are.
  const auto order = [&](std::size_t from, std::size_t to) {
    const auto at = [this](std::size_t rank) {
      return candidates_.begin() + static_cast<std::ptrdiff_t>(rank);
    };
    if (to < candidates_.size()) std::nth_element(at(from), at(to), candidates_.end(), better);
    std::sort(at(from), at(to), better);
  };
  std::size_t ordered = 0, end = 0;
  if (!all) {
    order(0, ordered = options_.top_k);
    candidates_.resize(ordered);
    sum = 0;
    for (std::size_t i = 0; i < ordered; ++i) sum += share(i);
  }
  double kept = 0;
  for (; end < candidates_.size(); ++end) {
    if (end > 0 && kept >= static_cast<double>(options_.top_p) * sum) break;
    if (end == ordered) {
      const std::size_t more = std::min(candidates_.size(), std::max<std::size_t>(64, 4 * ordered));
      order(ordered, more);
      ordered = more;
    }
    if (end > 0 && share(end) < static_cast<double>(options_.min_p)) break;
    kept += share(end);
  }
  return draw(end, kept);
}

/// One of the first `count` candidates, by their shares, which add up to `sum`.
TokenId Sampler::draw(std::size_t count, double sum) {
  double point = random_.next_unit() * sum;
  for (std::size_t i = 0; i < count; ++i) {
    point -= static_cast<double>(shares_[static_cast<std::size_t>(candidates_[i])]);
    if (point < 0) return candidates_[i];
  }
  return candidates_[count - 1];
}

}  // namespace retort
