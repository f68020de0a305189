#include <algorithm>

#include "common/core/file.h"
#include "common/core/units.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/table.h"
#include "coordinator/cli/yaml.h"

namespace retort::cli {
namespace {

struct ApplyArguments {
  std::vector<std::string> files;
  bool dry_run = false;
};

/// "rules.min_memory_bytes" -> 1024, in order of name.
void flatten_values(const std::string& prefix, const json::value& value,
                    std::map<std::string, std::string>& out) {
  if (!value.is_object()) {
    out[prefix] = json::serialize(value);
    return;
  }
  for (const auto& member : value.get_object())
    flatten_values((prefix.empty() ? "" : prefix + ".") + std::string(member.key()), member.value(), out);
}

/// What a document changes, a line each: "- rules.min_cpu: 0" and "+ rules.min_cpu: 2".
std::vector<std::string> changes(const json::value& before, const json::value& wanted) {
  std::map<std::string, std::string> old, fresh;
  flatten_values("", before, old);
  flatten_values("", wanted, fresh);
  std::vector<std::string> out;
  for (const auto& [name, value] : fresh) {
    const auto found = old.find(name);
    if (found != old.end() && found->second == value) continue;
    if (found != old.end()) out.push_back(fmt::format("- {}: {}", name, found->second));
    out.push_back(fmt::format("+ {}: {}", name, value));
  }
  return out;
}

/// Sizes may be written for people ("64MiB") wherever a name says bytes.
Result<void> read_sizes(json::object& object, const std::string& where) {
  for (auto& member : object) {
    if (member.value().is_object()) RETORT_TRY(read_sizes(member.value().get_object(), where));
    const std::string_view name = member.key();
    if (!member.value().is_string() || (!name.ends_with("_bytes") && name != "bytes_per_second")) continue;
    const Result<std::uint64_t> bytes = parse_bytes(std::string(member.value().get_string()));
    if (!bytes)
      return fail(ErrorCode::kInvalid, where, "'{}': {}", std::string_view(member.key()),
                  bytes.error().message);
    member.value() = *bytes;
  }
  return {};
}

/// A prefix names the same artifact.
bool same_artifact(const json::value& wanted, const json::value& had) {
  return wanted == had || (wanted.is_string() && had.is_string() && wanted.get_string().size() >= 8 &&
                           std::string_view(had.get_string()).starts_with(wanted.get_string()));
}

struct Outcome {
  std::string what;  ///< "class small"
  std::vector<std::string> changes;
  std::string token;  ///< that was made
};

Result<Outcome> apply_class(Rest& rest, json::object document, const std::string& where, bool dry_run) {
  RETORT_TRY(read_sizes(document, where));
  const std::string name = RETORT_TRY(json_string(document, "name", where));
  const std::string path = "/v1/classes/" + escape_url(name);
  json::value artifact;
  const bool assigns = document.contains("artifact");
  if (assigns) artifact = document.at("artifact");
  document.erase("artifact");
  document.erase("name");
  const Result<json::value> before = rest.get(path);
  if (!before && before.error().code != ErrorCode::kNotFound) return fail(before.error());
  json::object now;
  if (before) now = *RETORT_TRY(as_object(*before, path));
  // What a document does not say stays.
  json::object wanted{{"priority", now.contains("priority") ? now.at("priority") : json::value(0)},
                      {"rules", now.contains("rules") ? now.at("rules") : json::value(json::object())},
                      {"budgets", now.contains("budgets") ? now.at("budgets") : json::value(json::object())}};
  for (const auto& member : document) {
    if (wanted.contains(member.key()) && wanted.at(member.key()).is_object() && member.value().is_object())
      for (const auto& inner : member.value().get_object())
        wanted[member.key()].get_object()[inner.key()] = inner.value();
    else
      wanted[member.key()] = member.value();
  }
  Outcome out{"class " + name, changes(before ? json::value(now) : json::value(json::object()), wanted), ""};
  if (assigns) {
    const json::value had = now.contains("artifact") ? now.at("artifact") : json::value();
    const bool same = same_artifact(artifact, had);
    if (!same) {
      out.changes.push_back(fmt::format("- artifact: {}", json::serialize(had)));
      out.changes.push_back(fmt::format("+ artifact: {}", json::serialize(artifact)));
    }
    if (!dry_run && !out.changes.empty()) RETORT_TRY(rest.put(path, wanted));
    if (!dry_run && !same) RETORT_TRY(rest.post(path + "/assign", json::object{{"artifact", artifact}}));
    return out;
  }
  if (!dry_run && !out.changes.empty()) RETORT_TRY(rest.put(path, wanted));
  return out;
}

Result<Outcome> apply_site(Rest& rest, json::object document, const std::string& where, bool dry_run) {
  RETORT_TRY(read_sizes(document, where));
  const std::string name = RETORT_TRY(json_string(document, "name", where));
  const std::string path = "/v1/sites/" + escape_url(name);
  const Result<json::value> before = rest.get(path);
  if (!before && before.error().code != ErrorCode::kNotFound) return fail(before.error());
  const json::object now = before ? *RETORT_TRY(as_object(*before, path)) : json::object();
  json::object wanted = now;
  for (const auto& member : document) wanted[member.key()] = member.value();
  Outcome out{"site " + name, changes(now, wanted), ""};
  if (!dry_run && !out.changes.empty()) RETORT_TRY(rest.put(path, wanted));
  return out;
}

Result<Outcome> apply_token(Rest& rest, json::object document, const std::string& where, bool dry_run) {
  const std::string name = RETORT_TRY(json_string(document, "name", where));
  const std::string scope = RETORT_TRY(json_string(document, "scope", where));
  document.erase("scope");
  document["kind"] = scope;
  if (json_has(document, "expires")) {
    document["expires_seconds"] =
        RETORT_TRY(parse_duration(RETORT_TRY(json_string(document, "expires", where))));
    document.erase("expires");
  }
  const json::array there =
      RETORT_TRY(items_of(rest, "/v1/tokens" + query_of({{"name", name}, {"kind", scope}})));
  Outcome out{fmt::format("token {} ({})", name, scope), {}, ""};
  if (!there.empty()) return out;
  out.changes = {"+ " + out.what};
  if (dry_run) return out;
  const json::value made = RETORT_TRY(rest.post("/v1/tokens", document));
  out.token = RETORT_TRY(json_string(*RETORT_TRY(as_object(made, "answer")), "token", "answer"));
  return out;
}

/// A rollout is begun once: again only where the document says something else than the newest of that name.
Result<Outcome> apply_rollout(Rest& rest, json::object document, const std::string& where, bool dry_run) {
  const std::string name = RETORT_TRY(json_string(document, "name", where));
  Outcome out{"rollout " + name, {}, ""};
  json::object newest;
  for (const json::value& item : RETORT_TRY(items_of(rest, "/v1/rollouts"))) {  // oldest first
    const json::object& rollout = *RETORT_TRY(as_object(item, "/v1/rollouts"));
    if (RETORT_TRY(json_string(rollout, "name", "/v1/rollouts")) == name)
      newest = *RETORT_TRY(json_object(rollout, "spec", "/v1/rollouts"));
  }
  // Artifacts may be named by prefixes; whether it supersedes is said of its beginning alone.
  json::object compared = document;
  compared.erase("supersede");
  newest.erase("supersede");
  const json::value* classes = compared.if_contains("classes");
  if (classes == nullptr || !classes->is_object())
    return fail(ErrorCode::kInvalid, where, "rollout '{}' needs 'classes': a map of class to artifact", name);
  if (newest.contains("classes") && newest.at("classes").is_object())
    for (auto& [device_class, artifact] : compared.at("classes").as_object())
      if (const json::value* had = newest.at("classes").as_object().if_contains(device_class);
          had != nullptr && same_artifact(artifact, *had))
        artifact = *had;
  out.changes = changes(newest, compared);
  for (const auto& member : newest)
    if (!compared.contains(member.key()))
      out.changes.push_back(
          fmt::format("- {}: {}", std::string_view(member.key()), json::serialize(member.value())));
  if (!dry_run && !out.changes.empty()) RETORT_TRY(rest.post("/v1/rollouts", document));
  return out;
}

const std::map<std::string, Result<Outcome> (*)(Rest&, json::object, const std::string&, bool)> kAppliers{
    {"Class", apply_class}, {"Site", apply_site}, {"Token", apply_token}, {"Rollout", apply_rollout}};

Result<int> apply(Program& program, const ApplyArguments& given) {
  // All files are read before the first change.
  std::vector<std::pair<std::string, json::object>> documents;
  for (const std::string& file : given.files) {
    const std::string text = RETORT_TRY(read_file(file == "-" ? "/dev/stdin" : file, 1 << 20));
    for (json::value& document : RETORT_TRY(parse_yaml(text, file))) {
      if (!document.is_object())
        return fail(ErrorCode::kInvalid, file, "a document must be a map with a 'kind'");
      const std::string kind = RETORT_TRY(json_string(document.get_object(), "kind", file));
      if (kAppliers.count(kind) == 0)
        return fail(ErrorCode::kUnsupported, file, "'{}' is not a kind; Class, Site, Token and Rollout are",
                    kind);
      documents.emplace_back(file, std::move(document.get_object()));
    }
  }
  if (documents.empty()) return fail(ErrorCode::kInvalid, given.files.front(), "holds no document");
  Rest rest = RETORT_TRY(program.connect());
  json::array told;
  for (auto& [where, document] : documents) {
    const auto applier = kAppliers.at(std::string(document.at("kind").as_string()));
    document.erase("kind");
    const Outcome outcome = RETORT_TRY(applier(rest, std::move(document), where, given.dry_run));
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
  app->add_flag("--dry-run", given->dry_run, "only show what would change");
}

}  // namespace retort::cli
