#include "tests/bench/fleet_sim/agents.h"

#include <unistd.h>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <deque>
#include <optional>

#include "agent/control/session.h"
#include "agent/update/plan.h"
#include "agent/update/trust_pull.h"
#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/net/link.h"
#include "common/process/process.h"

namespace retort::sim {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using Steady = std::chrono::steady_clock;

constexpr milliseconds kAskAgain{5000};

std::int64_t monotonic_millis() {
  return std::chrono::duration_cast<milliseconds>(Steady::now().time_since_epoch()).count();
}

DeviceProfile profile_of(std::size_t number, bool labelled) {
  DeviceProfile p;
  p.hostname = fmt::format("device-{}", number);
  p.architecture = number % 3 == 0 ? "x86_64" : "aarch64";
  p.cpu_model = "Simulated CPU, four cores at 1.5 GHz";
  p.isa_features = {"asimd", "asimddp", "fphp", "i8mm"};
  p.cores = 4;
  p.cpu_allowance = 2;
  p.memory_bytes = 2ull << 30;
  p.memory_budget_bytes = (128ull + number % 7 * 32) << 20;
  p.disk_free_bytes = 4ull << 30;
  p.memory_bandwidth_bytes_per_second = 8e9;
  p.matvec_f32_flops = 4e9;
  p.matvec_q8_0_ops = 1.1e10;
  p.budget_source = "declared";
  p.labels = {{"site", fmt::format("site-{}", number % 40)}};
  if (labelled) p.labels["pull"] = "yes";
  p.notes = {"no energy meter"};
  p.agent_version = "0.1.0";
  return p;
}

struct Counters {
  std::uint64_t sent = 0, received = 0, lost = 0, batches = 0, batches_acknowledged = 0, bytes = 0,
                sessions = 0, busy = 0, refused = 0;
  std::string error;  ///< the last one
};

/// What the devices of a process share.
struct Shard {
  Shard(asio::io_context& io, const ShardOptions& o) : reactor(io), options(o), random(o.seed) {}
  asio::io_context& reactor;
  const ShardOptions& options;
  SystemClock clock;
  SeededRandom random;
  std::shared_ptr<LinkContext> links = make_link_context(65000);
  Counters counters;
  std::string wanted;  ///< artifact
};

/// A link that loses and delays frames.
class RoughLink final : public FleetClient {
 public:
  static Result<std::unique_ptr<FleetClient>> connect(Shard& shard, const std::shared_ptr<const bool>& silent,
                                                      const CurveKeys& keys, std::string_view server_key,
                                                      const std::string& endpoint, OnLink on_link,
                                                      OnFrame on_frame) {
    auto link = std::make_unique<RoughLink>(shard, silent);
    RoughLink* const self = link.get();
    link->inner_ = RETORT_TRY(FleetClient::connect(
        shard.reactor, keys, server_key, endpoint, std::move(on_link),
        [self, on_frame = std::move(on_frame)](std::string_view frame) {
          if (self->lost()) return;
          ++self->shard_.counters.received;
          if (self->shard_.options.delay.count() == 0) return on_frame(frame);
          self->later(self->inbound_, [on_frame, frame = std::string(frame)] { on_frame(frame); });
        },
        shard.links));
    return std::unique_ptr<FleetClient>(std::move(link));
  }
  RoughLink(Shard& shard, std::shared_ptr<const bool> silent) : shard_(shard), silent_(std::move(silent)) {}

  bool send(std::string frame) override {
    if (lost()) return true;
    ++shard_.counters.sent;
    if (shard_.options.delay.count() == 0) return inner_->send(std::move(frame));
    later(outbound_, [this, frame = std::move(frame)] { inner_->send(frame); });
    return true;
  }

 private:
  bool lost() {
    if (*silent_) return true;
    if (shard_.options.loss <= 0 || shard_.random.next_unit() >= shard_.options.loss) return false;
    ++shard_.counters.lost;
    return true;
  }
  /// Frames of one direction arrive in the order in which they were sent, as TCP has them.
  struct Delayed {
    std::deque<std::pair<Steady::time_point, std::function<void()>>> frames;
    asio::steady_timer timer;
  };
  void later(Delayed& way, std::function<void()> call) {
    const auto pause = milliseconds(static_cast<std::int64_t>(
        static_cast<double>(shard_.options.delay.count()) * (1 + shard_.random.next_unit())));
    auto due = Steady::now() + pause;
    if (!way.frames.empty()) due = std::max(due, way.frames.back().first);
    way.frames.emplace_back(due, std::move(call));
    if (way.frames.size() == 1) wait(way);
  }
  void wait(Delayed& way) {
    way.timer.expires_at(way.frames.front().first);
    way.timer.async_wait(
        [this, &way, alive = std::weak_ptr<int>(alive_)](const boost::system::error_code& error) {
          if (error || alive.expired()) return;
          const auto call = std::move(way.frames.front().second);
          way.frames.pop_front();
          if (!way.frames.empty()) wait(way);
          call();
        });
  }

