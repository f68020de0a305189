#include "common/tokenizer/vocabulary.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace retort {
namespace {

std::size_t hash_of(std::string_view text) { return std::hash<std::string_view>()(text); }

/// The last step of splitmix64: neighbouring ids fall far apart.
std::size_t hash_of(std::int32_t left, std::int32_t right) {
  std::uint64_t z =
      static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

/// The slot that holds an entry for which same(entry) is true, or the empty one where it belongs. At least
/// half of the slots, whose number is a power of two, are empty.
template <typename Same>
std::size_t slot_of(const std::vector<std::int32_t>& slots, std::size_t hash, Same same) {
  std::size_t at = hash & (slots.size() - 1);
  while (slots[at] >= 0 && !same(slots[at])) at = (at + 1) & (slots.size() - 1);
  return at;
}

/// Room for `count` entries: where it takes more slots, those that are there (`filled`) are put back.
template <typename Hash>
void make_room(std::vector<std::int32_t>& slots, std::size_t count, std::size_t filled, Hash hash) {
  if (2 * count <= slots.size()) return;
  slots.assign(std::bit_ceil(std::max<std::size_t>(64, 2 * count)), -1);
  for (std::size_t i = 0; i < filled; ++i)
    slots[slot_of(slots, hash(static_cast<std::int32_t>(i)), [](std::int32_t) { return false; })] =
        static_cast<std::int32_t>(i);
}

}  // namespace

void Vocabulary::reserve(std::size_t texts, std::size_t bytes) {
  bytes_.reserve(bytes);
  ends_.reserve(texts);
  make_room(slots_, texts, ends_.size(), [this](std::int32_t id) { return hash_of((*this)[id]); });
}

std::int32_t Vocabulary::add(std::string_view text) {
  make_room(slots_, ends_.size() + 1, ends_.size(), [this](std::int32_t id) { return hash_of((*this)[id]); });
  const auto id = static_cast<std::int32_t>(ends_.size());
  bytes_ += text;
  ends_.push_back(static_cast<std::uint32_t>(bytes_.size()));
  std::int32_t& slot =
      slots_[slot_of(slots_, hash_of(text), [&](std::int32_t other) { return (*this)[other] == text; })];
  if (slot < 0) slot = id;
  return id;
}

std::int32_t Vocabulary::find(std::string_view text) const {
  if (slots_.empty()) return -1;
  return slots_[slot_of(slots_, hash_of(text), [&](std::int32_t id) { return (*this)[id] == text; })];
}

void Merges::reserve(std::size_t merges) {
  merges_.reserve(merges);
  make_room(slots_, merges, merges_.size(), [this](std::int32_t i) {
    const Merge& m = merges_[static_cast<std::size_t>(i)];
    return hash_of(m.left, m.right);
  });
}

void Merges::add(const Merge& merge) {
  if (2 * (merges_.size() + 1) > slots_.size()) reserve(std::max<std::size_t>(32, 2 * merges_.size()));
  std::int32_t& slot = slots_[slot_of(slots_, hash_of(merge.left, merge.right), [&](std::int32_t i) {
    const Merge& m = merges_[static_cast<std::size_t>(i)];
    return m.left == merge.left && m.right == merge.right;
  })];
  if (slot >= 0) return;
  slot = static_cast<std::int32_t>(merges_.size());
  merges_.push_back(merge);
}

std::int32_t Merges::find(std::int32_t left, std::int32_t right) const {
  if (slots_.empty()) return -1;
  return slots_[slot_of(slots_, hash_of(left, right), [&](std::int32_t i) {
    const Merge& m = merges_[static_cast<std::size_t>(i)];
    return m.left == left && m.right == right;
  })];
}

}  // namespace retort
