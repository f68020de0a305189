#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/core/result.h"
#include "common/tokenizer/tokenizer.h"
#include "coordinator/worker/recipe.h"

namespace retort {

/// bos + text + eos, where the tokenizer has them.
std::vector<TokenId> document_tokens(const Tokenizer& tokenizer, const std::string& text);

/// All documents as one stream of tokens, and windows of it in an order that depends on (seed, index) alone,
/// so that an interrupted run goes on where it was. Thread: one.
class TokenStream {
 public:
  /// Where one document's eos is the next one's bos, the token stands once between them. A window has
  /// `window` + 1 tokens (its last is only predicted); the window shrinks when the text is shorter. kInvalid
  /// below two tokens.
  static Result<TokenStream> make(const std::vector<std::string>& documents, const Tokenizer& tokenizer);
  std::uint64_t tokens() const { return tokens_.size(); }
  /// Tokens that one window of `wanted` really has, without the last.
  std::uint32_t window_length(std::uint32_t wanted) const;
  /// Windows of that length in the text.
  std::uint64_t windows(std::uint32_t length) const { return (tokens_.size() - 1) / length; }
  /// Copies window number `index` of the endless sequence that `seed` shuffles: length + 1 ids. Returns which
  /// window of the text it is.
  std::uint64_t window(std::uint64_t seed, std::uint64_t index, std::uint32_t length, std::int64_t* out);

 private:
  std::vector<TokenId> tokens_;
  std::uint64_t seed_ = 0, epoch_ = UINT64_MAX;
  std::vector<std::uint32_t> order_;
};

}  // namespace retort
