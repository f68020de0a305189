#include "coordinator/fleet/fleet.h"

#include <algorithm>
#include <boost/asio/post.hpp>

#include "common/core/fail_point.h"
#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/core/utf8.h"
#include "common/net/key_proof.h"

namespace retort {
namespace {

constexpr std::size_t kMaxTextBytes = 4096, kMaxPoints = 10000, kMaxUnsavedChanges = 20000, kTellAtATime = 64;
constexpr std::chrono::seconds kTellAgain{20};
constexpr std::uint32_t kTellTogether = wire::kMaxBatchesInFlight / 2;  ///< or after a second
constexpr std::uint32_t kWaitMillis = 60'000;  ///< three times of what a queue tells those who wait
constexpr std::uint64_t kMaxGeneration = 1ull << 62;
/// By device: the last telemetry batch, and how many it dropped; beside its record, which is larger and
/// rarely changes.
constexpr std::string_view kSeenTable = "telemetry_seen";
constexpr std::string_view kPending = "this device waits for an operator to accept it";

std::string device_id_of(std::string_view public_key) {
  return "dev-" + sha256_hex(public_key).substr(0, 16);
}

/// A device's texts end up in records, logs and answers: bounded here, once, and made text.
void bound(std::string& text, std::size_t limit = kMaxTextBytes) {
  if (text.size() > limit || !is_utf8(text)) text = valid_utf8(text, limit);
}
void bound(DeviceStatus& s) {
  for (std::string* text : {&s.state, &s.artifact, &s.serve_url, &s.error_code, &s.error}) bound(*text, 1024);
}
void bound(DeviceProfile& p) {
  for (std::string* text :
       {&p.hostname, &p.architecture, &p.cpu_model, &p.energy_meter, &p.budget_source, &p.agent_version})
    bound(*text, 256);
  for (auto* list : {&p.isa_features, &p.accelerators, &p.notes}) {
    if (list->size() > 128) list->resize(128);
    for (std::string& text : *list) bound(text, 256);
  }
  std::map<std::string, std::string> labels;
  for (const auto& [key, value] : p.labels)
    if (labels.size() < 64) labels.emplace(valid_utf8(key, 256), valid_utf8(value, 256));
  p.labels = std::move(labels);
  if (p.decode.size() > 256) p.decode.resize(256);
  for (DecodeSample& sample : p.decode) bound(sample.format, 32);
}

}  // namespace

Fleet::Fleet(boost::asio::io_context& reactor, Store& store, ArtifactStore& artifacts, const Clock& clock,
             RandomSource& random, FleetOptions options, ConsumeToken consume_token)
    : reactor_(reactor),
      store_(store),
      artifacts_(artifacts),
      reader_(artifacts),
      clock_(clock),
      random_(random),
      options_(options),
      consume_token_(std::move(consume_token)),
      device_table_(store, "devices"),
      class_table_(store, "classes"),
      site_table_(store, "sites"),
      silence_timer_(reactor),
      queue_timer_(reactor),
      sync_(reactor, store) {}

Result<void> Fleet::start(const CurveKeys& keys, const std::string& endpoint) {
  keys_ = keys;
  for (DeviceRecord& device : RETORT_TRY(device_table_.all())) {
    const std::string id = device.id;
    bound(device.name, 256), bound(device.profile),
        bound(device.status);  // an older release kept all that came
    DeviceRecord& kept = devices_.emplace(id, std::move(device)).first->second;
    device_of_key_[kept.public_key] = &kept;
    if (!kept.previous_key.empty()) device_of_key_[kept.previous_key] = &kept;
  }
  RETORT_TRY(store_.scan(kSeenTable, "", "", [&](std::string_view id, std::string_view value) {
    const auto device = devices_.find(std::string(id));
    if (device == devices_.end()) return true;
    char* end = nullptr;
    const std::string text(value);
    const std::uint64_t batch = std::strtoull(text.c_str(), &end, 10);
    device->second.telemetry_batch = std::max(device->second.telemetry_batch, batch);
    device->second.telemetry_dropped =
        std::max<std::uint64_t>(device->second.telemetry_dropped, std::strtoull(end, nullptr, 10));
    return true;
  }));
  for (DeviceClass& value : RETORT_TRY(class_table_.all())) {
    const std::string name = value.name;
    classes_.emplace(name, std::move(value));
  }
  for (Site& site : RETORT_TRY(site_table_.all())) {
    const std::string name = site.name;
    limit_site(site);
    sites_.emplace(name, std::move(site));
  }
  const auto admit = [this](std::string_view key) {
    const auto known = device_of_key_.find(std::string(key));
    return known == device_of_key_.end() || !known->second->revoked;
  };
  server_ = RETORT_TRY(FleetServer::bind(
      reactor_, keys, endpoint, admit,
      [this](const FleetServer::Peer& peer, std::string_view frame) { on_frame(peer, frame); }));
  watch_silence();
  return {};
}

bool Fleet::online(const std::string& id) const {
  const auto device = devices_.find(id);
  return device != devices_.end() && session_of_.count(&device->second) != 0;
}
std::size_t Fleet::online_count() const { return session_of_.size(); }

Fleet::Session* Fleet::session_of(const DeviceRecord& device) {
  const auto found = session_of_.find(&device);
  return found == session_of_.end() ? nullptr : found->second;
}

Fleet::Session* Fleet::session_of(const std::string& id) {
  const auto device = devices_.find(id);
  return device == devices_.end() ? nullptr : session_of(device->second);
}

Result<DeviceRecord> Fleet::find(const std::string& id) const {
  const auto exact = devices_.find(id);
  if (exact != devices_.end()) return exact->second;
  const DeviceRecord* found = nullptr;
  for (const auto& [key, device] : devices_) {
    if (device.name != id && (id.size() < 8 || !key.starts_with(id))) continue;
    if (found != nullptr)
      return fail(ErrorCode::kConflict, "", "'{}' may be {} or {}: give the whole id", id, found->id,
                  device.id);
    found = &device;
  }
  if (found == nullptr) return fail(ErrorCode::kNotFound, "", "there is no device '{}'", id);
  return *found;
}

// The reactor never waits for the disk. What changes in one turn of it is written in one go, without a sync,
// and what promises something (an acknowledgement, an identity, a desired state) is sent after the next sync,
// which all share that were written by then. A crash takes the last writes first, so that nothing promised is
// lost.

void Fleet::save_soon(const DeviceRecord& device) {
  unsaved_.insert(&device);
  on_change_(device);
  flush_soon();
}

Result<void> Fleet::save_step(const DeviceRecord& device, std::string_view step) {
  RETORT_TRY(flush());  // the record says which telemetry there is
  const std::string point = fmt::format("coordinator.device.{}", step);
  fail_point(point + ".saving");
  StoreBatch batch;
  device_table_.put(batch, device.id, device);
  RETORT_TRY(store_.write(batch, false));
  fail_point(point + ".saved");
  on_change_(device);
  return {};
}

void Fleet::flush_soon() {
  if (std::exchange(flush_posted_, true)) return;
  boost::asio::post(reactor_, [this, alive = std::weak_ptr<int>(alive_)] {
    if (alive.expired()) return;
    flush_posted_ = false;
    if (const Result<void> done = flush(); !done) log_error("fleet: {}", done.error().describe());
  });
}

Result<void> Fleet::flush() {
  if (unsaved_.empty() && unsaved_telemetry_.empty()) return {};
  for (const DeviceRecord* device : unsaved_) device_table_.put(unsaved_points_, device->id, *device);
  const Result<void> written = store_.write(std::exchange(unsaved_points_, {}), false);
  const std::uint64_t points = std::exchange(unsaved_point_count_, 0);
  const auto telemetry = std::exchange(unsaved_telemetry_, {});
  if (!written) {
    // They send it again.
    for (const auto& [device, before] : telemetry)
      device->telemetry_batch = std::min(device->telemetry_batch, before);
    return written;
  }
  counters_.telemetry_points += points;
  unsaved_.clear();
  if (telemetry.empty()) return {};
  std::vector<std::pair<DeviceRecord*, std::uint64_t>> batches;
  batches.reserve(telemetry.size());
  for (const auto& [device, before] : telemetry) {
    acknowledged_.emplace(device, before);
    batches.emplace_back(device, device->telemetry_batch);
  }
  // One word for all that a device has in flight.
  std::sort(batches.begin(), batches.end());
  batches.erase(std::unique(batches.begin(), batches.end()), batches.end());
  sync_.then([this, batches = std::move(batches)] {
    for (const auto& [device, batch] : batches) acknowledge(*device, batch);
  });
  return {};
}

void Fleet::acknowledge(const DeviceRecord& device, std::uint64_t batch) {
  if (const auto on_disk = acknowledged_.find(&device); on_disk != acknowledged_.end()) {
    on_disk->second = std::max(on_disk->second, batch);
    if (on_disk->second >= device.telemetry_batch) acknowledged_.erase(on_disk);
  }
  Session* const session = session_of(device);
  if (session == nullptr) return;
  session->batch_on_disk = batch;
  if (session->batches_untold == 0 || session->batches_untold >= kTellTogether) return tell_batch(*session);
  if (std::exchange(session->telling_late, true)) return;
  tell_late_.push_back(&device);
}

void Fleet::tell_batch(Session& session) {
  session.batches_untold = 0;
  send(session, wire::TelemetryAck{session.batch_on_disk});
}

void Fleet::tell_batches(std::vector<const DeviceRecord*> devices, std::size_t next) {
  for (std::size_t i = 0; i < kTellAtATime && next < devices.size(); ++i, ++next) {
    const auto session = session_of_.find(devices[next]);
    if (session == session_of_.end() || !std::exchange(session->second->telling_late, false)) continue;
    if (session->second->batches_untold != 0) tell_batch(*session->second);
  }
  if (next == devices.size()) return;
  boost::asio::post(reactor_, [this, devices = std::move(devices), next, alive = std::weak_ptr<int>(alive_)] {
    if (!alive.expired()) tell_batches(devices, next);
  });
}

void Fleet::store_telemetry(Session& session, DeviceRecord& device, wire::TelemetryBatch& batch) {
  if (batch.follows > device.telemetry_batch) return;  // it comes again, behind the one that is missing
  // One word for several in flight; one that stands alone is answered at once.
  session.batches_untold = batch.follows == 0 ? kTellTogether : session.batches_untold + 1;
  unsaved_telemetry_.emplace_back(&device, device.telemetry_batch);
  if (batch.batch > device.telemetry_batch) {
    if (batch.points.size() > kMaxPoints) batch.points.resize(kMaxPoints);
    for (TelemetryPoint& point : batch.points) bound(point.metric, 128);
    device.telemetry_batch = batch.batch;
    device.telemetry_dropped = std::max(device.telemetry_dropped, batch.dropped_before);
    unsaved_point_count_ += batch.points.size();
    TelemetryStore::put(unsaved_points_, device.id, batch.points);
    unsaved_points_.put(kSeenTable, device.id,
                        fmt::format("{} {}", device.telemetry_batch, device.telemetry_dropped));
  } else {
    ++counters_.duplicates;
  }
  if (unsaved_points_.changes().size() < kMaxUnsavedChanges) return flush_soon();
  if (const Result<void> done = flush(); !done) log_error("telemetry: {}", done.error().describe());
}

bool Fleet::send(Session& session, wire::Payload payload) {
  wire::Envelope envelope{wire::kProtocolVersion, session.epoch, session.sent + 1, session.received,
                          std::move(payload)};
  if (!server_->send(session.routing_id, wire::encode(envelope))) return false;
  ++session.sent;
  return true;
}

void Fleet::answer(const FleetServer::Peer& peer, const wire::Envelope& envelope, wire::Payload payload) {
  server_->send(peer.routing_id, wire::encode({wire::kProtocolVersion, envelope.epoch, 1, envelope.sequence,
                                               std::move(payload)}));
}

void Fleet::on_frame(const FleetServer::Peer& peer, std::string_view frame) {
  ++counters_.frames;
  Result<wire::Envelope> envelope = wire::decode(frame);
  if (!envelope) {
    if (++counters_.garbage % 1000 == 1)
      log_warn("fleet: a frame of {} bytes cannot be read, dropped ({} so far): {}", frame.size(),
               counters_.garbage, envelope.error().describe());
    return;
  }
  if (const auto* message = std::get_if<wire::Enrol>(&envelope->payload))
    return enrol(peer, *envelope, *message);
  const auto known = device_of_key_.find(peer.public_key);
  if (known == device_of_key_.end()) {
    ++counters_.refused;
    return answer(peer, *envelope,
                  wire::Refused{"hello", "denied",
                                "this device is not enrolled here; give its agent an enrolment token"});
  }
  DeviceRecord& device = *known->second;
  if (device.revoked)
    return answer(peer, *envelope, wire::Refused{"hello", "revoked", "an operator revoked this device"});
  if (device.pending)
    return answer(peer, *envelope, wire::Refused{"hello", "pending", std::string(kPending)});
  if (auto* hello = std::get_if<wire::Hello>(&envelope->payload)) {
    if (hello->device_id != device.id) {
      ++counters_.refused;
      return answer(peer, *envelope, wire::Refused{"hello", "denied", "this key belongs to " + device.id});
    }
    bound(hello->status);
    bound(hello->agent_version, 64);
    device.status = hello->status;
    device.profile.agent_version = hello->agent_version;
    // This store may be older than the device's memory (a restored backup): go on above what it has seen.
    if (hello->generation > device.desired.generation && hello->generation < kMaxGeneration)
      device.desired.generation = hello->generation + 1;
    if (peer.public_key == device.public_key && !device.previous_key.empty()) {
      log_info("fleet: {} has come with its new key", device.id);
      device_of_key_.erase(device.previous_key);
      device.previous_key.clear();
      device.rotate_key = false;
    }
    return open_session(peer, *envelope, device);
  }
  const auto session = sessions_.find(peer.routing_id);
  if (session == sessions_.end() || session->second.epoch != envelope->epoch ||
      session->second.device != &device)
    return answer(peer, *envelope,
                  wire::ComeBack{0});  // we started anew, or this is an old session's: say hello again
  const auto now = clock_.steady_now();
  counters_.longest_silence = std::max(counters_.longest_silence, now - session->second.heard);
  session->second.heard = now;
  if (envelope->sequence <= session->second.received) {
    ++counters_.duplicates;
    return;
  }
  session->second.received = envelope->sequence;
  on_message(peer, *envelope, session->second);
}

void Fleet::enrol(const FleetServer::Peer& peer, const wire::Envelope& envelope, const wire::Enrol& message) {
  const auto known = device_of_key_.find(peer.public_key);
  if (known == device_of_key_.end()) {
    if (sessions_.size() >= options_.sessions)
      return answer(peer, envelope,
                    wire::ComeBack{5000 + static_cast<std::uint32_t>(random_.next_unit() * 10000)});
    const Result<Grant> grant = consume_token_({message.token_secret, peer.public_key, message.hardware_id});
    if (!grant) {
      ++counters_.refused;
      return answer(
          peer, envelope,
          wire::Refused{"enrol", std::string(to_string(grant.error().code)), grant.error().message});
    }
    DeviceRecord device;
    device.id = device_id_of(peer.public_key);
    device.name = message.name;
    bound(device.name, 256);
    device.public_key = peer.public_key;
    device.enrolled = device.last_seen = clock_.unix_millis();
    device.profile = message.profile;
    device.token = grant->token;
    device.pending = grant->manual;
    bound(device.profile);
    if (const Result<void> saved = save_step(device, "enrolled"); !saved)
      return answer(peer, envelope, wire::Refused{"enrol", "unavailable", saved.error().message});
    log_info("fleet: {} ({}) {}", device.id, device.name,
             device.pending ? "waits for an accept" : "enrolled");
    DeviceRecord& kept = devices_[device.id];
    kept = std::move(device);
    device_of_key_[peer.public_key] = &kept;
  }
  // A repeated enrolment of a key that is known costs no use of the token: the first answer was lost.
  const DeviceRecord& device = *device_of_key_.at(peer.public_key);
  if (device.revoked)
    return answer(peer, envelope, wire::Refused{"enrol", "revoked", "an operator revoked this device"});
  if (device.pending) waiting_[device.id] = {peer.routing_id, envelope.epoch};
  sync_.then([this, peer, &device, epoch = envelope.epoch, sequence = envelope.sequence] {
    wire::Envelope asked;
    asked.epoch = epoch, asked.sequence = sequence;
    if (device.pending)
      answer(peer, asked, wire::Refused{"enrol", "pending", std::string(kPending)});
    else
      answer(peer, asked, wire::Enrolled{device.id, artifacts_.trust().root_text()});
  });
}

void Fleet::open_session(const FleetServer::Peer& peer, const wire::Envelope& envelope,
                         DeviceRecord& device) {
  Session* const old = session_of(device);
  if (sessions_.size() >= options_.sessions && old == nullptr)
    return answer(peer, envelope,
                  wire::ComeBack{5000 + static_cast<std::uint32_t>(random_.next_unit() * 10000)});
  leave_queue(device);
  if (old != nullptr) sessions_.erase(std::string(old->routing_id));
  if (const auto taken = sessions_.find(peer.routing_id); taken != sessions_.end())
    session_of_.erase(taken->second.device);
  Session& session = sessions_[peer.routing_id] = {
      &device, peer.routing_id, envelope.epoch, envelope.sequence, 0, clock_.steady_now()};
  session_of_[&device] = &session;
  device.epoch = std::max(device.epoch, envelope.epoch);
  device.last_seen = clock_.unix_millis();
  save_soon(device);
  const auto on_disk = acknowledged_.find(&device);
  send(session, wire::Welcome{options_.heartbeat_millis, options_.chunk_credit, clock_.unix_millis(),
                              on_disk == acknowledged_.end() ? device.telemetry_batch : on_disk->second});
  const std::uint64_t generation = device.desired.generation;
  reconsider(device);
  if (device.desired.generation == generation && generation != 0) send_desired(session, device);
  if (device.rotate_key) send(session, wire::RotateKey{});
  if (rollouts_.changed) rollouts_.changed();
}

void Fleet::send_desired(Session& session, const DeviceRecord& device) {
  Result<std::string> assignment = artifacts_.trust().sign_assignment(device.id, device.desired);
  if (!assignment) return log_error("fleet: {}: {}", device.id, assignment.error().describe());
  session.told = clock_.steady_now();
  const auto site = sites_.find(site_of(device.profile));
  send(session, wire::Desired{device.desired, std::move(*assignment),
                              site == sites_.end() ? std::vector<std::string>() : site->second.mirrors});
}

void Fleet::send_metadata(Session& session, const wire::MetadataRequest& request) {
  Result<std::string> file = request.name.size() > 256
                                 ? fail(ErrorCode::kNotFound, "", "no file has such a name")
                                 : artifacts_.trust().file(request.name);
  if (!file) {
    send(session, wire::Refused{"metadata " + request.name.substr(0, 256),
                                std::string(to_string(file.error().code)), file.error().message});
    return;
  }
  wire::Metadata answer{request.name, request.offset, file->size(), ""};
  if (request.offset < file->size()) answer.bytes = file->substr(request.offset, wire::kMaxChunkBytes);
  send(session, std::move(answer));
}

void Fleet::change_key(Session& session, DeviceRecord& device, const wire::KeyRotation& message) {
  const auto refuse = [&](std::string_view why) {
    send(session, wire::Refused{"key", "denied", std::string(why)});
  };
  if (message.public_key != device.public_key) {
    if (!check_key_proof(message.proof, message.public_key, keys_.secret_key, device.id))
      return refuse("the proof does not show that this device has the key");
    if (device_of_key_.count(message.public_key) > 0) return refuse("this key is another device's");
    if (!device.previous_key.empty()) return refuse("a change of key is under way");
    DeviceRecord next = device;
    next.previous_key = device.public_key;
    next.public_key = message.public_key;
    if (const Result<void> saved = save_step(next, "key"); !saved)
      return log_error("fleet: {}", saved.error().describe());  // the device asks again
    device = std::move(next);
    device_of_key_[device.public_key] = &device;
  }
  sync_.then([this, &device, key = device.public_key] {
    if (Session* const now = session_of(device)) send(*now, wire::KeyRotated{key});
  });
}

void Fleet::on_message(const FleetServer::Peer& peer, wire::Envelope& envelope, Session& session) {
  DeviceRecord& device = *session.device;
  device.last_seen = clock_.unix_millis();
  if (auto* update = std::get_if<wire::ProfileUpdate>(&envelope.payload)) {
    bound(update->profile);
    const bool moved = site_of(update->profile) != site_of(device.profile);
    if (moved) leave_queue(device);  // what it waits for there it asks for again
    device.profile = std::move(update->profile);
    save_soon(device);
    reconsider(device);
    if (moved) tell({device.id});
  } else if (auto* report = std::get_if<wire::StatusReport>(&envelope.payload)) {
    bound(report->status);
    const bool settled = device.status.state != report->status.state ||
                         device.status.artifact != report->status.artifact ||
                         device.status.error_code != report->status.error_code;
    device.status = std::move(report->status);
    if (device.status.state != "fetch") leave_queue(device);
    if (settled) {
      log_info("fleet: {} ({}) {}{}{}", device.id, device.name, device.status.state,
               device.status.error.empty() ? "" : ": ", device.status.error);
      save_soon(device);
    }
    if (rollouts_.changed) rollouts_.changed();
  } else if (const auto* beat = std::get_if<wire::Heartbeat>(&envelope.payload)) {
    // What it was told may have been lost: its queue was full.
    if (beat->generation < device.desired.generation && session.heard - session.told >= kTellAgain)
      send_desired(session, device);
  } else if (const auto* request = std::get_if<wire::MetadataRequest>(&envelope.payload)) {
    send_metadata(session, *request);
  } else if (const auto* rotation = std::get_if<wire::KeyRotation>(&envelope.payload)) {
    change_key(session, device, *rotation);
  } else if (const auto* wanted = std::get_if<wire::ChunkRequest>(&envelope.payload)) {
    send_chunk(session, *wanted);
  } else if (const auto* answers = std::get_if<wire::CanaryResult>(&envelope.payload)) {
    if (rollouts_.canary_answered) rollouts_.canary_answered(device.id, *answers);
  } else if (auto* batch = std::get_if<wire::TelemetryBatch>(&envelope.payload)) {
    store_telemetry(session, device, *batch);
  } else {
    answer(peer, envelope, wire::Unsupported{static_cast<std::uint16_t>(envelope.payload.index())});
  }
}

void Fleet::send_chunk(Session& session, const wire::ChunkRequest& request) {
  if (request.length == 0 || request.length > wire::kMaxChunkBytes) {
    send(session, wire::Refused{"chunk " + request.artifact, std::string(to_string(ErrorCode::kInvalid)),
                                fmt::format("a chunk has 1 to {} bytes", wire::kMaxChunkBytes)});
    return;
  }
  const auto queue = queues_.find(site_of(session.device->profile));
  if (queue == queues_.end()) return answer_chunk(session, request);
  queue->second.add(session.device->id, request, 2 * options_.chunk_credit, clock_.steady_now());
  serve_queues();
}

void Fleet::answer_chunk(Session& session, const wire::ChunkRequest& request) {
  Result<std::string> bytes = reader_.read(request.artifact, request.offset, request.length);
  if (!bytes) {
    send(session, wire::Refused{"chunk " + request.artifact, std::string(to_string(bytes.error().code)),
                                bytes.error().message});
    return;
  }
  ++counters_.chunks;
  counters_.chunk_bytes += request.length;
  // A full queue drops it; the device asks again.
  send(session, wire::Chunk{request.artifact, request.offset, std::move(*bytes)});
}

void Fleet::serve_queues() {
  const auto now = clock_.steady_now();
  std::optional<TransferQueue::Time> at;
  for (auto& [site, queue] : queues_) {
    while (const auto turn = queue.next(now)) {
      if (Session* const session = session_of(turn->device))
        answer_chunk(*session, turn->request);
      else
        queue.leave(turn->device);
    }
    if (const auto when = queue.when()) at = at ? std::min(*at, *when) : *when;
  }
  if (!at) return queue_timer_.cancel(), void();
  queue_timer_.expires_after(std::max<std::chrono::steady_clock::duration>(*at - now, {}));
  queue_timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error) serve_queues();
  });
}

