// fleet_sim: thousands of devices against the real coordinator. Measures, never gates; docs/benchmarks.md,
// "Fleet".
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <set>
#include <thread>

#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/units.h"
#include "common/http/http.h"
#include "common/process/process.h"
#include "tests/bench/fleet_sim/agents.h"
#include "tests/bench/fleet_sim/prepare.h"
#include "tests/bench/fleet_sim/raw_pair.h"

namespace retort::sim {
namespace {

namespace fs = std::filesystem;
using Steady = std::chrono::steady_clock;
using std::chrono::milliseconds;

const std::vector<std::string> kPhases{"telemetry", "idle",    "desired", "storm",
                                       "watch",     "silence", "transfer"};

struct Options {
  std::vector<std::string> phases;
  std::uint64_t devices = 5000, per_shard = 1250, join_rate = 500, batches = 600, points = 4,
                storm_batches = 10, silent = 50, pulling = 50, delay_millis = 0, seed = 1;
  std::string artifact = "256MiB", json_file, folder, coordinator, listen = "127.0.0.1", network;
  double loss = 0, churn_per_minute = 0, patience = 600, minutes = 5;
};

double seconds_since(Steady::time_point begin) {
  return std::chrono::duration<double>(Steady::now() - begin).count();
}
std::int64_t monotonic_millis() {
  return std::chrono::duration_cast<milliseconds>(Steady::now().time_since_epoch()).count();
}

struct Spread {
  double p50 = 0, p99 = 0, max = 0;
  std::size_t count = 0;
};
Spread spread(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double q) {
    return values[std::min(values.size() - 1,
                           static_cast<std::size_t>(std::ceil(q * static_cast<double>(values.size()))) - 1)];
  };
  return {at(0.5), at(0.99), values.back(), values.size()};
}

/// A figure of the table at the end, and of the JSON.
struct Row {
  std::string phase, what, figure, bar;
};

/// Asks REST one thing after another, 20 times a second, on a thread of its own.
class Probe {
 public:
  Probe(const std::string& rest, const std::string& token) : rest_(rest), token_(token) {
    thread_ = std::thread([this] { run(); });
  }
  ~Probe() { stop(); }
  std::vector<double> stop() {
    stopping_ = true;
    if (thread_.joinable()) thread_.join();
    return millis_;
  }
  std::size_t failures() const { return failures_; }

 private:
  void run() {
    const char* const paths[] = {"/v1/status", "/v1/devices?limit=100", "/v1/classes",
                                 "/v1/devices/device-7"};
    for (std::size_t i = 0; !stopping_; ++i) {
      HttpCall call{.url = rest_ + paths[i % std::size(paths)],
                    .headers = {{"Authorization", "Bearer " + token_}},
                    .timeout = std::chrono::seconds(60)};
      const auto begin = Steady::now();
      const auto answer = http_call(call);
      if (answer && answer->status == 200)
        millis_.push_back(seconds_since(begin) * 1000);
      else
        ++failures_;
      std::this_thread::sleep_for(milliseconds(50));
    }
  }
  std::string rest_, token_;
  std::atomic<bool> stopping_{false};
  std::vector<double> millis_;
  std::size_t failures_ = 0;
  std::thread thread_;
};

class Driver {
 public:
  explicit Driver(const Options& options) : options_(options) {}
  ~Driver() {
    for (const Shard& shard : shards_) {
      ::close(shard.descriptor);
      ::kill(shard.pid, SIGKILL);
      ::waitpid(shard.pid, nullptr, 0);
    }
    if (coordinator_ != 0) {
      ::kill(coordinator_, SIGTERM);
      ::waitpid(coordinator_, nullptr, 0);
    }
    std::error_code ignored;
    if (!folder_.empty()) fs::remove_all(folder_, ignored);
  }

  Result<void> run() {
    RETORT_TRY(start());
    RETORT_TRY(connect());
    for (const std::string& phase : kPhases) {
      if (!wanted(phase)) continue;
      const Result<void> done = phase == "telemetry" ? telemetry()
                                : phase == "idle"    ? idle()
                                : phase == "desired" ? desired()
                                : phase == "storm"   ? storm()
                                : phase == "watch"   ? watch()
                                : phase == "silence" ? silence()
                                                     : transfer();
      if (!done) {
        std::fputs(read_file(folder_ / "coordinator.log", 1 << 20).value_or("").c_str(), stderr);
        return done;
      }
    }
    return finish();
  }

