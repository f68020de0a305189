#include <optional>
#include <set>

#include "common/core/file.h"
#include "common/core/units.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/yaml.h"
#include "coordinator/progress/terminal.h"

namespace retort::cli {
namespace {

struct ApplyArguments {
  std::vector<std::string> files;
  bool dry_run = false;
};

/// "rules.min_memory_bytes" -> 1024, in order of name; null is as good as not there.
void flatten_values(const std::string& prefix, const json::object& object,
                    std::map<std::string, json::value>& out) {
  for (const auto& member : object) {
    const std::string name = (prefix.empty() ? "" : prefix + ".") + std::string(member.key());
    if (member.value().is_object())
      flatten_values(name, member.value().get_object(), out);
    else if (!member.value().is_null())
      out[name] = member.value();
  }
}

bool same_value(const json::value& a, const json::value& b) {
  if (a.is_number() && b.is_number()) return a.to_number<double>() == b.to_number<double>();
  return a == b;
}

std::string shown(const json::value& value) {
  return value.is_double() ? fmt::format("{}", value.get_double()) : json::serialize(value);
}

/// What a document changes, a line each: "- rules.min_cpu: 1" and "+ rules.min_cpu: 2".
std::vector<std::string> changes(const json::object& before, const json::object& wanted) {
  std::map<std::string, json::value> old, fresh;
  flatten_values("", before, old);
  flatten_values("", wanted, fresh);
  std::map<std::string, json::value> all = old;
  all.insert(fresh.begin(), fresh.end());
  std::vector<std::string> out;
  for (const auto& [name, any] : all) {
    const auto had = old.find(name), has = fresh.find(name);
    if (had != old.end() && has != fresh.end() && same_value(had->second, has->second)) continue;
    if (had != old.end()) out.push_back(fmt::format("- {}: {}", name, shown(had->second)));
    if (has != fresh.end()) out.push_back(fmt::format("+ {}: {}", name, shown(has->second)));
  }
  return out;
}

/// Without what stands for no rule, no budget, no limit: 0, "" and [], which a class or a site has where
/// nothing was said. A label may be "".
json::object without_defaults(const json::object& object, bool labels = false) {
  json::object out;
  for (const auto& member : object) {
    const json::value& value = member.value();
    const bool none = (value.is_number() && value.to_number<double>() == 0) ||
                      (value.is_string() && value.get_string().empty()) ||
                      (value.is_array() && value.get_array().empty());
    if (value.is_object())
      out[member.key()] = without_defaults(value.get_object(), member.key() == "labels");
    else if (labels || !none)
      out[member.key()] = value;
  }
  return out;
}

/// Sizes may be written for people ("64MiB") wherever a name says bytes.
Result<void> read_sizes(json::object& object) {
  for (auto& member : object) {
    if (member.value().is_object()) RETORT_TRY(read_sizes(member.value().get_object()));
    const std::string_view name = member.key();
    if (!member.value().is_string() || (!name.ends_with("_bytes") && name != "bytes_per_second")) continue;
    const Result<std::uint64_t> bytes = parse_bytes(std::string(member.value().get_string()));
    if (!bytes) return fail(ErrorCode::kInvalid, "", "'{}': {}", name, bytes.error().message);
    member.value() = *bytes;
  }
  return {};
}

/// A prefix names the same artifact.
bool same_artifact(const json::value& wanted, const json::value& had) {
  return wanted == had || (wanted.is_string() && had.is_string() && wanted.get_string().size() >= 8 &&
                           std::string_view(had.get_string()).starts_with(wanted.get_string()));
}

struct Applying {
  Rest& rest;
  bool dry_run = false;
  std::set<std::string> classes;  ///< of the documents so far
};

struct Outcome {
  std::string what;  ///< "class small"
  std::vector<std::string> changes;
  std::string token;  ///< that was made
};

/// kNotFound.
Result<void> find_artifact(Applying& applying, const json::value& artifact) {
  if (!artifact.is_string()) return fail(ErrorCode::kInvalid, "", "an artifact is named by its SHA-256");
  RETORT_TRY(applying.rest.get("/v1/artifacts/" + escape_url(std::string_view(artifact.get_string()))));
  return {};
}

Result<Outcome> apply_class(Applying& applying, json::object document) {
  RETORT_TRY(read_sizes(document));
  const std::string name = RETORT_TRY(json_string(document, "name", ""));
  const std::string path = "/v1/classes/" + escape_url(name);
  const bool assigns = document.contains("artifact");
  const json::value artifact = assigns ? document.at("artifact") : json::value();
  std::optional<Rest::Version> seen = RETORT_TRY(applying.rest.find(path));
  json::object now = seen ? *RETORT_TRY(as_object(seen->value, path)) : json::object();
  const json::value had = now.contains("artifact") ? now.at("artifact") : json::value();
  for (const char* not_put : {"artifact", "generation"}) document.erase(not_put), now.erase(not_put);
  json::object wanted = now;  // what a document does not say stays
  for (const auto& member : document) {
    json::value& part = wanted[member.key()];
    if (part.is_object() && member.value().is_object())
      for (const auto& inner : member.value().get_object()) part.get_object()[inner.key()] = inner.value();
    else
      part = member.value();
  }
  Outcome out{"class " + name, changes(without_defaults(now), without_defaults(wanted)), ""};
  applying.classes.insert(name);
  if (!applying.dry_run && !out.changes.empty()) seen = RETORT_TRY(applying.rest.put(path, wanted, seen));
  if (!assigns || same_artifact(artifact, had)) return out;
  out.changes.push_back(fmt::format("- artifact: {}", json::serialize(had)));
  out.changes.push_back(fmt::format("+ artifact: {}", json::serialize(artifact)));
  if (!applying.dry_run)
    RETORT_TRY(applying.rest.post(path + "/assign", json::object{{"artifact", artifact}}, *seen));
  else if (!artifact.is_null())
    RETORT_TRY(find_artifact(applying, artifact));
  return out;
}

Result<Outcome> apply_site(Applying& applying, json::object document) {
  RETORT_TRY(read_sizes(document));
  const std::string name = RETORT_TRY(json_string(document, "name", ""));
  const std::string path = "/v1/sites/" + escape_url(name);
  const std::optional<Rest::Version> seen = RETORT_TRY(applying.rest.find(path));
  const json::object now = seen ? *RETORT_TRY(as_object(seen->value, path)) : json::object();
  json::object wanted = now;
  for (const auto& member : document) wanted[member.key()] = member.value();
  if (json::value* const mirrors = wanted.if_contains("mirrors"); mirrors != nullptr && mirrors->is_array())
    for (json::value& mirror : mirrors->get_array())  // as the coordinator keeps them
      while (mirror.is_string() && mirror.get_string().ends_with('/')) mirror.get_string().pop_back();
  Outcome out{"site " + name, changes(without_defaults(now), without_defaults(wanted)), ""};
  if (!applying.dry_run && !out.changes.empty()) RETORT_TRY(applying.rest.put(path, wanted, seen));
  return out;
}

Result<Outcome> apply_token(Applying& applying, json::object document) {
  const std::string name = RETORT_TRY(json_string(document, "name", ""));
  const std::string scope = RETORT_TRY(json_string(document, "scope", ""));
  document.erase("scope");
  document["kind"] = scope;
  if (json_has(document, "expires")) {
    document["expires_seconds"] =
        RETORT_TRY(parse_duration(RETORT_TRY(json_string(document, "expires", ""))));
    document.erase("expires");
  }
  const json::array there =
      RETORT_TRY(items_of(applying.rest, "/v1/tokens" + query_of({{"name", name}, {"kind", scope}})));
  Outcome out{fmt::format("token {} ({})", name, scope), {}, ""};
  if (!there.empty()) return out;
  out.changes = {"+ " + out.what};
  if (applying.dry_run) return out;
  const json::value made = RETORT_TRY(applying.rest.post("/v1/tokens", document));
  out.token = RETORT_TRY(json_string(*RETORT_TRY(as_object(made, "answer")), "token", "answer"));
  return out;
}

/// A rollout is begun once: again only where the document says something else than the newest of that name.
Result<Outcome> apply_rollout(Applying& applying, json::object document) {
  const std::string name = RETORT_TRY(json_string(document, "name", ""));
  Outcome out{"rollout " + name, {}, ""};
  json::object newest;
  for (const json::value& item : RETORT_TRY(items_of(applying.rest, "/v1/rollouts"))) {  // oldest first
    const json::object& rollout = *RETORT_TRY(as_object(item, "/v1/rollouts"));
    if (RETORT_TRY(json_string(rollout, "name", "/v1/rollouts")) == name)
      newest = *RETORT_TRY(json_object(rollout, "spec", "/v1/rollouts"));
  }
  // Artifacts may be named by prefixes; whether it supersedes is said of its beginning alone.
  json::object compared = document;
  compared.erase("supersede");
  newest.erase("supersede");
  json::value* const classes = compared.if_contains("classes");
  if (classes == nullptr || !classes->is_object())
    return fail(ErrorCode::kInvalid, "", "it needs 'classes': a map of class to artifact");
  if (newest.contains("classes") && newest.at("classes").is_object())
    for (auto& [device_class, artifact] : classes->get_object())
      if (const json::value* had = newest.at("classes").as_object().if_contains(device_class);
          had != nullptr && same_artifact(artifact, *had))
        artifact = *had;
  out.changes = changes(newest, compared);
  if (out.changes.empty()) return out;
  if (!applying.dry_run) {
    RETORT_TRY(applying.rest.post("/v1/rollouts", document));
    return out;
  }
  for (const auto& [device_class, artifact] : classes->get_object()) {
    const std::string wanted(device_class);
    if (applying.classes.count(wanted) == 0)
      RETORT_TRY(applying.rest.get("/v1/classes/" + escape_url(wanted)));
    RETORT_TRY(find_artifact(applying, artifact));
  }
  return out;
}

const std::map<std::string, Result<Outcome> (*)(Applying&, json::object)> kAppliers{
    {"Class", apply_class}, {"Site", apply_site}, {"Token", apply_token}, {"Rollout", apply_rollout}};

struct Document {
  std::string kind, where;  ///< "Rollout", "fleet.yaml, document 4 (Rollout november)"
  json::object members;
};

Result<Document> document_of(json::value value, std::string where) {
  if (!value.is_object()) return fail(ErrorCode::kInvalid, where, "a document must be a map with a 'kind'");
  Document out;
  out.members = std::move(value.get_object());
  out.kind = RETORT_TRY(json_string(out.members, "kind", where));
  if (kAppliers.count(out.kind) == 0)
    return fail(ErrorCode::kUnsupported, where, "'{}' is not a kind; Class, Site, Token and Rollout are",
                out.kind);
  out.members.erase("kind");
  const Result<std::string> name = json_string(out.members, "name", where);
  out.where = fmt::format("{} ({}{})", where, out.kind, name ? " " + *name : "");
  return out;
}

Result<int> apply(Program& program, const ApplyArguments& given) {
  // All files are read before the first change.
  std::vector<Document> documents;
  for (const std::string& file : given.files) {
    const std::string text =
        RETORT_TRY(file == "-" ? read_standard_input(1 << 20) : read_file(file, 1 << 20));
    int number = 0;
    for (json::value& document : RETORT_TRY(parse_yaml(text, file)))
      documents.push_back(
          RETORT_TRY(document_of(std::move(document), fmt::format("{}, document {}", file, ++number))));
  }
  if (documents.empty()) return fail(ErrorCode::kInvalid, given.files.front(), "holds no document");
  Rest rest = RETORT_TRY(program.connect());
  Applying applying{rest, given.dry_run, {}};
  json::array told;
  for (Document& document : documents) {
    const Result<Outcome> applied = kAppliers.at(document.kind)(applying, std::move(document.members));
    if (!applied) {
      if (!program.as_table())
        RETORT_TRY(program.show(json::value(told)));  // what was made before, tokens too
      return fail(applied.error().code, document.where, "{}", applied.error().describe());
    }
    const Outcome& outcome = *applied;
    if (program.as_table()) {
      const char* verdict = outcome.changes.empty() ? "unchanged"
                            : given.dry_run         ? "would change"
                                                    : "applied";
      print(fmt::format("{}: {}\n", harmless(outcome.what), verdict));
      for (const std::string& line : outcome.changes) print("  " + harmless(line) + "\n");
      if (!outcome.token.empty()) print(outcome.token + "\n");
    } else {
      json::object one{{"what", outcome.what},
                       {"changes", json::array(outcome.changes.begin(), outcome.changes.end())}};
      if (!outcome.token.empty()) one["token"] = outcome.token;
      told.push_back(std::move(one));
    }
  }
  return program.as_table() ? Result<int>(0) : program.show(json::value(std::move(told)));
}

}  // namespace

void add_apply_commands(Program& program) {
  const auto given = std::make_shared<ApplyArguments>();
  CLI::App* app = program.verb(&program.app(), "apply",
                               "make the coordinator's state what files say; what is so already stays",
                               "  retort apply -f fleet.yaml --dry-run\n  retort apply -f fleet.yaml",
                               [&program, given] { return apply(program, *given); });
  app->add_option(
         "-f,--file", given->files,
         "YAML or JSON documents: {kind: Class, name, priority, rules, budgets, artifact}, {kind: Site, "
         "name, mirrors, bytes_per_second, transfers}, {kind: Token, name, scope, uses, expires} or {kind: "
         "Rollout, name, classes, "
         "stages, gates, …}; - is "
         "standard input; may be repeated")
      ->required();
  app->add_flag("--dry-run", given->dry_run, "only show what would change, and what could not be");
}

}  // namespace retort::cli
