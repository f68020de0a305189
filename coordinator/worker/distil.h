#pragma once

#include "coordinator/worker/network.h"
#include "coordinator/worker/recipe.h"
#include "coordinator/worker/teacher_cache.h"

/// Distillation's losses, each a mean per token, and the stored form of a teacher's outputs. N: tokens.
namespace retort {

/// T² times KL(softmax(z_t/T) ‖ softmax(z_s/T)), or KL the other way round, or the generalized Jensen–Shannon
/// divergence (Agarwal et al., 2306.13649, equation 2): β KL(p_t ‖ m) + (1−β) KL(p_s ‖ m),
/// m = β p_t + (1−β) p_s. Logits [N, vocabulary]. The factor keeps gradients' size (Hinton et al.,
/// 1503.02531, section 2). No gradient reaches the teacher.
at::Tensor soft_loss(const at::Tensor& student_logits, const at::Tensor& teacher_logits, double temperature,
                     Divergence divergence = Divergence::kForward, double beta = 0.5);

/// What is kept of a teacher's distribution at a temperature.
struct TeacherTargets {
  at::Tensor ids;   ///< [N, k] int64; draws may repeat
  at::Tensor logs;  ///< kTopK: [N, k + 1], logarithms of the k largest probabilities and of all others' sum
};
/// The k largest, or k draws by `seed`.
TeacherTargets teacher_targets(const at::Tensor& teacher_logits, TeacherOutputs outputs, std::uint32_t k,
                               double temperature, std::uint64_t seed);
/// One window's targets as TeacherCache stores them, and back.
std::vector<std::byte> pack_targets(const TeacherTargets& targets, const TeacherOutputsKey& key);
TeacherTargets unpack_targets(std::span<const std::byte> record, const TeacherOutputsKey& key);

/// What each token's logits are to learn.
struct TokenTargets {
  at::Tensor labels;  ///< [N] int64, the token that came next, -1 where there is none; undefined: no labels
  double labels_weight = 1;
  TeacherTargets kept;                      ///< its ids undefined: no teacher's outputs
  double soft_weight = 1, temperature = 1;  ///< of `kept`
};

/// Logits [N, vocabulary], F32 or BF16 (then so is their gradient). The sum, by weight, of
/// - the cross-entropy of the labels, over N;
/// - T² KL over the k kept tokens and one bucket for all others (kTopK: what a plain top-k leaves out biases
///   the student, 2503.16870 section 3; the bucket keeps its mass right), or T² times the mean cross-entropy
///   of the draws (kSampled: its gradient is that of the whole KL in the mean; its value is larger by the
///   teacher's entropy).
/// Both losses and their gradient are made together, a few rows at a time, and the gradient takes the logits'
/// place, whose values are gone afterwards: much of a small student's step is passes over [N, vocabulary],
/// which memory is too slow for. Backward once.
at::Tensor token_loss(const at::Tensor& logits, const TokenTargets& targets);

/// The teacher's layer for each of the student's where nobody says otherwise: i → ⌈(i+1) L_t / L_s⌉ − 1, so
/// that the last ones meet.
std::vector<std::size_t> layer_map(std::size_t student_layers, std::size_t teacher_layers);

/// Mean squared difference of attention maps (TinyBERT, 1909.10351, equation 7), over mapped layers. A head
/// that `origins` knows learns from the one that it was; other layers head by head where there are as many,
/// else by the means over heads.
at::Tensor attention_loss(const Trace& student, const Trace& teacher, const std::vector<std::size_t>& layers,
                          const std::vector<Network::Origin>& origins = {});

/// Mean squared difference of hidden states H_s W and H_t (equation 8), over mapped layers and the embedding.
/// `projections`: [student's width, teacher's width] each, learnt beside the student; none where widths
/// agree.
at::Tensor hidden_loss(const Trace& student, const Trace& teacher, const std::vector<std::size_t>& layers,
                       const std::vector<at::Tensor>& projections);

/// MiniLMv2's relations (2012.15828, equations 3 to 5), of one layer each: queries, keys and values are cut
/// anew into `heads` relation heads, so that head counts and widths may differ, and KL(softmax(A_t A_tᵀ/√d) ‖
/// softmax(A_s A_sᵀ/√d)) is meant over positions and relation heads and added over the three. As in the paper
/// no causal mask is applied: a relation is compared, nothing is predicted. Before rotary positions.
at::Tensor relation_loss(const Trace& student, std::size_t student_layer, const Trace& teacher,
                         std::size_t teacher_layer, std::int64_t heads);

}  // namespace retort
