#include "coordinator/api/rate_limit.h"

#include <algorithm>
#include <cmath>

namespace retort {

constexpr std::size_t kMaxKeys = 10000;

std::chrono::milliseconds RateLimit::take(const std::string& key, Time now) {
  if (per_second_ <= 0) return std::chrono::milliseconds(0);
  auto found = buckets_.find(key);
  if (found == buckets_.end()) {
    if (buckets_.size() >= kMaxKeys) forget_full(now);
    found = buckets_.emplace(key, Bucket{burst_, now}).first;
  }
  Bucket& bucket = found->second;
  const double passed = std::chrono::duration<double>(now - bucket.at).count();
  bucket.left = std::min(burst_, bucket.left + std::max(passed, 0.0) * per_second_);
  bucket.at = now;
  if (bucket.left >= 1) {
    bucket.left -= 1;
    return std::chrono::milliseconds(0);
  }
  return std::chrono::milliseconds(static_cast<long>(std::ceil((1 - bucket.left) / per_second_ * 1000)));
}

/// Drops buckets that are full again; all of them when none is (then nobody is worse off than at a start).
void RateLimit::forget_full(Time now) {
  std::erase_if(buckets_, [&](const auto& entry) {
    const double passed = std::chrono::duration<double>(now - entry.second.at).count();
    return entry.second.left + passed * per_second_ >= burst_;
  });
  if (buckets_.size() >= kMaxKeys) buckets_.clear();
}

}  // namespace retort
