#include "coordinator/cli/program.h"

#include <cstdio>
#include <cstdlib>

#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"
#include "coordinator/cli/yaml.h"
#include "coordinator/progress/terminal.h"

namespace retort::cli {

UnixMillis now() { return SystemClock().unix_millis(); }

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

Result<std::uint64_t> parse_duration(const std::string& text) {
  std::size_t used = 0;
  unsigned long long value = 0;
  try {
    value = std::stoull(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const std::string unit = text.substr(used);
  const std::uint64_t scale = unit.empty() || unit == "s" ? 1
                              : unit == "m"               ? 60
                              : unit == "h"               ? 3600
                              : unit == "d"               ? 86400
                                                          : 0;
  if (used == 0 || text.front() == '-' || scale == 0 || value > 1'000'000'000)
    return fail(ErrorCode::kInvalid, "", "'{}' is not a time; write for example 90, 45s, 30m, 12h or 7d",
                text);
  return value * scale;
}

Result<json::array> items_of(Rest& rest, const std::string& path) {
  json::array all;
  std::string next = path;
  for (;;) {
    const json::value answer = RETORT_TRY(rest.get(next));
    const json::object* object = RETORT_TRY(as_object(answer, path));
    const json::array* items = RETORT_TRY(json_array(*object, "items", path));
    all.insert(all.end(), items->begin(), items->end());
    if (!json_has(*object, "next")) return all;
    next = path + (path.find('?') == std::string::npos ? "?" : "&") +
           "cursor=" + escape_url(RETORT_TRY(json_string(*object, "next", path)));
  }
}

Result<std::string> id_of(const json::value& answer) {
  const json::object* object = RETORT_TRY(as_object(answer, "answer"));
  return json_string(*object, "id", "answer");
}

std::string server_path(const Rest& rest, const std::string& path) {
  return rest.local() ? std::filesystem::absolute(path).lexically_normal().string() : path;
}

Program::Program(const std::string& version)
    : app_("Retort: one teacher model, a fitted student for every device of a fleet.", "retort") {
  app_.fallthrough();  // so that -o, --server and the like may stand after the command too
  app_.require_subcommand(1);
  app_.set_version_flag("--version", "retort " + version);
  app_.add_option("--server", server_, "the coordinator's REST address")
      ->capture_default_str()
      ->envname("RETORT_SERVER");
  app_.add_option("--token", token_, "operator token; better in a file or the environment")
      ->envname("RETORT_TOKEN");
  app_.add_option("--token-file", token_file_, "file that holds it (default: ~/.config/retort/token)")
      ->envname("RETORT_TOKEN_FILE");
  app_.add_option("--fingerprint", fingerprint_,
                  "of an https coordinator's certificate, which its log shows; --trust-new keeps it in "
                  "~/.config/retort/fingerprints")
      ->envname("RETORT_FINGERPRINT");
  app_.add_flag("--trust-new", trust_new_,
                "take and keep the certificate of a coordinator that is not known yet");
  app_.add_option("-o,--output", output_, "table, json or yaml")
      ->capture_default_str()
      ->check(CLI::IsMember({"table", "json", "yaml"}));
  app_.footer(
      "Examples:\n  retort teacher import ./my-model --name demo --serve\n"
      "  retort class set small --max-memory 64MiB --file 1.2MiB\n"
      "  retort tailor --teacher demo --class small --train text --held-out judged --tokens 300000 --watch\n"
      "  retort device ls\n"
      "Exit status: 0 done, 1 failure, 2 wrong usage, 3 bad input, 4 out of budget, 5 coordinator not "
      "reached,\n"
      "6 denied, 130 interrupted.");
  add_teacher_commands(*this);
  add_dataset_commands(*this);
  add_class_commands(*this);
  add_site_commands(*this);
  add_job_commands(*this);
  add_tailor_commands(*this);
  add_rollout_commands(*this);
  add_artifact_commands(*this);
  add_device_commands(*this);
  add_token_commands(*this);
  add_apply_commands(*this);
  add_audit_commands(*this);
  add_event_commands(*this);
  add_trust_commands(*this);
  add_status_commands(*this);
}

CLI::App* Program::noun(const std::string& name, const std::string& what) {
  CLI::App* app = app_.add_subcommand(name, what);
  app->require_subcommand(1);
  return app;
}

CLI::App* Program::verb(CLI::App* noun, const std::string& name, const std::string& what,
                        const std::string& examples, Action action) {
  CLI::App* app = noun->add_subcommand(name, what);
  if (!examples.empty()) app->footer("Examples:\n" + examples);
  app->callback([this, action = std::move(action)] { action_ = action; });
  return app;
}

Result<Rest> Program::connect() const {
  const char* home = std::getenv("HOME");
  const std::filesystem::path folder =
      home == nullptr ? std::filesystem::path() : std::filesystem::path(home) / ".config/retort";
  const auto in_folder = [&](const char* name) { return folder.empty() ? folder : folder / name; };
  Connection connection{server_, RETORT_TRY(find_token(token_, token_file_, in_folder("token"))), ""};
  if (server_.starts_with("https://"))
    connection.fingerprint =
        RETORT_TRY(find_fingerprint(server_, fingerprint_, trust_new_, in_folder("fingerprints")));
  return Rest::open(std::move(connection));
}

Result<int> Program::show(const Result<json::value>& answer) const {
  if (!answer) return fail(answer.error());
  if (output_ == "yaml")
    print(to_yaml(*answer));
  else if (output_ == "json" || !answer->is_object())
    print(pretty_json(*answer));
  else
    print(object_view(answer->get_object(), now()));
  return 0;
}

Result<int> Program::list(const std::string& path,
                          const std::function<std::string(const json::array&)>& table) const {
  Rest rest = RETORT_TRY(connect());
  const json::array items = RETORT_TRY(items_of(rest, path));
  if (!as_table()) return show(json::value(items));
  print(table(items));
  return 0;
}

void Program::add_ls(CLI::App* noun, const std::string& path,
                     std::string (*table)(const json::array&, UnixMillis)) {
  verb(noun, "ls", "list them", "", [this, path, table] {
    return list(path, [table](const json::array& items) { return table(items, now()); });
  });
}

void Program::add_show(CLI::App* noun, const std::string& path, const std::string& id_name) {
  const auto id = std::make_shared<std::string>();
  CLI::App* show_verb = verb(noun, "show", "show one", "", [this, path, id]() -> Result<int> {
    Rest rest = RETORT_TRY(connect());
    return show(rest.get(path + "/" + escape_url(*id)));
  });
  show_verb->add_option(id_name, *id)->required();
}

void Program::add_remove(CLI::App* noun, const std::string& name, const std::string& what,
                         const std::string& path, const std::string& id_name, const std::string& done) {
  const auto id = std::make_shared<std::string>();
  CLI::App* remove = verb(noun, name, what, "", [this, path, done, id]() -> Result<int> {
    Rest rest = RETORT_TRY(connect());
    RETORT_TRY(rest.remove(path + "/" + escape_url(*id)));
    if (as_table()) print(fmt::format("{} {}\n", harmless(*id), done));
    return 0;
  });
  remove->add_option(id_name, *id)->required();
}

int Program::run(int argc, char** argv) {
  try {
    app_.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app_.exit(error) == 0 ? 0 : 2;
  }
  const Result<int> result = action_();
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    std::fprintf(stderr, "retort: standard output: cannot write: not all of the answer was told\n");
    if (result) return 1;
  }
  if (result) return *result;
  std::fprintf(stderr, "retort: %s\n", result.error().describe().c_str());
  return exit_code(result.error().code);
}

}  // namespace retort::cli