void Fleet::leave_queue(const DeviceRecord& device) {
  const auto queue = queues_.find(site_of(device.profile));
  if (queue == queues_.end()) return;
  queue->second.leave(device.id);
  serve_queues();
}

std::size_t Fleet::transfers_waiting() const {
  std::size_t waiting = 0;
  for (const auto& [site, queue] : queues_) waiting += queue.waiting();
  return waiting;
}

std::vector<DeviceClass> Fleet::class_list() const {
  std::vector<DeviceClass> out;
  for (const auto& [name, value] : classes_) out.push_back(value);
  return out;
}

std::optional<DesiredState> Fleet::changed_state(const DeviceRecord& device,
                                                 const std::vector<DeviceClass>& classes) const {
  if (device.pending || device.revoked) return std::nullopt;
  const DeviceClass* found = classify(classes, device.profile);
  const std::string name = found == nullptr ? "" : found->name;
  std::string artifact = found == nullptr ? "" : found->artifact;
  if (rollouts_.assigned)
    if (auto assigned = rollouts_.assigned(device.id, name)) artifact = std::move(*assigned);
  if (device.desired.generation != 0 && device.desired.device_class == name &&
      device.desired.artifact == artifact)
    return std::nullopt;
  return DesiredState{device.desired.generation + 1, name, std::move(artifact)};
}

