#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "common/core/result.h"

namespace retort::grammar {

using NodeId = std::uint32_t;
using RuleId = std::uint32_t;

/// A recursive transition network [Woods 1970] over bytes: rules are small automata that call one another, so
/// that it reads nested texts. Built once for a schema, then only read. Thread: any, once it is finished.
class Network {
 public:
  struct Bytes {
    std::uint8_t low, high;
    NodeId to;
  };
  struct Call {
    RuleId rule;
    NodeId to;  ///< where it goes on afterwards
  };
  struct Node {
    std::vector<Bytes> bytes;
    std::vector<Call> calls;
    std::vector<NodeId> skips;  ///< without a byte
    bool ends = false;          ///< of its rule
    std::uint32_t need = 0;     ///< the least nesting that the rest of its rule takes
  };
  struct Rule {
    NodeId start = 0, end = 0;
    bool nests = false;  ///< counts as a level: an object or array
  };

  NodeId node();
  RuleId rule(bool nests);
  void bytes(NodeId from, std::uint8_t low, std::uint8_t high, NodeId to);
  void skip(NodeId from, NodeId to);
  void call(NodeId from, RuleId rule, NodeId to);
  /// A chain that spells `text`; returns its last node.
  NodeId text(NodeId from, std::string_view text);
  /// Every text of `low`'s length between `low` and `high`, which are as long as each other and in order.
  /// Units after the first may be any from `least` to `most`.
  void between(NodeId from, NodeId to, std::string_view low, std::string_view high, std::uint8_t least,
               std::uint8_t most);

  /// After the last change. kInvalid: no text is of the language, or none that nests at most `max_depth`
  /// levels, or a rule begins with itself.
  Result<void> finish(RuleId start, std::uint32_t max_depth);

  const Node& operator[](NodeId id) const { return nodes_[id]; }
  const Rule& rule_of(RuleId id) const { return rules_[id]; }
  RuleId start() const { return start_; }
  std::uint32_t max_depth() const { return max_depth_; }
  std::size_t size() const { return nodes_.size(); }

 private:
  void find_needs();

  std::vector<Node> nodes_;
  std::vector<Rule> rules_;
  RuleId start_ = 0;
  std::uint32_t max_depth_ = 0;
};

}  // namespace retort::grammar
