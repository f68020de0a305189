#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "common/core/file.h"
#include "common/core/units.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/table.h"
#include "coordinator/cli/views.h"
#include "coordinator/progress/terminal.h"

namespace retort::cli {
namespace {

constexpr int kRolloutPaused = 5;  ///< exit status of --watch: it waits for an operator

std::string member_text(const json::object& object, const char* key) {
  return json_string(object, key, "answer").value_or("");
}
std::int64_t member_number(const json::object& object, const char* key) {
  return json_int(object, key, "answer").value_or(0);
}

/// "3 updated, 1 failed".
std::string devices_of(const json::object& track) {
  std::string out;
  if (!json_has(track, "devices") || !track.at("devices").is_object()) return "-";
  for (const auto& [state, count] : track.at("devices").get_object())
    if (count.is_int64() && count.get_int64() > 0)
      out += fmt::format("{}{} {}", out.empty() ? "" : ", ", count.get_int64(), std::string_view(state));
  return out.empty() ? "no devices" : out;
}

std::string rollouts_table(const json::array& items, UnixMillis) {
  Table table({"ROLLOUT", "NAME", "STATE", "CLASS", "IN CLASS", "STAGE", "DEVICES", "ARTIFACT"});
  for (const json::value& item : items) {
    if (!item.is_object() || !json_has(item.get_object(), "classes")) continue;
    const json::object& rollout = item.get_object();
    for (const json::value& value : rollout.at("classes").as_array()) {
      const json::object& track = value.as_object();
      table.row({member_text(rollout, "id"), member_text(rollout, "name"), member_text(rollout, "state"),
                 member_text(track, "class"), member_text(track, "state"),
                 fmt::format("{}/{}", member_number(track, "stage"), member_number(track, "stages")),
                 devices_of(track), member_text(track, "artifact").substr(0, 12)});
    }
  }
  return table.empty() ? "no rollouts\n" : table.text();
}

std::string rollout_view(const json::object& rollout, const json::array& devices) {
  std::string out =
      fmt::format("{}  {}  {}\n", harmless(member_text(rollout, "id")),
                  harmless(member_text(rollout, "state")), harmless(member_text(rollout, "name")));
  for (const json::value& value : rollout.at("classes").as_array()) {
    const json::object& track = value.as_object();
    out += fmt::format(
        "\nclass {}: {}, stage {} of {}: {}\n  {} -> {}\n  {}\n", harmless(member_text(track, "class")),
        member_text(track, "state"), member_number(track, "stage"), member_number(track, "stages"),
        devices_of(track),
        member_text(track, "before").empty() ? "nothing" : member_text(track, "before").substr(0, 12),
        member_text(track, "artifact").substr(0, 12), harmless(member_text(track, "reason")));
    if (json_has(track, "gates") && track.at("gates").is_array())
      for (const json::value& gate : track.at("gates").get_array())
        if (gate.is_object())
          out += fmt::format("  gate {}: {}: {}\n", member_text(gate.get_object(), "gate"),
                             member_text(gate.get_object(), "verdict"),
                             harmless(member_text(gate.get_object(), "text")));
  }
  Table table({"DEVICE", "NAME", "CLASS", "STAGE", "STATE", "ERROR"});
  for (const json::value& item : devices) {
    const json::object& device = item.as_object();
    table.row({member_text(device, "device"), member_text(device, "name"), member_text(device, "class"),
               fmt::format("{}", member_number(device, "stage")), member_text(device, "state"),
               member_text(device, "error")});
  }
  return table.empty() ? out : out + "\n" + table.text();
}

std::atomic<bool> stopped_watching{false};

/// Prints what happens, to the end or to a pause.
Result<int> watch_rollout(Rest& rest, const std::string& id) {
  struct sigaction action {};
  action.sa_handler = [](int) { stopped_watching = true; };
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  const std::string path = "/v1/rollouts/" + escape_url(id);
  std::int64_t after = 0;
  auto last_answer = std::chrono::steady_clock::now();
  bool away = false;
  std::string shown;
  for (;;) {
    const Result<json::value> rollout = rest.get(path);
    const Result<json::value> events =
        rollout ? rest.get(fmt::format("{}/events?after={}", path, after)) : fail(rollout.error());
    if (!events) {
      // Restarts of the coordinator are part of life; anything else is an answer.
      if (events.error().code != ErrorCode::kUnavailable ||
          std::chrono::steady_clock::now() - last_answer > std::chrono::minutes(2))
        return fail(events.error());
      if (!away) print("the coordinator does not answer; waiting for it\n");
      away = true;
    } else {
      away = false;
      last_answer = std::chrono::steady_clock::now();
      for (const json::value& item :
           *RETORT_TRY(json_array(*RETORT_TRY(as_object(*events, path)), "items", path))) {
        const json::object& event = *RETORT_TRY(as_object(item, path));
        after = std::max(after, member_number(event, "sequence"));
        print(harmless(fmt::format("{}  {} {}: {}", to_rfc3339(member_number(event, "time")),
                                   member_text(event, "class"), member_text(event, "state"),
                                   member_text(event, "text"))) +
              "\n");
      }
      std::string line;
      const json::object& object = *RETORT_TRY(as_object(*rollout, path));
      for (const json::value& track : *RETORT_TRY(json_array(object, "classes", path)))
        line +=
            fmt::format("{}{}: stage {}/{}: {}", line.empty() ? "" : "; ",
                        member_text(track.as_object(), "class"), member_number(track.as_object(), "stage"),
                        member_number(track.as_object(), "stages"), devices_of(track.as_object()));
      if (line != shown) print("  " + harmless(line) + "\n");
      shown = line;
      const std::string state = member_text(object, "state");
      if (state == "completed") return 0;
      if (state == "paused") {
        std::fprintf(stderr, "It waits: retort rollout resume|rollback|abort %s\n", id.c_str());
        return kRolloutPaused;
      }
      if (state != "running") return 1;
    }
    std::fflush(stdout);
    for (int i = 0; i < 10 && !stopped_watching; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (stopped_watching) {
      std::fprintf(stderr, "The rollout goes on; to see it again: retort rollout watch %s\n", id.c_str());
      return 130;
    }
  }
}

struct RolloutArguments {
  std::string id, name, file, soak, holdout, on_fail, canary, deadline, device_class;
  std::vector<std::string> classes, stages, windows;
  double min_agreement = 0, max_slower = 0, max_failed = 0;
  bool watch = false, supersede = false, device_time = false, force = false;
};

Result<json::object> stage_of(const std::string& text) {
  if (const std::size_t equals = text.find('='); equals != std::string::npos && equals > 0)
    return json::object{{"labels", json::object{{text.substr(0, equals), text.substr(equals + 1)}}}};
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (end != text.c_str() && std::string_view(end) == "%") return json::object{{"percent", value}};
  if (end != text.c_str() && *end == '\0' && value >= 1 &&
      value == static_cast<double>(static_cast<std::uint32_t>(value)))
    return json::object{{"count", static_cast<std::uint32_t>(value)}};
  return fail(ErrorCode::kInvalid, "", "'{}' is neither a number of devices, nor PERCENT%, nor LABEL=VALUE",
              text);
}

/// The request: the file's members, then what options say.
Result<json::object> request_of(const RolloutArguments& given) {
  json::object body;
  if (!given.file.empty()) {
    const json::value value = RETORT_TRY(parse_json(RETORT_TRY(read_file(given.file, 1 << 20)), given.file));
    body = *RETORT_TRY(as_object(value, given.file));
  }
  if (!given.name.empty()) body["name"] = given.name;
  if (!given.classes.empty()) {
    json::object classes;
    for (const std::string& text : given.classes) {
      const std::size_t equals = text.find('=');
      if (equals == 0 || equals == std::string::npos)
        return fail(ErrorCode::kInvalid, "--class", "'{}' is not CLASS=ARTIFACT", text);
      classes[text.substr(0, equals)] = text.substr(equals + 1);
    }
    body["classes"] = std::move(classes);
  }
  if (!given.stages.empty()) {
    json::array stages;
    for (const std::string& text : given.stages) stages.push_back(RETORT_TRY(stage_of(text)));
    body["stages"] = std::move(stages);
  }
  if (!given.holdout.empty()) body["holdout"] = RETORT_TRY(stage_of(given.holdout));
  if (!given.soak.empty()) body["soak_seconds"] = RETORT_TRY(parse_duration(given.soak));
  if (!given.deadline.empty()) body["install_deadline_seconds"] = RETORT_TRY(parse_duration(given.deadline));
  if (!given.windows.empty()) {
    json::array windows;
    for (const std::string& text : given.windows) {
      const std::size_t dash = text.find('-');
      if (dash == std::string::npos)
        return fail(ErrorCode::kInvalid, "--window", "'{}' is not FROM-TO, for example 01:00-05:00", text);
      windows.push_back(json::object{{"from", text.substr(0, dash)},
                                     {"to", text.substr(dash + 1)},
                                     {"zone", given.device_time ? "device" : "utc"}});
    }
    body["windows"] = std::move(windows);
  }
  if (!given.canary.empty()) body["canary"] = json::object{{"dataset", given.canary}};
  if (given.supersede) body["supersede"] = true;
  json::object gates;
  if (json_has(body, "gates")) gates = *RETORT_TRY(json_object(body, "gates", given.file));
  if (given.max_failed > 0 || !given.on_fail.empty())
    if (!json_has(gates, "install"))
      gates["install"] = json::object{{"max_failed_percent", given.max_failed}};
  if (given.min_agreement > 0) gates["canary"] = json::object{{"min_agreement_percent", given.min_agreement}};
  if (given.max_slower > 0) gates["token_latency"] = json::object{{"max_increase_percent", given.max_slower}};
  if (!given.on_fail.empty())
    for (auto& gate : gates)
      if (gate.value().is_object()) gate.value().get_object()["on_fail"] = given.on_fail;
  if (!gates.empty()) body["gates"] = std::move(gates);
  return body;
}

}  // namespace

void add_rollout_commands(Program& program) {
  CLI::App* app = program.noun("rollout", "bring artifacts to devices in stages, judged by gates");
  const auto given = std::make_shared<RolloutArguments>();
  CLI::App* create = program.verb(
      app, "create", "start one",
      "  retort rollout create --class small=3f2a9c01d5e7 --stage 1 --stage 10% --stage 100% --soak 30m "
      "--watch\n"
      "  retort rollout create --class small=3f2a9c01 --class large=77b1e0aa --holdout 10% --canary judged "
      "\\\n"
      "    --min-agreement 60 --max-slower 20 --on-fail rollback --window 01:00-05:00 --device-time\n"
      "  retort rollout create --file rollout.json",
      [&program, given]() -> Result<int> {
        const json::object body = RETORT_TRY(request_of(*given));
        Rest rest = RETORT_TRY(program.connect());
        const json::value made = RETORT_TRY(rest.post("/v1/rollouts", body));
        if (!given->watch) {
          if (!program.as_table() || !made.is_object()) return program.show(made);
          print(rollout_view(made.get_object(), {}));
          return 0;
        }
        return watch_rollout(rest, RETORT_TRY(id_of(made)));
      });
  create->add_option("--class", given->classes, "CLASS=ARTIFACT; may be repeated");
  create->add_option(
      "--stage", given->stages,
      "in order: a number of devices of each class, PERCENT%, or LABEL=VALUE (default 5%, 25%, 100%)");
  create->add_option("--soak", given->soak, "how long a stage serves before it is judged (10m)");
  create->add_option("--holdout", given->holdout,
                     "devices that stay to be compared with: a number or PERCENT%");
  create->add_option("--deadline", given->deadline,
                     "a device that is told and not updated in time has failed (1h)");
  create->add_option("--window", given->windows,
                     "tell devices only then: FROM-TO (01:00-05:00); may be repeated");
  create->add_flag("--device-time", given->device_time, "windows are in each device's local time, not UTC");
  create->add_option("--max-failed", given->max_failed, "gate: per cent of installations that may fail (0)")
      ->check(CLI::Range(0.0, 100.0));
  create
      ->add_option("--max-slower", given->max_slower,
                   "gate: per cent that a token may take longer than on the holdout")
      ->check(CLI::NonNegativeNumber);
  create->add_option("--canary", given->canary,
                     "dataset whose texts teacher and students are asked to go on with");
  create
      ->add_option("--min-agreement", given->min_agreement,
                   "gate: per cent of the canary on which both agree")
      ->check(CLI::Range(0.0, 100.0));
  create->add_option("--on-fail", given->on_fail, "what a failed gate does (pause)")
      ->check(CLI::IsMember({"pause", "rollback"}));
  create->add_option("--file", given->file, "the whole request as JSON (docs/rollouts.md); options add to it")
      ->check(CLI::ExistingFile);
  create->add_option("--name", given->name);
  create->add_flag("--supersede", given->supersede, "end what is under way in these classes");
  create->add_flag("--watch", given->watch,
                   "show what happens; exits 0 completed, 1 rolled back, aborted or superseded, 5 paused");
  program.add_ls(app, "/v1/rollouts", rollouts_table);
  CLI::App* show = program.verb(app, "show", "one, with its devices", "", [&program, given]() -> Result<int> {
    Rest rest = RETORT_TRY(program.connect());
    const std::string path = "/v1/rollouts/" + escape_url(given->id);
    json::value rollout = RETORT_TRY(rest.get(path));
    const json::array devices = RETORT_TRY(items_of(rest, path + "/devices"));
    if (!program.as_table() && rollout.is_object()) {
      rollout.get_object()["members"] = devices;
      return program.show(rollout);
    }
    print(rollout_view(*RETORT_TRY(as_object(rollout, path)), devices));
    return 0;
  });
  show->add_option("ROLLOUT", given->id, "id or name")->required();
  CLI::App* watch =
      program.verb(app, "watch", "show what happens, to the end or a pause",
                   "  retort rollout watch roll-0123456789ab", [&program, given]() -> Result<int> {
                     Rest rest = RETORT_TRY(program.connect());
                     return watch_rollout(rest, given->id);
                   });
  watch->add_option("ROLLOUT", given->id, "id or name")->required();
  struct Verb {
    const char *name, *what;
  };
  for (const Verb verb : {Verb{"pause", "tell no further device"},
                          Verb{"resume", "go on; devices that failed are told once more"},
                          Verb{"abort", "end it; devices keep what they have"},
                          Verb{"rollback", "bring its devices back to what their class serves"}}) {
    const bool resumes = std::string_view(verb.name) == "resume";
    CLI::App* command =
        program.verb(app, verb.name, verb.what,
                     fmt::format("  retort rollout {} roll-0123456789ab --class small", verb.name),
                     [&program, given, name = std::string(verb.name)]() -> Result<int> {
                       Rest rest = RETORT_TRY(program.connect());
                       json::object body;
                       if (!given->device_class.empty()) body["class"] = given->device_class;
                       if (given->force) body["force"] = true;
                       const json::value answer =
                           RETORT_TRY(rest.post("/v1/rollouts/" + escape_url(given->id) + "/" + name, body));
                       if (given->watch) return watch_rollout(rest, RETORT_TRY(id_of(answer)));
                       if (!program.as_table() || !answer.is_object()) return program.show(answer);
                       print(rollout_view(answer.get_object(), {}));
                       return 0;
                     });
    command->add_option("ROLLOUT", given->id, "id or name")->required();
    command->add_option("--class", given->device_class, "only this class");
    if (resumes) command->add_flag("--force", given->force, "to the next stage, whatever the gates said");
    command->add_flag("--watch", given->watch, "then show what happens");
  }
}

}  // namespace retort::cli