void Fleet::reconsider(DeviceRecord& device) {
  if (auto desired = changed_state(device, class_list())) desire(device, std::move(*desired));
}

// One write for all, and then they are told a few at a turn of the reactor, so that others are heard
// meanwhile.
Result<void> Fleet::reconsider_all(StoreBatch batch) {
  const std::vector<DeviceClass> classes = class_list();
  std::map<std::string, DesiredState> changes;
  for (const auto& [id, device] : devices_)
    if (auto desired = changed_state(device, classes)) changes.emplace(id, std::move(*desired));
  const bool durable = !batch.changes().empty();
  if (changes.empty() && !durable) return {};
  for (const auto& [id, desired] : changes) {
    DeviceRecord next = devices_.at(id);
    next.desired = desired;
    device_table_.put(batch, id, next);
  }
  RETORT_TRY(flush());
  RETORT_TRY(store_.write(batch, durable));
  std::vector<std::string> ids;
  for (auto& [id, desired] : changes) {
    DeviceRecord& device = devices_.at(id);
    device.desired = std::move(desired);
    on_change_(device);
    ids.push_back(id);
  }
  tell(std::move(ids));
  if (rollouts_.changed) rollouts_.changed();
  return {};
}

void Fleet::tell(std::vector<std::string> ids) {
  sync_.then([this, ids = std::move(ids)] {
    const bool idle = to_tell_.empty();
    to_tell_.insert(to_tell_.end(), ids.begin(), ids.end());
    if (idle) tell_next();
  });
}

