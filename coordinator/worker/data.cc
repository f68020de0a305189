#include "coordinator/worker/data.h"

#include <algorithm>
#include <numeric>

#include "common/core/random.h"

namespace retort {

std::vector<TokenId> document_tokens(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<TokenId> ids = tokenizer.encode(text, false);
  if (tokenizer.bos() >= 0) ids.insert(ids.begin(), tokenizer.bos());
  if (tokenizer.eos() >= 0) ids.push_back(tokenizer.eos());
  return ids;
}

Result<TokenStream> TokenStream::make(const std::vector<std::string>& documents, const Tokenizer& tokenizer) {
  TokenStream stream;
  for (const std::string& text : documents) {
    const std::vector<TokenId> ids = document_tokens(tokenizer, text);
    const bool shared = !stream.tokens_.empty() && !ids.empty() && tokenizer.bos() == tokenizer.eos() &&
                        ids.front() == tokenizer.bos();
    stream.tokens_.insert(stream.tokens_.end(), ids.begin() + (shared ? 1 : 0), ids.end());
  }
  if (stream.tokens_.size() < 3)
    return fail(ErrorCode::kInvalid, "training data", "holds only {} tokens, too few to learn from",
                stream.tokens_.size());
  return stream;
}

std::uint32_t TokenStream::window_length(std::uint32_t wanted) const {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(wanted, tokens_.size() - 1));
}

std::uint64_t TokenStream::window(std::uint64_t seed, std::uint64_t index, std::uint32_t length,
                                  std::int64_t* out) {
  const std::uint64_t windows = this->windows(length);
  const std::uint64_t epoch = index / windows;
  if (epoch != epoch_ || seed != seed_ || order_.size() != windows) {
    order_.resize(windows);
    std::iota(order_.begin(), order_.end(), 0u);
    SeededRandom random(seed * 0x9E3779B97F4A7C15ull + epoch);
    for (std::uint64_t i = windows - 1; i > 0; --i) std::swap(order_[i], order_[random.next_u64() % (i + 1)]);
    epoch_ = epoch;
    seed_ = seed;
  }
  const std::uint64_t at = order_[index % windows];
  const auto first = tokens_.begin() + static_cast<std::ptrdiff_t>(at * length);
  std::copy(first, first + length + 1, out);
  return at;
}

}  // namespace retort
