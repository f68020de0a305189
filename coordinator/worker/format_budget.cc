#include "coordinator/worker/format_budget.h"

#include <algorithm>
#include <numeric>

namespace retort {
namespace {

double slope(const FormatChoice& from, const FormatChoice& to) {
  return (from.divergence - to.divergence) / static_cast<double>(to.bytes - from.bytes);
}

/// Indices of the lower convex hull, by rising bytes: each step saves less divergence a byte than the last.
std::vector<std::size_t> hull(const std::vector<FormatChoice>& choices) {
  std::vector<std::size_t> order(choices.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return choices[a].bytes != choices[b].bytes ? choices[a].bytes < choices[b].bytes
                                                : choices[a].divergence < choices[b].divergence;
  });
  std::vector<std::size_t> out;
  for (const std::size_t i : order) {
    if (!out.empty() && (choices[i].divergence >= choices[out.back()].divergence ||
                         choices[i].bytes == choices[out.back()].bytes))
      continue;
    while (out.size() > 1 &&
           slope(choices[out[out.size() - 2]], choices[out.back()]) <= slope(choices[out.back()], choices[i]))
      out.pop_back();
    out.push_back(i);
  }
  return out;
}

}  // namespace

std::vector<std::size_t> choose_formats(const std::vector<std::vector<FormatChoice>>& matrices,
                                        std::uint64_t budget) {
  std::vector<std::vector<std::size_t>> hulls;
  std::vector<std::size_t> at(matrices.size(), 0), chosen(matrices.size());
  std::uint64_t used = 0;
  for (const auto& choices : matrices) {
    hulls.push_back(hull(choices));
    used += choices[hulls.back()[0]].bytes;
  }
  for (;;) {  // the best step along any hull, as long as it fits
    std::size_t best = matrices.size();
    double most = 0;
    for (std::size_t m = 0; m < matrices.size(); ++m) {
      if (at[m] + 1 >= hulls[m].size()) continue;
      const FormatChoice &from = matrices[m][hulls[m][at[m]]], &to = matrices[m][hulls[m][at[m] + 1]];
      if (used + (to.bytes - from.bytes) <= budget && slope(from, to) > most)
        most = slope(from, to), best = m;
    }
    if (best == matrices.size()) break;
    used += matrices[best][hulls[best][at[best] + 1]].bytes - matrices[best][hulls[best][at[best]]].bytes;
    ++at[best];
  }
  for (std::size_t m = 0; m < matrices.size(); ++m) chosen[m] = hulls[m][at[m]];
  for (;;) {  // choices off the hulls that the rest of the budget still pays for
    std::size_t best = matrices.size(), to = 0;
    double most = 0;
    for (std::size_t m = 0; m < matrices.size(); ++m)
      for (std::size_t i = 0; i < matrices[m].size(); ++i) {
        const FormatChoice &have = matrices[m][chosen[m]], &other = matrices[m][i];
        if (other.bytes > have.bytes && used + (other.bytes - have.bytes) <= budget &&
            have.divergence - other.divergence > most)
          most = have.divergence - other.divergence, best = m, to = i;
      }
    if (best == matrices.size()) return chosen;
    used += matrices[best][to].bytes - matrices[best][chosen[best]].bytes;
    chosen[best] = to;
  }
}

}  // namespace retort
