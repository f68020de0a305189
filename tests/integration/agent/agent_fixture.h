#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <future>
#include <mutex>
#include <set>
#include <thread>

#include "agent/control/loopback.h"
#include "agent/spool/spool.h"
#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/sha256.h"
#include "common/hf/hf_model.h"
#include "common/net/link.h"
#include "common/process/process.h"
#include "common/wire/messages.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tuf_repository.h"

/// The real retort-agent and retort-serve against a small coordinator inside this process.
namespace retort {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::TemporaryFolder;
using testing::TufRepository;

inline constexpr const char* kDevice = "dev-0123456789abcdef";
inline constexpr UnixMillis kHour = 3600 * 1000;

/// Answers as a coordinator does, and misbehaves on demand. Its reactor runs on a thread of its own; members
/// are touched there, or under `mutex`.
class Coordinator {
 public:
  explicit Coordinator(const CurveKeys& keys, const std::string& endpoint = "tcp://127.0.0.1:*")
      : keys_(keys) {
    std::promise<void> bound;
    thread_ = std::thread([&] {
      auto server = FleetServer::bind(
          reactor_, keys_, endpoint, [](std::string_view) { return true; },
          [this](const FleetServer::Peer& peer, std::string_view frame) { on_frame(peer, frame); });
      if (server) server_ = std::move(*server);
      bound.set_value();
      reactor_.run();
      server_.reset();
    });
    bound.get_future().wait();
  }
  ~Coordinator() {
    reactor_.stop();
    thread_.join();
  }
  bool bound() const { return server_ != nullptr; }
  std::string endpoint() const { return server_->endpoint(); }

  void add(const fs::path& file) {
    const auto manifest = make_manifest(file);
    ASSERT_OK(manifest);
    const std::lock_guard lock(mutex);
    artifacts_[manifest->sha256] = file;
    repository.add(*manifest);
    repository.publish();
  }
  void desire(const std::string& artifact) {
    const std::lock_guard lock(mutex);
    ++generation_;
    send_desired({{generation_, "any", artifact},
                  repository.assignment(kDevice, generation_, "any", artifact),
                  mirrors});
  }
  /// Whatever it says; also at each hello from now on. Under `mutex`.
  void send_desired(wire::Desired desired) {
    desired_ = std::move(desired);
    boost::asio::post(reactor_, [this] {
      const std::lock_guard lock(mutex);
      if (!peer_.empty()) say(*desired_);
    });
  }
  void send(wire::Payload payload) {
    boost::asio::post(reactor_, [this, payload = std::move(payload)] {
      const std::lock_guard lock(mutex);
      if (!peer_.empty()) say(payload);
    });
  }

  std::mutex mutex;
  std::string token = "5ec4e7";
  bool corrupt_chunks = false, mute_chunks = false, garbage = false, revoked = false;
  std::chrono::milliseconds chunk_delay{0};
  UnixMillis clock_offset = 0;
  TufRepository repository{SystemClock().unix_millis()};
  /// What a hostile coordinator answers a request for metadata with.
  std::function<std::optional<wire::Metadata>(const wire::MetadataRequest&, std::string file)>
      metadata_attack;
  std::optional<wire::KeyRotation> rotation;
  std::string peer_key;
  std::vector<std::string> mirrors;  ///< told with the next desire()
  std::vector<wire::ChunkRequest> requests;
  std::set<std::uint64_t> answered;  ///< offsets of chunks that were sent
  std::uint64_t enrolments = 0, batches = 0;
  DeviceStatus last_status;
  std::vector<TelemetryPoint> points;
  std::optional<wire::CanaryResult> canary;

  void ask(const wire::Canary& questions) {
    boost::asio::post(reactor_, [this, questions] {
      const std::lock_guard lock(mutex);
      if (!peer_.empty()) say(questions);
    });
  }

 private:
  void say(wire::Payload payload) {
    wire::Envelope out;
    out.epoch = epoch_;
    out.sequence = ++sent_;
    out.payload = std::move(payload);
    server_->send(peer_, wire::encode(out));
  }

