#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

/// Inputs that the mutations begin from; a target need not define it (then: an empty input).
std::vector<std::string> fuzz_seeds();

namespace retort::fuzz {

/// Ends the process, as a failed expectation of a fuzz target must; asserts are not in release builds.
inline void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace retort::fuzz
