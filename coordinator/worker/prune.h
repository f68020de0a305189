#pragma once

#include "coordinator/worker/network.h"

namespace retort {

/// Cuts the network down to `target`'s widths and depth by the statistics (activation) or by weight norms.
/// With the present shape it changes nothing.
Network prune(const Network& network, const ModelConfig& target, const ActivationStatistics* statistics);

}  // namespace retort
