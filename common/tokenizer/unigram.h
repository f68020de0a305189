#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "common/tokenizer/vocabulary.h"

namespace retort {

/// The pieces of a unigram language model [Kudo 2018]: finds the segmentation of a text with the greatest sum
/// of log probabilities. Thread: any, once it is made.
class Unigram {
 public:
  struct Piece {
    std::int32_t id = 0;
    float score = 0;  ///< log probability
  };
  /// A part of a segmentation, as bytes of the text.
  struct Part {
    std::uint32_t begin = 0, end = 0;
    std::int32_t id = -1;  ///< -1: no piece covers it; neighbours of that kind are one part
  };

  Unigram() = default;
  /// `pieces` are those that a text may be cut into, their texts in `tokens`, which need not live on.
  /// `least_score`: of the whole vocabulary; an uncovered character costs 10 more than that (SentencePiece).
  Unigram(const Vocabulary& tokens, std::vector<Piece> pieces, float least_score);

  /// [Kudo 2018] §3.1 by Viterbi's algorithm, O(n times the longest piece), in double precision; of equal
  /// sums the one whose last piece is longest, as SentencePiece does.
  std::vector<Part> segment(std::string_view text) const;

 private:
  std::vector<Piece> pieces_;          ///< by their texts, in byte order
  std::vector<std::uint32_t> begins_;  ///< of each piece's text in text_; one more for the end
  std::string text_;
  float unknown_score_ = 0;
};

}  // namespace retort