 private:
  struct Shard {
    pid_t pid = 0;
    int descriptor = -1;
    std::uint64_t devices = 0;
    std::string unread;
  };

  bool wanted(const std::string& phase) const {
    return options_.phases.empty() ||
           std::find(options_.phases.begin(), options_.phases.end(), phase) != options_.phases.end();
  }

  void say(const std::string& text) const {
    fmt::print(stderr, "[{:6.1f} s] {}\n", seconds_since(begin_), text);
  }

  // The coordinator ---------------------------------------------------------------------------------

  Result<void> start() {
    std::string pattern = (options_.folder.empty() ? fs::temp_directory_path() : fs::path(options_.folder)) /
                          "retort-fleet-sim-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) return fail_errno(pattern, "cannot make a folder");
    folder_ = pattern;
    std::vector<std::uint64_t> sizes{64 << 10};
    if (wanted("transfer")) sizes.push_back(RETORT_TRY(parse_bytes(options_.artifact)));
    say("making the coordinator's folder");
    artifacts_ = RETORT_TRY(prepare_coordinator(folder_ / "data", sizes));
    ProcessSpec spec;
    spec.arguments = {options_.coordinator,
                      "serve",
                      "--data",
                      folder_ / "data",
                      "--rest-listen",
                      "127.0.0.1:0",
                      "--fleet-listen",
                      fmt::format("tcp://{}:*", options_.listen),
                      "--ready-file",
                      folder_ / "ready.json",
                      "--rate-limit",
                      "0"};
    spec.stdout_file = spec.stderr_file = folder_ / "coordinator.log";
    spec.die_with_parent = true;
    coordinator_ = RETORT_TRY(start_process(spec));
    const auto begin = Steady::now();
    while (!fs::exists(folder_ / "ready.json")) {
      if (seconds_since(begin) > 60) return fail(ErrorCode::kUnavailable, "coordinator", "did not start");
      std::this_thread::sleep_for(milliseconds(20));
    }
    const json::value ready =
        RETORT_TRY(parse_json(RETORT_TRY(read_file(folder_ / "ready.json", 1 << 16)), "ready.json"));
    rest_ = std::string(ready.at("rest").as_string());
    token_ = RETORT_TRY(read_file(folder_ / "data" / "operator.token", 4096));
    while (!token_.empty() && token_.back() == '\n') token_.pop_back();
    RETORT_TRY(call("PUT", "/v1/classes/all", json::object{}));
    const json::value made = RETORT_TRY(
        call("POST", "/v1/tokens", json::object{{"kind", "enrolment"}, {"uses", options_.devices + 10}}));
    const std::string token(made.at("token").as_string());
    base_pss_ = RETORT_TRY(pss_bytes(coordinator_));

    ShardOptions common;
    common.endpoint = std::string(ready.at("fleet").as_string());
    common.server_key = std::string(ready.at("server_key").as_string());
    common.token_secret = token.substr(token.rfind(':') + 1);
    common.folder = folder_;
    common.labelled = options_.pulling;
    common.label_each = options_.devices / std::min(options_.pulling, options_.devices);
    common.loss = options_.loss;
    common.delay = milliseconds(options_.delay_millis);
    for (std::uint64_t first = 0; first < options_.devices; first += options_.per_shard) {
      ShardOptions mine = common;
      mine.first = first;
      mine.seed = options_.seed + first;
      int ends[2];
      if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return fail_errno("socketpair", "cannot be made");
      const pid_t pid = ::fork();
      if (pid < 0) return fail_errno("fork", "failed");
      if (pid == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        ::close(ends[0]);
        for (const Shard& other : shards_) ::close(other.descriptor);
        if (!options_.network.empty() && !enter_network()) ::_exit(1);
        ::_exit(run_shard(ends[1], mine));
      }
      ::close(ends[1]);
      shards_.push_back({pid, ends[0], std::min(options_.per_shard, options_.devices - first), ""});
    }
    return {};
  }