  void on_frame(const FleetServer::Peer& peer, std::string_view frame) {
    const auto envelope = wire::decode(frame);
    ASSERT_OK(envelope);
    const std::lock_guard lock(mutex);
    if (peer.routing_id != peer_ || envelope->epoch != epoch_) sent_ = 0;
    peer_ = peer.routing_id, epoch_ = envelope->epoch, peer_key = peer.public_key;
    if (garbage) {
      server_->send(peer_, "no envelope");
      server_->send(peer_, std::string(4096, '\xff'));
      server_->send(peer_, "");
    }
    if (const auto* enrol = std::get_if<wire::Enrol>(&envelope->payload)) {
      if (enrol->token_secret != token) return say(wire::Refused{"enrol", "denied", "no such token"});
      ++enrolments;
      say(wire::Enrolled{kDevice, repository.first_root()});
    } else if (const auto* hello = std::get_if<wire::Hello>(&envelope->payload)) {
      last_status = hello->status;
      if (revoked) return say(wire::Refused{"hello", "revoked", "by the operator"});
      say(wire::Welcome{2000, 4, SystemClock().unix_millis() + clock_offset, batches});
      if (desired_) say(*desired_);
    } else if (const auto* report = std::get_if<wire::StatusReport>(&envelope->payload)) {
      last_status = report->status;
    } else if (const auto* batch = std::get_if<wire::TelemetryBatch>(&envelope->payload)) {
      batches = std::max(batches, batch->batch);
      points.insert(points.end(), batch->points.begin(), batch->points.end());
      say(wire::TelemetryAck{batches});
    } else if (const auto* answers = std::get_if<wire::CanaryResult>(&envelope->payload)) {
      canary = *answers;
    } else if (const auto* ask = std::get_if<wire::MetadataRequest>(&envelope->payload)) {
      const auto found = repository.files.find(ask->name);
      const std::string file = found == repository.files.end() ? "" : found->second;
      if (metadata_attack)
        if (const auto attack = metadata_attack(*ask, file)) return say(*attack);
      if (found == repository.files.end())
        return say(wire::Refused{"metadata " + ask->name, "not_found", "no such file"});
      say(wire::Metadata{ask->name, ask->offset, file.size(), file.substr(ask->offset, 1000)});
    } else if (const auto* key = std::get_if<wire::KeyRotation>(&envelope->payload)) {
      rotation = *key;
    } else if (const auto* chunk = std::get_if<wire::ChunkRequest>(&envelope->payload)) {
      requests.push_back(*chunk);
      if (mute_chunks || artifacts_.count(chunk->artifact) == 0) return;
      std::string bytes(chunk->length, '\0');
      ASSERT_OK(File::open_read(artifacts_.at(chunk->artifact))->read_exact_at(chunk->offset, bytes));
      if (corrupt_chunks) bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
      const wire::Chunk answer{chunk->artifact, chunk->offset, std::move(bytes)};
      if (chunk_delay == 0ms) {
        answered.insert(chunk->offset);
        return say(answer);
      }
      auto timer = std::make_shared<boost::asio::steady_timer>(reactor_, chunk_delay);
      timer->async_wait([this, timer, answer, epoch = epoch_](const boost::system::error_code& error) {
        const std::lock_guard held(mutex);
        if (error || epoch != epoch_ || mute_chunks) return;
        answered.insert(answer.offset);
        say(answer);
      });
    }
  }

  boost::asio::io_context reactor_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_{reactor_.get_executor()};
  CurveKeys keys_;
  std::unique_ptr<FleetServer> server_;
  std::map<std::string, fs::path> artifacts_;
  std::uint64_t generation_ = 0;
  std::optional<wire::Desired> desired_;
  std::string peer_;
  std::uint64_t epoch_ = 0, sent_ = 0;
  std::thread thread_;
};

template <typename Probe>
bool eventually(Probe probe, std::chrono::milliseconds patience = 30s) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (!probe()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(10ms);
  }
  return true;
}

class AgentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(testing::binary("retort-serve"))) GTEST_SKIP() << "retort-serve is not built";
    ASSERT_OK(testing::write_tiny_model(folder_ / "hf", ModelFamily::kLlama, 1, size_));
    hf_ = std::make_unique<HfModel>(std::move(*open_hf_model(folder_ / "hf")));
    coordinator_ = std::make_unique<Coordinator>(keys_);
    ASSERT_TRUE(coordinator_->bound());
    endpoint_ = coordinator_->endpoint();
    token_ = "retort-enrol:" + keys_.public_key + ":5ec4e7";
  }
  void TearDown() override {
    kill_agent(SIGKILL);
    for (const char* slot : {"a", "b"})
      if (const auto text = read_file(folder_ / "device/run" / (std::string("serve-") + slot + ".json")))
        if (const auto value = parse_json(*text, ""))
          ::kill(static_cast<pid_t>(value->at("pid").as_int64()), SIGKILL);
    if (HasFailure()) std::fputs(read_file(folder_ / "agent.log").value_or("").c_str(), stderr);
  }

  /// A GGUF of the tiny model that says `name`; its hash.
  std::string artifact(const std::string& name) { return artifact(name, weight_sources(*hf_)); }
  std::string artifact(const std::string& name, const std::vector<TensorSource>& weights) {
    const fs::path file = folder_ / (name + ".gguf");
    EXPECT_OK(write_gguf_model(file, hf_->config, hf_->tokenizer, weights, TensorType::kF32,
                               {{"general.name", name}}));
    coordinator_->add(file);
    return *sha256_file_hex(file);
  }

  void start_agent(std::vector<std::string> more = {}) {
    ProcessSpec spec;
    spec.arguments = {testing::binary("retort-agent"),
                      "run",
                      "--state",
                      folder_ / "device",
                      "--coordinator",
                      endpoint_,
                      "--token",
                      token_,
                      "--status-file",
                      folder_ / "status.json",
                      "--probation-seconds",
                      probation_,
                      "--cpu-threads",
                      "1"};
    spec.arguments.insert(spec.arguments.end(), more.begin(), more.end());
    spec.stdout_file = spec.stderr_file = folder_ / "agent.log";
    spec.die_with_parent = true;
    const auto pid = start_process(spec);
    ASSERT_OK(pid);
    agent_ = *pid;
  }
  int kill_agent(int number) {
    if (agent_ == 0) return 0;
    ::kill(agent_, number);
    int status = 0;
    ::waitpid(agent_, &status, 0);
    agent_ = 0;
    std::error_code ignored;
    fs::remove(folder_ / "status.json", ignored);
    return status;
  }
  json::object status() const {
    const auto text = read_file(folder_ / "status.json");
    if (!text) return {};
    const auto value = parse_json(*text, "status");
    return value && value->is_object() ? value->as_object() : json::object{};
  }
  std::string text(const char* key) const { return json_string(status(), key, "").value_or(""); }
  pid_t serve_pid() const { return static_cast<pid_t>(json_int(status(), "serve_pid", "").value_or(0)); }
  bool answers() const {
    const std::string url = text("serve_url");
    const auto port = static_cast<std::uint16_t>(std::atoi(url.c_str() + url.rfind(':') + 1));
    return !url.empty() && check_health("127.0.0.1", port, text("artifact"), 3s).has_value();
  }
  /// Ends agent and students as a power cut does; the disk loses the middle of a model that it had promised.
  void lose_power(const std::string& slot) {
    const pid_t serve = serve_pid();
    kill_agent(SIGKILL);
    if (serve > 0) ::kill(serve, SIGKILL);
    const File file = *File::open_write(folder_ / "device/slots" / slot / "model.gguf", false);
    ASSERT_OK(file.write_all_at(*file.size() / 2, std::string(512, '\0')));
    ASSERT_OK(Spool::open(folder_ / "device/state.db")->put({{"checked_slots", "another-boot a b"}}));
  }
  bool serving(const std::string& sha256) {
    return eventually([&] { return text("artifact") == sha256 && text("state") == "idle" && answers(); });
  }

  testing::TinyModelOptions size_;
  TemporaryFolder folder_;
  CurveKeys keys_ = make_curve_keys();
  std::unique_ptr<HfModel> hf_;
  std::unique_ptr<Coordinator> coordinator_;
  std::string endpoint_, token_, probation_ = "0.3";  // seconds
  pid_t agent_ = 0;
};

class LargerAgentTest : public AgentTest {
 protected:
  LargerAgentTest() {
    size_.n_embd = 256, size_.n_layer = 4, size_.n_ff = 768, size_.n_head = 8, size_.n_head_kv = 4;
  }
  /// An agent is killed in the midst of its first pull and started again: when it serves, how many chunks it
  /// had asked for twice.
  std::size_t asked_again_after_a_kill(const std::vector<std::string>& options = {}) {
    const std::string first = artifact("first");
    coordinator_->chunk_delay = std::chrono::milliseconds(20);
    coordinator_->desire(first);
    start_agent(options);
    EXPECT_TRUE(eventually([&] {
      const std::lock_guard lock(coordinator_->mutex);
      return coordinator_->requests.size() >= 12;
    }));
    kill_agent(SIGKILL);
    std::set<std::uint64_t> before;
    {
      const std::lock_guard lock(coordinator_->mutex);
      for (const auto& request : coordinator_->requests) before.insert(request.offset);
      coordinator_->requests.clear();
    }
    start_agent(options);
    EXPECT_TRUE(serving(first));
    std::size_t again = 0;
    const std::lock_guard lock(coordinator_->mutex);
    for (const auto& request : coordinator_->requests) again += before.count(request.offset);
    return again;
  }
};

}  // namespace retort
