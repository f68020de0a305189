#include "common/core/utf8.h"
#include "coordinator/api/routes.h"

namespace retort {
namespace {

json::object entry_json(const AuditEntry& e) {
  return {{"sequence", e.sequence},         {"time", e.time},     {"actor", e.actor}, {"action", e.action},
          {"target", valid_utf8(e.target)}, {"before", e.before}, {"after", e.after}, {"result", e.result},
          {"previous", e.previous},         {"hash", e.hash}};
}

json::object point_json(const Audit::Point& point) {
  return {{"sequence", point.sequence}, {"hash", point.hash}};
}

json::object point_schema(std::string_view what) {
  return schema::object({{"sequence", schema::count()}, {"hash", schema::text("SHA-256")}}, what);
}

}  // namespace

void add_audit_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add({.method = "GET",
           .path = "/v1/audit",
           .id = "listAudit",
           .noun = "audit",
           .scope = Scope::kAdmin,
           .summary = "Every change, oldest first, each entry's hash covering the one before",
           .query = page_parameters(),
           .response = schema::page(
               schema::object({{"sequence", schema::count("from 1, without gaps")},
                               {"time", schema::integer("milliseconds since 1970")},
                               {"actor", schema::text("token:ID (NAME), device:ID or coordinator")},
                               {"action", schema::text("operationId, or what the coordinator did of itself")},
                               {"target", schema::text()},
                               {"before", schema::text("SHA-256 of what its GET showed; empty: nothing")},
                               {"after", schema::text("likewise, afterwards")},
                               {"result", schema::text("ok, an error's code, or interrupted")},
                               {"previous", schema::text("hash of the entry before")},
                               {"hash", schema::text("SHA-256 of this one: see docs/rest.md")}}))},
          [&p](const Call& call) -> Result<json::value> {
            const PageQuery query = RETORT_TRY(page_query(call));
            const std::uint64_t after = std::strtoull(query.after.c_str(), nullptr, 10);
            const std::vector<AuditEntry> entries = RETORT_TRY(p.audit.page(after, query.limit));
            json::array items;
            for (const AuditEntry& entry : entries) items.push_back(entry_json(entry));
            json::value next = nullptr;
            if (!entries.empty() && entries.back().sequence < p.audit.head().sequence)
              next = cursor_of(std::to_string(entries.back().sequence));
            return json::value(json::object{{"items", std::move(items)}, {"next", std::move(next)}});
          });
  api.add(
      {.method = "GET",
       .path = "/v1/audit/head",
       .id = "getAuditHead",
       .noun = "audit",
       .scope = Scope::kAdmin,
       .summary = "Where the chain ends, to be kept elsewhere, and what its first kept entry goes on from",
       .response = schema::object({{"head", point_schema("the last entry")},
                                   {"anchor", point_schema("the last entry that was dropped")}})},
      [&p](const Call&) -> Result<json::value> {
        return json::value(
            json::object{{"head", point_json(p.audit.head())}, {"anchor", point_json(p.audit.anchor())}});
      });
}

}  // namespace retort
