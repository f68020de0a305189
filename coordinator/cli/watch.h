#pragma once

#include <string>
#include <vector>

#include "common/core/result.h"
#include "coordinator/cli/rest.h"

namespace retort::cli {

/// Follows jobs to their end: bars redrawn in place on a terminal, otherwise a line when something happens
/// and one every few seconds. The exit status: 0 when all succeeded, the status of the first failure, 130
/// when Ctrl-C ended the watching (the jobs go on). A coordinator that goes away is waited for, for two
/// minutes.
Result<int> watch_jobs(Rest& rest, const std::vector<std::string>& ids);

}  // namespace retort::cli
