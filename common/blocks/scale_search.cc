#include "common/blocks/scale_search.h"

#include <cmath>
#include <cstddef>

namespace retort::blocks {

float symmetric_scale(Run run, int levels) {
  float extreme = 0;
  for (const float v : run.x)
    if (std::fabs(v) > std::fabs(extreme)) extreme = v;
  float best_scale = 0, best_gain = 0;
  if (extreme == 0) return 0;
  const auto n = static_cast<float>(levels);
  for (int step = -9; step <= 9; ++step)
    for (const float sign : {-1.0f, 1.0f}) {  // which end of the range the extreme value takes
      float inverse = sign * (n + 0.1f * static_cast<float>(step)) / extreme;
      for (int turn = 0; turn < 3 && inverse != 0; ++turn) {
        float along = 0, square = 0;
        for (std::size_t i = 0; i < run.x.size(); ++i) {
          const float q = clamped_round(run.x[i] * inverse, -n, n - 1), wq = run.weight[i] * q;
          along += run.x[i] * wq;
          square += q * wq;
        }
        if (square <= 0 || along == 0) break;
        if (along * along > best_gain * square) {
          best_gain = along * along / square;
          best_scale = along / square;
        }
        inverse = square / along;
      }
    }
  return best_scale;
}

}  // namespace retort::blocks
