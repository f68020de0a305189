#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/result.h"
#include "common/tokenizer/tokenizer.h"

namespace retort {

/// A smaller vocabulary and the tokenizer that goes with it.
struct VocabularyCut {
  std::vector<TokenId> kept;  ///< old ids, ascending; a token's new id is its place here
  std::string tokenizer_json, tokenizer_config;

  TokenId renamed(TokenId old) const;  ///< -1: not kept
};

/// Rewrites a Hugging Face tokenizer so that it knows `used` and what these need, under new ids in the old
/// order. A text whose tokens are all in `used` gets the same tokens as before:
/// - BPE: with a token the parts of every merge that makes it stay, down to characters; a merge stays where
/// its
///   parts and its outcome do. No merge that such a text went through is gone, and none is new.
/// - Unigram: the best path is still there, and others only became fewer; the least score, from which that of
///   unknown characters is counted, stays.
/// - WordPiece: the longest match stays, longer ones only became fewer.
/// Added tokens and byte tokens always stay, and where there is no fallback to bytes all single characters,
/// so that other texts need no unknown token that they did not need before. kInvalid names what is not as it
/// should be; kUnsupported another model. Thread: any.
Result<VocabularyCut> cut_vocabulary(std::string_view tokenizer_json, std::string_view tokenizer_config,
                                     const std::set<TokenId>& used, const std::string& where);

}  // namespace retort