  Shard& shard_;
  std::shared_ptr<const bool> silent_;
  std::unique_ptr<FleetClient> inner_;
  Delayed inbound_{{}, asio::steady_timer(shard_.reactor)}, outbound_{{}, asio::steady_timer(shard_.reactor)};
  std::shared_ptr<int> alive_ = std::make_shared<int>();
};

class Device {
 public:
  Device(Shard& shard, std::size_t number)
      : shard_(shard),
        number_(number),
        trust_({[this](const wire::MetadataRequest& request) { return session_.send(request); },
                [this](std::function<void()> work, std::function<void()> then) {
                  work();
                  asio::post(shard_.reactor, std::move(then));
                },
                [this] { return shard_.clock.unix_millis(); },
                [this](const std::string& key) -> Result<std::optional<std::string>> {
                  const auto found = values_.find(key);
                  return found == values_.end() ? std::nullopt : std::optional(found->second);
                },
                [this](const std::map<std::string, std::string>& values) -> Result<void> {
                  for (const auto& [key, value] : values) values_[key] = value;
                  return {};
                },
                [](const std::string&) { return std::string(); }}),
        session_(shard.reactor, shard.random, 0, hooks()) {}

  void connect() {
    opened_ = monotonic_millis();
    if (const Result<void> done = session_.connect(keys_, shard_.options.server_key, shard_.options.endpoint);
        !done)
      shard_.counters.error = done.error().describe();
  }
  void cut() {
    up_since_.reset();
    session_.close();
    drop_chunks();
  }
  bool up() const { return session_.up(); }
  const std::string& id() const { return id_; }
  void fall_silent() { *silent_ = true; }

  void want() { told_.reset(), done_.reset(); }
  void send_batches(std::uint64_t count, std::uint64_t points) {
    target_ += count, points_ = points;
    send_batches();
  }
  bool all_acknowledged() const { return acknowledged_ >= target_; }
  const std::optional<std::int64_t>& told() const { return told_; }
  const std::optional<std::int64_t>& done() const { return done_; }
  const std::optional<std::int64_t>& up_since() const { return up_since_; }

  /// Every second.
  void tick() {
    if (!session_.up()) return;
    trust_.tick();
    const auto now = Steady::now();
    if (last_sent_ > acknowledged_ && now - batch_sent_ > kAskAgain) send_again();
    if (pull_ && now - pull_->heard > kAskAgain) {
      drop_chunks();
      request_chunks();
    }
  }

 private:
  LinkSession::Hooks hooks() {
    LinkSession::Hooks h;
    h.store_epoch = [](std::uint64_t, std::function<void()> stored) { stored(); };
    h.first_message = [this]() -> std::optional<wire::Payload> {
      if (!id_.empty()) return wire::Hello{id_, "0.1.0", status_, desired_.generation};
      return wire::Enrol{shard_.options.token_secret, fmt::format("device-{}", number_),
                         profile_of(number_, labelled()), ""};
    };
    h.on_payload = [this](wire::Payload payload) { on_payload(std::move(payload)); };
    h.on_session = [this](bool up, const std::string&) {
      if (!up) return drop_chunks();
      ++shard_.counters.sessions;
      up_since_ = monotonic_millis();
      trust_.on_link();
      send_again();
      request_chunks();
    };
    h.generation = [this] { return desired_.generation; };
    h.connect = [this](const CurveKeys& keys, std::string_view server_key, const std::string& endpoint,
                       FleetClient::OnLink on_link, FleetClient::OnFrame on_frame) {
      return RoughLink::connect(shard_, silent_, keys, server_key, endpoint, std::move(on_link),
                                std::move(on_frame));
    };
    return h;
  }

  bool labelled() const {
    const ShardOptions& o = shard_.options;
    return number_ % o.label_each == 0 && number_ / o.label_each < o.labelled;
  }

