#pragma once

#include <cstdint>
#include <string>

#include "common/core/clock.h"

namespace retort {

/// One change, as the audit log keeps it. Each entry's hash covers the one before, so that none can be
/// changed, dropped or put between others unnoticed by whoever kept a later hash.
struct AuditEntry {
  std::uint64_t sequence = 0;  ///< from 1, without gaps
  UnixMillis time = 0;
  std::string actor;          ///< "token:<id> (<name>)", "device:<id>" or "coordinator"
  std::string action;         ///< an operation's id ("assignClass"), or what the coordinator did of itself
  std::string target;         ///< "/v1/classes/small"
  std::string before, after;  ///< SHA-256 of what the target's GET showed; "" where there was nothing
  std::string result;         ///< "ok", an error's code, or "interrupted" (ended unseen, by a crash)
  std::string previous;       ///< the hash of the entry before; of the first one: 64 zeros
  std::string hash;

  friend bool operator==(const AuditEntry&, const AuditEntry&) = default;
};

/// What `hash` has to be: SHA-256 over "retort-audit-1" and the members from `previous` to `result`, each as
/// "<bytes>:<text>,". Written down in docs/rest.md, so that others can check a chain too.
std::string audit_hash(const AuditEntry& entry);
/// The hash before the first entry.
std::string audit_origin();

}  // namespace retort
