#include "coordinator/telemetry/telemetry_store.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

namespace retort {
namespace {

constexpr std::array<std::string_view, 3> kTables{"telemetry", "telemetry_minutes", "telemetry_hours"};
constexpr std::size_t kTimeBytes = 8;

std::string series_of(const std::string& device, const std::string& metric) {
  return device + '\0' + metric + '\0';
}

std::string encode_key(std::string series, UnixMillis at) {
  const auto time = static_cast<std::uint64_t>(at);
  for (int shift = 56; shift >= 0; shift -= 8) series += static_cast<char>(time >> shift);
  return series;
}

struct Entry {
  std::string_view series, device, metric;
  UnixMillis time = 0;
  TelemetryStore::Sum sum;
};

template <typename T>
T take(const char*& from) {
  T out;
  std::memcpy(&out, from, sizeof(T));
  from += sizeof(T);
  return out;
}

std::optional<Entry> parse(std::string_view key, std::string_view value, bool sums) {
  const std::size_t first = key.find('\0'),
                    second = first == std::string_view::npos ? first : key.find('\0', first + 1);
  if (second == std::string_view::npos || key.size() != second + 1 + kTimeBytes ||
      value.size() != (sums ? 32u : sizeof(double)))
    return std::nullopt;
  Entry out{
      key.substr(0, second + 1), key.substr(0, first), key.substr(first + 1, second - first - 1), 0, {}};
  std::uint64_t time = 0;
  for (std::size_t i = 0; i < kTimeBytes; ++i)
    time = time << 8 | static_cast<unsigned char>(key[second + 1 + i]);
  out.time = static_cast<UnixMillis>(time);
  const char* from = value.data();
  if (sums) {
    out.sum.count = take<std::uint64_t>(from);
    out.sum.total = take<double>(from);
    out.sum.least = take<double>(from);
    out.sum.most = take<double>(from);
    if (out.sum.count == 0) return std::nullopt;
  } else {
    const double x = take<double>(from);
    out.sum = {1, x, x, x};
  }
  return out;
}

std::string encode(const TelemetryStore::Sum& sum) {
  std::string out(32, '\0');
  std::memcpy(&out[0], &sum.count, 8);
  std::memcpy(&out[8], &sum.total, 8);
  std::memcpy(&out[16], &sum.least, 8);
  std::memcpy(&out[24], &sum.most, 8);
  return out;
}

UnixMillis floor_to(UnixMillis time, UnixMillis width) { return time - ((time % width) + width) % width; }

}  // namespace

void TelemetryStore::Sum::add(const Sum& other) {
  if (other.count == 0) return;
  least = count == 0 ? other.least : std::min(least, other.least);
  most = count == 0 ? other.most : std::max(most, other.most);
  count += other.count;
  total += other.total;
}

std::vector<std::string> TelemetryStore::tables() { return {kTables.begin(), kTables.end()}; }

std::string TelemetryStore::key_of(const Row& row) {
  return encode_key(series_of(row.device, row.point.metric), row.point.time);
}

void TelemetryStore::put(StoreBatch& batch, const std::string& device,
                         const std::vector<TelemetryPoint>& points) {
  for (const TelemetryPoint& point : points)
    if (point.metric.find('\0') == std::string::npos)
      batch.put(kTables[0], encode_key(series_of(device, point.metric), point.time),
                std::string(reinterpret_cast<const char*>(&point.value), sizeof(double)));
}

Result<std::vector<TelemetryStore::Row>> TelemetryStore::query(const std::string& device,
                                                               const std::string& metric, UnixMillis since,
                                                               std::size_t limit,
                                                               const std::string& after) const {
  std::vector<Row> rows;
  std::string prefix;
  if (!device.empty()) prefix = metric.empty() ? device + '\0' : series_of(device, metric);
  // Of one metric of one device, the times before are passed over.
  const std::string start = !after.empty() || device.empty() || metric.empty() || since <= 0
                                ? after
                                : encode_key(prefix, since - 1);
  RETORT_TRY(store_.scan(kTables[0], prefix, start, [&](std::string_view key, std::string_view value) {
    const auto entry = parse(key, value, false);
    if (entry && entry->time >= since && (metric.empty() || entry->metric == metric))
      rows.push_back(
          {std::string(entry->device), {entry->time, std::string(entry->metric), entry->sum.total}});
    return rows.size() < limit;
  }));
  return rows;
}

Result<std::vector<TelemetryStore::Bucket>> TelemetryStore::buckets(UnixMillis width,
                                                                    const std::string& device,
                                                                    const std::string& metric,
                                                                    UnixMillis since, std::size_t limit,
                                                                    const std::string& after) const {
  since = floor_to(std::max<UnixMillis>(since, 0), width);
  std::string prefix;
  if (!device.empty()) prefix = metric.empty() ? device + '\0' : series_of(device, metric);
  std::string start = !after.empty() || device.empty() || metric.empty() || since <= 0
                          ? after
                          : encode_key(prefix, since - 1);
  // A bucket's own points begin at its key: those of the bucket `after` are passed over in the loop.
  std::map<std::string, Bucket> found;
  std::optional<std::string> end;  // the last bucket that every table has told wholly
  for (std::size_t table = 0; table < (width == kHour ? 3u : 2u); ++table) {
    std::size_t seen = 0;
    std::string last;
    bool cut = false;
    RETORT_TRY(store_.scan(kTables[table], prefix, start, [&](std::string_view key, std::string_view value) {
      const auto entry = parse(key, value, table != 0);
      if (!entry || entry->time < since || (!metric.empty() && entry->metric != metric)) return true;
      const UnixMillis begin = floor_to(entry->time, width);
      std::string of = encode_key(std::string(entry->series), begin);
      if (of <= after) return true;
      if (of != last) {
        if (seen++ == limit) {
          cut = true;
          return false;
        }
        last = of;
      }
      Bucket& bucket = found[of];
      if (bucket.key.empty())
        bucket = {std::move(of), std::string(entry->device), std::string(entry->metric), begin, {}};
      bucket.sum.add(entry->sum);
      return true;
    }));
    if (cut && (!end || last < *end)) end = last;
  }
  std::vector<Bucket> out;
  for (auto& [key, bucket] : found) {
    if (out.size() == limit || (end && key > *end)) break;
    out.push_back(std::move(bucket));
  }
  return out;
}

Result<bool> TelemetryStore::tidy(UnixMillis now, const Keep& keep, std::size_t limit) {
  const std::array<UnixMillis, 3> before{now - keep.points, now - keep.minutes, now - keep.hours};
  const std::array<UnixMillis, 2> width{kMinute, kHour};
  StoreBatch batch;
  std::map<std::pair<std::size_t, std::string>, Sum> sums;  // of which table, what is added
  std::size_t table = table_, looked = 0;
  std::string at = at_;
  while (table < kTables.size() && looked < limit) {
    std::string skip;  // nothing more of this series: the times are in order
    bool more = false;
    RETORT_TRY(store_.scan(kTables[table], "", at, [&](std::string_view key, std::string_view value) {
      ++looked;
      const auto entry = parse(key, value, table != 0);
      if (entry && entry->time >= before[table]) {
        skip = std::string(entry->series) + std::string(kTimeBytes, '\xff');
        more = true;
        return false;
      }
      if (entry && table + 1 < kTables.size())
        sums[{table + 1, encode_key(std::string(entry->series), floor_to(entry->time, width[table]))}].add(
            entry->sum);
      batch.erase(kTables[table], std::string(key));
      at = key;
      more = looked >= limit;
      return !more;
    }));
    if (!skip.empty()) at = std::move(skip);
    if (more) continue;
    ++table;
    at.clear();
    if (!batch.changes().empty()) break;  // the next table is to be seen with what goes there
  }
  for (auto& [where, sum] : sums) {
    const auto& [to, key] = where;
    if (const auto there = RETORT_TRY(store_.get(kTables[to], key)))
      if (const auto entry = parse(key, *there, true)) sum.add(entry->sum);
    batch.put(kTables[to], key, encode(sum));
  }
  // All of it or nothing, now or at some later write: a kill between loses no point and counts none twice.
  if (!batch.changes().empty()) RETORT_TRY(store_.write(batch, false));
  const bool done = table == kTables.size();
  table_ = done ? 0 : table;
  at_ = done ? "" : std::move(at);
  return done;
}

}  // namespace retort
