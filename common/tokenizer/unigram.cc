#include "common/tokenizer/unigram.h"

#include <algorithm>
#include <limits>

#include "common/tokenizer/unicode_text.h"

namespace retort {

Unigram::Unigram(const Vocabulary& tokens, std::vector<Piece> pieces, float least_score)
    : pieces_(std::move(pieces)), unknown_score_(least_score - 10) {
  std::erase_if(pieces_, [&](const Piece& piece) { return tokens[piece.id].empty(); });
  std::stable_sort(pieces_.begin(), pieces_.end(),
                   [&](const Piece& a, const Piece& b) { return tokens[a.id] < tokens[b.id]; });
  for (const Piece& piece : pieces_) {
    begins_.push_back(static_cast<std::uint32_t>(text_.size()));
    text_ += tokens[piece.id];
  }
  begins_.push_back(static_cast<std::uint32_t>(text_.size()));
}

std::vector<Unigram::Part> Unigram::segment(std::string_view text) const {
  struct Best {
    double score = -std::numeric_limits<double>::infinity();
    std::uint32_t from = 0;
    std::int32_t id = -1;
  };
  std::vector<Best> best(text.size() + 1);
  best[0].score = 0;
  const auto offer = [&](std::size_t from, std::size_t to, std::int32_t id, double score) {
    if (score > best[to].score) best[to] = {score, static_cast<std::uint32_t>(from), id};
  };
  const auto piece_length = [&](std::size_t i) { return begins_[i + 1] - begins_[i]; };
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t character = code_point(text, at).second;
    bool covered = false;
    // The pieces that begin with the text's next bytes are neighbours in the order: narrow them byte by byte.
    std::size_t low = 0, high = pieces_.size();
    for (std::size_t length = 1; at + length <= text.size() && low < high; ++length) {
      const auto byte_of = [&](std::size_t i) {
        return piece_length(i) < length
                   ? -1
                   : static_cast<int>(static_cast<unsigned char>(text_[begins_[i] + length - 1]));
      };
      const auto bound = [&](std::size_t from, std::size_t to, int byte) {
        while (from < to) {
          const std::size_t middle = from + (to - from) / 2;
          (byte_of(middle) < byte ? from : to) = byte_of(middle) < byte ? middle + 1 : middle;
        }
        return from;
      };
      const int byte = static_cast<unsigned char>(text[at + length - 1]);
      low = bound(low, high, byte);
      high = bound(low, high, byte + 1);
      if (low == high || piece_length(low) != length) continue;
      offer(at, at + length, pieces_[low].id, best[at].score + pieces_[low].score);
      covered = covered || length == character;
    }
    if (!covered) offer(at, at + character, -1, best[at].score + unknown_score_);
    at += character;
  }
  std::vector<Part> out;
  for (std::size_t end = text.size(); end > 0; end = best[end].from) {
    const Part part{best[end].from, static_cast<std::uint32_t>(end), best[end].id};
    if (part.id < 0 && !out.empty() && out.back().id < 0)
      out.back().begin = part.begin;
    else
      out.push_back(part);
  }
  std::reverse(out.begin(), out.end());
  return out;
}

}  // namespace retort
