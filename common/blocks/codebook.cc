#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>

#include "common/blocks/formats.h"
#include "common/blocks/matrix.h"
#include "common/core/random.h"

// CODEBOOK4, CODEBOOK8: u32 rows that share a codebook (0: all), F16 codebooks[groups][16 or 256], then the
// indices of each row: four bits or a byte a column.

namespace retort {
namespace {

constexpr std::uint64_t kHead = 4, kGroupRows = 16;
constexpr int kRounds = 30;
constexpr std::size_t kSeedingValues = 1 << 14;

std::uint32_t entries(bool wide) { return wide ? 256 : 16; }
std::uint64_t index_bytes(bool wide, std::uint64_t columns) { return wide ? columns : (columns + 1) / 2; }
std::uint64_t groups_of(std::uint64_t rows, std::uint64_t group_rows) {
  return (rows + group_rows - 1) / group_rows;
}

/// One-dimensional k-means of sorted values: prefix sums make a round cost k log n.
class KMeans {
 public:
  /// values ascending; weights as many, not negative.
  KMeans(std::span<const float> values, std::span<const double> weights)
      : values_(values), weight_(values.size() + 1), moment_(values.size() + 1) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      weight_[i + 1] = weight_[i] + weights[i];
      moment_[i + 1] = moment_[i] + weights[i] * static_cast<double>(values[i]);
    }
  }

  std::vector<float> centres(std::uint32_t k) const {
    std::vector<float> out = seeds(k);
    std::vector<float> next(k);
    for (int round = 0; round < kRounds; ++round) {
      std::size_t begin = 0;
      for (std::uint32_t c = 0; c < k; ++c) {
        const std::size_t end = c + 1 < k ? border(out[c], out[c + 1], begin) : values_.size();
        const double mass = weight_[end] - weight_[begin];
        next[c] = mass > 0 ? static_cast<float>((moment_[end] - moment_[begin]) / mass) : out[c];
        begin = end;
      }
      std::sort(next.begin(), next.end());
      if (next == out) break;
      out.swap(next);
    }
    return out;
  }

 private:
  /// The first value that is nearer to `above` than to `below`.
  std::size_t border(float below, float above, std::size_t from) const {
    const float middle = below + (above - below) / 2;
    return static_cast<std::size_t>(
        std::upper_bound(values_.begin() + static_cast<std::ptrdiff_t>(from), values_.end(), middle) -
        values_.begin());
  }

  /// k-means++: each next centre is drawn with a chance in proportion to weight · squared distance to the
  /// nearest one. Of many values evenly spread ones are looked at.
  std::vector<float> seeds(std::uint32_t k) const {
    const std::size_t step = (values_.size() + kSeedingValues - 1) / kSeedingValues,
                      n = values_.size() / step;
    SeededRandom random(1);
    std::vector<double> distance(n, 1e300);
    std::vector<float> out;
    const auto value = [&](std::size_t i) { return static_cast<double>(values_[i * step]); };
    const auto mass = [&](std::size_t i) {
      return weight_[std::min((i + 1) * step, values_.size())] - weight_[i * step];
    };
    const auto draw = [&](auto cost) {
      double total = 0;
      for (std::size_t i = 0; i < n; ++i) total += cost(i);
      double left = random.next_unit() * total;
      for (std::size_t i = 0; i < n; ++i)
        if ((left -= cost(i)) < 0) return i;
      return n - 1;
    };
    while (out.size() < k) {
      const std::size_t next =
          out.empty() ? draw(mass) : draw([&](std::size_t i) { return mass(i) * distance[i]; });
      out.push_back(static_cast<float>(value(next)));
      for (std::size_t i = 0; i < n; ++i) {
        const double d = value(i) - value(next);
        distance[i] = std::min(distance[i], d * d);
      }
    }
    std::sort(out.begin(), out.end());
    return out;
  }

  std::span<const float> values_;
  std::vector<double> weight_, moment_;
};

/// The codebook of a group's values, as F16, ascending.
std::vector<float> codebook(std::span<const float> values, std::span<const float> weights, std::uint32_t k) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto finite = [&](std::size_t i) { return std::isfinite(values[i]) ? values[i] : 0.0f; };
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return finite(a) < finite(b); });
  std::vector<float> sorted(values.size());
  std::vector<double> sorted_weights(values.size());
  double total = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    sorted[i] = finite(order[i]);
    sorted_weights[i] = weights.empty() ? 1.0 : static_cast<double>(weights[order[i]]);
    total += sorted_weights[i];
  }
  if (!(total > 0 && std::isfinite(total))) std::fill(sorted_weights.begin(), sorted_weights.end(), 1.0);
  std::vector<float> out = KMeans(sorted, sorted_weights).centres(k);
  for (float& x : out) x = f16_to_f32(f32_to_f16(std::clamp(x, -65504.0f, 65504.0f)));
  return out;
}

