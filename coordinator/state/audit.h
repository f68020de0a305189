#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/core/random.h"
#include "common/model/audit.h"
#include "common/store/store.h"

namespace retort {

/// The log of every change: entries whose hashes form a chain (common/model/audit.h). What is about to be
/// done is on disk before it is done, so that a crash in between leaves an entry "interrupted". Table
/// "audit": "e" and the sequence (8 bytes, big-endian), "p" and a ticket, and "anchor", the last entry that
/// was dropped when the log grew beyond its bound. Thread: reactor.
class Audit {
 public:
  struct Change {
    std::string actor, action, target, before;
  };
  struct Point {
    std::uint64_t sequence = 0;
    std::string hash = audit_origin();
  };

  /// Keeps at least `keep` entries.
  Audit(Store& store, const Clock& clock, RandomSource& random, std::uint64_t keep = 200000)
      : store_(store), clock_(clock), random_(random), keep_(keep) {}
  /// Loads where the chain ends, and closes what a crash left open. kCorrupt.
  Result<void> start();

  /// Says, durably, what is about to be done; the ticket for finish().
  Result<std::string> begin(const Change& change);
  /// Writes the entry; `with` becomes durable together with it.
  Result<void> finish(const std::string& ticket, const std::string& after, const std::string& result,
                      StoreBatch with = {});
  /// An entry for what is done already; if it is not `durable`, on disk with the store's next sync.
  Result<void> record(const Change& change, const std::string& after, const std::string& result,
                      bool durable = true);

  /// Entries after `sequence`, oldest first, at most `limit`.
  Result<std::vector<AuditEntry>> page(std::uint64_t sequence, std::size_t limit) const;
  const Point& head() const { return head_; }
  /// What the first entry that is still kept goes on from.
  const Point& anchor() const { return anchor_; }

 private:
  AuditEntry entry_of(const Change& change) const;
  Result<void> append(AuditEntry entry, StoreBatch batch, bool durable = true);

  Store& store_;
  const Clock& clock_;
  RandomSource& random_;
  const std::uint64_t keep_;
  Point head_, anchor_;
};

/// Walks a store's chain from anchor to head: kCorrupt names the first entry that does not fit. Returns the
/// head. For backups and `retort-coordinator check`. Thread: any.
Result<Audit::Point> verify_audit(const Store& store);

}  // namespace retort
