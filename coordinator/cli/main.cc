#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>

#include "common/core/file.h"
#include "common/core/sha256.h"
#include "common/core/units.h"
#include "coordinator/cli/rest.h"
#include "coordinator/cli/table.h"
#include "coordinator/cli/views.h"
#include "coordinator/cli/watch.h"

namespace retort::cli {
namespace {

struct Options {
  std::string server = "http://127.0.0.1:8440", token, token_file, output = "table";
  bool as_json() const { return output == "json"; }
};

UnixMillis now() { return SystemClock().unix_millis(); }

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

/// A size in words or digits as CLI11 reads it ("64MiB").
std::string check_bytes(const std::string& text) {
  const auto bytes = parse_bytes(text);
  return bytes ? std::string() : bytes.error().message;
}
std::uint64_t to_bytes(const std::string& text) { return text.empty() ? 0 : parse_bytes(text).value_or(0); }

/// "90", "45s", "30m", "12h", "7d" in seconds.
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

Result<json::object> labels_of(const std::vector<std::string>& labels) {
  json::object out;
  for (const std::string& label : labels) {
    const std::size_t equals = label.find('=');
    if (equals == 0 || equals == std::string::npos)
      return fail(ErrorCode::kInvalid, "--label", "'{}' is not KEY=VALUE", label);
    out[label.substr(0, equals)] = label.substr(equals + 1);
  }
  return out;
}

/// The items of a list, over all its pages.
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

/// The member "id" of an answer.
Result<std::string> id_of(const json::value& answer) {
  const json::object* object = RETORT_TRY(as_object(answer, "answer"));
  return json_string(*object, "id", "answer");
}

/// A path as the coordinator sees it: absolute, when it is on this host.
std::string server_path(const Rest& rest, const std::string& path) {
  return rest.local() ? std::filesystem::absolute(path).lexically_normal().string() : path;
}

class Program {
 public:
  int run(int argc, char** argv);

 private:
  using Action = std::function<Result<int>()>;

  CLI::App* verb(CLI::App* noun, const std::string& name, const std::string& what,
                 const std::string& examples, Action action) {
    CLI::App* app = noun->add_subcommand(name, what);
    if (!examples.empty()) app->footer("Examples:\n" + examples);
    app->callback([this, action = std::move(action)] { action_ = action; });
    return app;
  }
  CLI::App* noun(const std::string& name, const std::string& what) {
    CLI::App* app = app_.add_subcommand(name, what);
    app->require_subcommand(1);
    return app;
  }
  Result<Rest> connect() {
    const char* home = std::getenv("HOME");
    const std::filesystem::path fallback =
        home == nullptr ? std::filesystem::path() : std::filesystem::path(home) / ".config/retort/token";
    return Rest::open(
        {options_.server, RETORT_TRY(find_token(options_.token, options_.token_file, fallback))});
  }
  /// Prints one object.
  Result<int> show(const Result<json::value>& answer) {
    if (!answer) return fail(answer.error());
    if (options_.as_json() || !answer->is_object())
      print(pretty_json(*answer));
    else
      print(object_view(answer->get_object(), now()));
    return 0;
  }
  Result<int> list(const std::string& path, const std::function<std::string(const json::array&)>& table) {
    Rest rest = RETORT_TRY(connect());
    const json::array items = RETORT_TRY(items_of(rest, path));
    print(options_.as_json() ? pretty_json(items) : table(items));
    return 0;
  }
  /// get/ls/show of a noun, where nothing is special about them.
  void add_ls(CLI::App* app, const std::string& path, std::string (*table)(const json::array&, UnixMillis)) {
    verb(app, "ls", "list them", "", [this, path, table] {
      return list(path, [table](const json::array& items) { return table(items, now()); });
    });
  }
  void add_show(CLI::App* app, const std::string& path, const std::string& id_name) {
    CLI::App* show_verb = verb(app, "show", "show one", "", [this, path]() -> Result<int> {
      Rest rest = RETORT_TRY(connect());
      return show(rest.get(path + "/" + escape_url(id_)));
    });
    show_verb->add_option(id_name, id_)->required();
  }
  void add_remove(CLI::App* app, const std::string& name, const std::string& what, const std::string& path,
                  const std::string& id_name, const std::string& done) {
    CLI::App* remove = verb(app, name, what, "", [this, path, done]() -> Result<int> {
      Rest rest = RETORT_TRY(connect());
      RETORT_TRY(rest.remove(path + "/" + escape_url(id_)));
      if (!options_.as_json()) print(fmt::format("{} {}\n", harmless(id_), done));
      return 0;
    });
    remove->add_option(id_name, id_)->required();
  }

