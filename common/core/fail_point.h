#pragma once

#include <string_view>

namespace retort {

/// A place with a name where a test can end the process, as kill -9 or a power cut would:
/// RETORT_FAIL_POINT=NAME in the environment makes the first passing of NAME send this process SIGKILL,
/// NAME:N the N-th. Without the variable it costs one comparison. Names are "program.what.moment"
/// ("coordinator.rollout.saved") and are part of what tests may rely on; docs/architecture.md lists them.
/// Thread: any.
void fail_point(std::string_view name);

}  // namespace retort
