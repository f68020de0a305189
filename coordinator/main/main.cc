// retort-coordinator: keeps the teacher, runs the jobs, and knows the fleet. This file only wires.
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <iostream>

#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/units.h"
#include "coordinator/api/api.h"
#include "coordinator/rollout/canary.h"
#include "coordinator/rollout/rollouts.h"
#include "coordinator/state/state.h"

namespace retort {
namespace {

struct Options {
  std::string data, rest_listen = "127.0.0.1:8440", fleet_listen = "tcp://127.0.0.1:8441", job_memory,
                    teacher_cache, worker_binary, serve_binary, ready_file, tls = "auto", tls_certificate,
                    tls_key, backup_from, backup_to;
  double rate_limit = 200;
  unsigned max_jobs = 1, job_threads = 0;
  std::uint32_t heartbeat_millis = 10000;
  bool stop_jobs_on_exit = false;
  std::string kind = "admin", name;
};

// Telemetry is summed up in steps of some milliseconds, as long as there is something to sum up.
constexpr std::size_t kTidyKeys = 4000;
constexpr std::chrono::milliseconds kTidyGoesOn{100}, kTidyRests{600'000};

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
  std::string host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return std::pair(host, static_cast<std::uint16_t>(port));
}

/// What the first start leaves for its operator.
Result<void> first_token(const std::filesystem::path& data, Tokens& tokens) {
  if (!RETORT_TRY(tokens.all()).empty()) return {};
  const Tokens::Made made = RETORT_TRY(tokens.create("admin", "first", -1, 0));
  RETORT_TRY(write_file_atomic(data / "operator.token", made.secret + "\n", 0600));
  log_info("an admin's token is in {}", (data / "operator.token").string());
  return {};
}

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

/// The certificate to serve REST with; none where it is to be plain HTTP.
Result<std::shared_ptr<TlsServer>> load_tls(const Options& options, const std::filesystem::path& data,
                                            const std::string& host) {
  const bool given = !options.tls_certificate.empty();
  if (given != !options.tls_key.empty())
    return fail(ErrorCode::kInvalid, "", "--tls-cert and --tls-key go together");
  if (options.tls == "off") {
    if (given) return fail(ErrorCode::kInvalid, "", "--tls off and --tls-cert exclude each other");
    if (!is_loopback(host))
      return fail(ErrorCode::kInvalid, "--tls off",
                  "{} can be reached from elsewhere, and tokens would pass in the clear: only a loopback "
                  "address may go without TLS",
                  host);
    return std::shared_ptr<TlsServer>();
  }
  if (options.tls == "auto" && !given && is_loopback(host)) return std::shared_ptr<TlsServer>();
  TlsFiles files{options.tls_certificate, options.tls_key};
  if (!given) {
    std::vector<std::string> names{"localhost", "127.0.0.1", "::1"};
    char name[256] = "";
    if (::gethostname(name, sizeof name - 1) == 0 && name[0] != '\0') names.insert(names.begin(), name);
    files = RETORT_TRY(load_or_make_self_signed(data / "tls", names));
  }
  return TlsServer::load(files.certificate, files.key);
}

/// The rollout that a job was submitted with, of what it made.
json::object rollout_of(const JobRecord& job, const std::string& artifact) {
  json::object body;
  if (const Result<json::value> parsed = parse_json(job.rollout_json, "rollout");
      parsed && parsed->is_object())
    body = parsed->get_object();
  body["classes"] = json::object{{job.device_class, artifact}};
  if (!json_has(body, "name")) body["name"] = job.name;
  return body;
}

/// A device takes a descriptor, and a shell's usual limit is 1,024 of them.
void raise_descriptor_limit() {
  rlimit limit{};
  constexpr rlim_t kWanted = 1 << 20;
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= std::min(kWanted, limit.rlim_max)) return;
  limit.rlim_cur = std::min(kWanted, limit.rlim_max);
  if (::setrlimit(RLIMIT_NOFILE, &limit) == 0) log_info("descriptors: up to {}", limit.rlim_cur);
}

Result<void> serve(const Options& options) {
  raise_descriptor_limit();
  const std::filesystem::path data = std::filesystem::absolute(options.data);
  RETORT_TRY(make_folders(data / "keys"));
  const FileLock lock = RETORT_TRY(FileLock::take(data / "lock"));
  const SystemClock clock;
  SystemRandom random;
  const std::unique_ptr<Store> store = RETORT_TRY(open_state(data));
  RETORT_TRY(check_fleet_key(*store, data));
  const CurveKeys keys = RETORT_TRY(load_or_make_curve_keys(data / "keys" / "fleet.curve"));
  keep_freed_memory(4u << 20, 16u << 20);
  boost::asio::io_context reactor(1);
  boost::asio::thread_pool pool(1);

  Catalog catalog(data, *store, clock);
  RETORT_TRY(catalog.clean());
  const std::unique_ptr<TrustRepository> trust =
      RETORT_TRY(TrustRepository::open(*store, data / "keys", clock));
  ArtifactStore artifacts(data / "blobs", *store, *trust, clock);
  RETORT_TRY(artifacts.clean());
  Tokens tokens(*store, clock, random);
  RETORT_TRY(first_token(data, tokens));
  Audit audit(*store, clock, random);
  RETORT_TRY(audit.start());
  const auto record = [&](const Audit::Change& change, const std::string& result, bool durable = true) {
    if (const Result<void> logged = audit.record(change, "", result, durable); !logged)
      log_error("audit: {}", logged.error().describe());
  };
  Events events(reactor, random);
  TelemetryStore telemetry(*store);
  FleetOptions fleet_options;
  fleet_options.heartbeat_millis = options.heartbeat_millis;
  Fleet fleet(reactor, *store, artifacts, clock, random, fleet_options,
              [&](const Fleet::Claim& claim) -> Result<Fleet::Grant> {
                const TokenRecord token =
                    RETORT_TRY(tokens.enrol(claim.token_secret, claim.public_key, claim.hardware_id));
                record({"token:" + token.id, "enrolDevice", "/v1/devices", ""}, "ok", false);
                return Fleet::Grant{token.id, token.manual};
              });
  fleet.on_change([&](const DeviceRecord& device) {
    events.publish("device", device.id,
                   {{"id", device.id},
                    {"name", device.name},
                    {"class", device.desired.device_class},
                    {"online", fleet.online(device.id)},
                    {"revoked", device.revoked},
                    {"state", device.status.state},
                    {"desired", device.desired.artifact},
                    {"actual", device.status.artifact},
                    {"error_code", device.status.error_code}});
  });
  const std::string serve_binary = program(options.serve_binary, "retort-serve");
  TeacherServe teacher_serve(reactor, serve_binary, data / "teacher-serve");
  Rollouts rollouts(
      reactor, *store, artifacts, telemetry, fleet, clock, random,
      [&](const RolloutSpec& spec, const std::string& artifact,
          std::function<void(Result<std::string>)> done) {
        // The answers must be those of the teacher that the student was made from.
        const auto url = [&]() -> Result<std::string> {
          const std::string teacher = RETORT_TRY(artifacts.find(artifact)).teacher;
          if (teacher_serve.url().empty() || (!teacher.empty() && teacher_serve.teacher() != teacher))
            return fail(ErrorCode::kConflict, "",
                        "the artifact's teacher is not served; serve it (retort teacher serve) and resume");
          return teacher_serve.url();
        }();
        const auto dataset = catalog.find_dataset(spec.canary_dataset);
        if (!url || !dataset) {
          Error error = !url ? url.error() : dataset.error();
          return boost::asio::post(reactor,
                                   [done = std::move(done), error = std::move(error)] { done(fail(error)); });
        }
        boost::asio::post(pool, [&reactor, url = *url, file = catalog.dataset_file(dataset->id),
                                 count = spec.canary_prompts, done = std::move(done)]() mutable {
          const auto ask = [&]() -> Result<std::string> {
            return ask_canary_teacher(url, RETORT_TRY(canary_prompts(file, count)));
          };
          boost::asio::post(
              reactor, [done = std::move(done), answers = ask()]() mutable { done(std::move(answers)); });
        });
      });
  rollouts.on_change([&](const RolloutRecord& rollout) {
    json::array classes;
    for (const RolloutTrack& track : rollout.tracks)
      classes.push_back(json::object{{"class", track.device_class},
                                     {"artifact", track.artifact},
                                     {"state", track.state},
                                     {"stage", track.stage + 1}});
    events.publish("rollout", rollout.id,
                   {{"id", rollout.id},
                    {"name", rollout.name},
                    {"state", rollout_state(rollout)},
                    {"classes", std::move(classes)}});
  });
  RETORT_TRY(rollouts.load());
  fleet.set_rollouts({[&](const std::string& device, const std::string& device_class) {
                        return rollouts.assigned(device, device_class);
                      },
                      [&] { rollouts.changed(); },
                      [&](const std::string& device, const wire::CanaryResult& result) {
                        rollouts.canary_answered(device, result);
                      }});
  RETORT_TRY(fleet.start(keys, options.fleet_listen));
  rollouts.start();

  LocalLauncherOptions launcher_options{program(options.worker_binary, "retort-worker"),
                                        serve_binary,
                                        options.job_threads,
                                        0,
                                        data / "teacher-outputs",
                                        0};
  if (!options.teacher_cache.empty())
    launcher_options.teacher_cache_bytes = RETORT_TRY(parse_bytes(options.teacher_cache));
  if (!options.job_memory.empty())
    launcher_options.memory_limit_bytes = RETORT_TRY(parse_bytes(options.job_memory));
  const std::unique_ptr<Launcher> launcher = make_local_launcher(launcher_options);
  Jobs jobs(reactor, pool, data / "jobs", *store, artifacts, clock, random, *launcher, options.max_jobs,
            [&](const JobRecord& job, const std::vector<ArtifactRecord>& made) {
              if (job.device_class.empty() || made.empty() || (!job.assign && job.rollout_json.empty()))
                return;
              const ArtifactRecord* best = &made.back();
              for (const ArtifactRecord& artifact : made)
                if (artifact.label == "distilled") best = &artifact;
              if (!job.rollout_json.empty()) {
                const auto done = rollouts.create(rollout_of(job, best->sha256));
                if (!done) log_error("job {}: no rollout: {}", job.id, done.error().describe());
                return record({"coordinator", "createRollout", "/v1/rollouts", ""},
                              done ? "ok" : std::string(to_string(done.error().code)));
              }
              if (const Result<DeviceClass> done = rollouts.assign(job.device_class, best->sha256); !done)
                log_error("job {}: {}", job.id, done.error().describe());
              else
                log_info("class {} is to serve {}", job.device_class, best->sha256.substr(0, 12));
              record({"coordinator", "assignClass", "/v1/classes/" + job.device_class, ""},
                     fleet.classes().count(job.device_class) == 0 ? "not_found" : "ok");
            });
  jobs.on_change([&](const JobRecord& job) {
    events.publish("job", job.id, {{"id", job.id}, {"class", job.device_class}, {"state", job.state}});
  });
  RETORT_TRY(jobs.start());

  if (const auto served = RETORT_TRY(store->get("meta", "served_teacher")))
    if (catalog.find_teacher(*served)) teacher_serve.serve(*served, catalog.teacher_gguf(*served));

  ApiLimits api_limits;
  api_limits.requests_per_second = options.rate_limit;
  api_limits.requests_burst = 2 * options.rate_limit;
  Api api({reactor, pool, *store, catalog, artifacts, fleet, rollouts, jobs, tokens, audit, events, telemetry,
           teacher_serve, clock, data, keys.public_key, RETORT_VERSION},
          api_limits);
  HttpLimits limits;
  limits.body_bytes = 256 << 20;
  limits.read_timeout = std::chrono::seconds(60);
  const auto [host, port] = RETORT_TRY(split_address(options.rest_listen));
  const std::shared_ptr<TlsServer> tls = RETORT_TRY(load_tls(options, data, host));
  HttpServer server(
      reactor, limits,
      [&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
        api.handle(std::move(request), std::move(responder));
      },
      tls,
      [&](int status, const std::string& why, const std::shared_ptr<HttpResponder>& responder) {
        api.problem(*responder, Error{ErrorCode::kInvalid, "", why}, status);
      },
      [&](const HttpRequest& head) { return api.body_limit(head); });
  const std::uint16_t bound = RETORT_TRY(server.listen(host, port));
  const std::string rest = fmt::format("{}://{}:{}", tls ? "https" : "http",
                                       host.find(':') == std::string::npos ? host : "[" + host + "]", bound);
  if (tls) log_info("REST's certificate: {}", tls->fingerprint());
  if (!options.ready_file.empty())
    RETORT_TRY(
        write_file_atomic(options.ready_file,
                          pretty_json(json::object{
                              {"rest", rest},
                              {"fingerprint", tls ? json::value(tls->fingerprint()) : json::value(nullptr)},
                              {"fleet", fleet.endpoint()},
                              {"server_key", keys.public_key},
                              {"pid", ::getpid()}}),
                          0644));
  log_info("ready: REST at {}, fleet link at {}", rest, fleet.endpoint());
  notify_service_manager("READY=1");

  const ServiceWatchdog watchdog(reactor);
  boost::asio::steady_timer sweep(reactor), tidy(reactor), leave(reactor), renew(reactor);
  std::function<void()> sweep_old = [&] {
    if (const auto swept = api.sweep(); !swept) log_warn("answers: {}", swept.error().describe());
    sweep.expires_after(std::chrono::minutes(10));
    sweep.async_wait([&](const boost::system::error_code& error) {
      if (!error) sweep_old();
    });
  };
  sweep_old();
  std::function<void()> tidy_telemetry = [&] {
    const Result<bool> done = telemetry.tidy(clock.unix_millis(), {}, kTidyKeys);
    if (!done) log_warn("telemetry: {}", done.error().describe());
    tidy.expires_after(done && !*done ? kTidyGoesOn : kTidyRests);
    tidy.async_wait([&](const boost::system::error_code& error) {
      if (!error) tidy_telemetry();
    });
  };
  tidy_telemetry();
  std::function<void()> renew_metadata = [&] {
    if (const Result<void> renewed = trust->refresh(); !renewed)
      log_error("trust: {}", renewed.error().describe());
    renew.expires_after(std::chrono::minutes(10));
    renew.async_wait([&](const boost::system::error_code& error) {
      if (!error) renew_metadata();
    });
  };
  renew_metadata();
  boost::asio::signal_set signals(reactor, SIGTERM, SIGINT);
  signals.async_wait([&](const boost::system::error_code& error, int) {
    if (error) return;
    log_info("stopping");
    notify_service_manager("STOPPING=1");
    server.stop();
    events.stop();
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
  const std::unique_ptr<Store> store = RETORT_TRY(open_state(data));
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

Result<void> check(const Options& options) {
  const std::filesystem::path data = options.data;
  const FileLock lock = RETORT_TRY(FileLock::take(data / "lock"));
  const StateReport report = RETORT_TRY(check_state(data));
  for (const std::string& finding : report.findings) std::cout << finding << "\n";
  std::cout << fmt::format(
      "{} records, {} files of {}: {}\n", report.records, report.files, format_bytes(report.bytes),
      report.findings.empty() ? "whole" : fmt::format("{} findings", report.findings.size()));
  if (report.findings.empty()) return {};
  return fail(ErrorCode::kCorrupt, data.string(), "not all is as it should be; restore a backup");
}

/// While the coordinator is stopped; while it runs it is its own affair: retort backup create.
Result<void> back_up_stopped(const Options& options) {
  const std::filesystem::path data = std::filesystem::absolute(options.data);
  const Result<FileLock> lock = FileLock::take(data / "lock");
  if (!lock)
    return fail(lock.error().code, lock.error().where,
                "{}; of a running coordinator: retort backup create FOLDER", lock.error().message);
  const std::unique_ptr<Store> store = RETORT_TRY(open_state(data));
  RETORT_TRY(
      back_up(data, *store, std::filesystem::absolute(options.backup_to), SystemClock(), RETORT_VERSION));
  std::cout << options.backup_to << "\n";
  return {};
}

Result<void> restore_backup(const Options& options) {
  const std::filesystem::path data = std::filesystem::absolute(options.data);
  RETORT_TRY(restore(std::filesystem::absolute(options.backup_from), data, SystemClock()));
  return check(options);
}

int run(int argc, char** argv) {
  CLI::App app{"Keeps the teacher, runs compression jobs, and brings every device of the fleet its student."};
  app.set_version_flag("--version", "retort-coordinator " RETORT_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  retort-coordinator serve --data /var/lib/retort-coordinator\n"
      "  retort-coordinator serve --data ./data --rest-listen 127.0.0.1:0 --ready-file ready.json\n"
      "  retort-coordinator token create --data ./data --kind admin     (while it is stopped)\n"
      "  retort-coordinator restore --from /backup/monday --data /var/lib/retort-coordinator");
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
  serve_command->add_option("--teacher-cache", options.teacher_cache,
                            "what teachers' outputs, kept for all jobs over one dataset, may take on disk "
                            "(default: 8GiB)");
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
  serve_command
      ->add_option(
          "--tls", options.tls,
          "on, off, or auto: off where --rest-listen is a loopback address. Without --tls-cert it makes "
          "itself a certificate in DATA/tls at its first start, whose fingerprint clients pin")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "on", "off"}));
  serve_command->add_option("--tls-cert", options.tls_certificate,
                            "PEM file of the certificate and its chain");
  serve_command->add_option("--tls-key", options.tls_key, "PEM file of its key");
  serve_command
      ->add_option("--rate-limit", options.rate_limit, "REST requests a second for each token; 0: any number")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  CLI::App* check_command = app.add_subcommand(
      "check", "read all that a stopped coordinator, or a backup, holds, and say what is wrong");
  check_command->add_option("--data", options.data)->required()->check(CLI::ExistingDirectory);
  CLI::App* backup_command = app.add_subcommand(
      "backup", "copy all that is needed to go on elsewhere (stopped; running: retort backup create)");
  backup_command->add_option("--data", options.data)->required()->check(CLI::ExistingDirectory);
  backup_command->add_option("--to", options.backup_to, "a new folder")->required();
  CLI::App* restore_command = app.add_subcommand("restore", "make a new DATA of a backup, and check it");
  restore_command->add_option("--from", options.backup_from)->required()->check(CLI::ExistingDirectory);
  restore_command->add_option("--data", options.data, "a new folder")->required();
  CLI::App* token_command = app.add_subcommand("token", "tokens, while the coordinator is stopped");
  CLI::App* create_command = token_command->add_subcommand("create", "make a token and print it");
  token_command->require_subcommand(1);
  create_command->add_option("--data", options.data)->required()->check(CLI::ExistingDirectory);
  create_command->add_option("--kind", options.kind)
      ->capture_default_str()
      ->check(CLI::IsMember({"viewer", "operator", "admin", "device-enroller", "enrolment"}));
  create_command->add_option("--name", options.name);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  const Result<void> done = serve_command->parsed()     ? serve(options)
                            : check_command->parsed()   ? check(options)
                            : backup_command->parsed()  ? back_up_stopped(options)
                            : restore_command->parsed() ? restore_backup(options)
                                                        : create_token(options);
  if (done) return 0;
  std::cerr << "retort-coordinator: " << done.error().describe() << "\n";
  return exit_code(done.error().code);
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) { return retort::run(argc, argv); }
