#include "coordinator/state/audit.h"

#include "common/core/log.h"
#include "common/wire/records.h"

namespace retort {
namespace {

constexpr std::string_view kTable = "audit";
constexpr std::uint64_t kDropAtOnce = 1000;

std::string key_of(std::uint64_t sequence) {
  std::string key = "e";
  for (int shift = 56; shift >= 0; shift -= 8) key += static_cast<char>(sequence >> shift);
  return key;
}

Result<Audit::Point> load_anchor(const Store& store) {
  const auto bytes = RETORT_TRY(store.get(kTable, "anchor"));
  if (!bytes) return Audit::Point();
  const AuditEntry entry = RETORT_TRY(wire::decode_record<AuditEntry>(*bytes));
  return Audit::Point{entry.sequence, entry.hash};
}

/// Visits entries in order; `visit` may fail.
Result<void> walk(const Store& store, std::uint64_t after,
                  const std::function<Result<bool>(AuditEntry)>& visit) {
  Result<void> bad;
  RETORT_TRY(
      store.scan(kTable, "e", after == 0 ? "" : key_of(after), [&](std::string_view, std::string_view value) {
        Result<AuditEntry> entry = wire::decode_record<AuditEntry>(value);
        const Result<bool> more = entry ? visit(std::move(*entry)) : Result<bool>(fail(entry.error()));
        if (!more) bad = fail(more.error());
        return more && *more;
      }));
  return bad;
}

}  // namespace

Result<void> Audit::start() {
  anchor_ = RETORT_TRY(load_anchor(store_));
  head_ = anchor_;
  // The last entry is found by halving: entries have no gaps.
  std::uint64_t low = anchor_.sequence, step = 1;
  while (RETORT_TRY(store_.get(kTable, key_of(low + step)))) low += step, step *= 2;
  for (; step > 0; step /= 2)
    if (RETORT_TRY(store_.get(kTable, key_of(low + step)))) low += step;
  if (low > anchor_.sequence) {
    const auto bytes = RETORT_TRY(store_.get(kTable, key_of(low)));
    const AuditEntry last = RETORT_TRY(wire::decode_record<AuditEntry>(*bytes));
    head_ = {last.sequence, last.hash};
  }
  std::vector<std::pair<std::string, AuditEntry>> open;
  Result<void> bad;
  RETORT_TRY(store_.scan(kTable, "p", "", [&](std::string_view key, std::string_view value) {
    Result<AuditEntry> entry = wire::decode_record<AuditEntry>(value);
    if (entry)
      open.emplace_back(key, std::move(*entry));
    else
      bad = fail(entry.error());
    return entry.has_value();
  }));
  RETORT_TRY(std::move(bad));
  for (auto& [key, entry] : open) {
    log_warn("audit: {} of {} by {} was interrupted", entry.action, entry.target, entry.actor);
    StoreBatch batch;
    batch.erase(kTable, key);
    entry.result = "interrupted";
    RETORT_TRY(append(std::move(entry), std::move(batch)));
  }
  return {};
}

AuditEntry Audit::entry_of(const Change& change) const {
  AuditEntry entry;
  entry.time = clock_.unix_millis();
  entry.actor = change.actor;
  entry.action = change.action;
  entry.target = change.target;
  entry.before = change.before;
  return entry;
}

Result<std::string> Audit::begin(const Change& change) {
  const std::string ticket = "p" + random_.hex(8);
  const AuditEntry entry = entry_of(change);
  StoreBatch batch;
  batch.put(kTable, ticket, wire::encode(entry));
  RETORT_TRY(store_.write(batch));
  return ticket;
}

Result<void> Audit::finish(const std::string& ticket, const std::string& after, const std::string& result,
                           StoreBatch with) {
  const auto bytes = RETORT_TRY(store_.get(kTable, ticket));
  if (!bytes) return fail(ErrorCode::kInternal, "audit", "there is no change {} under way", ticket);
  AuditEntry entry = RETORT_TRY(wire::decode_record<AuditEntry>(*bytes));
  entry.after = after;
  entry.result = result;
  with.erase(kTable, ticket);
  return append(std::move(entry), std::move(with));
}

Result<void> Audit::record(const Change& change, const std::string& after, const std::string& result,
                           bool durable) {
  AuditEntry entry = entry_of(change);
  entry.after = after;
  entry.result = result;
  return append(std::move(entry), {}, durable);
}

Result<void> Audit::append(AuditEntry entry, StoreBatch batch, bool durable) {
  entry.sequence = head_.sequence + 1;
  entry.previous = head_.hash;
  entry.hash = audit_hash(entry);
  batch.put(kTable, key_of(entry.sequence), wire::encode(entry));
  Point anchor = anchor_;
  if (entry.sequence - anchor_.sequence >= keep_ + kDropAtOnce) {
    RETORT_TRY(walk(store_, anchor_.sequence, [&](AuditEntry old) -> Result<bool> {
      if (entry.sequence - old.sequence < keep_) return false;
      batch.erase(kTable, key_of(old.sequence));
      anchor = {old.sequence, old.hash};
      return true;
    }));
    AuditEntry kept;
    kept.sequence = anchor.sequence;
    kept.hash = anchor.hash;
    batch.put(kTable, "anchor", wire::encode(kept));
  }
  RETORT_TRY(store_.write(batch, durable));
  head_ = {entry.sequence, entry.hash};
  anchor_ = anchor;
  return {};
}

Result<std::vector<AuditEntry>> Audit::page(std::uint64_t sequence, std::size_t limit) const {
  std::vector<AuditEntry> out;
  RETORT_TRY(walk(store_, sequence, [&](AuditEntry entry) -> Result<bool> {
    out.push_back(std::move(entry));
    return out.size() < limit;
  }));
  return out;
}

Result<Audit::Point> verify_audit(const Store& store) {
  Audit::Point at = RETORT_TRY(load_anchor(store));
  RETORT_TRY(walk(store, 0, [&](const AuditEntry& entry) -> Result<bool> {
    if (entry.sequence != at.sequence + 1)
      return fail(ErrorCode::kCorrupt, "audit", "entry {} follows entry {}: some are missing", entry.sequence,
                  at.sequence);
    if (entry.previous != at.hash || entry.hash != audit_hash(entry))
      return fail(ErrorCode::kCorrupt, "audit", "entry {} ({} of {}) was changed, or one before it",
                  entry.sequence, entry.action, entry.target);
    at = {entry.sequence, entry.hash};
    return true;
  }));
  return at;
}

}  // namespace retort
