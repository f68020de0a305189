// retort-coordinator: keeps the teacher, runs the jobs, and knows the fleet. This file only wires.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <iostream>

#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/units.h"
#include "coordinator/api/api.h"

namespace retort {
namespace {

struct Options {
  std::string data, rest_listen = "127.0.0.1:8440", fleet_listen = "tcp://127.0.0.1:8441", job_memory,
                    worker_binary, serve_binary, ready_file;
  unsigned max_jobs = 1, job_threads = 0;
  std::uint32_t heartbeat_millis = 10000;
  bool stop_jobs_on_exit = false;
  std::string kind = "operator", name;
};

const std::vector<std::string> kTables{"meta",      "devices", "classes", "teachers", "datasets",
                                       "artifacts", "jobs",    "tokens",  "telemetry"};
constexpr UnixMillis kTelemetryMillis = 7ll * 24 * 3600 * 1000;

/// A program of ours: as given, else beside this one, else on PATH.
std::string program(const std::string& given, const std::string& name) {
  if (!given.empty()) return given;
  std::error_code error;
  const std::filesystem::path beside =
      std::filesystem::read_symlink("/proc/self/exe", error).parent_path() / name;
  return std::filesystem::exists(beside, error) ? beside.string() : name;
}

Result<std::pair<std::string, std::uint16_t>> split_address(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  const unsigned long port =
      colon == std::string::npos ? 99999 : std::strtoul(text.c_str() + colon + 1, nullptr, 10);
  if (colon == std::string::npos || port > 65535)
    return fail(ErrorCode::kInvalid, "--rest-listen", "'{}' is not HOST:PORT", text);
  return std::pair(text.substr(0, colon), static_cast<std::uint16_t>(port));
}

/// What the first start leaves for its operator.
Result<void> first_token(const std::filesystem::path& data, Tokens& tokens) {
  if (!RETORT_TRY(tokens.all()).empty()) return {};
  const Tokens::Made made = RETORT_TRY(tokens.create("operator", "first", -1, 0));
  RETORT_TRY(write_file_atomic(data / "operator.token", made.secret + "\n", 0600));
  log_info("an operator token is in {}", (data / "operator.token").string());
  return {};
}

Result<void> serve(const Options& options) {
  const std::filesystem::path data = std::filesystem::absolute(options.data);
  RETORT_TRY(make_folders(data / "keys"));
  const FileLock lock = RETORT_TRY(FileLock::take(data / "lock"));
  const SystemClock clock;
  SystemRandom random;
  const std::unique_ptr<Store> store = RETORT_TRY(open_rocksdb_store(data / "store", kTables));
  const CurveKeys keys = RETORT_TRY(load_or_make_curve_keys(data / "keys" / "fleet.curve"));
  boost::asio::io_context reactor(1);
  boost::asio::thread_pool pool(1);

  Catalog catalog(data, *store, clock);
  RETORT_TRY(catalog.clean());
  ArtifactStore artifacts(data / "blobs", *store,
                          RETORT_TRY(load_or_make_signing_key(data / "keys" / "targets.ed25519")), clock);
  RETORT_TRY(artifacts.clean());
  Tokens tokens(*store, clock, random);
  RETORT_TRY(first_token(data, tokens));
  TelemetryStore telemetry(*store);
  FleetOptions fleet_options;
  fleet_options.heartbeat_millis = options.heartbeat_millis;
  Fleet fleet(reactor, *store, artifacts, clock, random, fleet_options,
              [&](const std::string& secret) { return tokens.consume(secret, "enrolment"); });
  RETORT_TRY(fleet.start(keys, options.fleet_listen));

  const std::string serve_binary = program(options.serve_binary, "retort-serve");
  LocalLauncherOptions launcher_options{program(options.worker_binary, "retort-worker"), serve_binary,
                                        options.job_threads, 0};
  if (!options.job_memory.empty())
    launcher_options.memory_limit_bytes = RETORT_TRY(parse_bytes(options.job_memory));
  const std::unique_ptr<Launcher> launcher = make_local_launcher(launcher_options);
  Jobs jobs(reactor, pool, data / "jobs", *store, artifacts, clock, random, *launcher, options.max_jobs,
            [&](const JobRecord& job, const std::vector<ArtifactRecord>& made) {
              if (!job.assign || job.device_class.empty() || made.empty()) return;
              const ArtifactRecord* best = &made.back();
              for (const ArtifactRecord& artifact : made)
                if (artifact.label == "distilled") best = &artifact;
              if (const Result<DeviceClass> done = fleet.assign(job.device_class, best->sha256); !done)
                log_error("job {}: {}", job.id, done.error().describe());
              else
                log_info("class {} is to serve {}", job.device_class, best->sha256.substr(0, 12));
            });
  RETORT_TRY(jobs.start());

  TeacherServe teacher_serve(reactor, serve_binary, data / "teacher-serve");
  if (const auto served = RETORT_TRY(store->get("meta", "served_teacher")))
    if (catalog.find_teacher(*served)) teacher_serve.serve(*served, catalog.teacher_gguf(*served));

  Api api({reactor, pool, *store, catalog, artifacts, fleet, jobs, tokens, telemetry, teacher_serve, clock,
           keys.public_key, RETORT_VERSION});
  HttpLimits limits;
  limits.body_bytes = 256 << 20;
  limits.read_timeout = std::chrono::seconds(60);
  HttpServer server(reactor, limits, [&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    api.handle(std::move(request), std::move(responder));
  });
  const auto [host, port] = RETORT_TRY(split_address(options.rest_listen));
  const std::uint16_t bound = RETORT_TRY(server.listen(host, port));
  const std::string rest = fmt::format("http://{}:{}", host, bound);
  if (!options.ready_file.empty())
    RETORT_TRY(write_file_atomic(options.ready_file,
                                 pretty_json(json::object{{"rest", rest},
                                                          {"fleet", fleet.endpoint()},
                                                          {"server_key", keys.public_key},
                                                          {"pid", ::getpid()}}),
                                 0644));
  log_info("ready: REST at {}, fleet link at {}", rest, fleet.endpoint());
  notify_service_manager("READY=1");

  boost::asio::steady_timer watchdog(reactor), sweep(reactor), leave(reactor);
  std::function<void()> ping = [&] {
    notify_service_manager("WATCHDOG=1");
    watchdog.expires_after(std::chrono::milliseconds(watchdog_interval_millis()));
    watchdog.async_wait([&](const boost::system::error_code& error) {
      if (!error) ping();
    });
  };
  if (watchdog_interval_millis() != 0) ping();
  std::function<void()> sweep_old = [&] {
    if (const auto swept = telemetry.sweep(clock.unix_millis() - kTelemetryMillis, 5000); !swept)
      log_warn("telemetry: {}", swept.error().describe());
    sweep.expires_after(std::chrono::minutes(10));
    sweep.async_wait([&](const boost::system::error_code& error) {
      if (!error) sweep_old();
    });
  };
  sweep_old();
  boost::asio::signal_set signals(reactor, SIGTERM, SIGINT);
  signals.async_wait([&](const boost::system::error_code& error, int) {
    if (error) return;
    log_info("stopping");
    notify_service_manager("STOPPING=1");
    server.stop();
    if (options.stop_jobs_on_exit) jobs.suspend_all();
    teacher_serve.stop();
    leave.expires_after(std::chrono::milliseconds(200));  // answers under way
    leave.async_wait([&](const boost::system::error_code&) { reactor.stop(); });
  });
  reactor.run();
  pool.join();
  return {};
}

Result<void> create_token(const Options& options) {
  const std::filesystem::path data = options.data;
  const FileLock lock = RETORT_TRY(FileLock::take(data / "lock"));
  const SystemClock clock;
  SystemRandom random;
  const std::unique_ptr<Store> store = RETORT_TRY(open_rocksdb_store(data / "store", kTables));
  Tokens tokens(*store, clock, random);
  const Tokens::Made made =
      RETORT_TRY(tokens.create(options.kind, options.name, options.kind == "enrolment" ? 1 : -1, 0));
  const std::string prefix =
      options.kind == "enrolment"
          ? "retort-enrol:" + RETORT_TRY(load_or_make_curve_keys(data / "keys" / "fleet.curve")).public_key +
                ":"
          : "";
  std::cout << prefix << made.secret << "\n";
  return {};
}

int run(int argc, char** argv) {
  CLI::App app{"Keeps the teacher, runs compression jobs, and brings every device of the fleet its student."};
  app.set_version_flag("--version", "retort-coordinator " RETORT_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  retort-coordinator serve --data /var/lib/retort-coordinator\n"
      "  retort-coordinator serve --data ./data --rest-listen 127.0.0.1:0 --ready-file ready.json\n"
      "  retort-coordinator token create --data ./data --kind operator     (while it is stopped)");
  Options options;
  CLI::App* serve_command = app.add_subcommand("serve", "run the coordinator");
  serve_command->add_option("--data", options.data, "folder for all it keeps; made when it is not there")
      ->required();
  serve_command
      ->add_option("--rest-listen", options.rest_listen, "HOST:PORT of the REST interface, port 0 for any")
      ->capture_default_str();
  serve_command
      ->add_option("--fleet-listen", options.fleet_listen, "ZeroMQ endpoint for agents, port * for any")
      ->capture_default_str();
  serve_command->add_option("--max-jobs", options.max_jobs, "jobs at a time")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  serve_command->add_option("--job-threads", options.job_threads,
                            "threads of a job (default: its CPU allowance)");
  serve_command->add_option("--job-memory", options.job_memory, "memory limit of a job (4G)");
  serve_command->add_option("--worker-binary", options.worker_binary,
                            "retort-worker (default: beside this program, then PATH)");
  serve_command->add_option("--serve-binary", options.serve_binary, "retort-serve (likewise)");
  serve_command->add_option("--ready-file", options.ready_file,
                            "JSON with the bound addresses, written when ready");
  serve_command->add_option("--heartbeat-millis", options.heartbeat_millis, "how often devices are to report")
      ->capture_default_str()
      ->check(CLI::Range(1000, 3600000));
  serve_command->add_flag(
      "--stop-jobs-on-exit", options.stop_jobs_on_exit,
      "let running jobs write a checkpoint and end when the coordinator ends (they go on at the next start)");
  CLI::App* token_command = app.add_subcommand("token", "tokens, while the coordinator is stopped");
  CLI::App* create_command = token_command->add_subcommand("create", "make a token and print it");
  token_command->require_subcommand(1);
  create_command->add_option("--data", options.data)->required()->check(CLI::ExistingDirectory);
  create_command->add_option("--kind", options.kind)
      ->capture_default_str()
      ->check(CLI::IsMember({"operator", "enrolment"}));
  create_command->add_option("--name", options.name);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  const Result<void> done = serve_command->parsed() ? serve(options) : create_token(options);
  if (done) return 0;
  std::cerr << "retort-coordinator: " << done.error().describe() << "\n";
  return exit_code(done.error().code);
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) { return retort::run(argc, argv); }
