#pragma once

#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/model/device.h"
#include "common/store/store.h"

namespace retort {

/// Points as devices sent them: table "telemetry", key device \0 metric \0 time (8 bytes, big-endian), value
/// an F64. Thread: any.
class TelemetryStore {
 public:
  explicit TelemetryStore(Store& store) : store_(store) {}
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
  /// Drops points older than `before`, at most `limit` a call; returns how many.
  Result<std::size_t> sweep(UnixMillis before, std::size_t limit);

 private:
  Store& store_;
};

}  // namespace retort
