#include "coordinator/worker/matrix_quantizer.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <limits>

#include "common/blocks/block_grid.h"
#include "common/blocks/matrix.h"

namespace retort {
namespace {

using at::Tensor;

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

std::span<float> row_of(const Tensor& matrix, std::int64_t row) {
  return {matrix.data_ptr<float>() + row * matrix.size(1), size(matrix.size(1))};
}

EncodedMatrix empty_matrix(const Tensor& weight, TensorType type) {
  EncodedMatrix out{
      type, static_cast<std::uint64_t>(weight.size(0)), static_cast<std::uint64_t>(weight.size(1)), {}};
  out.bytes.resize(*row_bytes(type, out.columns) * out.rows);
  return out;
}

/// Upper triangular U with H⁻¹ = Uᵀ U, for H with `damping` of its mean diagonal added, more where that is
/// not enough for a Cholesky factor.
Tensor inverse_factor(const Tensor& hessian, double damping) {
  const double mean = hessian.diagonal().mean().item<double>();
  for (double share = damping;; share = std::max(10 * share, 1e-6)) {
    Tensor h = hessian.clone();
    h.diagonal().add_(share * mean);
    const auto [lower, failed] = at::linalg_cholesky_ex(h);
    if (failed.item<int>() != 0 && share < 1e3) continue;
    const auto [upper, failed_again] = at::linalg_cholesky_ex(at::cholesky_inverse(lower), /*upper=*/true);
    if (failed_again.item<int>() != 0 && share < 1e3) continue;
    return upper.to(at::kFloat).contiguous();
  }
}

}  // namespace

void InputStatistics::add(const Tensor& input) {
  const Tensor x = input.detach().reshape({-1, input.size(-1)});
  if (!second_moment.defined()) {
    second_moment = at::zeros({x.size(1), x.size(1)});
    magnitude = at::zeros({x.size(1)});
  }
  second_moment.addmm_(x.t(), x);
  magnitude += x.abs().sum(0);
  tokens += x.size(0);
}

Tensor InputStatistics::importance() const {
  return (second_moment.diagonal() / static_cast<double>(tokens)).contiguous();
}

EncodedMatrix encode_matrix(const Tensor& weight, TensorType type, const Tensor& importance) {
  const Tensor values = weight.detach().contiguous();
  if (encoded_whole(type)) {
    EncodedMatrix out{type, size(values.size(0)), size(values.size(1)), {}};
    Tensor weights;
    if (importance.defined()) weights = importance.expand_as(values).contiguous();
    const auto all = [](const Tensor& t) {
      return t.defined() ? std::span<const float>(t.data_ptr<float>(), size(t.numel()))
                         : std::span<const float>();
    };
    out.bytes = encode_matrix(type, out.rows, out.columns, all(values), all(weights));
    return out;
  }
  EncodedMatrix out = empty_matrix(values, type);
  const std::size_t bytes = out.bytes.size() / out.rows;
  std::span<const float> weights;
  if (importance.defined()) weights = {importance.data_ptr<float>(), size(importance.numel())};
  at::parallel_for(0, values.size(0), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      encode_row(type, row_of(values, r), std::span(out.bytes).subspan(size(r) * bytes, bytes), weights);
  });
  return out;
}

Tensor decode_matrix(const EncodedMatrix& matrix) {
  const auto rows = static_cast<std::int64_t>(matrix.rows);
  const Tensor out = at::empty({rows, static_cast<std::int64_t>(matrix.columns)}, at::kFloat);
  decode_rows(matrix.type, matrix.rows, matrix.columns, matrix.bytes, 0,
              {out.data_ptr<float>(), size(out.numel())});
  return out;
}

