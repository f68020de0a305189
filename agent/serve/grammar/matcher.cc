#include "agent/serve/grammar/matcher.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

namespace retort::grammar {
namespace {

template <typename T>
std::string key_of(const T* values, std::size_t count) {
  return std::string(reinterpret_cast<const char*>(values), count * sizeof(T));
}

}  // namespace

Masks::Masks(std::shared_ptr<const Network> network, std::shared_ptr<const TokenTrie> trie)
    : network_(std::move(network)), trie_(std::move(trie)), path_(trie_->deepest() + 1) {
  reset();
}

void Masks::reset() {
  frames_.assign(1, {0, 0, 0});  // the text's end
  frame_ids_.clear();
  states_.clear();
  state_ids_.clear();
  memory_ = 0;
  ++epoch_;
}

void Masks::trim() {
  if (memory_ > kMemory) reset();
}

std::uint32_t Masks::frame(NodeId back, std::uint32_t above, bool nests) {
  const std::uint32_t parts[] = {back, above, nests};
  const auto [at, fresh] =
      frame_ids_.try_emplace(key_of(parts, 3), static_cast<std::uint32_t>(frames_.size()));
  if (fresh) {
    frames_.push_back({back, above, frames_[above].depth + nests});
    memory_ += 100;
  }
  return at->second;
}

/// The state of all configurations that are reached from `from` without a byte.
Masks::State Masks::intern(std::vector<Configuration> open) {
  Entry entry;
  std::unordered_set<std::uint64_t> seen;
  while (!open.empty()) {
    const Configuration at = open.back();
    open.pop_back();
    if (!seen.insert(std::uint64_t{at.node} << 32 | at.frame).second) continue;
    if (seen.size() > kWidest) {
      wide_ = true;
      break;
    }
    const Network::Node& node = (*network_)[at.node];
    const std::uint32_t depth = frames_[at.frame].depth;
    if (node.need > network_->max_depth() || depth + node.need > network_->max_depth()) continue;
    if (!node.bytes.empty()) entry.configurations.push_back(at);
    for (const NodeId to : node.skips) open.push_back({to, at.frame});
    for (const Network::Call& edge : node.calls) {
      const std::uint32_t need = (*network_)[edge.to].need;
      if (need > network_->max_depth() || depth + need > network_->max_depth()) continue;
      const Network::Rule& rule = network_->rule_of(edge.rule);
      open.push_back({rule.start, frame(edge.to, at.frame, rule.nests)});
    }
    if (node.ends) {
      if (at.frame == 0)
        entry.may_end = true;
      else
        open.push_back({frames_[at.frame].back, frames_[at.frame].above});
    }
  }
  if (entry.configurations.empty() && !entry.may_end) return kNone;
  std::sort(entry.configurations.begin(), entry.configurations.end());
  std::string key = key_of(entry.configurations.data(), entry.configurations.size());
  key += entry.may_end ? '1' : '0';
  const auto [at, fresh] = state_ids_.try_emplace(std::move(key), static_cast<State>(states_.size()));
  if (fresh) {
    memory_ += 200 + 3 * entry.configurations.size() * sizeof(Configuration);
    states_.push_back(std::move(entry));
  }
  return at->second;
}

Masks::State Masks::start() {
  return intern(
      {{network_->rule_of(network_->start()).start,
        frame(network_->rule_of(network_->start()).end, 0, network_->rule_of(network_->start()).nests)}});
}

Masks::State Masks::next(State state, std::uint8_t byte) {
  const auto i = static_cast<std::size_t>(state);
  if (const auto known = states_[i].next.find(byte); known != states_[i].next.end()) return known->second;
  std::vector<Configuration> to;
  for (const Configuration& at : states_[i].configurations)
    for (const Network::Bytes& edge : (*network_)[at.node].bytes)
      if (byte >= edge.low && byte <= edge.high) to.push_back({edge.to, at.frame});
  const State found = to.empty() ? kNone : intern(std::move(to));
  states_[i].next.emplace(byte, found);
  memory_ += 40;
  return found;
}

std::span<const std::uint64_t> Masks::tokens(State state) {
  const auto of = static_cast<std::size_t>(state);
  if (!states_[of].tokens.empty()) return states_[of].tokens;
  std::vector<std::uint64_t> bits((trie_->vocabulary_size() + 63) / 64);
  const auto set = [&](TokenId id) {
    bits[static_cast<std::size_t>(id) / 64] |= std::uint64_t{1} << (id % 64);
  };
  const std::vector<TokenTrie::Node>& nodes = trie_->nodes();
  path_[0] = state;
  for (std::uint32_t i = 0; i + 1 < nodes.size();) {
    const State to = next(path_[nodes[i].depth], nodes[i].byte);
    if (to == kNone) {
      i = nodes[i].after;
      continue;
    }
    path_[nodes[i].depth + 1] = to;
    for (std::uint32_t t = nodes[i].first_token; t < nodes[i + 1].first_token; ++t) set(trie_->tokens()[t]);
    ++i;
  }
  if (states_[of].may_end)
    for (const TokenId id : trie_->ends()) set(id);
  memory_ += bits.size() * sizeof(bits[0]);
  return states_[of].tokens = std::move(bits);
}

Matcher::Matcher(std::shared_ptr<Masks> masks)
    : masks_(std::move(masks)), state_(masks_->start()), epoch_(masks_->epoch()) {}

void Matcher::refresh() {
  masks_->trim();
  if (epoch_ == masks_->epoch()) return;
  epoch_ = masks_->epoch();
  state_ = masks_->start();
  for (const char c : text_) state_ = masks_->next(state_, static_cast<std::uint8_t>(c));
}

std::span<const std::uint64_t> Matcher::allowed() {
  refresh();
  return masks_->tokens(state_);
}

bool Matcher::read(std::string_view bytes) {
  refresh();
  Masks::State at = state_;
  for (const char c : bytes)
    if ((at = masks_->next(at, static_cast<std::uint8_t>(c))) == Masks::kNone) return false;
  state_ = at;
  text_ += bytes;
  return true;
}

bool Matcher::may_end() {
  refresh();
  return masks_->may_end(state_);
}

bool Matcher::complete() {
  refresh();
  return masks_->must_end(state_);
}

}  // namespace retort::grammar
