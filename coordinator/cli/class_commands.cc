#include "common/core/units.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"

namespace retort::cli {
namespace {

/// A size in words or digits as CLI11 reads it ("64MiB").
std::string check_bytes(const std::string& text) {
  const auto bytes = parse_bytes(text);
  return bytes ? std::string() : bytes.error().message;
}
std::uint64_t to_bytes(const std::string& text) { return text.empty() ? 0 : parse_bytes(text).value_or(0); }

/// "site=hall" sets a label, "site=" drops it; the others stay.
Result<void> change_labels(const std::vector<std::string>& given, json::object& labels) {
  for (const std::string& label : given) {
    const std::size_t equals = label.find('=');
    if (equals == 0 || equals == std::string::npos)
      return fail(ErrorCode::kInvalid, "--label", "'{}' is not KEY=VALUE", label);
    const std::string key = label.substr(0, equals), value = label.substr(equals + 1);
    if (value.empty())
      labels.erase(key);
    else
      labels[key] = value;
  }
  return {};
}

struct ClassArguments {
  std::string id;
  std::string file;
  std::vector<std::string> labels;
  std::string min_memory;
  std::string max_memory;
  std::string artifact_bytes;
  std::string serving_memory;
  std::string architecture;
  double min_cpu = 0;
  double max_cpu = 0;
  double p95 = 0;
  std::int64_t priority = 0;
};

}  // namespace

void add_class_commands(Program& program) {
  const auto given = std::make_shared<ClassArguments>();
  CLI::App* app = program.noun("class", "classes of devices: rules, budgets, what they should serve");
  program.verb(app, "ls", "list them", "",
               [&program, given] { return program.list("/v1/classes", classes_table); });
  program.add_show(app, "/v1/classes", "CLASS");
  CLI::App* set = program.verb(
      app, "set", "define a class, or change what is given of one",
      "  retort class set small --max-memory 48MiB --file 1.2MiB\n"
      "  retort class set cameras --label site=hall --priority 10 --file 3M --p95-token-seconds 0.02\n"
      "  retort class set cameras --label site= --label floor=2",
      [&program, given, app]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        const std::string path = "/v1/classes/" + escape_url(given->id);
        json::object body{{"rules", json::object()}, {"budgets", json::object()}};
        const std::optional<Rest::Version> seen = RETORT_TRY(rest.find(path));
        if (seen && seen->value.is_object())
          for (const char* part : {"priority", "rules", "budgets"})
            if (json_has(seen->value.get_object(), part)) body[part] = seen->value.get_object().at(part);
        if (!body["rules"].is_object() || !body["budgets"].is_object())
          return fail(ErrorCode::kInternal, path, "the coordinator's answer is not a class");
        json::object& rules = body["rules"].get_object();
        json::object& budgets = body["budgets"].get_object();
        const CLI::App* set_verb = app->get_subcommand("set");
        const auto has = [set_verb](const char* option) { return set_verb->count(option) > 0; };
        if (has("--priority")) body["priority"] = given->priority;
        if (has("--min-memory")) rules["min_memory_bytes"] = to_bytes(given->min_memory);
        if (has("--max-memory")) rules["max_memory_bytes"] = to_bytes(given->max_memory);
        if (has("--min-cpu")) rules["min_cpu"] = given->min_cpu;
        if (has("--max-cpu")) rules["max_cpu"] = given->max_cpu;
        if (has("--architecture")) rules["architecture"] = given->architecture;
        if (has("--label")) {
          json::value& labels = rules["labels"];
          if (!labels.is_object()) labels = json::object();
          RETORT_TRY(change_labels(given->labels, labels.get_object()));
        }
        if (has("--file")) budgets["artifact_bytes"] = to_bytes(given->artifact_bytes);
        if (has("--serving-memory")) budgets["serving_memory_bytes"] = to_bytes(given->serving_memory);
        if (has("--p95-token-seconds")) budgets["p95_token_seconds"] = given->p95;
        return program.show(RETORT_TRY(rest.put(path, body, seen)).value);
      });
  program.add_remove(app, "rm", "remove one that no rollout and no job is for; its devices move at once",
                     "/v1/classes", "CLASS", "removed");
  const CLI::Validator size(check_bytes, "SIZE");
  set->add_option("CLASS", given->id)->required();
  set->add_option("--priority", given->priority, "of the classes that match a device, the highest wins");
  set->add_option("--min-memory", given->min_memory, "rule: the device's memory budget is at least this")
      ->check(size);
  set->add_option("--max-memory", given->max_memory, "rule: … and at most this (0: no limit)")->check(size);
  set->add_option("--min-cpu", given->min_cpu, "rule: at least so many cores' worth")
      ->check(CLI::NonNegativeNumber);
  set->add_option("--max-cpu", given->max_cpu, "rule: at most so many (0: no limit)")
      ->check(CLI::NonNegativeNumber);
  set->add_option("--architecture", given->architecture, "rule: x86_64, aarch64, …");
  set->add_option("--label", given->labels,
                  "rule: KEY=VALUE, as the agent was started with; KEY= drops the rule; may be repeated");
  set->add_option("--file", given->artifact_bytes, "budget: the student's file is at most this")->check(size);
  set->add_option("--serving-memory", given->serving_memory, "budget: memory of retort-serve with it")
      ->check(size);
  set->add_option("--p95-token-seconds", given->p95, "budget: 95 of 100 tokens take at most this")
      ->check(CLI::NonNegativeNumber);
  CLI::App* assign =
      program.verb(app, "assign", "say what the devices of a class should serve",
                   "  retort class assign small 3f2a9c01d5e7\n  retort class assign small none",
                   [&program, given]() -> Result<int> {
                     Rest rest = RETORT_TRY(program.connect());
                     json::object body{{"artifact", nullptr}};
                     if (given->file != "none") body["artifact"] = given->file;
                     return program.show(rest.post("/v1/classes/" + escape_url(given->id) + "/assign", body));
                   });
  assign->add_option("CLASS", given->id)->required();
  assign->add_option("ARTIFACT", given->file, "its SHA-256 (8 characters suffice), or none")->required();
}

}  // namespace retort::cli
