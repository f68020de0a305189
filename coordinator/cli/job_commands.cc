#include "common/core/file.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"
#include "coordinator/cli/watch.h"

namespace retort::cli {
namespace {

struct JobArguments {
  std::string id;
  std::string name;
  std::string path;
  std::string device_class;
  std::vector<std::string> ids;
  bool watch = false;
};

}  // namespace

void add_job_commands(Program& program) {
  const auto given = std::make_shared<JobArguments>();
  CLI::App* app = program.noun("job", "compression jobs");
  CLI::App* submit = program.verb(app, "submit", "start a job from a recipe",
                                  "  retort job submit recipe.yaml --class small --watch",
                                  [&program, given]() -> Result<int> {
                                    const std::string recipe = RETORT_TRY(read_file(given->path, 1 << 20));
                                    Rest rest = RETORT_TRY(program.connect());
                                    json::object body{{"recipe", recipe}};
                                    if (!given->device_class.empty()) body["class"] = given->device_class;
                                    if (!given->name.empty()) body["name"] = given->name;
                                    const json::value job = RETORT_TRY(rest.post("/v1/jobs", body));
                                    if (!given->watch) return program.show(job);
                                    return watch_jobs(rest, {RETORT_TRY(id_of(job))});
                                  });
  submit->add_option("RECIPE", given->path, "a YAML file; its teacher and data are ids or names")->required();
  submit->add_option("--class", given->device_class, "the class of devices it is for");
  submit->add_option("--name", given->name);
  submit->add_flag("--watch", given->watch, "show its progress to the end");
  program.add_ls(app, "/v1/jobs", jobs_table);
  program.add_show(app, "/v1/jobs", "JOB");
  CLI::App* logs = program.verb(app, "logs", "print its log (JSON lines)",
                                "  retort job logs job-0123456789ab", [&program, given]() -> Result<int> {
                                  Rest rest = RETORT_TRY(program.connect());
                                  for (std::uint64_t offset = 0;;) {
                                    const Rest::Text text = RETORT_TRY(rest.get_text(fmt::format(
                                        "/v1/jobs/{}/logs?offset={}", escape_url(given->id), offset)));
                                    print(text.body);
                                    if (text.next_offset <= offset) return 0;
                                    offset = text.next_offset;
                                  }
                                });
  logs->add_option("JOB", given->id)->required();
  CLI::App* cancel = program.verb(
      app, "cancel", "stop it at its next step", "  retort job cancel job-0123456789ab",
      [&program, given]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        return program.show(rest.post("/v1/jobs/" + escape_url(given->id) + "/cancel", json::object()));
      });
  cancel->add_option("JOB", given->id)->required();
  program.add_remove(app, "rm", "remove one that has ended, with its folder; its artifacts stay", "/v1/jobs",
                     "JOB", "removed");
  CLI::App* watch = program.verb(app, "watch", "show progress to the end; exits 0 when all succeeded",
                                 "  retort job watch job-0123456789ab", [&program, given]() -> Result<int> {
                                   Rest rest = RETORT_TRY(program.connect());
                                   return watch_jobs(rest, given->ids);
                                 });
  watch->add_option("JOB", given->ids, "one or more")->required();
}

}  // namespace retort::cli
