#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"

namespace retort::cli {
namespace {

struct TeacherArguments {
  std::string id;
  std::string name;
  std::string path;
  bool serve = false;
};

}  // namespace

void add_teacher_commands(Program& program) {
  const auto given = std::make_shared<TeacherArguments>();
  CLI::App* app = program.noun("teacher", "teacher models");
  CLI::App* import = program.verb(
      app, "import", "import a Hugging Face folder (config.json, model.safetensors, tokenizer.json)",
      "  retort teacher import ./my-model --name demo\n  retort teacher import ./my-model --name demo "
      "--serve",
      [&program, given]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        json::object body{{"path", server_path(rest, given->path)}};
        if (!given->name.empty()) body["name"] = given->name;
        json::value teacher = RETORT_TRY(rest.post("/v1/teachers", body));
        if (given->serve) {
          const std::string id = RETORT_TRY(id_of(teacher));
          teacher = RETORT_TRY(rest.post("/v1/teachers/" + id + "/serve", json::object()));
        }
        return program.show(teacher);
      });
  import->add_option("FOLDER", given->path, "on the coordinator's host")->required();
  import->add_option("--name", given->name, "a name to call it by");
  import->add_flag("--serve", given->serve, "make it the served one at once");
  program.add_ls(app, "/v1/teachers", teachers_table);
  program.add_show(app, "/v1/teachers", "TEACHER");
  CLI::App* serve = program.verb(
      app, "serve", "make it the teacher that the coordinator serves", "  retort teacher serve demo",
      [&program, given]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        return program.show(rest.post("/v1/teachers/" + escape_url(given->id) + "/serve", json::object()));
      });
  serve->add_option("TEACHER", given->id, "name or id")->required();
  program.add_remove(app, "rm", "remove one", "/v1/teachers", "TEACHER", "removed");
}

}  // namespace retort::cli
