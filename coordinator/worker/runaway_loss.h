#pragma once

#include <cstdint>
#include <functional>

namespace retort {

/// Tells when a pass of training has made its model worse. The losses on its way do not tell: those of a few
/// tokens, or of examples whose classes are rare, differ by nats with nothing wrong. So the span of batches
/// on which the model did best is remembered by its steps, and their loss is taken anew with the weights of
/// now: what differs is the model alone. Thread: one.
struct RunawayLoss {
  /// The mean loss of a step's batch with the weights of now, which it leaves as they are.
  using BatchLoss = std::function<double(std::uint64_t step)>;
  /// Nats above the least loss: no weights worth keeping; no training any more.
  static constexpr double kRising = 0.5, kGone = 1.5;
  /// Tokens or examples whose loss tells a model's.
  static constexpr std::uint64_t kEnough = 256;

  std::uint64_t span = 0;    ///< steps that are remembered; 0: nothing is known yet
  std::uint64_t first = 0;   ///< of them
  double least = 0;          ///< their mean loss, each before the model had learnt from it
  double sum = 0;            ///< of the losses since the last whole span
  double mean = 0;           ///< over some ten steps, or a span
  std::uint64_t looked = 0;  ///< steps done when it last seemed gone, and was not

  /// A pass of `steps` begins, with `per_step` tokens or examples each: the loss that it begins with.
  void begin(std::uint64_t per_step, std::uint64_t steps, const BatchLoss& loss);
  /// What `step` learnt from had this loss before.
  void add(std::uint64_t step, double loss);
  /// How far the model of now is above the least loss, in nats, on the batches of that; not finite where its
  /// weights are not.
  double risen(const BatchLoss& loss) const;
  /// True when training need not go on after `step`. Asks `loss` only where the losses on the way are that
  /// bad, and not of the first 20 steps, whose bumps may be the warm-up's.
  bool gone_at(std::uint64_t step, const BatchLoss& loss);
  static bool gone(double risen) { return !(risen <= kGone); }
};

}  // namespace retort