  void on_payload(wire::Payload payload) {
    if (const auto* enrolled = std::get_if<wire::Enrolled>(&payload)) {
      if (!id_.empty()) return;
      const auto values = TrustPull::first_root(enrolled->root);
      if (!values) return failed(values.error());
      for (const auto& [key, value] : *values) values_[key] = value;
      trust_.begin_with(enrolled->root);
      id_ = enrolled->device_id;
      session_.restart();
    } else if (const auto* welcome = std::get_if<wire::Welcome>(&payload)) {
      acknowledge(welcome->telemetry_acknowledged);
    } else if (const auto* ack = std::get_if<wire::TelemetryAck>(&payload)) {
      acknowledge(ack->batch);
      send_batches();
    } else if (const auto* desired = std::get_if<wire::Desired>(&payload)) {
      on_desired(*desired);
    } else if (const auto* metadata = std::get_if<wire::Metadata>(&payload)) {
      trust_.on_metadata(*metadata);
    } else if (auto* chunk = std::get_if<wire::Chunk>(&payload)) {
      on_chunk(std::move(*chunk));
    } else if (const auto* refused = std::get_if<wire::Refused>(&payload)) {
      if (trust_.on_refused(*refused)) return;
      ++shard_.counters.refused;
      shard_.counters.error = refused->about + ": " + refused->message;
    }
  }

  void failed(const Error& error) { shard_.counters.error = error.describe(); }

  void on_desired(const wire::Desired& message) {
    if (!trust_.root()) return;
    const auto assignment = verify_assignment(message.assignment, *trust_.root(), id_, trust_.trusted_time());
    if (!assignment) return failed(assignment.error());
    if (assignment->head.version <= desired_.generation) return;
    desired_ = {assignment->head.version, assignment->device_class, assignment->artifact};
    if (!shard_.wanted.empty() && desired_.artifact == shard_.wanted && !told_) told_ = monotonic_millis();
    pull_.reset();
    if (desired_.artifact.empty()) return arrived();
    tell("fetch");
    trust_.bring(desired_.artifact, [this, generation = desired_.generation](Result<std::string> manifest) {
      if (generation != desired_.generation) return;
      if (!manifest) return failed(manifest.error());
      begin_pull(*manifest);
    });
  }

  void begin_pull(const std::string& text) {
    Result<ArtifactManifest> manifest = manifest_from_text(text);
    if (!manifest) return failed(manifest.error());
    Result<File> file =
        File::open_write(std::filesystem::path(shard_.options.folder) / fmt::format("{}.part", id_), true);
    if (!file) return failed(file.error());
    const std::size_t pieces = manifest->pieces.size();
    pull_.emplace(Pull{std::move(*manifest), {}, std::move(*file)});
    pull_->cursor.emplace(pull_->manifest, std::vector<bool>(pieces, false), 0);
    pull_->heard = Steady::now();
    request_chunks();
  }

  void drop_chunks() {
    if (!pull_) return;
    pull_->in_flight.clear();
    pull_->arrived.clear();
    pull_->request_at = pull_->cursor->next();
    pull_->heard = Steady::now();
  }

  void request_chunks() {
    if (!pull_ || !session_.up()) return;
    while (pull_->in_flight.size() + pull_->arrived.size() < session_.chunk_credit()) {
      const auto range = pull_->cursor->missing_from(pull_->request_at, wire::kMaxChunkBytes);
      if (!range || !session_.send(wire::ChunkRequest{desired_.artifact, range->offset, range->length}))
        return;
      pull_->in_flight[range->offset] = range->length;
      pull_->request_at = range->offset + range->length;
    }
  }

  void on_chunk(wire::Chunk chunk) {
    if (!pull_ || chunk.artifact != desired_.artifact) return;
    pull_->heard = Steady::now();
    const auto asked = pull_->in_flight.find(chunk.offset);
    if (asked == pull_->in_flight.end() || asked->second != chunk.bytes.size()) return;
    pull_->in_flight.erase(asked);
    pull_->arrived[chunk.offset] = std::move(chunk.bytes);
    for (auto next = pull_->arrived.find(pull_->cursor->next()); next != pull_->arrived.end();
         next = pull_->arrived.find(pull_->cursor->next())) {
      if (!take(next->first, next->second)) return;
      pull_->cursor->received(next->second.size());
      pull_->arrived.erase(next);
    }
    if (!pull_->cursor->complete()) return request_chunks();
    std::error_code ignored;
    std::filesystem::remove(std::filesystem::path(shard_.options.folder) / fmt::format("{}.part", id_),
                            ignored);
    pull_.reset();
    arrived();
  }

