#include "coordinator/rollout/statistics.h"

#include <algorithm>
#include <boost/math/distributions/normal.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <vector>

namespace retort {
namespace {

double mean_of(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

/// Of a sample: divided by n - 1.
double variance_of(std::span<const double> values, double mean) {
  double sum = 0;
  for (const double value : values) sum += (value - mean) * (value - mean);
  return sum / static_cast<double>(values.size() - 1);
}

/// P(U >= u) when all orders are equally likely: counts[k] is the number of orders with U = k, by the
/// recurrence f(n, m, k) = f(n - 1, m, k - m) + f(n, m - 1, k).
double exact_upper_tail(std::size_t n, std::size_t m, std::size_t u) {
  const std::size_t most = n * m;
  std::vector<std::vector<double>> row(m + 1, std::vector<double>(most + 1, 0));
  for (auto& counts : row) counts[0] = 1;  // n = 0: U is 0
  for (std::size_t i = 1; i <= n; ++i) {
    std::vector<std::vector<double>> next(m + 1, std::vector<double>(most + 1, 0));
    next[0][0] = 1;
    for (std::size_t j = 1; j <= m; ++j)
      for (std::size_t k = 0; k <= i * j; ++k) next[j][k] = (k >= j ? row[j][k - j] : 0) + next[j - 1][k];
    row = std::move(next);
  }
  double all = 0, tail = 0;
  for (std::size_t k = 0; k <= most; ++k) {
    all += row[m][k];
    if (k >= u) tail += row[m][k];
  }
  return tail / all;
}

double log_choose(double n, double k) {
  return std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1);
}

}  // namespace

std::optional<WelchTest> welch_test(std::span<const double> treated, std::span<const double> control,
                                    double margin) {
  if (treated.size() < 2 || control.size() < 2) return std::nullopt;
  const double a = mean_of(treated), b = mean_of(control);
  const auto n = static_cast<double>(treated.size()), m = static_cast<double>(control.size());
  const double va = variance_of(treated, a) / n, vb = variance_of(control, b) / m;
  if (!(va + vb > 0) || !std::isfinite(a - b) || !std::isfinite(va + vb)) return std::nullopt;
  WelchTest test;
  test.t = (a - b - margin) / std::sqrt(va + vb);
  test.degrees = (va + vb) * (va + vb) / (va * va / (n - 1) + vb * vb / (m - 1));
  test.p = boost::math::cdf(boost::math::complement(boost::math::students_t(test.degrees), test.t));
  return test;
}

std::optional<MannWhitneyTest> mann_whitney_test(std::span<const double> treated,
                                                 std::span<const double> control) {
  const std::size_t n = treated.size(), m = control.size();
  if (n == 0 || m == 0) return std::nullopt;
  MannWhitneyTest test;
  for (const double a : treated)
    for (const double b : control) test.u += a > b ? 1 : a == b ? 0.5 : 0;
  std::vector<double> all(treated.begin(), treated.end());
  all.insert(all.end(), control.begin(), control.end());
  std::sort(all.begin(), all.end());
  double ties = 0;  // sum of t^3 - t over groups of t equal values
  for (std::size_t i = 0; i < all.size();) {
    std::size_t j = i;
    while (j < all.size() && all[j] == all[i]) ++j;
    const auto t = static_cast<double>(j - i);
    ties += t * t * t - t;
    i = j;
  }
  if (ties == 0 && n <= 20 && m <= 20) {
    test.exact = true;
    test.p = exact_upper_tail(n, m, static_cast<std::size_t>(test.u));
    return test;
  }
  const double product = static_cast<double>(n) * static_cast<double>(m), total = static_cast<double>(n + m);
  const double variance = product / 12 * (total + 1 - ties / (total * (total - 1)));
  if (!(variance > 0)) return test;  // all values are equal: p = 1
  const double z = (test.u - product / 2 - 0.5) / std::sqrt(variance);
  test.p = boost::math::cdf(boost::math::complement(boost::math::normal(), z));
  return test;
}

std::optional<double> fisher_exact_test(std::uint64_t treated_failures, std::uint64_t treated_total,
                                        std::uint64_t control_failures, std::uint64_t control_total) {
  if (treated_total == 0 || control_total == 0 || treated_failures > treated_total ||
      control_failures > control_total)
    return std::nullopt;
  const std::uint64_t failures = treated_failures + control_failures;
  const auto n = static_cast<double>(treated_total), m = static_cast<double>(control_total),
             k = static_cast<double>(failures);
  const double all = log_choose(n + m, k);
  double p = 0;
  for (std::uint64_t x = treated_failures; x <= std::min(failures, treated_total); ++x)
    p += std::exp(log_choose(n, static_cast<double>(x)) + log_choose(m, k - static_cast<double>(x)) - all);
  return std::min(1.0, p);
}

}  // namespace retort
