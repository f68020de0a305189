#include <cstdio>

#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"
#include "coordinator/progress/terminal.h"

namespace retort::cli {
namespace {

struct EventArguments {
  std::string kinds;
};

}  // namespace

void add_event_commands(Program& program) {
  const auto given = std::make_shared<EventArguments>();
  CLI::App* app = program.verb(
      &program.app(), "events", "print what changes, as it does",
      "  retort events --kinds device\n  retort events -o json | jq .state",
      [&program, given]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        RETORT_TRY(rest.watch(given->kinds, [&](const std::string& kind, const std::string& data) {
          if (program.as_table())
            print(fmt::format("{} {} {}\n", to_rfc3339(now()), harmless(kind), harmless(data)));
          else
            print(data + "\n");
          std::fflush(stdout);
          return true;
        }));
        return 0;
      });
  app->add_option("--kinds", given->kinds, "device, job, …, joined by commas; all unless said");
}

}  // namespace retort::cli