void Fleet::tell_next() {
  for (std::size_t i = 0; i < kTellAtATime && !to_tell_.empty(); ++i) {
    const std::string id = std::move(to_tell_.front());
    to_tell_.pop_front();
    if (Session* const session = session_of(id)) send_desired(*session, *session->device);
  }
  if (to_tell_.empty()) return;
  boost::asio::post(reactor_, [this, alive = std::weak_ptr<int>(alive_)] {
    if (!alive.expired()) tell_next();
  });
}

void Fleet::reconsider(const std::string& id) {
  if (const auto device = devices_.find(id); device != devices_.end()) reconsider(device->second);
}

void Fleet::renew(const std::string& id) {
  const auto device = devices_.find(id);
  if (device == devices_.end()) return;
  DesiredState desired = device->second.desired;
  ++desired.generation;
  desire(device->second, std::move(desired));
}

void Fleet::desire(DeviceRecord& device, DesiredState desired) {
  device.desired = std::move(desired);
  save_soon(device);
  if (const Result<void> done = flush(); !done) return log_error("fleet: {}", done.error().describe());
  tell({device.id});
  if (rollouts_.changed) rollouts_.changed();
}

bool Fleet::ask_canary(const std::string& id, const wire::Canary& canary) {
  Session* const session = session_of(id);
  return session != nullptr && send(*session, canary);
}

