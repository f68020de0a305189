#include <algorithm>
#include <limits>
#include <queue>

#include "common/tokenizer/tokenizer_impl.h"

namespace retort {

/// Byte-pair merging, [Sennrich 2016] §3.2, with a heap of candidate pairs instead of repeated scans: O(n log
/// n). `symbols`: one id per character (-1: not in the vocabulary), `starts`: where each begins in `text`.
void Tokenizer::Impl::merge(std::string_view text, std::vector<TokenId> symbols,
                            std::vector<std::uint32_t> starts, std::vector<TokenId>& out) const {
  const auto n = static_cast<std::uint32_t>(symbols.size());
  starts.push_back(static_cast<std::uint32_t>(text.size()));
  constexpr std::uint32_t kEnd = std::numeric_limits<std::uint32_t>::max();
  std::vector<std::uint32_t> next(n), previous(n);
  std::vector<bool> alive(n, true);
  for (std::uint32_t i = 0; i < n; ++i) {
    next[i] = i + 1 < n ? i + 1 : kEnd;
    previous[i] = i > 0 ? i - 1 : kEnd;
  }
  struct Candidate {
    std::uint32_t rank, left;
    TokenId left_id, right_id, merged;
    bool operator<(const Candidate& other) const {
      return std::tie(rank, left) > std::tie(other.rank, other.left);
    }
  };
  std::priority_queue<Candidate> heap;
  const auto offer = [&](std::uint32_t left) {
    if (left == kEnd || next[left] == kEnd) return;
    const TokenId a = symbols[left], b = symbols[next[left]];
    if (a < 0 || b < 0) return;
    if (piece_ranks.empty()) {
      if (const std::int32_t rank = merges.find(a, b); rank >= 0)
        heap.push({static_cast<std::uint32_t>(rank), left, a, b,
                   merges.all()[static_cast<std::size_t>(rank)].merged});
      return;
    }
    const std::uint32_t after = next[next[left]];
    const std::size_t end = after == kEnd ? text.size() : starts[after];
    if (end - starts[left] > kLongestPiece) return;
    const TokenId whole = tokens.find(text.substr(starts[left], end - starts[left]));
    if (whole < 0 || piece_ranks[static_cast<std::size_t>(whole)] == kNoRank) return;
    heap.push({piece_ranks[static_cast<std::size_t>(whole)], left, a, b, whole});
  };
  for (std::uint32_t i = 0; i + 1 < n; ++i) offer(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    const std::uint32_t left = best.left;
    if (!alive[left] || symbols[left] != best.left_id || next[left] == kEnd ||
        symbols[next[left]] != best.right_id)
      continue;
    const std::uint32_t right = next[left];
    symbols[left] = best.merged;
    alive[right] = false;
    next[left] = next[right];
    if (next[left] != kEnd) previous[next[left]] = left;
    offer(previous[left]);
    offer(left);
  }
  bool last_unknown = false;
  for (std::uint32_t i = 0; i != kEnd && n > 0; i = next[i]) {
    if (symbols[i] >= 0) {
      out.push_back(symbols[i]);
      last_unknown = false;
      continue;
    }
    const std::uint32_t end = next[i] == kEnd ? static_cast<std::uint32_t>(text.size()) : starts[next[i]];
    const std::string_view bytes = text.substr(starts[i], end - starts[i]);
    const bool fallback = std::all_of(
        bytes.begin(), bytes.end(), [&](char c) { return byte_tokens[static_cast<unsigned char>(c)] >= 0; });
    if (fallback) {
      for (const char c : bytes) out.push_back(byte_tokens[static_cast<unsigned char>(c)]);
      last_unknown = false;
    } else if (unknown >= 0 && !(fuse_unknown && last_unknown)) {
      out.push_back(unknown);
      last_unknown = true;
    }
  }
}

}  // namespace retort
