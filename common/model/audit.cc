#include "common/model/audit.h"

#include <fmt/format.h>

#include "common/core/sha256.h"

namespace retort {

std::string audit_hash(const AuditEntry& e) {
  std::string text;
  for (const std::string& member :
       {std::string("retort-audit-1"), e.previous, std::to_string(e.sequence), std::to_string(e.time),
        e.actor, e.action, e.target, e.before, e.after, e.result})
    text += fmt::format("{}:{},", member.size(), member);
  return sha256_hex(text);
}

std::string audit_origin() { return std::string(64, '0'); }

}  // namespace retort
