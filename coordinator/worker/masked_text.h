#pragma once

#include "common/tokenizer/tokenizer.h"
#include "coordinator/worker/network.h"

namespace retort {

/// What a masked language model is to tell, and what it sees instead.
struct MaskedText {
  at::Tensor ids;      ///< [batch, seq]
  at::Tensor places;   ///< [n] int64 of ids, flattened; at least one
  at::Tensor targets;  ///< [n] int64: what stood there
};

/// Puts [CLS] and [SEP] in the place of each window's first and last token and hides others ([Devlin 2019]
/// §3.1, appendix A.1): each that is not special with probability 0.15, by [MASK] in 80 % of the cases, by
/// any token of the vocabulary in 10 %, not at all in 10 %. Drawn anew each time a text is read, as in
/// RoBERTa (1907.11692, section 4.1). The same for the same seed. `windows`: [batch, seq] int64, seq at
/// least 3.
MaskedText hide_tokens(const at::Tensor& windows, const Tokenizer& tokenizer, std::uint64_t seed);

/// Every seventh token of a text, from the fourth on: what retort-serve eval hides.
MaskedText hide_for_judging(const std::vector<TokenId>& text, const Tokenizer& tokenizer);

/// Logits [n, vocabulary] at the hidden places.
at::Tensor told_logits(const Network& network, const MaskedText& text, Trace* trace = nullptr);

}  // namespace retort
