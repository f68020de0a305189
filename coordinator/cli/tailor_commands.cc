#include <cstdio>

#include "common/core/file.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"
#include "coordinator/cli/watch.h"
#include "coordinator/progress/terminal.h"

namespace retort::cli {
namespace {

struct TailorArguments {
  std::string teacher;
  std::string train;
  std::string held_out;
  std::vector<std::string> classes;
  bool watch = false;
  bool dry_run = false;
  bool no_assign = false;
  bool rollout = false;
  std::string rollout_file;
  std::uint64_t tokens = 0, examples = 0;
};

}  // namespace

void add_tailor_commands(Program& program) {
  const auto given = std::make_shared<TailorArguments>();
  CLI::App* app = program.verb(
      &program.app(), "tailor", "make the best student for each class of devices: one job a class",
      "  retort tailor --teacher demo --class small --class medium \\\n"
      "    --train descriptions --held-out judged --tokens 300000 --watch\n"
      "  retort tailor --teacher demo --class small --train descriptions --held-out judged --dry-run\n"
      "  retort tailor --teacher demo --class small --train descriptions --held-out judged --rollout --watch",
      [&program, given]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        json::object body{{"teacher", given->teacher},
                          {"train", given->train},
                          {"held_out", given->held_out},
                          {"dry_run", given->dry_run}};
        body["classes"] = json::array(given->classes.begin(), given->classes.end());
        if (given->tokens > 0) body["tokens"] = given->tokens;
        if (given->examples > 0) body["examples"] = given->examples;
        if (given->no_assign) body["assign"] = false;
        if (given->rollout) body["rollout"] = json::object();
        if (!given->rollout_file.empty()) {
          const json::value value = RETORT_TRY(
              parse_json(RETORT_TRY(read_file(given->rollout_file, 1 << 20)), given->rollout_file));
          body["rollout"] = *RETORT_TRY(as_object(value, given->rollout_file));
        }
        const json::value answer = RETORT_TRY(rest.post("/v1/tailor", body));
        const json::object* object = RETORT_TRY(as_object(answer, "answer"));
        const json::array* jobs = RETORT_TRY(json_array(*object, "jobs", "answer"));
        for (const std::string& name : given->classes) {
          const Result<json::value> found =
              rest.get("/v1/devices" + query_of({{"class", name}, {"limit", "1"}}));
          const json::value* items =
              found && found->is_object() ? found->get_object().if_contains("items") : nullptr;
          if (items != nullptr && items->is_array() && items->get_array().empty())
            std::fprintf(stderr,
                         "retort: no device is in class '%s': its student is fitted to the budgets alone\n",
                         harmless(name).c_str());
        }
        if (!program.as_table() && !given->watch) return program.show(answer);
        if (given->dry_run) {
          for (const json::value& job : *jobs) {
            json::object plan = *RETORT_TRY(as_object(job, "answer"));
            const std::string recipe = RETORT_TRY(json_string(plan, "recipe", "answer"));
            plan.erase("recipe");
            print(object_view(plan, now()) + "\nrecipe:\n" + recipe +
                  "\n");  // as it may be given to a worker
          }
          return 0;
        }
        if (!given->watch) {
          print(jobs_table(*jobs, now()));
          return 0;
        }
        std::vector<std::string> ids;
        for (const json::value& job : *jobs) ids.push_back(RETORT_TRY(id_of(job)));
        const int code = RETORT_TRY(watch_jobs(rest, ids));
        if (code == 0 && body.contains("rollout")) print("They are rolled out now: retort rollout ls\n");
        return code;
      });
  app->add_option("--teacher", given->teacher, "name or id")->required();
  app->add_option("--class", given->classes, "may be repeated")->required();
  app->add_option("--train", given->train, "dataset to distil on")->required();
  app->add_option("--held-out", given->held_out, "dataset to judge on; no text of it may be in --train")
      ->required();
  app->add_option("--tokens", given->tokens, "how many tokens each student is distilled on (300000)");
  app->add_option("--examples", given->examples, "of a classifier: how many examples (100000)");
  app->add_flag("--watch", given->watch, "show progress to the end");
  app->add_flag("--dry-run", given->dry_run, "only say what would be done, and what it would cost");
  app->add_flag("--no-assign", given->no_assign, "do not assign the students to their classes");
  app->add_flag("--rollout", given->rollout,
                "bring each student to its class in stages (5%, 25%, 100%), not to all devices at once");
  app->add_option("--rollout-file", given->rollout_file,
                  "the same with stages, gates and more of a JSON file (docs/rollouts.md)")
      ->check(CLI::ExistingFile);
}

}  // namespace retort::cli
