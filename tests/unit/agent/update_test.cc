#include <gtest/gtest.h>

#include "agent/control/loopback.h"
#include "agent/update/plan.h"
#include "tests/support/support.h"

namespace retort {
namespace {

ArtifactManifest manifest_of(const std::vector<std::pair<std::string, std::uint64_t>>& pieces) {
  ArtifactManifest manifest;
  for (const auto& [hash, length] : pieces) {
    manifest.pieces.push_back({hash, hash, manifest.length, length});
    manifest.length += length;
  }
  return manifest;
}

TEST(Plan, CopiesWhatLiesHere) {
  const ArtifactManifest wanted = manifest_of({{"h", 10}, {"x", 100}, {"y", 200}, {"x", 100}, {"z", 7}});
  const LocalArtifact old{"/slots/a/model.gguf", manifest_of({{"g", 12}, {"x", 100}, {"z", 8}})};
  const auto copies = plan_copies(wanted, {old}, std::vector<bool>(5));
  ASSERT_EQ(copies.size(), 2u);  // z has another length
  EXPECT_EQ(copies[0].piece, 1u);
  EXPECT_EQ(copies[0].offset, 12u);
  EXPECT_EQ(copies[1].piece, 3u);
  EXPECT_EQ(plan_copies(wanted, {old}, {false, true, false, false, false}).size(), 1u);
  EXPECT_TRUE(plan_copies(wanted, {}, {}).empty());
}

// Everything is asked for exactly once, whatever is done already and however large a request may be.
TEST(Plan, EachMissingByteOnce) {
  const ArtifactManifest manifest =
      manifest_of({{"a", 5}, {"b", 1}, {"c", 0}, {"d", 300}, {"e", 70}, {"f", 1}});
  for (unsigned mask = 0; mask < 64; ++mask)
    for (const std::uint32_t limit : {1u, 7u, 64u, 1000u}) {
      std::vector<bool> done(6);
      for (unsigned i = 0; i < 6; ++i) done[i] = (mask >> i & 1) != 0;
      PullCursor cursor(manifest, done, 0);
      std::vector<int> asked(manifest.length);
      std::vector<int> completed(6);
      std::uint64_t missing = cursor.bytes_missing();
      while (const auto range = cursor.missing_from(cursor.next(), limit)) {
        ASSERT_LE(range->length, limit);
        ASSERT_EQ(range->offset, cursor.next());
        for (std::uint64_t i = 0; i < range->length; ++i) ++asked[range->offset + i];
        for (const std::uint32_t piece : cursor.received(range->length)) ++completed[piece];
        missing -= range->length;
        ASSERT_EQ(cursor.bytes_missing(), missing);
      }
      for (unsigned i = 0; i < 6; ++i) {
        if (manifest.pieces[i].length > 0) {
          EXPECT_EQ(completed[i], done[i] ? 0 : 1) << "piece " << i;
        }
        for (std::uint64_t k = 0; k < manifest.pieces[i].length; ++k)
          ASSERT_EQ(asked[manifest.pieces[i].offset + k], done[i] ? 0 : 1);
      }
      EXPECT_EQ(missing, 0u);
      EXPECT_TRUE(cursor.complete()) << "mask " << mask;
    }
}

TEST(Plan, ResumesInsideAPieceOnly) {
  const ArtifactManifest manifest = manifest_of({{"a", 100}, {"b", 100}, {"c", 100}});
  EXPECT_EQ(PullCursor(manifest, {true, false, false}, 160).next(), 160u);
  EXPECT_EQ(PullCursor(manifest, {true, false, false}, 100).next(), 100u);
  EXPECT_EQ(PullCursor(manifest, {true, false, false}, 0).next(), 100u) << "reset: from the piece's start";
  EXPECT_EQ(PullCursor(manifest, {true, false, false}, 250).next(), 100u) << "beyond the first missing piece";
  EXPECT_EQ(PullCursor(manifest, {true, true, true}, 7).next(), 300u);
  PullCursor cursor(manifest, {true, false, true}, 150);
  EXPECT_EQ(cursor.bytes_missing(), 50u);
  EXPECT_EQ(cursor.received(50), std::vector<std::uint32_t>{1});
  EXPECT_TRUE(cursor.complete());
  EXPECT_EQ(cursor.next(), 300u);
}

TEST(Plan, RetriesEnd) {
  for (const ErrorCode code :
       {ErrorCode::kUnavailable, ErrorCode::kIo, ErrorCode::kOutOfBudget, ErrorCode::kCorrupt,
        ErrorCode::kDenied, ErrorCode::kInternal, ErrorCode::kConflict}) {
    std::uint32_t attempts = 1, last = 0;
    for (; decide_retry(code, attempts).again; ++attempts) {
      EXPECT_GT(decide_retry(code, attempts).after_millis, last);
      last = decide_retry(code, attempts).after_millis;
      ASSERT_LT(attempts, 20u);
    }
    EXPECT_GT(attempts, 1u);
  }
  EXPECT_FALSE(decide_retry(ErrorCode::kNotFound, 1).again);
  EXPECT_FALSE(decide_retry(ErrorCode::kUnsupported, 1).again);
}

constexpr const char* kMetrics =
    "# TYPE retort_serve_token_seconds histogram\n"
    "retort_serve_token_seconds_bucket{le=\"0.001\"} 10\n"
    "retort_serve_token_seconds_bucket{le=\"0.01\"} 30\n"
    "retort_serve_token_seconds_bucket{le=\"+Inf\"} 31\n"
    "retort_serve_token_seconds_sum 0.25\nretort_serve_token_seconds_count 31\n"
    "retort_serve_token_seconds_other 5\n";

TEST(Metrics, HistogramAndQuantiles) {
  const auto histogram = parse_histogram(kMetrics, "retort_serve_token_seconds");
  ASSERT_TRUE(histogram.has_value());
  EXPECT_EQ(histogram->count, 31);
  EXPECT_EQ(histogram->sum, 0.25);
  ASSERT_EQ(histogram->buckets.size(), 3u);
  EXPECT_NEAR(*quantile_between({}, *histogram, 0.5), 0.001 + 0.009 * 5.5 / 20, 1e-9);
  EXPECT_EQ(*quantile_between({}, *histogram, 1.0), 0.01) << "above the last bound: that bound";
  EXPECT_FALSE(quantile_between(*histogram, *histogram, 0.5).has_value());
  EXPECT_FALSE(parse_histogram("", "retort_serve_token_seconds").has_value());
  EXPECT_FALSE(
      parse_histogram("retort_serve_token_seconds_count\n", "retort_serve_token_seconds").has_value());
}

}  // namespace
}  // namespace retort
