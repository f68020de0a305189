#include <sstream>

#include "common/core/file.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"

namespace retort::cli {
namespace {

struct TokenArguments {
  std::string name;
  std::string duration;
  std::uint64_t number = 0;
  std::string kind = "enrolment";
  std::string approve = "auto";
  std::vector<std::string> devices;
  std::string devices_file;
};

/// Of --device and of the lines of --device-list; empty lines and what follows a '#' at a line's start are
/// not.
Result<json::array> named_devices(const TokenArguments& given) {
  json::array out(given.devices.begin(), given.devices.end());
  if (given.devices_file.empty()) return out;
  std::istringstream lines(RETORT_TRY(read_file(given.devices_file, 16 << 20)));
  for (std::string line; std::getline(lines, line);) {
    while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back()))) line.pop_back();
    if (!line.empty() && line[0] != '#') out.emplace_back(line);
  }
  return out;
}

}  // namespace

void add_token_commands(Program& program) {
  const auto given = std::make_shared<TokenArguments>();
  CLI::App* app = program.noun("token", "what lets operators and devices in");
  CLI::App* create = program.verb(app, "create", "make one; it is shown once",
                                  "  retort token create --kind enrolment --uses 100 --expires 7d\n"
                                  "  retort token create --kind enrolment --device-list keys.txt\n"
                                  "  retort token create --kind enrolment --uses 10 --approve manual\n"
                                  "  retort token create --kind operator --name ci",
                                  [&program, given]() -> Result<int> {
                                    json::object body{{"kind", given->kind}};
                                    if (!given->name.empty()) body["name"] = given->name;
                                    if (given->number > 0) body["uses"] = given->number;
                                    if (given->approve == "manual") body["manual"] = true;
                                    const json::array devices = RETORT_TRY(named_devices(*given));
                                    if (!devices.empty()) body["devices"] = devices;
                                    if (!given->duration.empty())
                                      body["expires_seconds"] = RETORT_TRY(parse_duration(given->duration));
                                    Rest rest = RETORT_TRY(program.connect());
                                    const json::value answer = RETORT_TRY(rest.post("/v1/tokens", body));
                                    if (!program.as_table()) return program.show(answer);
                                    const json::object* object = RETORT_TRY(as_object(answer, "answer"));
                                    print(RETORT_TRY(json_string(*object, "token", "answer")) + "\n");
                                    return 0;
                                  });
  create
      ->add_option(
          "--kind", given->kind,
          "what it may do: viewer, operator, admin, device-enroller; or enrolment: it lets devices in")
      ->capture_default_str()
      ->check(CLI::IsMember({"viewer", "operator", "admin", "device-enroller", "enrolment"}));
  create->add_option("--name", given->name);
  create->add_option("--uses", given->number, "how many devices may enrol with it")
      ->check(CLI::PositiveNumber);
  create->add_option(
      "--device", given->devices,
      "public key or hardware id of a device that it is for (retort-agent identity); repeatable");
  create->add_option("--device-list", given->devices_file, "file of such, one a line");
  create->add_option("--approve", given->approve, "auto, or manual: devices wait for retort device accept")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "manual"}));
  create->add_option("--expires", given->duration, "after 90, 45s, 30m, 12h or 7d");
  program.add_ls(app, "/v1/tokens", tokens_table);
  program.add_remove(app, "revoke", "refuse it from now on", "/v1/tokens", "TOKEN-ID", "revoked");
}

}  // namespace retort::cli
