#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"

namespace retort::cli {

void add_device_commands(Program& program) {
  CLI::App* app = program.noun("device", "the fleet");
  program.add_ls(app, "/v1/devices", devices_table);
  program.add_show(app, "/v1/devices", "DEVICE");
  program.add_remove(app, "revoke", "cut a device off: its key is refused from now on", "/v1/devices",
                     "DEVICE", "revoked");
}

}  // namespace retort::cli