Result<DeviceClass> Fleet::set_class(DeviceClass value) {
  if (const auto known = classes_.find(value.name); known != classes_.end()) {
    value.artifact = known->second.artifact;
    value.generation = known->second.generation;
  }
  RETORT_TRY(class_table_.put(value.name, value));
  classes_[value.name] = value;
  if (const Result<void> done = reconsider_all(); !done) log_error("fleet: {}", done.error().describe());
  return value;
}

Result<DeviceClass> Fleet::assign(const std::string& name, const std::string& artifact, StoreBatch batch,
                                  const std::function<void()>& written) {
  const auto found = classes_.find(name);
  if (found == classes_.end()) return fail(ErrorCode::kNotFound, "", "there is no class '{}'", name);
  if (!artifact.empty()) RETORT_TRY(artifacts_.find_listed(artifact));
  DeviceClass value = found->second;
  const bool again = value.artifact == artifact && value.generation != 0;
  if (!again) {
    value.artifact = artifact;
    ++value.generation;
  }
  class_table_.put(batch, name, value);
  RETORT_TRY(store_.write(batch));
  found->second = value;
  if (written) written();
  if (const Result<void> done = reconsider_all(); !done) log_error("fleet: {}", done.error().describe());
  // Said again, it is for those that gave it up.
  for (auto& [id, device] : devices_)
    if (again && device.desired.device_class == name && device.desired.artifact == artifact &&
        !device.revoked && device.status.generation == device.desired.generation &&
        device.status.artifact != artifact)
      renew(id);
  return value;
}

