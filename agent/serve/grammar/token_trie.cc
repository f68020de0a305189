#include "agent/serve/grammar/token_trie.h"

#include <algorithm>
#include <array>

namespace retort::grammar {

TokenTrie::TokenTrie(const Tokenizer& tokenizer) : vocabulary_size_(tokenizer.vocabulary_size()) {
  std::vector<std::pair<std::string, TokenId>> all;
  std::array<bool, 256> alone{};
  for (TokenId id = 0; id < static_cast<TokenId>(vocabulary_size_); ++id) {
    if (tokenizer.ends_generation(id)) {
      ends_.push_back(id);
      continue;
    }
    if (tokenizer.is_special(id)) continue;
    std::string piece = tokenizer.piece(id);
    if (piece.empty()) continue;
    if (piece.size() == 1) alone[static_cast<unsigned char>(piece[0])] = true;
    all.emplace_back(std::move(piece), id);
  }
  for (int byte = 0x20; byte < 0x7f; ++byte) writes_ascii_ &= alone[static_cast<std::size_t>(byte)];
  writes_utf8_ = writes_ascii_;
  for (int byte = 0x80; byte < 0xf5; ++byte)
    if (byte != 0xc0 && byte != 0xc1) writes_utf8_ &= alone[static_cast<std::size_t>(byte)];
  std::sort(all.begin(), all.end());
  tokens_.reserve(all.size());
  std::vector<std::uint32_t> path;  // the nodes that the last text goes through
  const auto close = [&](std::size_t depth) {
    for (; path.size() > depth; path.pop_back())
      nodes_[path.back()].after = static_cast<std::uint32_t>(nodes_.size());
  };
  const std::string none;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::string &text = all[i].first, &before = i > 0 ? all[i - 1].first : none;
    const auto shared = static_cast<std::size_t>(
        std::mismatch(text.begin(), text.end(), before.begin(), before.end()).first - text.begin());
    close(shared);
    for (std::size_t depth = shared; depth < text.size(); ++depth) {
      path.push_back(static_cast<std::uint32_t>(nodes_.size()));
      nodes_.push_back({static_cast<std::uint8_t>(text[depth]), static_cast<std::uint32_t>(depth), 0,
                        static_cast<std::uint32_t>(tokens_.size())});
    }
    deepest_ = std::max(deepest_, static_cast<std::uint32_t>(text.size()));
    tokens_.push_back(all[i].second);
  }
  close(0);
  nodes_.push_back({0, 0, 0, static_cast<std::uint32_t>(tokens_.size())});
}

}  // namespace retort::grammar