EncodedMatrix gptq(const Tensor& weight, const InputStatistics& input, TensorType type,
                   const GptqOptions& options) {
  if (!has_levels(type)) return encode_matrix(weight, type);
  Tensor work = weight.detach().contiguous().clone();
  const std::int64_t rows = work.size(0), columns = work.size(1);
  const auto block = static_cast<std::int64_t>(info(type).block_values);
  const std::size_t block_bytes = info(type).block_bytes,
                    row_length = *row_bytes(type, static_cast<std::uint64_t>(columns));
  const LevelSet set = level_set(type);

  Tensor hessian = input.second_moment.to(at::kDouble) * 2;
  const Tensor dead = hessian.diagonal().eq(0);  // inputs that are always zero: their weights do not matter
  hessian.diagonal().masked_fill_(dead, 1);
  work.masked_fill_(dead.unsqueeze(0), 0);

  Tensor order = at::arange(columns, at::kLong);
  if (options.act_order) {
    order = hessian.diagonal().argsort(0, /*descending=*/true);
    hessian = hessian.index_select(0, order).index_select(1, order);
  }
  const Tensor upper = inverse_factor(hessian, options.damping);
  hessian.reset();
  const Tensor cost = upper.diagonal().square().reciprocal().contiguous();

  EncodedMatrix out;
  Tensor scale, min;  // act_order: [rows, columns] in the order of the columns
  if (options.act_order) {
    Tensor unordered = at::empty_like(cost);
    unordered.index_copy_(0, order, cost);
    out = encode_matrix(work, type, unordered);
    scale = at::empty_like(work), min = at::empty_like(work);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < columns; c += block) {
        const BlockGrid grid = block_grid(
            type,
            std::span(out.bytes).subspan(size(r) * row_length + size(c / block) * block_bytes, block_bytes));
        std::copy_n(grid.scale.begin(), block, row_of(scale, r).begin() + c);
        std::copy_n(grid.min.begin(), block, row_of(min, r).begin() + c);
      }
    work = work.index_select(1, order);
    scale = scale.index_select(1, order), min = min.index_select(1, order);
  } else {
    out = empty_matrix(work, type);
  }
  const Tensor levels = at::empty({rows, columns}, at::kChar);
  const std::int64_t chunk = std::max<std::int64_t>(128, block);
  for (std::int64_t first = 0; first < columns; first += chunk) {
    const std::int64_t count = std::min(chunk, columns - first);
    const Tensor errors = at::empty({rows, count}, at::kFloat);
    const Tensor factor = upper.slice(0, first, first + count).slice(1, first, first + count).contiguous();
    at::parallel_for(0, rows, 1, [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> w(size(count));
      BlockGrid grid{};
      for (std::int64_t r = begin; r < end; ++r) {
        std::copy_n(row_of(work, r).begin() + first, count, w.begin());
        std::int8_t* level = levels.data_ptr<std::int8_t>() + r * columns + first;
        float* error = errors.data_ptr<float>() + r * count;
        for (std::int64_t i = 0; i < count; ++i) {
          float s, m;
          if (options.act_order) {
            s = row_of(scale, r)[size(first + i)], m = row_of(min, r)[size(first + i)];
          } else {
            if (i % block == 0) {
              const auto bytes = std::span(out.bytes).subspan(
                  size(r) * row_length + size((first + i) / block) * block_bytes, block_bytes);
              encode_row(type, std::span(w).subspan(size(i), size(block)), bytes,
                         {cost.data_ptr<float>() + first + i, size(block)});
              grid = block_grid(type, bytes);
            }
            s = grid.scale[size(i % block)], m = grid.min[size(i % block)];
          }
          const float* u = factor.data_ptr<float>() + i * count;
          level[i] = set.nearest(s != 0 ? (w[size(i)] + m) / s : 0.0f);
          const float lost = (w[size(i)] - (s * static_cast<float>(level[i]) - m)) / u[i];
          error[i] = lost;
          for (std::int64_t k = i + 1; k < count; ++k) w[size(k)] -= lost * u[k];
        }
      }
    });
    if (first + count < columns)
      work.slice(1, first + count)
          .addmm_(errors, upper.slice(0, first, first + count).slice(1, first + count), 1, -1);
  }
  Tensor placed = levels;
  if (options.act_order) placed = at::empty_like(levels).index_copy_(1, order, levels);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; c += block)
      put_levels(
          type, {placed.data_ptr<std::int8_t>() + r * columns + c, size(block)},
          std::span(out.bytes).subspan(size(r) * row_length + size(c / block) * block_bytes, block_bytes));
  return out;
}

double output_power_of(const Tensor& weight, const InputStatistics& input) {
  return (weight.mm(input.second_moment) * weight).sum().item<double>();
}

AwqScale awq_scale(const std::vector<std::pair<Tensor, TensorType>>& matrices, const InputStatistics& input,
                   bool weighted) {
  const Tensor mean = (input.magnitude / static_cast<double>(input.tokens)).clamp_min(1e-6);
  const Tensor importance = input.importance();
  AwqScale best{at::ones_like(mean), 0};
  double least = std::numeric_limits<double>::infinity();
  for (int step = 0; step <= 10; ++step) {
    const double alpha = 0.1 * step;
    Tensor scale = mean.pow(alpha);
    scale = (scale / (scale.max() * scale.min()).sqrt()).clamp_min(1e-4);
    const Tensor column = scale.unsqueeze(0);
    const Tensor counts = weighted ? (importance / scale.square()).contiguous() : Tensor();
    double error = 0;
    for (const auto& [weight, type] : matrices) {
      const Tensor lost = decode_matrix(encode_matrix(weight * column, type, counts)) / column - weight;
      error += (lost.mm(input.second_moment) * lost).sum().item<double>();
    }
    if (error < least) least = error, best = {scale, alpha};
  }
  return best;
}

}  // namespace retort
