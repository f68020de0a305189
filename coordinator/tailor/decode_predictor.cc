#include "coordinator/tailor/decode_predictor.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace retort {
namespace {

constexpr double kMiB = 1024 * 1024;
/// Bytes of weights a token where Q8_0's cost a byte is fitted, from what a core's own cache holds to what
/// comes from memory, and where another format's cost is compared with it.
constexpr std::array kKnots{0.25 * kMiB, 1 * kMiB, 4 * kMiB, 12 * kMiB, 36 * kMiB};
constexpr std::array kRatioKnots{1 * kMiB, 6 * kMiB, 24 * kMiB};
constexpr std::size_t kShared = 6;

/// What a token takes, in units that bring the costs near one another (the fit goes by coordinates).
struct Work {
  std::array<double, kShared> shared{};
  std::map<TensorType, double> bytes;
  double all_bytes = 0;
};

Work work_of(const ModelConfig& config, TensorType format, std::uint32_t position) {
  Work work;
  work.shared[0] = 1;
  work.shared[1] = config.n_layer();
  for (const Operation& op : operations(config)) {
    const TensorType stored = stored_type(format, op.columns);
    const double bytes = static_cast<double>(op.rows) * static_cast<double>(*row_bytes(stored, op.columns));
    work.shared[2] += op.rows * 1e-3;
    work.shared[3] += op.columns * 1e-3;
    work.bytes[stored] += bytes;
    work.all_bytes += bytes;
  }
  for (const LayerShape& layer : config.layers) {
    work.shared[4] += 1e-3 * layer.n_head * (position + 1.0);
    work.shared[5] += 1e-5 * layer.n_head * config.head_dim * (position + 1.0);
  }
  return work;
}

/// How much of each knot's value counts at so many bytes.
template <std::size_t n>
std::array<double, n> hats(const std::array<double, n>& knots, double bytes) {
  std::array<double, n> out{};
  if (bytes <= knots.front()) return out.front() = 1, out;
  if (bytes >= knots.back()) return out.back() = 1, out;
  const auto above = std::upper_bound(knots.begin(), knots.end(), bytes);
  const std::size_t i = static_cast<std::size_t>(above - knots.begin());
  const double part = std::log(bytes / knots[i - 1]) / std::log(knots[i] / knots[i - 1]);
  out[i - 1] = 1 - part, out[i] = part;
  return out;
}

/// Costs ≥ 0 with the least Σ (row·costs − wanted)² + Σ weight (cost − expected)², by coordinate descent on
/// the normal equations: the problem is convex and has a dozen unknowns.
std::vector<double> least_squares(const std::vector<std::vector<double>>& rows,
                                  const std::vector<double>& wanted, const std::vector<double>& expected,
                                  double weight) {
  const std::size_t n = expected.size();
  std::vector<double> products(n * n), right(n), costs = expected;
  for (std::size_t i = 0; i < n; ++i) {
    right[i] = weight * expected[i], products[i * n + i] = weight;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      right[i] += rows[r][i] * wanted[r];
      for (std::size_t j = 0; j < n; ++j) products[i * n + j] += rows[r][i] * rows[r][j];
    }
  }
  for (int round = 0; round < 20'000; ++round) {
    double moved = 0;
    for (std::size_t i = 0; i < n; ++i) {
      double slope = right[i];
      for (std::size_t j = 0; j < n; ++j) slope -= products[i * n + j] * costs[j];
      const double step = std::max(-costs[i], slope / products[i * n + i]);
      costs[i] += step;
      moved = std::max(moved, std::abs(step) * std::sqrt(products[i * n + i]));
    }
    if (moved < 1e-9) break;
  }
  return costs;
}

struct Point {
  TensorType format;
  Work work;
  double seconds;
};

std::optional<Point> point_of(const DecodeSample& sample) {
  const auto format = tensor_type_from(sample.format);
  const ModelConfig config = decode_config(sample, sample.position + 2);
  if (!format || encoded_whole(*format) || !validate(config, "sample")) return std::nullopt;
  if (!is_measured(sample)) return std::nullopt;
  return Point{*format, work_of(config, *format, sample.position), sample.seconds};
}

template <std::size_t n>
double value_at(const std::array<double, n>& knots, const std::vector<double>& values, double bytes) {
  const auto parts = hats(knots, bytes);
  double value = 0;
  for (std::size_t k = 0; k < n; ++k) value += parts[k] * values[k];
  return value;
}

