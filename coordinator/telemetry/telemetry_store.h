#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/model/device.h"
#include "common/store/store.h"

namespace retort {

/// What devices measured. Points as they sent them: table "telemetry", key device \0 metric \0 time (8 bytes,
/// big-endian), value an F64. Of older ones sums remain, of a minute each in "telemetry_minutes", of an hour
/// in "telemetry_hours", under the same keys. tidy() moves them on; a point is in one table at a time.
/// Thread: one (query: any).
class TelemetryStore {
 public:
  explicit TelemetryStore(Store& store) : store_(store) {}
  static std::vector<std::string> tables();
  /// Adds to a batch, so that points and what acknowledges them become durable together.
  static void put(StoreBatch& batch, const std::string& device, const std::vector<TelemetryPoint>& points);
  struct Row {
    std::string device;
    TelemetryPoint point;
  };
  /// Empty device or metric: all. At most `limit` rows, from the one whose key follows `after` (empty: the
  /// first).
  Result<std::vector<Row>> query(const std::string& device, const std::string& metric, UnixMillis since,
                                 std::size_t limit, const std::string& after = "") const;
  static std::string key_of(const Row& row);

  /// The points of a minute or an hour, of all three tables together.
  struct Sum {
    std::uint64_t count = 0;
    double total = 0, least = 0, most = 0;
    void add(const Sum& other);
    double mean() const { return total / static_cast<double>(count); }
  };
  struct Bucket {
    std::string key;  ///< for `after`
    std::string device, metric;
    UnixMillis start = 0;
    Sum sum;
  };
  static constexpr UnixMillis kMinute = 60'000, kHour = 3'600'000;
  /// As query(), in buckets of `width` milliseconds, kMinute or kHour, that begin at or after `since` rounded
  /// down. Minutes older than Keep::minutes are there as hours alone.
  Result<std::vector<Bucket>> buckets(UnixMillis width, const std::string& device, const std::string& metric,
                                      UnixMillis since, std::size_t limit,
                                      const std::string& after = "") const;

  /// How long each table keeps what it has.
  struct Keep {
    UnixMillis points = 2 * 24 * kHour, minutes = 14 * 24 * kHour, hours = 400 * 24 * kHour;
  };
  /// Sums up points and minutes that are past their time, and drops hours; looks at some `limit` keys a call
  /// and goes on from there at the next. True: it came to the end of all tables.
  Result<bool> tidy(UnixMillis now, const Keep& keep, std::size_t limit);

 private:
  Store& store_;
  std::size_t table_ = 0;  ///< where tidy() is
  std::string at_;
};

}  // namespace retort
