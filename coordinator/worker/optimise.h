#pragma once

#include "coordinator/worker/data.h"
#include "coordinator/worker/network.h"
#include "coordinator/worker/recipe.h"
#include "coordinator/worker/teacher_cache.h"

namespace retort {

/// AdamW's first and second moments, by weight.
struct Moments {
  std::map<std::string, at::Tensor> first, second;
};

struct StepReport {
  double loss = 0, learning_rate = 0;
};

/// The learning rate's factor at `step` of `steps`: linear warm-up, then cosine down to a tenth, or constant
/// and (wsd) linear to zero over the last `decay` of the steps (2405.18392, section 3).
double schedule_factor(const OptimisePass& pass, std::uint64_t step, std::uint64_t steps);

/// A teacher, and its outputs where the pass keeps only a part of them.
struct Teacher {
  const Network& network;
  TeacherOutputsKey key;          ///< for outputs other than kFull, or for the text that it writes
  TeacherCache* cache = nullptr;  ///< nullptr: computed at each step
  std::uint64_t forwards = 0;     ///< windows that went through the teacher
};

/// Gives the network the projections that a hidden-state loss learns ("distil.hidden.0" …), where widths
/// differ and it has none yet, from `seed`; drop_projections takes them away when the pass is done.
void add_projections(Network& network, const ModelConfig& teacher, std::uint64_t seed);
void drop_projections(Network& network);

/// True where bfloat16 is multiplied as such: on a GPU, or by a CPU with AVX512-BF16.
bool has_bf16(at::Device device);

/// The loss of `windows` windows of the stream, those that `step` is to learn from. An encoder learns what
/// masked_text.h hides of them, each between [CLS] and [SEP], which take the place of its first and last
/// token; losses are then means over what is hidden, and `tokenizer` is needed. `teacher` for distilling. The
/// gradient is added to the weights that ask for one, unless the caller's torch::NoGradGuard says that none
/// is wanted. With bfloat16 (1710.03740, section 3.1, whose loss scaling bfloat16's range makes needless) the
/// products of both models' forward passes, and so the gradients', have operands of 8 bits of mantissa;
/// weights, norms and losses stay F32.
double text_loss(const Network& network, Teacher* teacher, TokenStream& stream, const OptimisePass& pass,
                 std::uint64_t seed, std::uint64_t step, std::uint32_t window, std::uint32_t windows,
                 const Tokenizer* tokenizer = nullptr);

/// A step of AdamW (1711.05101, algorithm 2; β 0.9 and 0.95) begins: weights ask for gradients, which are
/// zero. Then the caller's loss goes backward.
void begin_step(Network& network);
/// And it ends: gradients clipped, weights moved; matrices decay, vectors do not. The result depends only on
/// the arguments and on the number of threads. `loss` for the report; not finite, or a gradient that is not:
/// nothing is changed and the report's loss is NaN.
StepReport finish_step(Network& network, Moments& moments, const OptimisePass& pass, double loss,
                       std::uint64_t step, std::uint64_t steps);

}  // namespace retort
