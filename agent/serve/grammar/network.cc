#include "agent/serve/grammar/network.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <queue>
#include <string>
#include <utility>

namespace retort::grammar {
namespace {

constexpr std::uint32_t kNever = std::numeric_limits<std::uint32_t>::max();

}  // namespace

NodeId Network::node() {
  nodes_.emplace_back();
  return static_cast<NodeId>(nodes_.size() - 1);
}

RuleId Network::rule(bool nests) {
  const NodeId start = node(), end = node();
  nodes_[end].ends = true;
  rules_.push_back({start, end, nests});
  return static_cast<RuleId>(rules_.size() - 1);
}

void Network::bytes(NodeId from, std::uint8_t low, std::uint8_t high, NodeId to) {
  nodes_[from].bytes.push_back({low, high, to});
}
void Network::skip(NodeId from, NodeId to) { nodes_[from].skips.push_back(to); }
void Network::call(NodeId from, RuleId rule, NodeId to) { nodes_[from].calls.push_back({rule, to}); }

NodeId Network::text(NodeId from, std::string_view text) {
  for (const char c : text) {
    const NodeId next = node();
    bytes(from, static_cast<std::uint8_t>(c), static_cast<std::uint8_t>(c), next);
    from = next;
  }
  return from;
}

void Network::between(NodeId from, NodeId to, std::string_view low, std::string_view high, std::uint8_t least,
                      std::uint8_t most) {
  const auto a = static_cast<std::uint8_t>(low[0]), b = static_cast<std::uint8_t>(high[0]);
  const std::string_view low_rest = low.substr(1), high_rest = high.substr(1);
  const std::string all_least(low_rest.size(), static_cast<char>(least)),
      all_most(low_rest.size(), static_cast<char>(most));
  const auto branch = [&](int first, int last, std::string_view rest_low, std::string_view rest_high) {
    if (first > last) return;
    const NodeId next = rest_low.empty() ? to : node();
    bytes(from, static_cast<std::uint8_t>(first), static_cast<std::uint8_t>(last), next);
    if (!rest_low.empty()) between(next, to, rest_low, rest_high, least, most);
  };
  if (a == b) return branch(a, a, low_rest, high_rest);
  const bool low_all = low_rest == all_least, high_all = high_rest == all_most;
  if (!low_all) branch(a, a, low_rest, all_most);
  branch(low_all ? a : a + 1, high_all ? b : b - 1, all_least, all_most);
  if (!high_all) branch(b, b, all_least, high_rest);
}

/// Each node's least nesting, the least first [Knuth 1977, A generalization of Dijkstra's algorithm]: a
/// schema of many members is a long chain, and passes over all nodes would take one for each member.
void Network::find_needs() {
  struct Use {
    NodeId by;
    const Call* call;  ///< null: the node is read on to, or skipped to
  };
  std::vector<std::size_t> begin(nodes_.size() + 1);  // of the uses of each node, in `uses`
  const auto each_use = [&](auto&& take) {
    for (NodeId id = 0; id < nodes_.size(); ++id) {
      for (const Bytes& edge : nodes_[id].bytes) take(edge.to, Use{id, nullptr});
      for (const NodeId to : nodes_[id].skips) take(to, Use{id, nullptr});
      for (const Call& edge : nodes_[id].calls) {
        take(edge.to, Use{id, &edge});
        take(rules_[edge.rule].start, Use{id, &edge});
      }
    }
  };
  each_use([&](NodeId node, const Use&) { ++begin[node]; });
  std::exclusive_scan(begin.begin(), begin.end(), begin.begin(), std::size_t{0});
  std::vector<Use> uses(begin.back());
  std::vector<std::size_t> at(begin.begin(), begin.end() - 1);
  each_use([&](NodeId node, const Use& use) { uses[at[node]++] = use; });

  using Open = std::pair<std::uint32_t, NodeId>;
  std::priority_queue<Open, std::vector<Open>, std::greater<>> open;
  const auto lower = [&](NodeId id, std::uint32_t need) {
    if (need >= nodes_[id].need) return;
    nodes_[id].need = need;
    open.emplace(need, id);
  };
  for (Node& node : nodes_) node.need = kNever;
  for (const Rule& rule : rules_) lower(rule.end, 0);
  while (!open.empty()) {
    const auto [need, id] = open.top();
    open.pop();
    if (need > nodes_[id].need) continue;
    for (std::size_t i = begin[id]; i < begin[id + 1]; ++i) {
      const auto& [by, call] = uses[i];
      if (call == nullptr) {
        lower(by, need);
        continue;
      }
      const Rule& rule = rules_[call->rule];
      const std::uint32_t inside = nodes_[rule.start].need, after = nodes_[call->to].need;
      if (inside != kNever && after != kNever) lower(by, std::max(inside + rule.nests, after));
    }
  }
}

Result<void> Network::finish(RuleId start, std::uint32_t max_depth) {
  start_ = start;
  max_depth_ = max_depth;
  find_needs();
  const std::uint32_t need = nodes_[rules_[start].start].need;
  if (need == kNever) return fail(ErrorCode::kInvalid, "", "no text fits the schema");
  if (need + rules_[start].nests > max_depth)
    return fail(ErrorCode::kInvalid, "", "every text that fits nests deeper than {} levels", max_depth);
  // A rule that calls itself before it has read a byte would never be done. (No rule is empty.)
  std::vector<std::vector<RuleId>> begins(rules_.size());  // the rules that a rule may begin with
  std::vector<RuleId> seen(nodes_.size(), std::numeric_limits<RuleId>::max());
  for (RuleId id = 0; id < rules_.size(); ++id)
    for (std::vector<NodeId> open{rules_[id].start}; !open.empty();) {
      const NodeId at = open.back();
      open.pop_back();
      if (std::exchange(seen[at], id) == id) continue;
      open.insert(open.end(), nodes_[at].skips.begin(), nodes_[at].skips.end());
      for (const Call& edge : nodes_[at].calls) begins[id].push_back(edge.rule);
    }
  enum class Mark : std::uint8_t { kNew, kOpen, kDone };
  std::vector<Mark> marks(rules_.size(), Mark::kNew);
  for (RuleId root = 0; root < rules_.size(); ++root) {
    std::vector<RuleId> path{root};
    while (!path.empty()) {
      const RuleId at = path.back();
      if (marks[at] == Mark::kDone || begins[at].empty()) {
        marks[at] = Mark::kDone;
        path.pop_back();
        continue;
      }
      marks[at] = Mark::kOpen;
      const RuleId next = begins[at].back();
      begins[at].pop_back();
      if (marks[next] == Mark::kOpen)
        return fail(ErrorCode::kInvalid, "", "a part of the schema begins with itself");
      if (marks[next] == Mark::kNew) path.push_back(next);
    }
  }
  return {};
}

}  // namespace retort::grammar
