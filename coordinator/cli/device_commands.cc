#include <unistd.h>

#include <cstdio>

#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"

namespace retort::cli {
namespace {

struct DeviceArguments {
  std::string labels, device_class, state, online;
  bool pending = false, revoked = false, watch = false;
};

}  // namespace

void add_device_commands(Program& program) {
  CLI::App* app = program.noun("device", "the fleet");
  const auto given = std::make_shared<DeviceArguments>();
  CLI::App* ls = program.verb(
      app, "ls", "list them", "  retort device ls --labels site=hall --state serving --watch",
      [&program, given]() -> Result<int> {
        const std::string path = "/v1/devices" + query_of({{"labels", given->labels},
                                                           {"class", given->device_class},
                                                           {"state", given->state},
                                                           {"online", given->online},
                                                           {"pending", given->pending ? "true" : ""},
                                                           {"revoked", given->revoked ? "true" : ""},
                                                           {"limit", "1000"}});
        const auto table = [](const json::array& items) { return devices_table(items, now()); };
        if (!given->watch) return program.list(path, table);
        Rest rest = RETORT_TRY(program.connect());
        Result<int> shown = 0;
        RETORT_TRY(rest.watch("device", [&](const std::string&, const std::string&) {
          print(::isatty(STDOUT_FILENO) == 1 ? "\x1b[H\x1b[2J" : "\n");
          shown = program.list(path, table);
          std::fflush(stdout);
          return shown.has_value();
        }));
        return shown;
      });
  ls->add_option("--labels", given->labels, "key=value or key, joined by commas: all must be there");
  ls->add_option("--class", given->device_class);
  ls->add_option("--state", given->state, "of the agent: serving, …");
  ls->add_option("--online", given->online)->check(CLI::IsMember({"true", "false"}));
  ls->add_flag("--pending", given->pending, "those that wait for an accept");
  ls->add_flag("--revoked", given->revoked, "those that were revoked or rejected");
  ls->add_flag("--watch", given->watch, "list again whenever something changes");
  program.add_show(app, "/v1/devices", "DEVICE");
  program.add_remove(app, "revoke", "cut a device off: its key is refused from now on", "/v1/devices",
                     "DEVICE", "revoked");
  const auto id = std::make_shared<std::string>();
  const auto ask = [&](const std::string& name, const std::string& what, const std::string& done) {
    CLI::App* command = program.verb(app, name, what, "", [&program, id, name, done]() -> Result<int> {
      Rest rest = RETORT_TRY(program.connect());
      const Result<json::value> answer =
          rest.post("/v1/devices/" + escape_url(*id) + "/" + name, json::object());
      if (!answer || !program.as_table()) return program.show(answer);
      print(RETORT_TRY(id_of(*answer)) + " " + done + "\n");
      return 0;
    });
    command->add_option("DEVICE", *id)->required();
  };
  ask("accept", "let a device in that waits (token create --approve manual)", "accepted");
  ask("reject", "keep a device out that waits: its key is refused from now on", "rejected");
  ask("forget", "remove all that is kept of a revoked device; with a token it may enrol anew", "forgotten");
  ask("rotate", "have a device make itself a new key, now or when it is there again", "is to make a new key");
}

}  // namespace retort::cli