  bool enter_network() const {
    const fs::path path = fs::path("/run/netns") / options_.network;
    const int network = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (network >= 0 && ::setns(network, CLONE_NEWNET) == 0) return true;
    fmt::print(stderr, "{}: {}\n", path.string(), std::strerror(errno));
    return false;
  }

  Result<json::value> call(const std::string& method, const std::string& path,
                           const json::object& body) const {
    HttpCall call{.method = method,
                  .url = rest_ + path,
                  .headers = {{"Authorization", "Bearer " + token_}, {"Content-Type", "application/json"}},
                  .body = method == "GET" ? "" : json::serialize(body),
                  .timeout = std::chrono::seconds(120)};
    const HttpResponse answer = RETORT_TRY(http_call(call));
    if (answer.status >= 300)
      return fail(ErrorCode::kUnavailable, path, "answered {}: {}", answer.status, answer.body);
    return parse_json(answer.body, path);
  }

  Result<double> metric(const std::string& name) const {
    HttpCall call{.url = rest_ + "/metrics", .headers = {{"Authorization", "Bearer " + token_}}};
    const HttpResponse answer = RETORT_TRY(http_call(call));
    const std::size_t at = answer.body.find("\n" + name + " ");
    if (at == std::string::npos) return fail(ErrorCode::kNotFound, "/metrics", "has no {}", name);
    return std::strtod(answer.body.c_str() + at + name.size() + 2, nullptr);
  }