  /// Bytes in file order: written, and hashed against the signed manifest's pieces.
  bool take(std::uint64_t offset, std::string_view bytes) {
    if (const Result<void> written = pull_->file.write_all_at(offset, bytes); !written)
      return failed(written.error()), false;
    shard_.counters.bytes += bytes.size();
    while (!bytes.empty()) {
      const ArtifactPiece& piece = pull_->manifest.pieces[pull_->piece];
      const std::uint64_t rest = piece.offset + piece.length - offset;
      const std::string_view part = bytes.substr(0, std::min<std::uint64_t>(rest, bytes.size()));
      pull_->hash.update(part);
      bytes.remove_prefix(part.size()), offset += part.size();
      if (part.size() < rest) continue;
      if (pull_->hash.finish_hex() != piece.sha256) {
        shard_.counters.error = "a piece arrived with another hash than its manifest names";
        pull_.reset();
        return false;
      }
      pull_->hash = Sha256();
      ++pull_->piece;
    }
    return true;
  }

  void arrived() {
    status_.artifact = desired_.artifact;
    status_.generation = desired_.generation;
    if (!shard_.wanted.empty() && desired_.artifact == shard_.wanted && !done_) done_ = monotonic_millis();
    tell("idle");
  }
  void tell(const std::string& state) {
    status_.state = state;
    session_.send(wire::StatusReport{status_});
  }

  void acknowledge(std::uint64_t batch) {
    if (batch <= acknowledged_) return;
    shard_.counters.batches_acknowledged += batch - acknowledged_;
    acknowledged_ = batch;
    last_sent_ = std::max(last_sent_, batch);
    batch_sent_ = Steady::now();
  }
  void send_batches() {
    while (last_sent_ < target_ && last_sent_ - acknowledged_ < wire::kMaxBatchesInFlight && session_.up()) {
      wire::TelemetryBatch batch{last_sent_ + 1, 0, {}, last_sent_ == acknowledged_ ? 0 : last_sent_};
      const UnixMillis now = shard_.clock.unix_millis();
      for (std::uint64_t i = 0; i < points_; ++i)
        batch.points.push_back(
            {now, i == 0 ? "serve_token_seconds_p50" : "agent_pss_bytes_" + std::to_string(i), 0.01});
      if (!session_.send(std::move(batch))) return;
      ++shard_.counters.batches;
      ++last_sent_;
      batch_sent_ = Steady::now();
    }
  }
  /// What is not acknowledged goes again.
  void send_again() {
    last_sent_ = acknowledged_;
    send_batches();
  }

  struct Pull {
    ArtifactManifest manifest;
    std::optional<PullCursor> cursor;
    File file;
    std::map<std::uint64_t, std::uint32_t> in_flight;
    std::map<std::uint64_t, std::string> arrived;
    std::uint64_t request_at = 0;
    std::size_t piece = 0;  ///< that `hash` is of
    Sha256 hash;
    Steady::time_point heard;
  };

  Shard& shard_;
  std::size_t number_;
  CurveKeys keys_ = make_curve_keys();
  std::string id_;
  std::shared_ptr<bool> silent_ = std::make_shared<bool>(false);
  std::map<std::string, std::string> values_;
  TrustPull trust_;
  DesiredState desired_;
  DeviceStatus status_{"idle"};
  std::optional<Pull> pull_;
  std::int64_t opened_ = 0;
  std::optional<std::int64_t> told_, done_, up_since_;
  std::uint64_t target_ = 0, points_ = 1, acknowledged_ = 0, last_sent_ = 0;
  Steady::time_point batch_sent_;
  LinkSession session_;
};

class Commands {
 public:
  Commands(asio::io_context& reactor, int descriptor, const ShardOptions& options)
      : reactor_(reactor),
        shard_(reactor, options),
        channel_(reactor, descriptor),
        join_timer_(reactor),
        tick_timer_(reactor),
        churn_timer_(reactor) {
    read();
    tick();
  }

 private:
  void read() {
    asio::async_read_until(
        channel_, asio::dynamic_buffer(input_), '\n',
        [this](const boost::system::error_code& error, std::size_t length) {
          if (error) return reactor_.stop();
          const Result<json::value> command = parse_json(input_.substr(0, length), "command");
          input_.erase(0, length);
          std::string answer =
              json::serialize(command ? handle(command->as_object()) : json::object{}) + "\n";
          boost::system::error_code failed;
          asio::write(channel_, asio::buffer(answer), failed);
          if (failed) return reactor_.stop();
          read();
        });
  }

