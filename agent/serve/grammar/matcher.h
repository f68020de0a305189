#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "agent/serve/grammar/network.h"
#include "agent/serve/grammar/token_trie.h"

namespace retort::grammar {

/// A network made deterministic as far as texts have gone, and for each state the tokens that may come next:
/// both are found when they are first asked for, and kept up to a bound of memory. Thread: one.
class Masks {
 public:
  static constexpr std::size_t kMemory = 16u << 20;
  /// Places in the network that one text may have come to at once. Where alternatives would multiply beyond
  /// it, those found later are left out: what is written then is still valid.
  static constexpr std::size_t kWidest = 20'000;

  Masks(std::shared_ptr<const Network> network, std::shared_ptr<const TokenTrie> trie);

  using State = std::int32_t;
  static constexpr State kNone = -1;
  State start();
  /// Some state had more than kWidest.
  bool wide() const { return wide_; }
  State next(State state, std::uint8_t byte);
  /// A bit for each token of the vocabulary.
  std::span<const std::uint64_t> tokens(State state);
  bool may_end(State state) const { return states_[static_cast<std::size_t>(state)].may_end; }
  /// Nothing can follow.
  bool must_end(State state) const { return states_[static_cast<std::size_t>(state)].configurations.empty(); }
  /// Changes when states have been thrown away to keep to the bound: those that were given out are void.
  std::uint64_t epoch() const { return epoch_; }
  /// Throws all states away when they have grown beyond the bound. The caller's own are void then.
  void trim();
  const TokenTrie& trie() const { return *trie_; }

 private:
  struct Frame {
    NodeId back;          ///< where the caller goes on
    std::uint32_t above;  ///< its own frame; 0: the text's end
    std::uint32_t depth;
  };
  struct Configuration {
    NodeId node;
    std::uint32_t frame;
    auto operator<=>(const Configuration&) const = default;
  };
  struct Entry {
    std::vector<Configuration> configurations;  ///< those with bytes to read
    bool may_end = false;
    std::unordered_map<std::uint8_t, State> next;
    std::vector<std::uint64_t> tokens;  ///< empty: not asked for yet
  };
  void reset();
  std::uint32_t frame(NodeId back, std::uint32_t above, bool nests);
  State intern(std::vector<Configuration> from);

  std::shared_ptr<const Network> network_;
  std::shared_ptr<const TokenTrie> trie_;
  std::vector<Frame> frames_;
  std::unordered_map<std::string, std::uint32_t> frame_ids_;
  std::vector<Entry> states_;
  std::unordered_map<std::string, State> state_ids_;
  std::vector<State> path_;  ///< scratch of tokens()
  std::size_t memory_ = 0;
  std::uint64_t epoch_ = 0;
  bool wide_ = false;
};

/// One text as it is written, token by token. Thread: the one of its Masks.
class Matcher {
 public:
  explicit Matcher(std::shared_ptr<Masks> masks);
  /// What may come next, a bit for each token; those that end a generation when the text may end.
  std::span<const std::uint64_t> allowed();
  /// False: `bytes` do not fit, and nothing was read.
  bool read(std::string_view bytes);
  bool may_end();
  /// Nothing can follow.
  bool complete();

 private:
  void refresh();

  std::shared_ptr<Masks> masks_;
  Masks::State state_;
  std::uint64_t epoch_;
  std::string text_;  ///< so far, to find the state again
};

}  // namespace retort::grammar
