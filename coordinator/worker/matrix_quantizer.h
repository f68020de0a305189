#pragma once

#include "coordinator/worker/network.h"

namespace retort {

/// What calibration text says of one matrix's input x (a column a feature), streamed: [columns, columns] and
/// [columns] are kept, the inputs are not.
struct InputStatistics {
  at::Tensor second_moment;  ///< Σ x xᵀ, F32
  at::Tensor magnitude;      ///< Σ |x|
  std::int64_t tokens = 0;

  void add(const at::Tensor& input);  ///< [..., columns]
  at::Tensor importance() const;      ///< mean x² a column: llama.cpp's importance matrix
};

/// Rounds each row of `weight` [rows, columns] to the nearest that `type`, whose block divides columns, can
/// hold. `importance` [columns]: how much a column's squared error counts in the search for scales (undefined
/// tensor: all the same).
EncodedMatrix encode_matrix(const at::Tensor& weight, TensorType type, const at::Tensor& importance = {});
at::Tensor decode_matrix(const EncodedMatrix& matrix);

struct GptqOptions {
  double damping = 0.01;   ///< λ as a share of the Hessian's mean diagonal
  bool act_order = false;  ///< columns in the order of falling diagonal, with scales chosen beforehand
};
/// GPTQ (Frantar et al., 2210.17323, algorithm 1) on the format's own grid: columns are rounded one after the
/// other and what each loses is made up for by those to its right, by H = 2 Σ x xᵀ + λI through the Cholesky
/// factor of its inverse. A block's scales are chosen when its first column is reached (in act_order before
/// all), least squares weighted by 1/[U]ⱼⱼ², the cost of an error in column j once the later ones have made
/// up for it. We take 128 columns at a time, as the paper, or one block where that is longer. Matrices of
/// types without levels are rounded to nearest.
EncodedMatrix gptq(const at::Tensor& weight, const InputStatistics& input, TensorType type,
                   const GptqOptions& options = {});

/// ‖WX‖² over the calibration text, of some rows of a matrix or of what rounding changed of them.
double output_power_of(const at::Tensor& weight, const InputStatistics& input);

/// AWQ (Lin et al., 2306.00978, equations 4 and 5): the s = mean|x|^α, α of 0, 0.1, … 1, for which the sum of
/// ‖(Q(W diag s) diag(s)⁻¹ − W) X‖² over matrices with one input is least; s scaled so that √(max·min) is
/// one. α = 0 leaves all as it is. `weighted`: Q searches its scales with the importance of columns.
struct AwqScale {
  at::Tensor scale;  ///< [columns]
  double alpha = 0;
};
AwqScale awq_scale(const std::vector<std::pair<at::Tensor, TensorType>>& matrices,
                   const InputStatistics& input, bool weighted);

}  // namespace retort