  void add_teacher();
  void add_dataset();
  void add_class();
  void add_job();
  void add_tailor();
  void add_artifact();
  void add_device();
  void add_token();
  void add_rest();
  std::string completion() const;

  CLI::App app_{"Retort: one teacher model, a fitted student for every device of a fleet.", "retort"};
  Options options_;
  Action action_;
  // Arguments of the commands; one command runs in a process, so they share what means the same.
  std::string id_, name_, path_, class_, file_, duration_, metric_;
  std::string teacher_, train_, held_out_, tokens_text_;
  std::vector<std::string> ids_, classes_, labels_;
  bool watch_ = false, dry_run_ = false, serve_ = false, upload_ = false, no_assign_ = false;
  std::uint64_t number_ = 0;
  std::string min_memory_, max_memory_, artifact_bytes_, serving_memory_, architecture_, kind_ = "enrolment";
  double min_cpu_ = 0, max_cpu_ = 0, p95_ = 0;
  std::int64_t priority_ = 0;
};

void Program::add_teacher() {
  CLI::App* app = noun("teacher", "teacher models");
  CLI::App* import =
      verb(app, "import", "import a Hugging Face folder (config.json, model.safetensors, tokenizer.json)",
           "  retort teacher import ./my-model --name demo\n  retort teacher import ./my-model --name demo "
           "--serve",
           [this]() -> Result<int> {
             Rest rest = RETORT_TRY(connect());
             json::object body{{"path", server_path(rest, path_)}};
             if (!name_.empty()) body["name"] = name_;
             json::value teacher = RETORT_TRY(rest.post("/v1/teachers", body));
             if (serve_) {
               const std::string id = RETORT_TRY(id_of(teacher));
               RETORT_TRY(rest.post("/v1/teachers/" + id + "/serve", json::object()));
             }
             return show(teacher);
           });
  import->add_option("FOLDER", path_, "on the coordinator's host")->required();
  import->add_option("--name", name_, "a name to call it by");
  import->add_flag("--serve", serve_, "make it the served one at once");
  add_ls(app, "/v1/teachers", teachers_table);
  add_show(app, "/v1/teachers", "TEACHER");
  CLI::App* serve =
      verb(app, "serve", "make it the teacher that the coordinator serves", "  retort teacher serve demo",
           [this]() -> Result<int> {
             Rest rest = RETORT_TRY(connect());
             return show(rest.post("/v1/teachers/" + escape_url(id_) + "/serve", json::object()));
           });
  serve->add_option("TEACHER", id_, "name or id")->required();
  add_remove(app, "rm", "remove one", "/v1/teachers", "TEACHER", "removed");
}

void Program::add_dataset() {
  CLI::App* app = noun("dataset", "texts to train and to judge on");
  CLI::App* import = verb(
      app, "import", "import a JSONL file of {\"text\": …} lines",
      "  retort dataset import distil.jsonl --name descriptions\n"
      "  retort --server https://far.example dataset import distil.jsonl --upload",
      [this]() -> Result<int> {
        Rest rest = RETORT_TRY(connect());
        if (upload_ || !rest.local())
          return show(rest.upload("/v1/datasets" + query_of({{"name", name_}}), path_, "application/jsonl"));
        json::object body{{"path", server_path(rest, path_)}};
        if (!name_.empty()) body["name"] = name_;
        return show(rest.post("/v1/datasets", body));
      });
  import->add_option("FILE", path_)->required();
  import->add_option("--name", name_, "a name to call it by");
  import->add_flag("--upload", upload_, "send the bytes even to a coordinator on this host");
  add_ls(app, "/v1/datasets", datasets_table);
  add_show(app, "/v1/datasets", "DATASET");
}

void Program::add_class() {
  CLI::App* app = noun("class", "classes of devices: rules, budgets, what they should serve");
  verb(app, "ls", "list them", "", [this] { return list("/v1/classes", classes_table); });
  add_show(app, "/v1/classes", "CLASS");
  CLI::App* set =
      verb(app, "set", "define a class, or change what is given of one",
           "  retort class set small --max-memory 48MiB --file 1.2MiB\n"
           "  retort class set cameras --label site=hall --priority 10 --file 3M --p95-token-seconds 0.02",
           [this]() -> Result<int> {
             Rest rest = RETORT_TRY(connect());
             const std::string path = "/v1/classes/" + escape_url(id_);
             json::object body{{"rules", json::object()}, {"budgets", json::object()}};
             const Result<json::value> before = rest.get(path);
             if (!before && before.error().code != ErrorCode::kNotFound) return fail(before.error());
             if (before && before->is_object())
               for (const char* part : {"priority", "rules", "budgets"})
                 if (json_has(before->get_object(), part)) body[part] = before->get_object().at(part);
             if (!body["rules"].is_object() || !body["budgets"].is_object())
               return fail(ErrorCode::kInternal, path, "the coordinator's answer is not a class");
             json::object& rules = body["rules"].get_object();
             json::object& budgets = body["budgets"].get_object();
             const CLI::App* given = app_.get_subcommand("class")->get_subcommand("set");
             const auto has = [given](const char* option) { return given->count(option) > 0; };
             if (has("--priority")) body["priority"] = priority_;
             if (has("--min-memory")) rules["min_memory_bytes"] = to_bytes(min_memory_);
             if (has("--max-memory")) rules["max_memory_bytes"] = to_bytes(max_memory_);
             if (has("--min-cpu")) rules["min_cpu"] = min_cpu_;
             if (has("--max-cpu")) rules["max_cpu"] = max_cpu_;
             if (has("--architecture")) rules["architecture"] = architecture_;
             if (has("--label")) rules["labels"] = RETORT_TRY(labels_of(labels_));
             if (has("--file")) budgets["artifact_bytes"] = to_bytes(artifact_bytes_);
             if (has("--serving-memory")) budgets["serving_memory_bytes"] = to_bytes(serving_memory_);
             if (has("--p95-token-seconds")) budgets["p95_token_seconds"] = p95_;
             return show(rest.put(path, body));
           });
  const CLI::Validator size(check_bytes, "SIZE");
  set->add_option("CLASS", id_)->required();
  set->add_option("--priority", priority_, "of the classes that match a device, the highest wins");
  set->add_option("--min-memory", min_memory_, "rule: the device's memory budget is at least this")
      ->check(size);
  set->add_option("--max-memory", max_memory_, "rule: … and at most this (0: no limit)")->check(size);
  set->add_option("--min-cpu", min_cpu_, "rule: at least so many cores' worth")
      ->check(CLI::NonNegativeNumber);
  set->add_option("--max-cpu", max_cpu_, "rule: at most so many (0: no limit)")
      ->check(CLI::NonNegativeNumber);
  set->add_option("--architecture", architecture_, "rule: x86_64, aarch64, …");
  set->add_option("--label", labels_, "rule: KEY=VALUE, as the agent was started with; may be repeated");
  set->add_option("--file", artifact_bytes_, "budget: the student's file is at most this")->check(size);
  set->add_option("--serving-memory", serving_memory_, "budget: memory of retort-serve with it")->check(size);
  set->add_option("--p95-token-seconds", p95_, "budget: 95 of 100 tokens take at most this")
      ->check(CLI::NonNegativeNumber);
  CLI::App* assign = verb(app, "assign", "say what the devices of a class should serve",
                          "  retort class assign small 3f2a9c01d5e7\n  retort class assign small none",
                          [this]() -> Result<int> {
                            Rest rest = RETORT_TRY(connect());
                            json::object body{{"artifact", nullptr}};
                            if (file_ != "none") body["artifact"] = file_;
                            return show(rest.post("/v1/classes/" + escape_url(id_) + "/assign", body));
                          });
  assign->add_option("CLASS", id_)->required();
  assign->add_option("ARTIFACT", file_, "its SHA-256 (8 characters suffice), or none")->required();
}

void Program::add_job() {
  CLI::App* app = noun("job", "compression jobs");
  CLI::App* submit = verb(app, "submit", "start a job from a recipe",
                          "  retort job submit recipe.yaml --class small --watch", [this]() -> Result<int> {
                            const std::string recipe = RETORT_TRY(read_file(path_, 1 << 20));
                            Rest rest = RETORT_TRY(connect());
                            json::object body{{"recipe", recipe}};
                            if (!class_.empty()) body["class"] = class_;
                            if (!name_.empty()) body["name"] = name_;
                            const json::value job = RETORT_TRY(rest.post("/v1/jobs", body));
                            if (!watch_) return show(job);
                            return watch_jobs(rest, {RETORT_TRY(id_of(job))});
                          });
  submit->add_option("RECIPE", path_, "a YAML file; its teacher and data are ids or names")->required();
  submit->add_option("--class", class_, "the class of devices it is for");
  submit->add_option("--name", name_);
  submit->add_flag("--watch", watch_, "show its progress to the end");
  add_ls(app, "/v1/jobs", jobs_table);
  add_show(app, "/v1/jobs", "JOB");
  CLI::App* logs = verb(
      app, "logs", "print its log (JSON lines)", "  retort job logs job-0123456789ab",
      [this]() -> Result<int> {
        Rest rest = RETORT_TRY(connect());
        for (std::uint64_t offset = 0;;) {
          const Rest::Text text =
              RETORT_TRY(rest.get_text(fmt::format("/v1/jobs/{}/logs?offset={}", escape_url(id_), offset)));
          print(text.body);
          if (text.next_offset <= offset) return 0;
          offset = text.next_offset;
        }
      });
  logs->add_option("JOB", id_)->required();
  CLI::App* cancel = verb(app, "cancel", "stop it at its next step", "  retort job cancel job-0123456789ab",
                          [this]() -> Result<int> {
                            Rest rest = RETORT_TRY(connect());
                            return show(rest.post("/v1/jobs/" + escape_url(id_) + "/cancel", json::object()));
                          });
  cancel->add_option("JOB", id_)->required();
  CLI::App* watch = verb(app, "watch", "show progress to the end; exits 0 when all succeeded",
                         "  retort job watch job-0123456789ab", [this]() -> Result<int> {
                           Rest rest = RETORT_TRY(connect());
                           return watch_jobs(rest, ids_);
                         });
  watch->add_option("JOB", ids_, "one or more")->required();
}

void Program::add_tailor() {
  CLI::App* app = verb(
      &app_, "tailor", "make the best student for each class of devices: one job a class",
      "  retort tailor --teacher demo --class small --class medium \\\n"
      "    --train descriptions --held-out judged --tokens 300000 --watch\n"
      "  retort tailor --teacher demo --class small --train descriptions --held-out judged --dry-run",
      [this]() -> Result<int> {
        Rest rest = RETORT_TRY(connect());
        json::object body{
            {"teacher", teacher_}, {"train", train_}, {"held_out", held_out_}, {"dry_run", dry_run_}};
        body["classes"] = json::array(classes_.begin(), classes_.end());
        if (number_ > 0) body["tokens"] = number_;
        if (no_assign_) body["assign"] = false;
        const json::value answer = RETORT_TRY(rest.post("/v1/tailor", body));
        const json::object* object = RETORT_TRY(as_object(answer, "answer"));
        const json::array* jobs = RETORT_TRY(json_array(*object, "jobs", "answer"));
        if (options_.as_json() && !watch_) return show(answer);
        if (dry_run_) {
          for (const json::value& job : *jobs)
            print((job.is_object() ? object_view(job.get_object(), now()) : json::serialize(job)) + "\n");
          return 0;
        }
        if (!watch_) {
          print(jobs_table(*jobs, now()));
          return 0;
        }
        std::vector<std::string> ids;
        for (const json::value& job : *jobs) ids.push_back(RETORT_TRY(id_of(job)));
        return watch_jobs(rest, ids);
      });
  app->add_option("--teacher", teacher_, "name or id")->required();
  app->add_option("--class", classes_, "may be repeated")->required();
  app->add_option("--train", train_, "dataset to distil on")->required();
  app->add_option("--held-out", held_out_, "dataset to judge on; no text of it may be in --train")
      ->required();
  app->add_option("--tokens", number_, "how many tokens each student is distilled on");
  app->add_flag("--watch", watch_, "show progress to the end");
  app->add_flag("--dry-run", dry_run_, "only say what would be done, and what it would cost");
  app->add_flag("--no-assign", no_assign_, "do not roll the students out to their classes");
}

void Program::add_artifact() {
  CLI::App* app = noun("artifact", "students, named by the SHA-256 of their file");
  add_ls(app, "/v1/artifacts", artifacts_table);
  add_show(app, "/v1/artifacts", "SHA256");
  CLI::App* get =
      verb(app, "get", "download one and check it against its name",
           "  retort artifact get 3f2a9c01d5e7 student.gguf", [this]() -> Result<int> {
             Rest rest = RETORT_TRY(connect());
             const std::string path = "/v1/artifacts/" + escape_url(id_);
             const json::value artifact = RETORT_TRY(rest.get(path));
             const json::object* object = RETORT_TRY(as_object(artifact, path));
             const std::string sha256 = RETORT_TRY(json_string(*object, "sha256", path));
             const std::uint64_t bytes = RETORT_TRY(json_uint(*object, "bytes", path));
             const bool terminal = ::isatty(STDERR_FILENO) == 1;
             const std::filesystem::path part = file_ + ".part";
             RETORT_TRY(rest.download(path + "/content", part, bytes, [&](std::uint64_t done) {
               if (terminal)
                 std::fprintf(stderr, "\r%s %s",
                              bar(static_cast<double>(done) / static_cast<double>(bytes), 30).c_str(),
                              done == bytes ? "\n" : "");
             }));
             const std::string found = RETORT_TRY(sha256_file_hex(part));
             if (found != sha256) {
               std::filesystem::remove(part);
               return fail(ErrorCode::kCorrupt, file_, "the bytes hash to {}, not to {}", found, sha256);
             }
             std::filesystem::rename(part, file_);
             if (!options_.as_json()) print(fmt::format("{}  {}\n", file_, format_bytes(bytes)));
             return 0;
           });
  get->add_option("SHA256", id_)->required();
  get->add_option("FILE", file_)->required();
  CLI::App* manifest =
      verb(app, "manifest", "print its signed manifest (TUF targets metadata)", "", [this]() -> Result<int> {
        Rest rest = RETORT_TRY(connect());
        print(RETORT_TRY(rest.get_text("/v1/artifacts/" + escape_url(id_) + "/manifest")).body + "\n");
        return 0;
      });
  manifest->add_option("SHA256", id_)->required();
}

void Program::add_device() {
  CLI::App* app = noun("device", "the fleet");
  add_ls(app, "/v1/devices", devices_table);
  add_show(app, "/v1/devices", "DEVICE");
  add_remove(app, "revoke", "cut a device off: its key is refused from now on", "/v1/devices", "DEVICE",
             "revoked");
}

void Program::add_token() {
  CLI::App* app = noun("token", "what lets operators and devices in");
  CLI::App* create = verb(app, "create", "make one; it is shown once",
                          "  retort token create --kind enrolment --uses 100 --expires 7d\n"
                          "  retort token create --kind operator --name ci",
                          [this]() -> Result<int> {
                            json::object body{{"kind", kind_}};
                            if (!name_.empty()) body["name"] = name_;
                            if (number_ > 0) body["uses"] = number_;
                            if (!duration_.empty())
                              body["expires_seconds"] = RETORT_TRY(parse_duration(duration_));
                            Rest rest = RETORT_TRY(connect());
                            const json::value answer = RETORT_TRY(rest.post("/v1/tokens", body));
                            if (options_.as_json()) return show(answer);
                            const json::object* object = RETORT_TRY(as_object(answer, "answer"));
                            print(RETORT_TRY(json_string(*object, "token", "answer")) + "\n");
                            return 0;
                          });
  create->add_option("--kind", kind_, "operator or enrolment (of devices)")
      ->capture_default_str()
      ->check(CLI::IsMember({"operator", "enrolment"}));
  create->add_option("--name", name_);
  create->add_option("--uses", number_, "how many devices may enrol with it");
  create->add_option("--expires", duration_, "after 90, 45s, 30m, 12h or 7d");
  add_ls(app, "/v1/tokens", tokens_table);
  add_remove(app, "revoke", "refuse it from now on", "/v1/tokens", "TOKEN-ID", "revoked");
}

void Program::add_rest() {
  CLI::App* telemetry = verb(
      &app_, "telemetry", "what devices measured",
      "  retort telemetry --device dev-0011223344556677 --since 1h", [this]() -> Result<int> {
        std::string since;
        if (!duration_.empty())
          since =
              std::to_string(now() - static_cast<UnixMillis>(RETORT_TRY(parse_duration(duration_)) * 1000));
        return list("/v1/telemetry" + query_of({{"device", id_}, {"metric", metric_}, {"since", since}}),
                    telemetry_table);
      });
  telemetry->add_option("--device", id_);
  telemetry->add_option("--metric", metric_);
  telemetry->add_option("--since", duration_, "45s, 30m, 12h or 7d back");
  verb(&app_, "status", "the coordinator and its fleet in short", "  retort status\n  retort status -o json",
       [this]() -> Result<int> {
         Rest rest = RETORT_TRY(connect());
         return show(rest.get("/v1/status"));
       });
  CLI::App* complete =
      verb(&app_, "completion", "print a completion script for a shell",
           "  retort completion bash > /etc/bash_completion.d/retort", [this]() -> Result<int> {
             print(completion());
             return 0;
           });
  complete->add_option("SHELL", kind_, "bash")->required()->check(CLI::IsMember({"bash"}));
}

/// Commands and long options, by the words typed so far.
std::string Program::completion() const {
  std::string cases;
  const std::function<void(const CLI::App*, const std::string&)> visit = [&](const CLI::App* app,
                                                                             const std::string& path) {
    std::string words;
    for (const CLI::App* child : app->get_subcommands([](const CLI::App*) { return true; })) {
      words += child->get_name() + " ";
      visit(child, path.empty() ? child->get_name() : path + " " + child->get_name());
    }
    for (const CLI::App* from : {app, &app_}) {
      for (const CLI::Option* option : from->get_options())
        for (const std::string& name : option->get_lnames()) words += "--" + name + " ";
      if (app == &app_) break;
    }
    cases += fmt::format("    \"{}\") words=\"{}\" ;;\n", path, words);
  };
  visit(&app_, "");
  return "_retort() {\n  local path= word words=\n  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
         "    [[ $word == -* ]] || path+=\"${path:+ }$word\"\n  done\n"
         "  while :; do\n    case \"$path\" in\n" +
         cases +
         "    esac\n    [[ -n $words || $path != *\" \"* ]] && break\n    path=${path% *}\n  done\n"
         "  COMPREPLY=($(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n"
         "  [[ -n ${COMPREPLY[*]} ]] || COMPREPLY=($(compgen -f -- \"${COMP_WORDS[COMP_CWORD]}\"))\n}\n"
         "complete -F _retort retort\n";
}

int Program::run(int argc, char** argv) {
  app_.fallthrough();  // so that -o, --server and the like may stand after the command too
  app_.require_subcommand(1);
  app_.set_version_flag("--version", std::string("retort ") + RETORT_VERSION);
  app_.add_option("--server", options_.server, "the coordinator's REST address")
      ->capture_default_str()
      ->envname("RETORT_SERVER");
  app_.add_option("--token", options_.token, "operator token; better in a file or the environment")
      ->envname("RETORT_TOKEN");
  app_.add_option("--token-file", options_.token_file, "file that holds it (default: ~/.config/retort/token)")
      ->envname("RETORT_TOKEN_FILE");
  app_.add_option("-o,--output", options_.output, "table or json")
      ->capture_default_str()
      ->check(CLI::IsMember({"table", "json"}));
  app_.footer(
      "Examples:\n  retort teacher import ./my-model --name demo --serve\n"
      "  retort class set small --max-memory 64MiB --file 1.2MiB\n"
      "  retort tailor --teacher demo --class small --train text --held-out judged --tokens 300000 --watch\n"
      "  retort device ls\n"
      "Exit status: 0 done, 1 failure, 2 wrong usage, 3 bad input, 4 out of budget, 5 coordinator not "
      "reached,\n"
      "6 denied, 130 interrupted.");
  add_teacher();
  add_dataset();
  add_class();
  add_job();
  add_tailor();
  add_artifact();
  add_device();
  add_token();
  add_rest();
  try {
    app_.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app_.exit(error) == 0 ? 0 : 2;
  }
  const Result<int> result = action_();
  if (result) return *result;
  std::fprintf(stderr, "retort: %s\n", result.error().describe().c_str());
  return exit_code(result.error().code);
}

}  // namespace
}  // namespace retort::cli

int main(int argc, char** argv) {
  try {
    return retort::cli::Program().run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "retort: %s\n", error.what());
    return 1;
  }
}
