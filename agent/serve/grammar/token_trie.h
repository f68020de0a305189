#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/tokenizer/tokenizer.h"

namespace retort::grammar {

/// The bytes of a vocabulary's tokens as a tree, so that tokens that begin alike are looked at once. Special
/// tokens and those without bytes are not in it. Thread: any, once it is made.
class TokenTrie {
 public:
  explicit TokenTrie(const Tokenizer& tokenizer);

  struct Node {
    std::uint8_t byte = 0;
    std::uint32_t depth = 0;        ///< bytes from the root
    std::uint32_t after = 0;        ///< the node that follows this one's subtree
    std::uint32_t first_token = 0;  ///< tokens() from here to the next node's are the ones that end here
  };
  /// In preorder, without the root; one more for the end of the last.
  const std::vector<Node>& nodes() const { return nodes_; }
  const std::vector<TokenId>& tokens() const { return tokens_; }
  const std::vector<TokenId>& ends() const { return ends_; }  ///< the tokens that end a generation
  std::uint32_t vocabulary_size() const { return vocabulary_size_; }
  std::uint32_t deepest() const { return deepest_; }
  /// Each byte of printable ASCII is a token by itself: any such text can be written.
  bool writes_ascii() const { return writes_ascii_; }
  /// The same of every byte that UTF-8 needs.
  bool writes_utf8() const { return writes_utf8_; }

 private:
  std::vector<Node> nodes_;
  std::vector<TokenId> tokens_, ends_;
  std::uint32_t vocabulary_size_ = 0, deepest_ = 0;
  bool writes_ascii_ = true, writes_utf8_ = true;
};

}  // namespace retort::grammar
