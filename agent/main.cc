#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <charconv>
#include <cstdio>

#include "agent/control/agent.h"
#include "agent/update/seal_key_file.h"
#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/core/units.h"

namespace retort {
namespace {
namespace fs = std::filesystem;

struct Arguments {
  fs::path state, run, keys, token_file, serve_binary, status_file;
  std::string coordinator, token, server_key, name, hardware_id, serve_host = "127.0.0.1", memory_budget,
                                                                 disk_budget, supervisor;
  std::vector<std::string> labels;
  std::uint16_t serve_port = 0;
  double cpu_threads = 0, probation_seconds = 5;
  std::int64_t decode_after = 30;
  bool json = false, stop_serve_on_exit = false, seal = false, decode = false;
};

constexpr std::string_view kTokenPrefix = "retort-enrol:";
constexpr std::size_t kKeyLength = 40;  // Z85, which has ':' among its characters

struct Token {
  std::string server_key, secret;
};
Result<Token> parse_token(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ' || text.back() == '\r'))
    text.remove_suffix(1);
  const std::size_t secret = kTokenPrefix.size() + kKeyLength + 1;
  if (!text.starts_with(kTokenPrefix) || text.size() <= secret || text[secret - 1] != ':')
    return fail(ErrorCode::kInvalid, "--token",
                "not an enrolment token (they look like \"retort-enrol:<server key>:<secret>\"; the operator "
                "makes one "
                "with: retort token create --kind enrolment)");
  return Token{std::string(text.substr(kTokenPrefix.size(), kKeyLength)), std::string(text.substr(secret))};
}

Result<DeclaredBudgets> parse_budgets(const Arguments& arguments) {
  DeclaredBudgets budgets;
  if (!arguments.memory_budget.empty())
    budgets.memory_bytes = RETORT_TRY(parse_bytes(arguments.memory_budget));
  if (!arguments.disk_budget.empty()) budgets.disk_bytes = RETORT_TRY(parse_bytes(arguments.disk_budget));
  budgets.cpu_threads = arguments.cpu_threads;
  return budgets;
}

Result<std::map<std::string, std::string>> parse_labels(const std::vector<std::string>& labels) {
  std::map<std::string, std::string> out;
  for (const std::string& label : labels) {
    const std::size_t equals = label.find('=');
    if (equals == 0 || equals == std::string::npos)
      return fail(ErrorCode::kInvalid, "--label", "\"{}\" is not key=value", label);
    out[label.substr(0, equals)] = label.substr(equals + 1);
  }
  return out;
}

/// What the device calls itself for pre-authorised tokens: as given, else from the machine id, which is not
/// to leave the machine as it is (machine-id(5)).
std::string hardware_id(const Arguments& arguments) {
  if (!arguments.hardware_id.empty()) return arguments.hardware_id;
  const std::string machine = read_file("/etc/machine-id", 4096).value_or("");
  return machine.empty() ? "" : sha256_hex("retort-agent " + machine).substr(0, 32);
}

fs::path keys_folder(const Arguments& arguments) {
  return arguments.keys.empty() ? fs::absolute(arguments.state) / "keys" : fs::absolute(arguments.keys);
}

/// Where programs look for it, STATE/run leads to a folder that is elsewhere. What tells of students that run
/// is taken along from where it was.
Result<fs::path> open_run_folder(const Arguments& arguments) {
  const fs::path usual = (fs::absolute(arguments.state) / "run").lexically_normal();
  const fs::path wanted = arguments.run.empty() ? usual : fs::absolute(arguments.run).lexically_normal();
  if (wanted == usual.parent_path() || wanted == usual.parent_path() / "")
    return fail(ErrorCode::kInvalid, "--run", "{} is the state folder itself", wanted.string());
  std::error_code error;
  const fs::path link = fs::read_symlink(usual, error), before = error ? usual : link;
  if (wanted == usual && !link.empty()) fs::remove(usual, error);  // of an agent that ran with --run
  RETORT_TRY(make_folders(wanted));
  if (before == wanted) return wanted;
  for (const char* slot : {"a", "b"})
    for (const char* suffix : {".json", ".port", ".artifact"}) {
      const std::string name = std::string("serve-") + slot + suffix;
      fs::copy_file(before / name, wanted / name, fs::copy_options::skip_existing, error);
    }
  if (wanted == usual) return wanted;
  fs::remove_all(usual, error);
  fs::create_directory_symlink(wanted, usual, error);
  return wanted;
}

/// A state that cannot be read is put aside: better to serve what is in the slots, and enrol anew, than to
/// stand still.
Result<Spool> open_state(const fs::path& file) {
  Result<Spool> spool = Spool::open(file);
  if (spool || spool.error().code != ErrorCode::kCorrupt) return spool;
  const std::string aside = file.string() + ".damaged";
  std::error_code error;
  for (const char* part : {"-wal", ""}) {
    fs::remove(aside + part, error);
    if (fs::exists(file.string() + part, error)) fs::rename(file.string() + part, aside + part, error);
    if (error) return spool;
  }
  log_error("{}; it is kept as {}, and this device has to enrol anew", spool.error().describe(), aside);
  return Spool::open(file);
}

/// Where there is none that can be used, and the disk takes no new one, what is in the slots is served all
/// the same.
Result<Spool> open_or_imagine_state(const fs::path& file) {
  Result<Spool> spool = open_state(file);
  const auto usable = [](ErrorCode code) {
    return code == ErrorCode::kCorrupt || code == ErrorCode::kIo || code == ErrorCode::kOutOfBudget;
  };
  if (spool || !usable(spool.error().code)) return spool;
  std::error_code error;
  const fs::path slots = file.parent_path() / "slots";
  if (!fs::exists(slots / "a/manifest.json", error) && !fs::exists(slots / "b/manifest.json", error))
    return spool;
  log_error(
      "{}: serving what is in the slots, and nothing else until the disk can be written and the agent is "
      "started again",
      spool.error().describe());
  return Spool::empty(file);
}

/// The device's key pair; one that is torn is put aside, as if there were none: the device must enrol anew.
Result<CurveKeys> device_keys(const fs::path& file) {
  Result<CurveKeys> keys = load_or_make_curve_keys(file);
  if (keys || keys.error().code != ErrorCode::kCorrupt) return keys;
  std::error_code error;
  fs::rename(file, file.string() + ".unusable", error);
  if (error) return keys;
  log_error("{}; it is kept as {}.unusable, and this device has to enrol anew", keys.error().describe(),
            file.string());
  return load_or_make_curve_keys(file);
}

/// --serve-binary, or the one beside this program, or the one on PATH.
fs::path serve_binary(const Arguments& arguments) {
  if (!arguments.serve_binary.empty()) return arguments.serve_binary;
  std::error_code error;
  const fs::path beside = fs::read_symlink("/proc/self/exe", error).parent_path() / "retort-serve";
  return fs::exists(beside, error) ? beside : fs::path("retort-serve");
}

Result<void> run(const Arguments& arguments) {
  AgentOptions options;
  options.version = RETORT_VERSION;
  std::error_code error;
  options.own_binary = fs::read_symlink("/proc/self/exe", error);
  options.state_folder = fs::absolute(arguments.state);
  if (!arguments.status_file.empty()) options.status_file = fs::absolute(arguments.status_file);
  options.coordinator = arguments.coordinator;
  options.name = arguments.name;
  options.hardware_id = hardware_id(arguments);
  options.labels = RETORT_TRY(parse_labels(arguments.labels));
  options.budgets = RETORT_TRY(parse_budgets(arguments));
  options.serve_host = arguments.serve_host;
  options.serve_port = arguments.serve_port;
  options.stop_serve_on_exit = arguments.stop_serve_on_exit;
  options.probation =
      std::chrono::milliseconds(static_cast<std::int64_t>(arguments.probation_seconds * 1000));
  options.decode_after = std::chrono::seconds(arguments.decode_after);
  if (options.name.empty()) {
    char host[256] = "";
    ::gethostname(host, sizeof host - 1);
    options.name = host;
  }
  options.server_key = arguments.server_key;
  if (!options.server_key.empty() && options.server_key.size() != kKeyLength)
    return fail(ErrorCode::kInvalid, "--server-key", "a Z85 key has {} characters, this one {}", kKeyLength,
                options.server_key.size());

  for (const char* folder : {"slots/a", "slots/b"}) RETORT_TRY(make_folders(options.state_folder / folder));
  options.keys_folder = keys_folder(arguments);
  RETORT_TRY(make_folders(options.keys_folder));
  const Result<FileLock> lock = FileLock::take(options.state_folder / "agent.lock");
  if (!lock && lock.error().code == ErrorCode::kConflict)
    return fail(lock.error().code, lock.error().where, "{}: another retort-agent runs on this state folder",
                lock.error().message);
  if (!lock) return fail(lock.error());
  options.run_folder = RETORT_TRY(open_run_folder(arguments));
  FileLock run_lock;  // of another state's agent
  if (!arguments.run.empty()) {
    Result<FileLock> taken = FileLock::take(options.run_folder / "agent.lock");
    if (!taken && taken.error().code == ErrorCode::kConflict)
      return fail(taken.error().code, taken.error().where, "{}: another retort-agent has this --run folder",
                  taken.error().message);
    run_lock = RETORT_TRY(std::move(taken));
  }
  Spool spool = RETORT_TRY(open_or_imagine_state(options.state_folder / "state.db"));
  const bool enrolled = !RETORT_TRY(spool.get("device_id")).value_or("").empty();
  std::string token = arguments.token;
  if (token.empty() && !arguments.token_file.empty()) {
    Result<std::string> text = read_file(arguments.token_file, 4096);
    if (text)
      token = *text;
    else if (!enrolled)  // afterwards the token is no longer needed
      log_warn("{}", text.error().describe());
  }
  if (!token.empty()) {
    Token parsed = RETORT_TRY(parse_token(token));
    options.token_secret = std::move(parsed.secret);
    if (options.server_key.empty()) options.server_key = std::move(parsed.server_key);
  }
  CurveKeys keys = RETORT_TRY(device_keys(options.keys_folder / "curve"));
  options.sealing.seal = arguments.seal;
  options.sealing.key = RETORT_TRY(seal_key_at_start(options.keys_folder, keys, arguments.seal));

  ServeOptions serve;
  serve.seal = arguments.seal;
  File seal_key;  // open as long as the agent runs: a student reads it when it starts
  if (options.sealing.key) {
    seal_key = RETORT_TRY(seal_key_in_memory(*options.sealing.key));
    serve.seal_key = fmt::format("/proc/{}/fd/{}", ::getpid(), seal_key.fd());
  }
  serve.state_folder = options.state_folder;
  serve.run_folder = options.run_folder;
  serve.binary = serve_binary(arguments);
  serve.agent_binary = options.own_binary;
  serve.host = options.serve_host;
  serve.threads = static_cast<std::uint32_t>(options.budgets.cpu_threads);
  if (options.budgets.cpu_threads > 0 && serve.threads == 0) serve.threads = 1;
  // The agent itself needs some of the device's budget.
  constexpr std::uint64_t kOwnBytes = 12u << 20;
  if (options.budgets.memory_bytes > 2 * kOwnBytes)
    serve.memory_limit_bytes = options.budgets.memory_bytes - kOwnBytes;

  boost::asio::io_context reactor(1);
  SystemClock clock;
  SystemRandom random;
  auto supervisor = RETORT_TRY(arguments.supervisor == "systemd" ? make_systemd_supervisor(reactor, serve)
                                                                 : make_process_supervisor(reactor, serve));
  const std::unique_ptr<Agent> agent = RETORT_TRY(Agent::open(
      reactor, std::move(options), std::move(spool), std::move(keys), std::move(supervisor), clock, random));
  boost::asio::signal_set signals(reactor, SIGTERM, SIGINT);
  signals.async_wait([&](const boost::system::error_code& failed, int number) {
    if (failed) return;
    log_info("signal {}: the agent ends{}", number,
             arguments.stop_serve_on_exit ? "" : ", what it serves serves on");
    agent->stop([&] { reactor.stop(); });
  });
  RETORT_TRY(agent->start());
  reactor.run();
  return {};
}

Result<void> profile(const Arguments& arguments) {
  ProfileOptions options;
  options.budgets = RETORT_TRY(parse_budgets(arguments));
  options.labels = RETORT_TRY(parse_labels(arguments.labels));
  options.version = RETORT_VERSION;
  if (!arguments.state.empty()) options.state_folder = arguments.state;
  if (arguments.decode) options.serve_binary = serve_binary(arguments);
  const DeviceProfile p = measure_profile(options);
  if (arguments.json) {
    fmt::print("{}", pretty_json(profile_to_json(p)));
    return {};
  }
  fmt::print("cpu            {} ({}, {} cores, {:.3g} allowed)\n", p.cpu_model, p.architecture, p.cores,
             p.cpu_allowance);
  fmt::print("features       {}\n", fmt::join(p.isa_features, " "));
  fmt::print("memory         {} of {} ({})\n", format_bytes(p.memory_budget_bytes),
             format_bytes(p.memory_bytes), p.budget_source);
  fmt::print("disk free      {}\n", format_bytes(p.disk_free_bytes));
  fmt::print("bandwidth      {:.1f} GB/s (one thread, read)\n", p.memory_bandwidth_bytes_per_second / 1e9);
  fmt::print("matvec         F32 {:.2f} GFLOP/s, Q8_0 {:.2f} GOP/s (one thread)\n", p.matvec_f32_flops / 1e9,
             p.matvec_q8_0_ops / 1e9);
  fmt::print("accelerators   {}\n",
             p.accelerators.empty() ? "none seen" : fmt::format("{}", fmt::join(p.accelerators, ", ")));
  fmt::print("energy meter   {}\n", p.energy_meter.empty() ? "none" : p.energy_meter);
  for (const DecodeSample& s : p.decode)
    fmt::print("decode         {:<5} {:>2} layers of {:>3}, {:>5} tokens: {:.1f} µs\n", s.format, s.layers,
               s.hidden, s.vocabulary, s.seconds * 1e6);
  for (const std::string& note : p.notes) fmt::print("note           {}\n", note);
  return {};
}

/// Before enrolment, for a token that names this device; makes the key when there is none.
Result<void> identity(const Arguments& arguments) {
  RETORT_TRY(make_folders(keys_folder(arguments)));
  const CurveKeys keys = RETORT_TRY(load_or_make_curve_keys(keys_folder(arguments) / "curve"));
  if (arguments.json)
    fmt::print("{}", pretty_json(json::object{{"public_key", keys.public_key},
                                              {"hardware_id", hardware_id(arguments)}}));
  else
    fmt::print("public key   {}\nhardware id  {}\n", keys.public_key, hardware_id(arguments));
  return {};
}

Result<void> status(const Arguments& arguments) {
  const fs::path file = (arguments.run.empty() ? arguments.state / "run" : arguments.run) / "status.json";
  Result<std::string> text = read_file(file, 1 << 20);
  if (!text)
    return fail(ErrorCode::kNotFound, file.string(),
                "no status: has retort-agent run with this state folder?");
  const json::value value = RETORT_TRY(parse_json(*text, file.string()));
  const bool running = FileLock::held(arguments.state / "agent.lock");
  if (arguments.json) {
    json::object object = value.is_object() ? value.as_object() : json::object{};
    object["running"] = running;
    fmt::print("{}", pretty_json(object));
  } else {
    fmt::print("{}{}", running ? "" : "the agent does not run; its last words:\n", *text);
  }
  return {};
}

int finish(const Result<void>& result) {
  if (result) return 0;
  fmt::print(stderr, "retort-agent: {}\n", result.error().describe());
  return exit_code(result.error().code);
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) {
  ::signal(SIGPIPE, SIG_IGN);
  retort::keep_freed_memory(1u << 20, 2u << 20);
  retort::Arguments arguments;
  CLI::App app{
      "Keeps the student that this device should serve: enrols, profiles, pulls, verifies, serves, reports."};
  app.set_version_flag("--version", "retort-agent " RETORT_VERSION);
  app.require_subcommand(1);
  const auto budgets = [&](CLI::App* command) {
    command->add_option("--memory-budget", arguments.memory_budget,
                        "what agent and students may use, for example 256MiB; can only lower the machine's "
                        "or cgroup's limit");
    command->add_option("--cpu-threads", arguments.cpu_threads, "cores' worth that students may use")
        ->check(CLI::NonNegativeNumber);
    command->add_option("--disk-budget", arguments.disk_budget,
                        "bytes for students on disk (two slots and a pull)");
    command->add_option("--label", arguments.labels,
                        "key=value, for the coordinator's class rules; repeatable");
  };
  CLI::App* run = app.add_subcommand("run", "Runs the agent until SIGTERM; what it serves serves on");
  run->add_option("--state", arguments.state, "state folder (state.db, keys, slots/a, slots/b, run)")
      ->required();
  const auto keys = [&](CLI::App* command) {
    command->add_option("--keys", arguments.keys,
                        "folder of this device's keys, where it is not STATE/keys (another disk, say)");
  };
  keys(run);
  const auto run_option = [&](CLI::App* command) {
    command->add_option("--run", arguments.run,
                        "folder of what need not outlive a restart of the machine (status, ports, students' "
                        "output); default: STATE/run. In memory, students are served even when the disk is "
                        "full or read-only");
  };
  run_option(run);
  run->add_flag(
      "--seal", arguments.seal,
      "students lie encrypted on this device's disk, and are opened in memory alone (docs/agent.md)");
  run->add_option("--coordinator", arguments.coordinator,
                  "its fleet link, tcp://host:port; without it: serve only");
  run->add_option("--token", arguments.token, "enrolment token, the first time");
  run->add_option("--token-file", arguments.token_file, "file that holds the token");
  run->add_option("--server-key", arguments.server_key,
                  "the coordinator's public key (Z85), in place of the token's");
  run->add_option("--name", arguments.name, "this device's name; default: the host's");
  const auto hardware = [&](CLI::App* command) {
    command->add_option(
        "--hardware-id", arguments.hardware_id,
        "what this device calls itself, for pre-authorised tokens (a serial number); default: "
        "derived from /etc/machine-id");
  };
  hardware(run);
  run->add_option("--serve-binary", arguments.serve_binary,
                  "retort-serve; default: the one beside this program, or on PATH");
  run->add_option("--serve-host", arguments.serve_host, "address that students listen on")
      ->capture_default_str();
  run->add_option("--serve-port", arguments.serve_port,
                  "port that students listen on; 0: any, told in the status")
      ->capture_default_str();
  run->add_option("--supervisor", arguments.supervisor, "process, or systemd (units retort-serve@a, @b)")
      ->check(CLI::IsMember({"process", "systemd"}))
      ->default_str("process");
  run->add_option("--probation-seconds", arguments.probation_seconds,
                  "a new student must live so long before it counts")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  run->add_option(
         "--measure-decode-after", arguments.decode_after,
         "seconds after which a device that rests measures how fast it generates, once for a release "
         "(some seconds of all its cores); 0: never")
      ->capture_default_str()
      ->check(CLI::Range(0, 86400));
  run->add_option("--status-file", arguments.status_file,
                  "JSON status, replaced at each change, beside STATE/run/status.json");
  run->add_flag("--stop-serve-on-exit", arguments.stop_serve_on_exit, "end the student with the agent");
  budgets(run);
  CLI::App* profile =
      app.add_subcommand("profile", "Measures this device, as the coordinator would see it (about 0.4 s)");
  profile->add_flag("--json", arguments.json, "as JSON");
  profile->add_option("--state", arguments.state, "folder whose file system's free space counts");
  profile->add_flag("--decode", arguments.decode, "also how fast retort-serve generates (some seconds)");
  profile->add_option("--serve-binary", arguments.serve_binary,
                      "retort-serve (default: beside this program)");
  budgets(profile);
  CLI::App* status = app.add_subcommand("status", "Prints the status of the agent on a state folder");
  status->add_option("--state", arguments.state, "state folder")->required();
  run_option(status);
  status->add_flag("--json", arguments.json, "with \"running\"");
  CLI::App* identity = app.add_subcommand(
      "identity", "Prints this device's public key and hardware id, for a token that names it");
  identity->add_option("--state", arguments.state, "state folder; the key is made when there is none")
      ->required();
  keys(identity);
  identity->add_flag("--json", arguments.json, "as JSON");
  hardware(identity);
  app.footer(
      "Examples:\n"
      "  retort-agent run --state /var/lib/retort-agent --coordinator tcp://10.0.0.1:8441 --token-file "
      "token\n"
      "  retort-agent run --state ./device --coordinator tcp://127.0.0.1:8441 --memory-budget 96MiB "
      "--cpu-threads 1\n"
      "  retort-agent profile --memory-budget 64MiB\n"
      "  retort-agent status --state ./device\n"
      "Exit status: 0 ok, 1 failure, 2 usage, 3 bad input, 4 out of budget, 5 unavailable, 6 denied.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (run->parsed()) return retort::finish(retort::run(arguments));
  if (identity->parsed()) return retort::finish(retort::identity(arguments));
  if (profile->parsed()) return retort::finish(retort::profile(arguments));
  return retort::finish(retort::status(arguments));
}
