#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "common/core/file.h"
#include "common/core/result.h"
#include "common/tokenizer/tokenizer.h"
#include "coordinator/worker/recipe.h"

namespace retort {

/// bos + text + eos, where the tokenizer has them.
std::vector<TokenId> document_tokens(const Tokenizer& tokenizer, const std::string& text);

/// 0 … count − 1 in the order of one epoch: the same for the same numbers.
std::vector<std::uint32_t> shuffled(std::uint64_t count, std::uint64_t seed, std::uint64_t epoch);

/// Hands the tokens of each of a file's first `limit` documents (0: all), without bos and eos, to `visit`, in
/// order, until it fails. As many documents as there are `threads` are encoded at a time; what is held of the
/// text does not grow with it.
Result<void> visit_tokens(const std::filesystem::path& file, std::uint64_t limit, const Tokenizer& tokenizer,
                          int threads, const std::function<Result<void>(const std::vector<TokenId>&)>& visit);

/// kInvalid names the first token in which a student's tokenizer is not its teacher's.
Result<void> same_vocabulary(const Tokenizer& student, const Tokenizer& teacher, const std::string& where);

/// All documents as one stream of tokens, and windows of it in an order that depends on (seed, index) alone,
/// so that an interrupted run goes on where it was. Thread: one.
class TokenStream {
 public:
  /// Where one document's eos is the next one's bos, the token stands once between them. A window has
  /// `window` + 1 tokens (its last is only predicted); the window shrinks when the text is shorter. kInvalid
  /// below two tokens.
  static Result<TokenStream> make(const std::vector<std::string>& documents, const Tokenizer& tokenizer);
  /// The same of a file's first `limit` documents (0: all), for text of any size: its tokens are written to
  /// `scratch`, which is mapped and has no name any more when this returns, so that they take disk and, as
  /// far as there is any to spare, memory. kOutOfBudget where the disk is full.
  static Result<TokenStream> make(const std::filesystem::path& file, std::uint64_t limit,
                                  const Tokenizer& tokenizer, const std::filesystem::path& scratch,
                                  int threads = 1);
  std::uint64_t tokens() const { return tokens_.size(); }
  /// How often each of the vocabulary comes.
  std::vector<std::uint64_t> counts(std::size_t vocabulary) const;
  /// Tokens that one window of `wanted` really has, without the last.
  std::uint32_t window_length(std::uint32_t wanted) const;
  /// Windows of that length in the text.
  std::uint64_t windows(std::uint32_t length) const { return (tokens_.size() - 1) / length; }
  /// Copies window number `index` of the endless sequence that `seed` shuffles: length + 1 ids. Returns which
  /// window of the text it is.
  std::uint64_t window(std::uint64_t seed, std::uint64_t index, std::uint32_t length, std::int64_t* out);

 private:
  std::vector<TokenId> held_;
  MappedFile mapped_;
  std::span<const TokenId> tokens_;  ///< of one of these
  std::uint64_t seed_ = 0, epoch_ = UINT64_MAX;
  std::vector<std::uint32_t> order_;
};

}  // namespace retort
