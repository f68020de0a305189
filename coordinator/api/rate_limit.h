#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <unordered_map>

namespace retort {

/// Token buckets by key: `per_second` on average, `burst` at once. Thread: one.
class RateLimit {
 public:
  using Time = std::chrono::steady_clock::time_point;
  /// per_second 0: no limit.
  RateLimit(double per_second, double burst) : per_second_(per_second), burst_(burst) {}
  /// Zero where it may go on (and is counted), else how long to wait.
  std::chrono::milliseconds take(const std::string& key, Time now);
  std::size_t keys() const { return buckets_.size(); }

 private:
  struct Bucket {
    double left = 0;
    Time at;
  };
  void forget_full(Time now);

  double per_second_, burst_;
  std::unordered_map<std::string, Bucket> buckets_;
};

}  // namespace retort
