#include "common/core/file.h"
#include "common/model/audit.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"

namespace retort::cli {
namespace {

struct AuditArguments {
  std::string head_file, write_head, path;
};

Result<AuditEntry> entry_of(const json::value& item) {
  const std::string where = "audit entry";
  const json::object& o = *RETORT_TRY(as_object(item, where));
  AuditEntry e;
  e.sequence = RETORT_TRY(json_uint(o, "sequence", where));
  e.time = RETORT_TRY(json_int(o, "time", where));
  const std::pair<std::string*, const char*> texts[] = {
      {&e.actor, "actor"}, {&e.action, "action"}, {&e.target, "target"},     {&e.before, "before"},
      {&e.after, "after"}, {&e.result, "result"}, {&e.previous, "previous"}, {&e.hash, "hash"}};
  for (const auto& [member, name] : texts) *member = RETORT_TRY(json_string(o, name, where));
  return e;
}

struct ChainPoint {
  std::uint64_t sequence = 0;
  std::string hash;
};
Result<ChainPoint> point_of(const json::object& object, const char* name, const std::string& where) {
  const json::object& o = *RETORT_TRY(json_object(object, name, where));
  return ChainPoint{RETORT_TRY(json_uint(o, "sequence", where)), RETORT_TRY(json_string(o, "hash", where))};
}

/// Checks every hash here, trusting nothing that the coordinator says but what was kept from before.
Result<int> verify(Program& program, const AuditArguments& given) {
  Rest rest = RETORT_TRY(program.connect());
  const json::value ends = RETORT_TRY(rest.get("/v1/audit/head"));
  const json::object& object = *RETORT_TRY(as_object(ends, "answer"));
  const ChainPoint head = RETORT_TRY(point_of(object, "head", "answer"));
  ChainPoint at = RETORT_TRY(point_of(object, "anchor", "answer"));
  std::optional<ChainPoint> kept;
  if (!given.head_file.empty()) {
    const json::value text =
        RETORT_TRY(parse_json(RETORT_TRY(read_file(given.head_file, 1 << 16)), given.head_file));
    kept = RETORT_TRY(point_of(*RETORT_TRY(as_object(text, given.head_file)), "head", given.head_file));
    if (kept->sequence > head.sequence)
      return fail(ErrorCode::kCorrupt, "audit", "the log ends at entry {}; at an earlier time it had {}",
                  head.sequence, kept->sequence);
    if (kept->sequence < at.sequence)
      return fail(ErrorCode::kInvalid, given.head_file, "entry {} is no longer kept: the log begins after {}",
                  kept->sequence, at.sequence);
  }
  bool met = !kept || (kept->sequence == at.sequence && kept->hash == at.hash);
  for (const json::value& item : RETORT_TRY(items_of(rest, "/v1/audit?limit=1000"))) {
    const AuditEntry entry = RETORT_TRY(entry_of(item));
    if (entry.sequence != at.sequence + 1)
      return fail(ErrorCode::kCorrupt, "audit", "entry {} follows entry {}: some are missing", entry.sequence,
                  at.sequence);
    if (entry.previous != at.hash || entry.hash != audit_hash(entry))
      return fail(ErrorCode::kCorrupt, "audit", "entry {} was changed, or one before it", entry.sequence);
    at = {entry.sequence, entry.hash};
    if (kept && kept->sequence == at.sequence) met = kept->hash == at.hash;
  }
  if (at.sequence < head.sequence || (at.sequence == head.sequence && at.hash != head.hash))
    return fail(ErrorCode::kCorrupt, "audit", "the chain does not end where the coordinator says");
  if (!met)
    return fail(ErrorCode::kCorrupt, "audit", "entry {} is not what {} has: the log was written anew",
                kept->sequence, given.head_file);
  if (!given.write_head.empty())
    RETORT_TRY(write_file_atomic(
        given.write_head,
        pretty_json(json::object{{"head", json::object{{"sequence", at.sequence}, {"hash", at.hash}}}}),
        0644));
  if (!program.as_table())
    return program.show(json::value(json::object{{"sequence", at.sequence}, {"hash", at.hash}}));
  print(fmt::format("{} entries fit; the last one's hash is {}\n", at.sequence, at.hash));
  return 0;
}

}  // namespace

void add_audit_commands(Program& program) {
  const auto given = std::make_shared<AuditArguments>();
  CLI::App* app = program.noun("audit", "the log of every change");
  program.verb(app, "ls", "list its entries, oldest first", "", [&program] {
    return program.list("/v1/audit", [](const json::array& items) { return audit_table(items, now()); });
  });
  CLI::App* verify_verb = program.verb(
      app, "verify", "check that no entry was changed, dropped or put in",
      "  retort audit verify --write-head head.json     (keep it where the coordinator cannot write)\n"
      "  retort audit verify --head head.json --write-head head.json\n"
      "Of a backup: retort-coordinator check --data FOLDER",
      [&program, given] { return verify(program, *given); });
  verify_verb->add_option("--head", given->head_file, "an earlier head: the log must still go through it");
  verify_verb->add_option("--write-head", given->write_head, "where to write the head that was found");
  CLI::App* backup = program.noun("backup", "copies of all that the coordinator keeps");
  CLI::App* create = program.verb(
      backup, "create", "make one, while the coordinator runs", "  retort backup create /backup/monday",
      [&program, given]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        return program.show(rest.post("/v1/backups", json::object{{"path", server_path(rest, given->path)}}));
      });
  create->add_option("FOLDER", given->path, "on the coordinator's host; not there yet")->required();
}

}  // namespace retort::cli
