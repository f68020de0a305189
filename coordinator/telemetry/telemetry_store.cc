#include "coordinator/telemetry/telemetry_store.h"

#include <bit>
#include <cstring>

namespace retort {
namespace {

constexpr std::string_view kTable = "telemetry";

std::string encode_key(const std::string& device, const TelemetryPoint& point) {
  std::string key = device + '\0' + point.metric + '\0';
  const auto time = static_cast<std::uint64_t>(point.time);
  for (int shift = 56; shift >= 0; shift -= 8) key += static_cast<char>(time >> shift);
  return key;
}

std::optional<TelemetryStore::Row> parse(std::string_view key, std::string_view value) {
  const std::size_t first = key.find('\0'),
                    second = first == std::string_view::npos ? first : key.find('\0', first + 1);
  if (second == std::string_view::npos || key.size() != second + 9 || value.size() != sizeof(double))
    return std::nullopt;
  TelemetryStore::Row row{std::string(key.substr(0, first)),
                          {0, std::string(key.substr(first + 1, second - first - 1)), 0}};
  std::uint64_t time = 0;
  for (std::size_t i = 0; i < 8; ++i) time = time << 8 | static_cast<unsigned char>(key[second + 1 + i]);
  row.point.time = static_cast<UnixMillis>(time);
  std::memcpy(&row.point.value, value.data(), sizeof(double));
  return row;
}

}  // namespace

std::string TelemetryStore::key_of(const Row& row) { return encode_key(row.device, row.point); }

void TelemetryStore::put(StoreBatch& batch, const std::string& device,
                         const std::vector<TelemetryPoint>& points) {
  for (const TelemetryPoint& point : points)
    if (point.metric.find('\0') == std::string::npos)
      batch.put(kTable, encode_key(device, point),
                std::string(reinterpret_cast<const char*>(&point.value), sizeof(double)));
}

Result<std::vector<TelemetryStore::Row>> TelemetryStore::query(const std::string& device,
                                                               const std::string& metric, UnixMillis since,
                                                               std::size_t limit,
                                                               const std::string& after) const {
  std::vector<Row> rows;
  std::string prefix;
  if (!device.empty()) prefix = device + '\0' + (metric.empty() ? "" : metric + '\0');
  // Of one metric of one device, the times before are passed over.
  const std::string start = !after.empty() || device.empty() || metric.empty() || since <= 0
                                ? after
                                : encode_key(device, {since - 1, metric, 0});
  RETORT_TRY(store_.scan(kTable, prefix, start, [&](std::string_view key, std::string_view value) {
    const auto row = parse(key, value);
    if (row && row->point.time >= since && (metric.empty() || row->point.metric == metric))
      rows.push_back(*row);
    return rows.size() < limit;
  }));
  return rows;
}

Result<std::size_t> TelemetryStore::sweep(UnixMillis before, std::size_t limit) {
  StoreBatch batch;
  RETORT_TRY(store_.scan(kTable, "", "", [&](std::string_view key, std::string_view value) {
    const auto row = parse(key, value);
    if (!row || row->point.time < before) batch.erase(kTable, std::string(key));
    return batch.changes().size() < limit;
  }));
  if (!batch.changes().empty()) RETORT_TRY(store_.write(batch, false));
  return batch.changes().size();
}

}  // namespace retort
