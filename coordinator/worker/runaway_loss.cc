#include "coordinator/worker/runaway_loss.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace retort {

std::uint64_t RunawayLoss::batches(std::uint64_t per_step, std::uint64_t steps) {
  constexpr std::uint64_t kEnough = 256;  // tokens or examples
  return std::min(steps, (kEnough + per_step - 1) / per_step);
}

void RunawayLoss::add(std::uint64_t step, const Asked& now, std::uint64_t batches) {
  if (next == 0 || now.loss < least.loss) least = now;
  if (next == 0 || now.nll < lowest_nll) lowest_nll = now.nll;
  // Often enough to stop soon, rarely enough to cost a hundredth; not in the first steps, whose bumps may be
  // the warm-up's.
  next = step + std::max<std::uint64_t>(2 * batches, step < 100 ? 20 : 100);
}

double RunawayLoss::risen(const Asked& now) const {
  if (!std::isfinite(now.loss)) return std::numeric_limits<double>::quiet_NaN();
  return now.loss > least.loss ? now.nll - least.nll : 0;
}

}  // namespace retort
