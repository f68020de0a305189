#pragma once

#include <optional>

#include "coordinator/api/api.h"
#include "coordinator/state/state.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort::testing {

struct Answer {
  int status = 0;
  std::map<std::string, std::string> headers;
  std::string body;
  bool streamed = false;

  json::value parsed() const {
    json::error_code error;
    json::value value = json::parse(body, error);
    return error ? json::value() : value;
  }
};

/// Takes an answer where no server is.
class RecordingResponder final : public HttpResponder {
 public:
  explicit RecordingResponder(std::shared_ptr<std::optional<Answer>> out) : out_(std::move(out)) {}
  void send(int status, std::string_view, std::string body, HttpHeaders headers) override {
    begin(status, std::move(headers)).body = std::move(body);
  }
  void send_file(int status, std::string_view, const std::filesystem::path&, std::uint64_t,
                 std::uint64_t length, HttpHeaders headers) override {
    begin(status, std::move(headers)).body = std::to_string(length);
  }
  void start_stream(int status, std::string_view, HttpHeaders headers) override {
    begin(status, std::move(headers)).streamed = true;
  }
  void write(std::string bytes) override { (*out_)->body += bytes; }
  void finish() override {}
  void on_closed(std::function<void()>) override {}

 private:
  Answer& begin(int status, HttpHeaders headers) {
    out_->emplace().status = status;
    for (auto& [name, value] : headers) (*out_)->headers[name] = value;
    return **out_;
  }
  std::shared_ptr<std::optional<Answer>> out_;
};

/// Workers that cannot be started.
class NoLauncher final : public Launcher {
 public:
  Result<pid_t> launch(const std::filesystem::path&) override {
    return fail(ErrorCode::kUnsupported, "", "this launcher starts nothing");
  }
};

/// All of a coordinator over a store in memory, without a server: requests go to Api::handle.
class CoordinatorFixture {
 public:
  explicit CoordinatorFixture(ApiLimits limits = {}, std::size_t devices = 2, bool waiting = false)
      : limits_(limits) {
    std::filesystem::create_directories(folder / "keys");
    const RecordTable<DeviceRecord> table(*store, "devices");
    StoreBatch batch;
    for (std::size_t i = 0; i < devices; ++i) {
      DeviceRecord device;
      device.id = fmt::format("dev-{:016x}", i);
      device.name = fmt::format("device-{}", i);
      device.public_key = fmt::format("{:040}", i);
      device.profile.memory_budget_bytes = (64 + i % 7) << 20;
      device.profile.labels = {{"site", i % 2 == 0 ? "hall" : "yard"}, {"number", std::to_string(i)}};
      device.status.state = i % 5 == 0 ? "failed" : "serving";
      table.put(batch, device.id, device);
    }
    for (int i = 0; i < 2; ++i) {
      DeviceRecord device;
      device.id = fmt::format("dev-f00000000000000{}", i);
      device.name = fmt::format("waits-{}", i);
      device.public_key = fmt::format("w{:039}", i);
      device.pending = true;
      if (waiting) table.put(batch, device.id, device);
    }
    EXPECT_OK(store->write(batch));
    EXPECT_OK(migrate(*store));
    keys = *load_or_make_curve_keys(folder / "keys" / "fleet.curve");
    trust = std::move(*TrustRepository::open(*store, folder / "keys", clock));
    artifacts.emplace(folder / "blobs", *store, *trust, clock);
    EXPECT_OK(artifacts->clean());
    EXPECT_OK(catalog.clean());
    fleet.emplace(reactor, *store, *artifacts, clock, random, FleetOptions(),
                  [this](const Fleet::Claim& claim) -> Result<Fleet::Grant> {
                    const TokenRecord token =
                        RETORT_TRY(tokens.enrol(claim.token_secret, claim.public_key, claim.hardware_id));
                    return Fleet::Grant{token.id, token.manual};
                  });
    rollouts.emplace(
        reactor, *store, *artifacts, telemetry, *fleet, clock, random,
        [](const RolloutSpec&, const std::string&, std::function<void(Result<std::string>)> done) {
          done(fail(ErrorCode::kUnavailable, "", "there is no teacher here"));
        });
    EXPECT_OK(rollouts->load());
    fleet->set_rollouts({[this](const std::string& id, const std::string& device_class) {
                           return rollouts->assigned(id, device_class);
                         },
                         [] {}, [](const std::string&, const wire::CanaryResult&) {}});
    EXPECT_OK(fleet->start(keys, "tcp://127.0.0.1:*"));
    jobs.emplace(reactor, pool, folder / "jobs", *store, *artifacts, clock, random, launcher, 1,
                 [](const JobRecord&, const std::vector<ArtifactRecord>&) {});
    EXPECT_OK(jobs->start());
    EXPECT_OK(audit.start());
    api.emplace(ApiParts{reactor, pool, *store, catalog, *artifacts, *fleet, *rollouts, *jobs, tokens, audit,
                         events, telemetry, teacher_serve, clock, folder.path(), keys.public_key, "test"},
                limits_);
    admin = tokens.create("admin", "test", -1, 0)->secret;
  }
  ~CoordinatorFixture() { pool.join(); }

  /// Sends as the admin, unless headers have another Authorization.
  Answer call(const std::string& method, const std::string& target, const std::string& body = "",
              std::map<std::string, std::string> headers = {}) {
    HttpRequest request;
    request.method = method;
    const std::size_t mark = std::min(target.find('?'), target.size());
    request.path = target.substr(0, mark);
    for (std::size_t at = mark + 1; at < target.size();) {
      const std::size_t end = std::min(target.find('&', at), target.size());
      const std::string pair = target.substr(at, end - at);
      request.query[pair.substr(0, pair.find('='))] = pair.substr(std::min(pair.find('=') + 1, pair.size()));
      at = end + 1;
    }
    request.headers = std::move(headers);
    request.headers.try_emplace("authorization", "Bearer " + admin);
    request.body = body;
    request.peer = "192.0.2.1";
    const auto answer = std::make_shared<std::optional<Answer>>();
    api->handle(std::move(request), std::make_shared<RecordingResponder>(answer));
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!*answer && std::chrono::steady_clock::now() < end) {
      reactor.restart();
      reactor.run_one_for(std::chrono::milliseconds(10));
    }
    return answer->value_or(Answer());
  }

  TemporaryFolder folder;
  ManualClock clock;
  SeededRandom random{1};
  std::unique_ptr<Store> store = make_memory_store();
  boost::asio::io_context reactor;
  boost::asio::thread_pool pool{1};
  CurveKeys keys;
  Catalog catalog{folder.path(), *store, clock};
  Tokens tokens{*store, clock, random};
  Audit audit{*store, clock, random};
  Events events{reactor, random};
  TelemetryStore telemetry{*store};
  TeacherServe teacher_serve{reactor, "/bin/false", folder / "teacher-serve"};
  NoLauncher launcher;
  std::unique_ptr<TrustRepository> trust;
  std::optional<ArtifactStore> artifacts;
  std::optional<Fleet> fleet;
  std::optional<Rollouts> rollouts;
  std::optional<Jobs> jobs;
  std::optional<Api> api;
  std::string admin;

 private:
  ApiLimits limits_;
};

}  // namespace retort::testing