  json::object handle(const json::object& command) {
    const std::string what = json_string(command, "do", "command").value_or("");
    const auto number = [&](const char* key) { return json_uint(command, key, "command").value_or(0); };
    if (what == "join") {
      to_join_ = number("count");
      join_gap_ = std::chrono::microseconds(1'000'000 / std::max<std::uint64_t>(number("per_second"), 1));
      join_at_ = Steady::now();
      join();
    } else if (what == "want") {
      shard_.wanted = json_string(command, "artifact", "command").value_or("");
      for (const auto& device : devices_) device->want();
    } else if (what == "telemetry") {
      for (const auto& device : devices_) device->send_batches(number("batches"), number("points"));
    } else if (what == "storm") {
      for (const auto& device : devices_) device->cut();
      for (const auto& device : devices_) device->connect();
    } else if (what == "silence") {
      silent_from_ = devices_.size() - std::min<std::size_t>(number("count"), devices_.size());
      for (std::size_t i = silent_from_; i < devices_.size(); ++i) devices_[i]->fall_silent();
    } else if (what == "churn") {
      churn_ = static_cast<double>(number("per_minute")) / 60;
      if (churn_ > 0) churn();
    } else if (what == "silent") {
      json::array ids;
      for (std::size_t i = silent_from_; i < devices_.size(); ++i) ids.emplace_back(devices_[i]->id());
      return {{"ids", std::move(ids)}};
    } else if (what == "times") {
      const std::string of = json_string(command, "of", "command").value_or("");
      json::array times;
      for (const auto& device : devices_) {
        const auto& time = of == "told" ? device->told() : of == "done" ? device->done() : device->up_since();
        if (time) times.emplace_back(*time);
      }
      return {{"times", std::move(times)}};
    }
    return report();
  }

  json::object report() const {
    std::uint64_t up = 0, told = 0, done = 0, settled = 0;
    for (const auto& device : devices_) {
      up += device->up();
      told += device->told().has_value();
      done += device->done().has_value();
      settled += device->all_acknowledged();
    }
    const Counters& c = shard_.counters;
    return {{"devices", devices_.size()},
            {"up", up},
            {"told", told},
            {"done", done},
            {"settled", settled},
            {"sent", c.sent},
            {"received", c.received},
            {"lost", c.lost},
            {"batches", c.batches},
            {"acknowledged", c.batches_acknowledged},
            {"bytes", c.bytes},
            {"sessions", c.sessions},
            {"refused", c.refused},
            {"error", c.error}};
  }

  void join() {
    while (to_join_ > 0 && Steady::now() >= join_at_) {
      devices_.push_back(std::make_unique<Device>(shard_, shard_.options.first + devices_.size()));
      devices_.back()->connect();
      --to_join_;
      join_at_ += join_gap_;
    }
    if (to_join_ == 0) return;
    join_timer_.expires_at(join_at_);
    join_timer_.async_wait([this](const boost::system::error_code& error) {
      if (!error) join();
    });
  }

  void tick() {
    tick_timer_.expires_after(std::chrono::seconds(1));
    tick_timer_.async_wait([this](const boost::system::error_code& error) {
      if (error) return;
      for (const auto& device : devices_) device->tick();
      tick();
    });
  }

  void churn() {
    churn_timer_.expires_after(milliseconds(static_cast<std::int64_t>(1000 / churn_) + 1));
    churn_timer_.async_wait([this](const boost::system::error_code& error) {
      if (error || churn_ <= 0) return;
      Device& device = *devices_[static_cast<std::size_t>(shard_.random.next_unit() *
                                                          static_cast<double>(devices_.size()))];
      if (device.up()) {
        device.cut();
        auto back = std::make_shared<asio::steady_timer>(
            reactor_, milliseconds(static_cast<std::int64_t>(shard_.random.next_unit() * 10000)));
        back->async_wait([back, &device](const boost::system::error_code& failed) {
          if (!failed) device.connect();
        });
      }
      churn();
    });
  }

  asio::io_context& reactor_;
  Shard shard_;
  asio::posix::stream_descriptor channel_;
  std::string input_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::uint64_t to_join_ = 0;
  std::size_t silent_from_ = 0;
  std::chrono::microseconds join_gap_{0};
  Steady::time_point join_at_;
  double churn_ = 0;
  asio::steady_timer join_timer_, tick_timer_, churn_timer_;
};

}  // namespace

int run_shard(int descriptor, const ShardOptions& options) {
  keep_freed_memory(4u << 20, 64u << 20);  // as each agent does for itself
  asio::io_context reactor(1);
  const Commands commands(reactor, descriptor, options);
  reactor.run();
  // Thousands of sockets would be closed one by one; the process ends anyway.
  ::_exit(0);
}

}  // namespace retort::sim
