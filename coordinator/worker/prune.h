#pragma once

#include "coordinator/worker/network.h"
#include "coordinator/worker/recipe.h"

namespace retort {

/// Places of the `count` largest scores, ascending, int64; ties: the earlier one.
at::Tensor best_of(const at::Tensor& scores, std::size_t count);

/// Cuts the network down to `target`'s widths and depth by the statistics (activation) or by weight norms.
/// With the present shape it changes nothing.
Network prune(const Network& network, const ModelConfig& target, const ActivationStatistics* statistics);

/// Takes the rows of tokens that are not in `kept` out of embedding and head; `config` is what is left.
void keep_tokens(Network& network, const std::vector<std::int32_t>& kept, const ModelConfig& config);

/// The weights [rows, columns] that stay (bool): per row all but the least `sparsity` of the scores, or in
/// each `m` neighbours of a row the best `n`. Ties: the earlier one stays.
at::Tensor keep_in_rows(const at::Tensor& scores, const SparsePass& pass);

/// Sets single weights of the named matrices to zero and notes the matrices in network.sparse.
/// - wanda (Sun et al., 2306.11695, equation 1 and algorithm 1): score |W_ij| ‖X_j‖₂, compared within an
/// output's
///   row; layer by layer, each layer's inputs computed through the layers already pruned. `calibration`:
///   token ids [batch, seq]. The paper's weight update and its C4 sample are left out: the text is the
///   recipe's.
/// - magnitude: score |W_ij| (L1), compared over the whole matrix as in the paper's baseline (section 4), or
///   within groups with a pattern.
/// `check_stop` is asked between layers.
Result<void> sparsify(Network& network, const SparsePass& pass, const std::vector<std::string>& matrices,
                      const std::vector<at::Tensor>& calibration,
                      const std::function<Result<void>()>& check_stop);

}  // namespace retort
