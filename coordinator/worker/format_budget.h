#pragma once

#include <cstdint>
#include <vector>

namespace retort {

/// One way to store a matrix: its size, and what it costs in quality (mean KL divergence from the whole
/// model's output with this matrix alone stored so, nats).
struct FormatChoice {
  std::uint64_t bytes = 0;
  double divergence = 0;
};

/// Picks a choice for every matrix (each list non-empty) so that the sum of bytes stays within `budget` and
/// the sum of divergences is small: each matrix begins with its smallest choice, then the step along a
/// matrix's lower convex hull that saves the most divergence a byte is taken while it fits (the Lagrangian's
/// solution), and what is left of the budget goes to the single steps that still fit. Divergences of several
/// matrices are taken to add up. The smallest choices are returned where even they exceed the budget.
std::vector<std::size_t> choose_formats(const std::vector<std::vector<FormatChoice>>& matrices,
                                        std::uint64_t budget);

}  // namespace retort
