#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace retort {

/// The tests that rollout gates are judged by (docs/rollouts.md has the formulas). All are one-sided: a small
/// p says that the treated side is worse than the control side by more than chance explains. They are exact
/// where it says so, and give nothing where the samples are too small to say anything. Thread: any.

/// Welch's t-test (Welch 1947) that mean(treated) > mean(control) + margin, with the Welch-Satterthwaite
/// degrees of freedom. Two values a side at least; nothing when both sides have no variance.
struct WelchTest {
  double t = 0, degrees = 0, p = 1;
};
std::optional<WelchTest> welch_test(std::span<const double> treated, std::span<const double> control,
                                    double margin = 0);

/// Mann-Whitney U (Mann & Whitney 1947) that values of `treated` tend to be larger. Exact distribution by
/// counting when there are no ties and at most 20 values a side; else normal, with correction for ties and
/// continuity. One value a side at least.
struct MannWhitneyTest {
  double u = 0, p = 1;
  bool exact = false;
};
std::optional<MannWhitneyTest> mann_whitney_test(std::span<const double> treated,
                                                 std::span<const double> control);

/// Fisher's exact test that failures are more likely among the treated: the hypergeometric probability of at
/// least so many of all failures falling on that side. Nothing when a side is empty or failures > total.
std::optional<double> fisher_exact_test(std::uint64_t treated_failures, std::uint64_t treated_total,
                                        std::uint64_t control_failures, std::uint64_t control_total);

}  // namespace retort
