#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"

namespace retort::cli {
namespace {

struct DatasetArguments {
  std::string name;
  std::string path;
  bool upload = false;
};

}  // namespace

void add_dataset_commands(Program& program) {
  const auto given = std::make_shared<DatasetArguments>();
  CLI::App* app = program.noun("dataset", "texts to train and to judge on");
  CLI::App* import =
      program.verb(app, "import", "import a JSONL file of {\"text\": …} lines",
                   "  retort dataset import distil.jsonl --name descriptions\n"
                   "  retort --server https://far.example dataset import distil.jsonl --upload",
                   [&program, given]() -> Result<int> {
                     Rest rest = RETORT_TRY(program.connect());
                     if (given->upload || !rest.local())
                       return program.show(rest.upload("/v1/datasets" + query_of({{"name", given->name}}),
                                                       given->path, "application/jsonl"));
                     json::object body{{"path", server_path(rest, given->path)}};
                     if (!given->name.empty()) body["name"] = given->name;
                     return program.show(rest.post("/v1/datasets", body));
                   });
  import->add_option("FILE", given->path)->required();
  import->add_option("--name", given->name, "a name to call it by");
  import->add_flag("--upload", given->upload, "send the bytes even to a coordinator on this host");
  program.add_ls(app, "/v1/datasets", datasets_table);
  program.add_show(app, "/v1/datasets", "DATASET");
  program.add_remove(app, "rm", "remove one that no job needs", "/v1/datasets", "DATASET", "removed");
}

}  // namespace retort::cli