  double coordinator_cpu_seconds() const { return cpu_seconds(coordinator_); }
  double devices_cpu_seconds() const {
    double all = 0;
    for (const Shard& shard : shards_) all += cpu_seconds(shard.pid);
    return all;
  }
  static double cpu_seconds(pid_t pid) {
    const std::string text = read_file(fmt::format("/proc/{}/stat", pid), 4096).value_or("");
    const std::size_t at = text.rfind(')');
    if (at == std::string::npos) return 0;
    unsigned long user = 0, system = 0;
    std::sscanf(text.c_str() + at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
                &system);
    return static_cast<double>(user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
  }

  // The devices -------------------------------------------------------------------------------------

  Result<std::vector<json::object>> ask_all(const json::object& command) {
    return ask_each([&](const Shard&) { return command; });
  }
  Result<std::vector<json::object>> ask_each(const std::function<json::object(const Shard&)>& command) {
    for (Shard& shard : shards_) {
      const std::string line = json::serialize(command(shard)) + "\n";
      if (::write(shard.descriptor, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
        return fail_errno("shard", "cannot be told");
    }
    std::vector<json::object> out;
    for (Shard& shard : shards_) {
      std::size_t end = std::string::npos;
      while ((end = shard.unread.find('\n')) == std::string::npos) {
        char bytes[65536];
        const ssize_t got = ::read(shard.descriptor, bytes, sizeof bytes);
        if (got <= 0) return fail(ErrorCode::kInternal, "shard", "has ended");
        shard.unread.append(bytes, static_cast<std::size_t>(got));
      }
      const json::value answer = RETORT_TRY(parse_json(shard.unread.substr(0, end), "shard"));
      shard.unread.erase(0, end + 1);
      out.push_back(answer.as_object());
    }
    return out;
  }

  struct Totals {
    std::map<std::string, std::uint64_t> sums;
    std::string error;
    std::uint64_t operator[](const std::string& key) const { return sums.at(key); }
  };
  Result<Totals> totals() {
    Totals out;
    for (const json::object& report : RETORT_TRY(ask_all({{"do", "report"}})))
      for (const auto& member : report)
        if (member.value().is_string())
          out.error =
              member.value().get_string().empty() ? out.error : std::string(member.value().get_string());
        else
          out.sums[std::string(member.key())] += member.value().to_number<std::uint64_t>();
    return out;
  }
  Result<Totals> wait(const std::string& what, const std::string& counter, std::uint64_t goal) {
    auto told = Steady::now();
    const auto begin = Steady::now();
    for (;;) {
      Totals now = RETORT_TRY(totals());
      if (now[counter] >= goal) return now;
      if (seconds_since(begin) > options_.patience)
        return fail(ErrorCode::kUnavailable, what, "after {:.0f} s {} of {}; the last trouble: {}",
                    options_.patience, now[counter], goal, now.error.empty() ? "none" : now.error);
      if (seconds_since(told) >= 2) {
        say(fmt::format("{}: {} of {}", what, now[counter], goal));
        told = Steady::now();
      }
      std::this_thread::sleep_for(milliseconds(100));
    }
  }
  Result<std::vector<double>> times(const std::string& of, std::int64_t since) {
    std::vector<double> out;
    for (const json::object& answer : RETORT_TRY(ask_all({{"do", "times"}, {"of", of}})))
      for (const json::value& time : answer.at("times").as_array())
        out.push_back(static_cast<double>(time.to_number<std::int64_t>() - since) / 1000);
    return out;
  }

  void row(const std::string& phase, const std::string& what, const std::string& figure,
           const std::string& bar = "") {
    rows_.push_back({phase, what, figure, bar});
    say(fmt::format("{}: {}: {}{}", phase, what, figure, bar.empty() ? "" : " (" + bar + ")"));
  }

  // Phases ------------------------------------------------------------------------------------------

  Result<void> connect() {
    const auto begin = Steady::now();
    RETORT_TRY(ask_each([&](const Shard& shard) {
      return json::object{{"do", "join"},
                          {"count", shard.devices},
                          {"per_second", std::max<std::uint64_t>(options_.join_rate / shards_.size(), 1)}};
    }));
    RETORT_TRY(wait("devices up", "up", options_.devices));
    row("connect", "devices enrolled and connected with CURVE", std::to_string(options_.devices), "5,000");
    row("connect", "the first to the last", fmt::format("{:.1f} s", seconds_since(begin)));
    if (options_.churn_per_minute > 0)
      RETORT_TRY(ask_all({{"do", "churn"},
                          {"per_minute", static_cast<std::uint64_t>(options_.churn_per_minute /
                                                                    static_cast<double>(shards_.size()))}}));
    return {};
  }

  Result<void> telemetry() {
    const double points = RETORT_TRY(metric("retort_telemetry_points_total"));
    const double cpu = coordinator_cpu_seconds(), devices_cpu = devices_cpu_seconds();
    const auto begin = Steady::now();
    RETORT_TRY(ask_all({{"do", "telemetry"}, {"batches", options_.batches}, {"points", options_.points}}));
    RETORT_TRY(wait("devices with all batches acknowledged", "settled", options_.devices));
    const double seconds = seconds_since(begin);
    const std::uint64_t batches = options_.batches * options_.devices;
    row("telemetry", fmt::format("batches of {} points, durable", options_.points),
        fmt::format("{:.0f} a second", static_cast<double>(batches) / seconds), "20,000");
    const auto micros = [&](double used) { return used / static_cast<double>(batches) * 1e6; };
    row("telemetry", "CPU time a batch, coordinator's / devices'",
        fmt::format("{:.1f} / {:.1f} µs", micros(coordinator_cpu_seconds() - cpu),
                    micros(devices_cpu_seconds() - devices_cpu)));
    return check_points("telemetry", points, batches * options_.points);
  }

  /// What was acknowledged is there, once.
  Result<void> check_points(const std::string& phase, double before, std::uint64_t sent) {
    const double there = RETORT_TRY(metric("retort_telemetry_points_total")) - before;
    row(phase, "points sent and stored", fmt::format("{} / {:.0f}", sent, there), "equal");
    if (static_cast<std::uint64_t>(there) != sent)
      return fail(ErrorCode::kCorrupt, phase, "{} points were sent, {:.0f} are stored", sent, there);
    return {};
  }

  Result<void> idle() {
    std::this_thread::sleep_for(std::chrono::seconds(options_.devices > 500 ? 20 : 2));
    const Totals now = RETORT_TRY(totals());
    const double cpu = coordinator_cpu_seconds();
    const auto begin = Steady::now();
    std::this_thread::sleep_for(std::chrono::seconds(options_.devices > 500 ? 10 : 2));
    const double busy = (coordinator_cpu_seconds() - cpu) / seconds_since(begin);
    const std::uint64_t pss = RETORT_TRY(pss_bytes(coordinator_));
    const double count = static_cast<double>(options_.devices);
    row("idle", "messages each way and device so far",
        fmt::format("{:.0f} / {:.0f}", static_cast<double>(now["sent"]) / count,
                    static_cast<double>(now["received"]) / count),
        "600");
    row("idle", "coordinator's PSS, without devices and now",
        fmt::format("{} / {}", format_bytes(base_pss_), format_bytes(pss)));
    row("idle", "the same a device",
        fmt::format("{:.1f} KB", static_cast<double>(pss - std::min(base_pss_, pss)) / count / 1000),
        "140 KB");
    row("idle", "coordinator's CPU", fmt::format("{:.1f} % of a core", busy * 100));
    return {};
  }

  Result<std::int64_t> assign(const std::string& name, const std::string& artifact) {
    RETORT_TRY(ask_all({{"do", "want"}, {"artifact", artifact}}));
    const std::int64_t since = monotonic_millis();
    RETORT_TRY(call("POST", "/v1/classes/" + name + "/assign", json::object{{"artifact", artifact}}));
    return since;
  }

  Result<void> desired() {
    Probe probe(rest_, token_);
    const std::int64_t since = RETORT_TRY(assign("all", artifacts_[0]));
    RETORT_TRY(wait("devices that verified the assignment", "told", options_.devices));
    RETORT_TRY(wait("devices that have the artifact", "done", options_.devices));
    const Spread told = spread(RETORT_TRY(times("told", since)));
    const Spread done = spread(RETORT_TRY(times("done", since)));
    const Spread rest = spread(probe.stop());
    row("desired", "told and verified, p50 / p99", fmt::format("{:.2f} / {:.2f} s", told.p50, told.p99),
        "p99 5 s");
    row("desired", "64 KiB pulled, verified, reported; p50 / p99",
        fmt::format("{:.2f} / {:.2f} s", done.p50, done.p99));
    row("desired", "REST meanwhile, p50 / p99 / max",
        fmt::format("{:.0f} / {:.0f} / {:.0f} ms", rest.p50, rest.p99, rest.max));
    return {};
  }

  Result<void> storm() {
    const double points = RETORT_TRY(metric("retort_telemetry_points_total"));
    const std::uint64_t sessions = RETORT_TRY(totals())["sessions"];
    RETORT_TRY(
        ask_all({{"do", "telemetry"}, {"batches", options_.storm_batches}, {"points", options_.points}}));
    Probe probe(rest_, token_);
    const std::int64_t since = monotonic_millis();
    RETORT_TRY(ask_all({{"do", "storm"}}));
    RETORT_TRY(wait("sessions opened anew", "sessions", sessions + options_.devices));
    RETORT_TRY(wait("devices up", "up", options_.devices));
    const Spread up = spread(RETORT_TRY(times("up", since)));
    RETORT_TRY(wait("devices with all batches acknowledged", "settled", options_.devices));
    const Spread rest = spread(probe.stop());
    row("storm", fmt::format("{} devices back, p50 / p99 / last", up.count),
        fmt::format("{:.1f} / {:.1f} / {:.1f} s", up.p50, up.p99, up.max), "10,000 in 30 s");
    row("storm", "REST meanwhile, p50 / p99 / max",
        fmt::format("{:.0f} / {:.0f} / {:.0f} ms ({} calls, {} failed)", rest.p50, rest.p99, rest.max,
                    rest.count, probe.failures()),
        "p99 200 ms");
    return check_points("storm", points, options_.storm_batches * options_.devices * options_.points);
  }

  /// Nobody is dead: who is taken for it?
  Result<void> watch() {
    const double before = RETORT_TRY(metric("retort_devices_silent_total"));
    for (const auto begin = Steady::now(); seconds_since(begin) < options_.minutes * 60;) {
      std::this_thread::sleep_for(std::chrono::seconds(5));
      if (const auto told = static_cast<int>(seconds_since(begin)); told % 60 < 5)
        say(fmt::format("watch: {} minutes, {:.0f} taken for dead", told / 60,
                        RETORT_TRY(metric("retort_devices_silent_total")) - before));
    }
    const double days = static_cast<double>(options_.devices) * options_.minutes / 24 / 60,
                 taken = RETORT_TRY(metric("retort_devices_silent_total")) - before;
    row("watch",
        fmt::format("taken for dead, of {} devices in {:g} minutes ({:.1f} device-days)", options_.devices,
                    options_.minutes, days),
        fmt::format("{:.0f}", taken));
    row("watch",
        taken == 0 ? "false verdicts a device-day, with 95 % confidence below (rule of three)"
                   : "false verdicts a device-day",
        fmt::format("{:.2f} %", std::max(taken, taken == 0 ? 3.0 : 0) / days * 100), "0.1 %");
    row("watch", "the longest that a living device was not heard",
        fmt::format("{:.1f} s", RETORT_TRY(metric("retort_devices_longest_silence_seconds"))),
        "35 s is dead");
    return {};
  }

  Result<void> silence() {
    const std::uint64_t each = std::max<std::uint64_t>(options_.silent / shards_.size(), 1);
    const auto begin = Steady::now();
    RETORT_TRY(ask_all({{"do", "silence"}, {"count", each}}));
    std::set<std::string> missing;
    for (const json::object& answer : RETORT_TRY(ask_all({{"do", "silent"}})))
      for (const json::value& id : answer.at("ids").as_array()) missing.insert(std::string(id.as_string()));
    const std::size_t count = missing.size();
    std::vector<double> noticed;
    while (!missing.empty()) {
      if (seconds_since(begin) > 120)
        return fail(ErrorCode::kUnavailable, "silence", "{} of {} were not noticed", missing.size(), count);
      const json::value page = RETORT_TRY(call("GET", "/v1/devices?online=false&limit=1000", json::object{}));
      for (const json::value& device : page.at("items").as_array())
        if (missing.erase(std::string(device.at("id").as_string())) > 0)
          noticed.push_back(seconds_since(begin));
      std::this_thread::sleep_for(milliseconds(200));
    }
    const Spread s = spread(noticed);
    row("silence", fmt::format("{} silent devices noticed, p50 / p99", count),
        fmt::format("{:.1f} / {:.1f} s", s.p50, s.p99), "p99 45 s");
    silent_ = count;
    return {};
  }

  Result<void> transfer() {
    const std::uint64_t bytes =
        fs::file_size(folder_ / "data" / "blobs" / artifacts_[1].substr(0, 2) / artifacts_[1]);
    const std::uint64_t pulling = std::min(options_.pulling, options_.devices);
    RETORT_TRY(call(
        "PUT", "/v1/classes/pull",
        json::object{{"priority", 10}, {"rules", json::object{{"labels", json::object{{"pull", "yes"}}}}}}));
    std::this_thread::sleep_for(std::chrono::seconds(1));
    say("a raw CURVE socket pair");
    const double raw = RETORT_TRY(raw_pair_bytes_per_second(bytes * pulling, 256 << 10));
    const double cpu = coordinator_cpu_seconds(), devices_cpu = devices_cpu_seconds();
    const std::int64_t since = RETORT_TRY(assign("pull", artifacts_[1]));
    RETORT_TRY(wait("devices that have the artifact", "done", pulling));
    const Spread done = spread(RETORT_TRY(times("done", since)));
    const double rate = static_cast<double>(bytes * pulling) / done.max;
    row("transfer", fmt::format("{} to {} devices, hashed and written", format_bytes(bytes), pulling),
        fmt::format("{:.0f} MB/s in {:.1f} s", rate / 1e6, done.max));
    row("transfer", "raw CURVE socket pair, the same bytes", fmt::format("{:.0f} MB/s", raw / 1e6));
    row("transfer", "share", fmt::format("{:.0f} %", rate / raw * 100), "50 %");
    const double total = static_cast<double>(bytes * pulling);
    row("transfer", "CPU time a MB, coordinator's / devices'",
        fmt::format("{:.2f} / {:.2f} ms", (coordinator_cpu_seconds() - cpu) * 1e9 / total,
                    (devices_cpu_seconds() - devices_cpu) * 1e9 / total));
    return {};
  }

  Result<void> finish() {
    const Totals now = RETORT_TRY(totals());
    row("all", "frames sent / received / lost on purpose",
        fmt::format("{} / {} / {}", now["sent"], now["received"], now["lost"]));
    if (!now.error.empty()) row("all", "the last trouble of a device", now.error);
    std::size_t wide = 0, figures = 0;
    for (const Row& r : rows_)
      wide = std::max(wide, r.what.size()), figures = std::max(figures, r.figure.size());
    for (const Row& r : rows_)
      fmt::print("{:<10} {:<{}}  {:<{}}  {}\n", r.phase, r.what, wide, r.figure, figures, r.bar);
    if (options_.json_file.empty()) return {};
    json::array rows;
    for (const Row& r : rows_)
      rows.push_back(
          json::object{{"phase", r.phase}, {"what", r.what}, {"figure", r.figure}, {"bar", r.bar}});
    return write_file_atomic(options_.json_file,
                             pretty_json(json::object{{"devices", options_.devices},
                                                      {"loss", options_.loss},
                                                      {"delay_millis", options_.delay_millis},
                                                      {"churn_per_minute", options_.churn_per_minute},
                                                      {"rows", std::move(rows)}}),
                             0644);
  }

  const Options& options_;
  Steady::time_point begin_ = Steady::now();
  fs::path folder_;
  pid_t coordinator_ = 0;
  std::string rest_, token_;
  std::vector<std::string> artifacts_;
  std::vector<Shard> shards_;
  std::vector<Row> rows_;
  std::uint64_t base_pss_ = 0;
  std::size_t silent_ = 0;
};

}  // namespace
}  // namespace retort::sim

int main(int argc, char** argv) {
  ::signal(SIGPIPE, SIG_IGN);
  retort::sim::Options options;
  CLI::App app{
      "Thousands of devices in a few processes, with the agent's own protocol code over real CURVE links, "
      "against the real retort-coordinator. Prints progress, then a table. Measures, never gates."};
  app.add_option("PHASE", options.phases,
                 "telemetry, idle, desired, storm, watch, silence, transfer, in this order; all unless said")
      ->check(CLI::IsMember(retort::sim::kPhases));
  app.add_option("--devices", options.devices)->capture_default_str()->check(CLI::Range(1, 20000));
  app.add_option("--per-process", options.per_shard,
                 "devices of a process: each needs four file descriptors, and eight in a storm")
      ->capture_default_str()
      ->check(CLI::Range(1, 2000));
  app.add_option("--join-rate", options.join_rate, "devices that join a second")->capture_default_str();
  app.add_option("--batches", options.batches, "of telemetry, that each device sends")->capture_default_str();
  app.add_option("--points", options.points, "of a batch")->capture_default_str();
  app.add_option("--storm-batches", options.storm_batches, "that each device has to send in the storm")
      ->capture_default_str();
  app.add_option("--minutes", options.minutes, "of watching")->capture_default_str();
  app.add_option("--silent", options.silent, "devices that fall silent")->capture_default_str();
  app.add_option("--pulling", options.pulling, "devices that pull the artifact")->capture_default_str();
  app.add_option("--artifact", options.artifact, "its size")->capture_default_str();
  app.add_option("--loss", options.loss, "share of frames that vanish, each way")
      ->check(CLI::Range(0.0, 0.9));
  app.add_option("--delay-ms", options.delay_millis, "of each frame, each way, and up to as much again");
  app.add_option("--churn", options.churn_per_minute, "devices a minute that lose their link for 0-10 s");
  app.add_option("--patience", options.patience, "seconds that a phase may take")->capture_default_str();
  app.add_option("--folder", options.folder,
                 "where the coordinator's and the devices' files go; default: /tmp");
  app.add_option("--listen", options.listen, "the address that devices reach the coordinator at")
      ->capture_default_str();
  app.add_option("--network", options.network, "network namespace (of `ip netns`) that the devices are in");
  app.add_option("--json", options.json_file, "write the figures there too");
  app.add_option("--coordinator", options.coordinator, "retort-coordinator; default: the one beside this");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (options.coordinator.empty())
    options.coordinator =
        std::filesystem::read_symlink("/proc/self/exe").parent_path() / "retort-coordinator";
  if (const auto done = retort::sim::Driver(options).run(); !done) {
    fmt::print(stderr, "fleet_sim: {}\n", done.error().describe());
    return 1;
  }
  return 0;
}