Result<void> Fleet::remove_class(const std::string& name, StoreBatch batch) {
  const auto found = classes_.find(name);
  if (found == classes_.end()) return fail(ErrorCode::kNotFound, "", "there is no class '{}'", name);
  class_table_.erase(batch, name);
  const DeviceClass removed = std::move(found->second);
  classes_.erase(found);
  const Result<void> done = reconsider_all(std::move(batch));
  if (!done) classes_.emplace(name, removed);
  return done;
}

Result<Site> Fleet::set_site(Site value) {
  RETORT_TRY(site_table_.put(value.name, value));
  sites_[value.name] = value;
  limit_site(value);
  tell_site(value.name);
  return value;
}

void Fleet::limit_site(const Site& site) {
  queues_[site.name].set_limits({site.bytes_per_second, site.transfers});
  serve_queues();
  if (site.bytes_per_second == 0 && site.transfers == 0) queues_.erase(site.name);  // nothing waits there now
}

Result<void> Fleet::remove_site(const std::string& name) {
  if (sites_.count(name) == 0) return fail(ErrorCode::kNotFound, "", "there is no site '{}'", name);
  RETORT_TRY(site_table_.erase(name));
  sites_.erase(name);
  limit_site({name});
  tell_site(name);
  return {};
}

void Fleet::tell_site(const std::string& name) {
  std::vector<std::string> ids;
  for (const auto& [device, session] : session_of_)
    if (device->desired.generation != 0 && site_of(device->profile) == name) ids.push_back(device->id);
  if (!ids.empty()) tell(std::move(ids));
}