double bits(TensorType format) { return 8.0 * info(format).block_bytes / info(format).block_values; }

}  // namespace

bool is_measured(const DecodeSample& sample) {
  return sample.seconds >= 1e-8 && sample.seconds <= 3600;  // neither for NaN
}

std::optional<DecodePredictor> DecodePredictor::fit(std::span<const DecodeSample> samples) {
  std::vector<Point> points;
  constexpr std::size_t kMost = 1000;  // an agent sends some 40
  for (const DecodeSample& sample : samples.first(std::min(samples.size(), kMost)))
    if (auto point = point_of(sample)) points.push_back(std::move(*point));
  std::map<TensorType, std::size_t> counts;
  for (const Point& point : points) ++counts[point.format];
  if (counts[TensorType::kQ8_0] < kShared + kKnots.size()) return std::nullopt;

  DecodePredictor out;
  constexpr std::size_t kAll = kShared + kKnots.size();
  // Q8_0 first, with the shared costs: relative errors, so that a small model counts as much as a large one.
  std::vector<std::vector<double>> rows;
  for (const Point& point : points) {
    if (point.format != TensorType::kQ8_0) continue;
    std::vector<double>& row = rows.emplace_back(kAll);
    for (std::size_t i = 0; i < kShared; ++i) row[i] = point.work.shared[i] * 1e-6 / point.seconds;
    const auto parts = hats(kKnots, point.work.all_bytes);
    for (std::size_t k = 0; k < kKnots.size(); ++k)
      row[kShared + k] = parts[k] * point.work.all_bytes * 1e-12 / point.seconds;
  }
  const std::vector<double> costs =
      least_squares(rows, std::vector<double>(rows.size(), 1), std::vector<double>(kAll, 0), 1e-12);
  for (std::size_t i = 0; i < kShared; ++i) out.shared_.push_back(costs[i] * 1e-6);
  for (std::size_t k = 0; k < kKnots.size(); ++k) out.byte_.push_back(costs[kShared + k] * 1e-12);
  out.ratios_[TensorType::kQ8_0].assign(kRatioKnots.size(), 1);

  for (const auto& [format, count] : counts) {
    if (format == TensorType::kQ8_0) continue;
    std::vector<double> wanted;
    rows.clear();
    for (const Point& point : points) {
      if (point.format != format) continue;
      double left = point.seconds;
      for (std::size_t i = 0; i < kShared; ++i) left -= point.work.shared[i] * out.shared_[i];
      for (const auto& [stored, bytes] : point.work.bytes)  // rows that the format does not fit
        if (stored != format) left -= bytes * value_at(kKnots, out.byte_, point.work.all_bytes);
      const auto own = point.work.bytes.find(format);
      if (own == point.work.bytes.end()) continue;
      wanted.push_back(left / point.seconds);
      const auto parts = hats(kRatioKnots, point.work.all_bytes);
      const double as_eight = own->second * value_at(kKnots, out.byte_, point.work.all_bytes);
      std::vector<double>& row = rows.emplace_back(kRatioKnots.size());
      for (std::size_t k = 0; k < kRatioKnots.size(); ++k) row[k] = parts[k] * as_eight / point.seconds;
    }
    if (rows.empty()) continue;
    // Where no sample speaks of a knot, a byte costs what it does in Q8_0.
    out.ratios_[format] = least_squares(rows, wanted, std::vector<double>(kRatioKnots.size(), 1), 1e-6);
  }
  return out;
}

double DecodePredictor::token_seconds(const ModelConfig& config, TensorType format,
                                      std::uint32_t position) const {
  const Work work = work_of(config, format, position);
  double seconds = 0;
  for (std::size_t i = 0; i < kShared; ++i) seconds += work.shared[i] * shared_[i];
  for (const auto& [stored, bytes] : work.bytes) {
    const auto nearest =
        std::min_element(ratios_.begin(), ratios_.end(), [stored = stored](const auto& a, const auto& b) {
          return std::abs(bits(a.first) - bits(stored)) < std::abs(bits(b.first) - bits(stored));
        });
    const auto own = ratios_.find(stored);
    seconds += bytes * value_at(kKnots, byte_, work.all_bytes) *
               value_at(kRatioKnots, (own == ratios_.end() ? nearest : own)->second, work.all_bytes);
  }
  return seconds;
}

}  // namespace retort
