#include "agent/update/plan.h"

#include <algorithm>
#include <map>

namespace retort {

std::vector<PieceCopy> plan_copies(const ArtifactManifest& wanted, const std::vector<LocalArtifact>& local,
                                   const std::vector<bool>& done) {
  struct Place {
    const std::filesystem::path* file;
    std::uint64_t offset, length;
  };
  std::map<std::string_view, Place> places;
  for (const LocalArtifact& artifact : local)
    for (const ArtifactPiece& piece : artifact.manifest.pieces)
      places.emplace(piece.sha256, Place{&artifact.file, piece.offset, piece.length});
  std::vector<PieceCopy> copies;
  for (std::uint32_t i = 0; i < wanted.pieces.size(); ++i) {
    if (i < done.size() && done[i]) continue;
    const auto found = places.find(wanted.pieces[i].sha256);
    if (found != places.end() && found->second.length == wanted.pieces[i].length)
      copies.push_back({i, *found->second.file, found->second.offset});
  }
  return copies;
}

PullCursor::PullCursor(const ArtifactManifest& manifest, std::vector<bool> done, std::uint64_t cursor)
    : pieces_(manifest.pieces), done_(std::move(done)) {
  done_.resize(pieces_.size());
  for (std::size_t i = 0; i < pieces_.size(); ++i)
    if (pieces_[i].length == 0) done_[i] = true;  // nothing to pull; the whole file's hash covers it
  skip_done();
  // A cursor inside the first missing piece is where an earlier run stopped; any other is out of date.
  for (std::size_t i = 0; i < pieces_.size(); ++i)
    if (!done_[i]) {
      if (cursor > pieces_[i].offset && cursor < pieces_[i].offset + pieces_[i].length) cursor_ = cursor;
      break;
    }
}

void PullCursor::skip_done() {
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    const std::uint64_t end = pieces_[i].offset + pieces_[i].length;
    if (end <= cursor_) continue;
    if (!done_[i]) return;
    cursor_ = end;
  }
}

bool PullCursor::complete() const {
  return std::all_of(done_.begin(), done_.end(), [](bool d) { return d; });
}

std::optional<PullCursor::Range> PullCursor::missing_from(std::uint64_t offset, std::uint32_t limit) const {
  offset = std::max(offset, cursor_);
  std::optional<Range> range;
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    const std::uint64_t begin = std::max(pieces_[i].offset, offset),
                        end = pieces_[i].offset + pieces_[i].length;
    if (begin >= end) continue;
    if (done_[i]) {
      if (range) break;
      continue;
    }
    if (!range) range = Range{begin, 0};
    const std::uint64_t length = std::min<std::uint64_t>(end - range->offset, limit);
    range->length = static_cast<std::uint32_t>(length);
    if (length == limit) break;
  }
  return range;
}

std::vector<std::uint32_t> PullCursor::received(std::uint64_t length) {
  std::vector<std::uint32_t> completed;
  const std::uint64_t end = cursor_ + length;
  for (std::uint32_t i = 0; i < pieces_.size(); ++i) {
    const std::uint64_t piece_end = pieces_[i].offset + pieces_[i].length;
    if (!done_[i] && piece_end > cursor_ && piece_end <= end) {
      done_[i] = true;
      completed.push_back(i);
    }
  }
  cursor_ = end;
  skip_done();
  return completed;
}

std::uint64_t PullCursor::bytes_missing() const {
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    if (done_[i]) continue;
    const std::uint64_t begin = std::max(pieces_[i].offset, cursor_),
                        end = pieces_[i].offset + pieces_[i].length;
    if (begin < end) bytes += end - begin;
  }
  return bytes;
}

RetryDecision decide_retry(ErrorCode code, std::uint32_t attempts) {
  switch (code) {
    case ErrorCode::kUnavailable:
    case ErrorCode::kIo:
    case ErrorCode::kOutOfBudget:
    case ErrorCode::kConflict:
      if (attempts >= 5) return {};
      return {true, 1000u << std::min(attempts, 6u)};
    case ErrorCode::kCorrupt:
    case ErrorCode::kDenied:
    case ErrorCode::kInternal:
      if (attempts >= 3) return {};
      return {true, 500u << std::min(attempts, 6u)};
    default:
      return {};
  }
}

}  // namespace retort
