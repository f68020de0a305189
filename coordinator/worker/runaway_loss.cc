#include "coordinator/worker/runaway_loss.h"

#include <algorithm>

namespace retort {
namespace {
/// Steps that a mean is over, at least.
constexpr std::uint64_t kSteps = 10;
}  // namespace

void RunawayLoss::begin(std::uint64_t per_step, std::uint64_t steps, const BatchLoss& loss) {
  *this = {};
  span = std::min(steps, (kEnough + per_step - 1) / per_step);
  mean = least = risen(loss);  // above nothing
}

void RunawayLoss::add(std::uint64_t step, double loss) {
  mean += (loss - mean) / static_cast<double>(std::max(kSteps, span));
  sum += loss;
  if ((step + 1) % span != 0) return;
  const double whole = sum / static_cast<double>(span);
  sum = 0;
  if (whole < least) least = whole, first = step + 1 - span;
}

double RunawayLoss::risen(const BatchLoss& loss) const {
  double all = 0;
  for (std::uint64_t step = first; step < first + span; ++step) all += loss(step);
  return all / static_cast<double>(span) - least;
}

bool RunawayLoss::gone_at(std::uint64_t step, const BatchLoss& loss) {
  if (step < 20 || mean <= least + kGone) return false;
  if (looked != 0 && step < looked + std::max(kSteps, span)) return false;
  if (gone(risen(loss))) return true;
  looked = step;
  return false;
}

}  // namespace retort
