#pragma once

#include <cstdint>

namespace retort {

/// Tells when a pass of training has made its model worse. The losses on the way do not tell: those of a few
/// tokens, or of examples whose classes are rare, differ by nats with nothing wrong. So the batches that a
/// pass begins with are asked again and again, with the weights of then: what differs is the model alone. And
/// a pass's loss has whatever unit its parts and their weights give it, so that a model counts as worse where
/// two things have grown: that loss, and the negative log-likelihood of the text or the labels, by nats.
/// Thread: one.
struct RunawayLoss {
  /// Means over the batches that are asked.
  struct Asked {
    double loss = 0;  ///< what the pass learns to lower
    double nll = 0;   ///< nats a token, or an example
  };
  /// Nats: no weights worth keeping; no training any more.
  static constexpr double kRising = 0.5, kGone = 1.5;

  Asked least;             ///< of the least loss so far
  double lowest_nll = 0;   ///< so far, whatever the loss was
  std::uint64_t next = 0;  ///< steps done when it is asked next; 0: never asked yet

  /// Batches that are asked: what a pass of `steps`, with `per_step` tokens or examples each, begins with, as
  /// far as it takes to know a model.
  static std::uint64_t batches(std::uint64_t per_step, std::uint64_t steps);
  /// What they said when `step` steps were done.
  void add(std::uint64_t step, const Asked& now, std::uint64_t batches);
  /// By how many nats the model of now is worse than it was at its best; not finite where its losses are not.
  double risen(const Asked& now) const;
  static bool gone(double risen) { return !(risen <= kGone); }
};

}  // namespace retort