Result<void> Fleet::revoke(const std::string& id) {
  const std::string exact = RETORT_TRY(find(id)).id;
  DeviceRecord& device = devices_.at(exact);
  DeviceRecord next = device;
  next.revoked = true;
  next.pending = false;
  RETORT_TRY(save_step(next, "revoked"));
  RETORT_TRY(store_.sync());
  device = std::move(next);
  waiting_.erase(exact);
  if (Session* const session = session_of(device)) {
    send(*session, wire::Refused{"session", "revoked", "an operator revoked this device"});
    session_of_.erase(&device);
    sessions_.erase(std::string(session->routing_id));
    leave_queue(device);
    on_change_(device);
  }
  // The key itself is refused at its next handshake (admit); its frames are answered "revoked" until then.
  log_info("fleet: {} revoked", exact);
  return {};
}

Result<void> Fleet::forget(const std::string& id) {
  const auto found = devices_.find(RETORT_TRY(find(id)).id);
  const DeviceRecord& device = found->second;
  if (!device.revoked) return fail(ErrorCode::kConflict, "", "{} is not revoked; revoke it first", device.id);
  RETORT_TRY(flush());
  StoreBatch batch;
  device_table_.erase(batch, device.id);
  batch.erase(kSeenTable, device.id);
  RETORT_TRY(store_.write(batch));
  std::erase_if(device_of_key_, [&](const auto& key) { return key.second == &device; });
  log_info("fleet: {} forgotten", device.id);
  forgotten_.push_back(devices_.extract(found));
  return {};
}

