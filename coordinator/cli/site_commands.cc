#include "common/core/units.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"

namespace retort::cli {
namespace {

struct SiteArguments {
  std::string id;
  std::vector<std::string> mirrors;
  std::string bytes_per_second;
  std::uint32_t transfers = 0;
};

}  // namespace

void add_site_commands(Program& program) {
  const auto given = std::make_shared<SiteArguments>();
  CLI::App* app = program.noun(
      "site", "sites: devices in one place (label site): mirrors near them, limits of what they are sent");
  program.verb(app, "ls", "list them", "", [&program] { return program.list("/v1/sites", sites_table); });
  program.add_show(app, "/v1/sites", "SITE");
  CLI::App* set = program.verb(
      app, "set", "define a site, or change what is given of one; default: of devices without a label site",
      "  retort site set hall --mirror http://10.0.0.2:8080/retort\n"
      "  retort site set hall --bytes-per-second 2MiB --transfers 4\n"
      "  retort site set hall --mirror none --transfers 0",
      [&program, given, app]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        const std::string path = "/v1/sites/" + escape_url(given->id);
        const std::optional<Rest::Version> seen = RETORT_TRY(rest.find(path));
        json::object body = seen ? *RETORT_TRY(as_object(seen->value, path)) : json::object();
        const CLI::App* set_verb = app->get_subcommand("set");
        if (set_verb->count("--mirror") > 0)
          body["mirrors"] = given->mirrors == std::vector<std::string>{"none"}
                                ? json::array()
                                : json::array(given->mirrors.begin(), given->mirrors.end());
        if (set_verb->count("--bytes-per-second") > 0)
          body["bytes_per_second"] = RETORT_TRY(parse_bytes(given->bytes_per_second));
        if (set_verb->count("--transfers") > 0) body["transfers"] = given->transfers;
        return program.show(RETORT_TRY(rest.put(path, body, seen)).value);
      });
  set->add_option("SITE", given->id)->required();
  set->add_option("--mirror", given->mirrors,
                  "an HTTP server near it that serves a folder made by `retort artifact mirror`; may be "
                  "repeated, the first is asked first; none: no mirrors");
  set->add_option("--bytes-per-second", given->bytes_per_second,
                  "what the coordinator sends to all of the site together; 0: no limit. What mirrors send is "
                  "not counted");
  set->add_option("--transfers", given->transfers,
                  "devices of the site that it sends to at a time, the others wait; 0: no limit");
  program.add_remove(app, "rm", "forget one", "/v1/sites", "SITE", "removed");
}

}  // namespace retort::cli