std::uint32_t nearest(std::span<const float> codes, float value) {
  if (!std::isfinite(value)) value = 0;
  const auto above =
      static_cast<std::size_t>(std::lower_bound(codes.begin(), codes.end(), value) - codes.begin());
  if (above == 0) return 0;
  if (above == codes.size()) return static_cast<std::uint32_t>(codes.size() - 1);
  return static_cast<std::uint32_t>(value - codes[above - 1] <= codes[above] - value ? above - 1 : above);
}

}  // namespace

std::uint16_t CodebookView::entry(std::uint64_t row, std::uint32_t index) const {
  std::uint16_t bits;
  std::memcpy(&bits, data + kHead + 2 * (row / group_rows * entries(wide) + index), 2);
  return bits;
}
const std::byte* CodebookView::indices(std::uint64_t row) const {
  return data + kHead + 2 * groups_of(rows, group_rows) * entries(wide) + row * index_bytes(wide, columns);
}

CodebookView codebook_view(TensorType type, std::uint64_t rows, std::uint64_t columns,
                           const std::byte* data) {
  std::uint32_t group_rows;
  std::memcpy(&group_rows, data, kHead);
  return {rows, columns, group_rows == 0 ? rows : group_rows, type == TensorType::kCodebook8, data};
}

namespace blocks {

std::optional<std::uint64_t> codebook_bytes(bool wide, std::uint64_t rows, std::uint64_t columns,
                                            std::span<const std::byte> data) {
  if (data.size() < kHead || rows == 0 || columns == 0) return std::nullopt;
  std::uint32_t group_rows;
  std::memcpy(&group_rows, data.data(), kHead);
  if (group_rows % kGroupRows != 0) return std::nullopt;  // the kernels take 16 rows at a time
  std::uint64_t indices = 0, books = 0, bytes = 0;
  const std::uint64_t groups = group_rows == 0 ? 1 : (rows - 1) / group_rows + 1;
  if (columns == UINT64_MAX || __builtin_mul_overflow(rows, index_bytes(wide, columns), &indices) ||
      __builtin_mul_overflow(groups, std::uint64_t{2} * entries(wide), &books) ||
      __builtin_add_overflow(indices, books, &bytes) || __builtin_add_overflow(bytes, kHead, &bytes))
    return std::nullopt;
  return bytes;
}

std::vector<std::byte> encode_codebook(bool wide, std::uint64_t rows, std::uint64_t columns,
                                       std::span<const float> values, std::span<const float> weights) {
  // 256 entries cost 4096 bits: one codebook for all.
  const std::uint32_t group_rows = wide ? 0 : kGroupRows, k = entries(wide);
  const std::uint64_t step = group_rows == 0 ? rows : group_rows, row_size = index_bytes(wide, columns);
  std::byte head[kHead];
  std::memcpy(head, &group_rows, kHead);
  std::vector<std::byte> out(*codebook_bytes(wide, rows, columns, head));
  std::memcpy(out.data(), head, kHead);
  std::byte* book = out.data() + kHead;
  std::byte* indices = book + 2 * groups_of(rows, step) * k;
  for (std::uint64_t first = 0; first < rows; first += step, book += 2 * k) {
    const std::uint64_t count = std::min(step, rows - first) * columns;
    const std::vector<float> codes =
        codebook(values.subspan(first * columns, count),
                 weights.empty() ? weights : weights.subspan(first * columns, count), k);
    for (std::uint32_t i = 0; i < k; ++i) {
      const std::uint16_t bits = f32_to_f16(codes[i]);
      std::memcpy(book + 2 * i, &bits, 2);
    }
    for (std::uint64_t r = first; r < std::min(first + step, rows); ++r, indices += row_size)
      for (std::uint64_t c = 0; c < columns; ++c) {
        const std::uint32_t index = nearest(codes, values[r * columns + c]);
        if (wide)
          indices[c] = static_cast<std::byte>(index);
        else
          indices[c / 2] |= static_cast<std::byte>(index << (c % 2 == 0 ? 0 : 4));
      }
  }
  return out;
}

void decode_codebook_row(const CodebookView& view, std::uint64_t row, std::span<float> out) {
  const std::byte* const indices = view.indices(row);
  for (std::size_t c = 0; c < out.size(); ++c) {
    const auto byte = std::to_integer<std::uint32_t>(indices[view.wide ? c : c / 2]);
    out[c] = f16_to_f32(view.entry(row, view.wide ? byte : byte >> (c % 2 == 0 ? 0 : 4) & 15));
  }
}

}  // namespace blocks
}  // namespace retort
