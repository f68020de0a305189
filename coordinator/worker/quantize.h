#pragma once

#include <functional>
#include <optional>

#include "coordinator/worker/format_budget.h"
#include "coordinator/worker/matrix_quantizer.h"
#include "coordinator/worker/network.h"
#include "coordinator/worker/recipe.h"

namespace retort {

/// What became of one matrix.
struct QuantizedMatrix {
  std::string name;  ///< Hugging Face's
  TensorType type = TensorType::kF32;
  std::uint64_t values = 0, bytes = 0;
  double weight_error = 0;  ///< ‖ΔW‖² / ‖W‖²
  std::optional<double>
      output_error;  ///< ‖ΔX‖² / ‖WX‖² over the calibration text, where the method takes any
  double alpha = 0;  ///< AWQ's; 0: not scaled
  std::vector<std::pair<TensorType, double>>
      sensitivity;  ///< with a budget of bits: ΔKL of this matrix alone
};

/// A matrix rounded: the line for the report (with output_error where `input` is given), its bytes and their
/// values. `input`: nullptr where the method takes none, or where the matrix multiplies nothing. `order`:
/// rows in the order in which they are encoded; undefined: as they are.
struct RoundedMatrix {
  QuantizedMatrix line;
  EncodedMatrix encoded;
  at::Tensor values;
};
RoundedMatrix round_matrix(const std::string& name, const at::Tensor& weight, TensorType type,
                           const InputStatistics* input, const QuantizePass& pass,
                           const at::Tensor& order = {});

/// A matrix's formats under a budget of bits: what each costs when this matrix alone has it.
struct FormatTrials {
  std::string name;
  std::vector<TensorType> types;
  std::vector<FormatChoice> choices;

  std::vector<std::pair<TensorType, double>> sensitivity() const;  ///< as in QuantizedMatrix
};
/// Tries `wanted` formats for a matrix of so many columns, those that are stored alike once. `round` puts the
/// values of a format into the network and tells its bytes, `divergence` what that costs.
Result<FormatTrials> try_formats(const std::string& name, const std::vector<TensorType>& wanted,
                                 std::uint64_t columns, const std::function<std::uint64_t(TensorType)>& round,
                                 const std::function<double()>& divergence,
                                 const std::function<Result<void>()>& check_stop);
/// The formats that together cost the least divergence within `pass.bits` (which is set) for each of `values`
/// weights, by matrix; kOutOfBudget where even the smallest exceed it.
Result<std::map<std::string, TensorType>> spend_bits(const QuantizePass& pass,
                                                     const std::vector<FormatTrials>& trials,
                                                     std::uint64_t values);

/// Rounds every matrix as `pass` says and leaves both the encoded matrices and their values in the network.
/// `calibration`: token ids [batch, seq], at least one where the pass needs text (needs_calibration). Layer
/// by layer: each layer's inputs are computed through the layers that are already rounded, and only one
/// layer's statistics are in memory at a time. `check_stop` is asked between matrices.
Result<std::vector<QuantizedMatrix>> quantize(Network& network, const QuantizePass& pass,
                                              const std::vector<at::Tensor>& calibration,
                                              const std::function<Result<void>()>& check_stop);

/// The same of a classifier of tensors, in the order of its layers; rows as ClassifierMatrix has them. A
/// convolution's inputs are what its window sees at each place. `batches`: inputs [batch, values].
Result<std::vector<QuantizedMatrix>> quantize_classifier(Network& network, const QuantizePass& pass,
                                                         const std::vector<at::Tensor>& batches,
                                                         const std::function<Result<void>()>& check_stop);

}  // namespace retort
