#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace retort {

/// The texts of a tokenizer's vocabulary in one piece of memory, found by id or by text: a device holds
/// 32,000 of them in a megabyte, and reads them in a few milliseconds. Thread: any, once it is filled.
class Vocabulary {
 public:
  /// Room for `texts` of `bytes` in all.
  void reserve(std::size_t texts, std::size_t bytes);
  /// The new text's id: their number so far. Of equal texts find() gives the first.
  std::int32_t add(std::string_view text);
  std::uint32_t size() const { return static_cast<std::uint32_t>(ends_.size()); }
  /// `id` is below size().
  std::string_view operator[](std::int32_t id) const {
    const auto i = static_cast<std::size_t>(id);
    const std::uint32_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(bytes_).substr(begin, ends_[i] - begin);
  }
  /// -1: it is not there.
  std::int32_t find(std::string_view text) const;

 private:
  std::string bytes_;
  std::vector<std::uint32_t> ends_;
  std::vector<std::int32_t> slots_;  ///< open addressing: id, or -1
};

/// Which neighbours merge: the pairs of a byte-pair encoding [Sennrich 2016]. Thread: any, once it is filled.
class Merges {
 public:
  struct Merge {
    std::int32_t left = 0, right = 0, merged = 0;
  };
  void reserve(std::size_t merges);
  /// Those that are added earlier are merged earlier. Of equal pairs the first counts.
  void add(const Merge& merge);
  /// Its place in all(), which is its rank; -1: they do not merge.
  std::int32_t find(std::int32_t left, std::int32_t right) const;
  const std::vector<Merge>& all() const { return merges_; }

 private:
  std::vector<Merge> merges_;
  std::vector<std::int32_t> slots_;
};

}  // namespace retort