Result<void> Fleet::accept(const std::string& id) {
  DeviceRecord next = RETORT_TRY(find(id));
  if (!next.pending) return fail(ErrorCode::kConflict, "", "{} does not wait to be accepted", next.id);
  next.pending = false;
  RETORT_TRY(save_step(next, "accepted"));
  RETORT_TRY(store_.sync());
  devices_.at(next.id) = next;
  log_info("fleet: {} accepted", next.id);
  if (const auto waits = waiting_.find(next.id); waits != waiting_.end()) {
    // Told at once where its last request came from; else it asks again within a minute.
    server_->send(waits->second.routing_id,
                  wire::encode({wire::kProtocolVersion, waits->second.epoch, 2, 0,
                                wire::Enrolled{next.id, artifacts_.trust().root_text()}}));
    waiting_.erase(waits);
  }
  return {};
}

Result<void> Fleet::rotate_key(const std::string& id) {
  DeviceRecord next = RETORT_TRY(find(id));
  if (next.revoked) return fail(ErrorCode::kConflict, "", "{} is revoked", next.id);
  next.rotate_key = true;
  RETORT_TRY(save_step(next, "rotate"));
  RETORT_TRY(store_.sync());
  DeviceRecord& device = devices_.at(next.id) = next;
  if (Session* const session = session_of(device)) send(*session, wire::RotateKey{});
  return {};
}

void Fleet::watch_silence() {
  silence_timer_.expires_after(std::chrono::seconds(1));
  silence_timer_.async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    const auto limit = std::chrono::milliseconds(3 * options_.heartbeat_millis + 5000);
    for (auto it = sessions_.begin(); it != sessions_.end();) {
      if (clock_.steady_now() - it->second.heard < limit) {
        ++it;
        continue;
      }
      const DeviceRecord& device = *it->second.device;
      log_info("fleet: {} is silent", device.id);
      ++counters_.silent;
      session_of_.erase(&device);
      it = sessions_.erase(it);
      leave_queue(device);
      on_change_(device);
    }
    tell_batches(std::exchange(tell_late_, {}), 0);
    for (auto& [site, queue] : queues_)
      for (const auto& [id, artifact] : queue.to_tell(clock_.steady_now()))
        if (Session* const session = session_of(id)) send(*session, wire::ChunkWait{artifact, kWaitMillis});
    watch_silence();
  });
}

}  // namespace retort
