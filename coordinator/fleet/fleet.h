#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "common/core/clock.h"
#include "common/core/random.h"
#include "common/net/link.h"
#include "common/wire/messages.h"
#include "common/wire/record_table.h"
#include "coordinator/artifacts/artifact_reader.h"
#include "coordinator/fleet/device_fleet.h"
#include "coordinator/fleet/store_sync.h"
#include "coordinator/fleet/transfer_queue.h"
#include "coordinator/telemetry/telemetry_store.h"

namespace retort {

struct FleetOptions {
  std::uint32_t heartbeat_millis = 10000;
  std::uint32_t chunk_credit = 4;
  std::size_t sessions = 20000;  ///< beyond, a newcomer is told to come back
};

struct FleetCounters {
  std::uint64_t frames = 0, garbage = 0, duplicates = 0, refused = 0, telemetry_points = 0, chunks = 0,
                chunk_bytes = 0, silent = 0;
  std::chrono::steady_clock::duration longest_silence{};  ///< of a session between two of its messages
};

/// The coordinator's side of the fleet link: who the devices are, what class they fall into, what each should
/// serve, and the transfer to them. Every promise to a device is in the store before it is sent. Thread:
/// reactor.
class Fleet final : public DeviceFleet {
 public:
  /// What a device that wants to enrol shows.
  struct Claim {
    std::string token_secret, public_key, hardware_id;
  };
  struct Grant {
    std::string token;    ///< its id
    bool manual = false;  ///< the device waits until an operator accepts it
  };
  /// Spends one use of an enrolment token; kDenied.
  using ConsumeToken = std::function<Result<Grant>(const Claim& claim)>;

  /// How rollouts take part: what a device is to serve in place of its class's artifact, that something about
  /// devices changed, and a device's answers to a canary.
  struct Rollouts {
    std::function<std::optional<std::string>(const std::string& device_id, const std::string& device_class)>
        assigned;
    std::function<void()> changed;
    std::function<void(const std::string& device_id, const wire::CanaryResult& result)> canary_answered;
  };

  Fleet(boost::asio::io_context& reactor, Store& store, ArtifactStore& artifacts, const Clock& clock,
        RandomSource& random, FleetOptions options, ConsumeToken consume_token);
  /// Before start().
  void set_rollouts(Rollouts rollouts) { rollouts_ = std::move(rollouts); }
  /// Loads devices and classes, and binds.
  Result<void> start(const CurveKeys& keys, const std::string& endpoint);
  /// Called when something of a device may have changed that others see: its record, or whether it is online.
  void on_change(std::function<void(const DeviceRecord&)> call) { on_change_ = std::move(call); }
  std::string endpoint() const { return server_->endpoint(); }

  const std::map<std::string, DeviceRecord>& devices() const override { return devices_; }
  bool online(const std::string& device_id) const override;
  std::size_t online_count() const;
  const FleetCounters& counters() const { return counters_; }
  /// Of artifacts' files, so far.
  std::uint64_t artifact_reads() const { return reader_.reads(); }
  /// Devices that wait for their turn, by the limits of their sites.
  std::size_t transfers_waiting() const;
  /// By id, a prefix of it, or the name that one device alone has; kNotFound, kConflict.
  Result<DeviceRecord> find(const std::string& id) const;
  /// Cuts it off, at once and for ever; also a device that waits: that is a rejection.
  Result<void> revoke(const std::string& id);
  /// Nothing of a revoked device is kept any more; with a token it may enrol as a new one. kConflict: it is
  /// not revoked.
  Result<void> forget(const std::string& id);
  /// Lets a waiting device in; kConflict when it does not wait.
  Result<void> accept(const std::string& id);
  /// The device makes itself a new CURVE key as soon as it is there.
  Result<void> rotate_key(const std::string& id);

  const std::map<std::string, DeviceClass>& classes() const override { return classes_; }
  /// Creates a class or changes its rules and budgets (its artifact and generation stay); devices move at
  /// once.
  Result<DeviceClass> set_class(DeviceClass value);
  Result<DeviceClass> assign(const std::string& name, const std::string& artifact, StoreBatch batch = {},
                             const std::function<void()>& written = {}) override;
  Result<void> remove_class(const std::string& name, StoreBatch batch = {}) override;
  const std::map<std::string, Site>& sites() const { return sites_; }
  /// Makes a site or changes it; its devices are told at once.
  Result<Site> set_site(Site value);
  /// kNotFound.
  Result<void> remove_site(const std::string& name);
  void reconsider(const std::string& device_id) override;
  void renew(const std::string& device_id) override;
  bool ask_canary(const std::string& device_id, const wire::Canary& canary) override;

 private:
  struct Session {
    DeviceRecord* device = nullptr;
    std::string routing_id;
    std::uint64_t epoch = 0, received = 0, sent = 0;
    std::chrono::steady_clock::time_point heard;
    std::chrono::steady_clock::time_point told;  ///< its desired state
    std::uint64_t batch_on_disk = 0;             ///< of telemetry
    std::uint32_t batches_untold = 0;            ///< that came since it was last told of one on disk
    bool telling_late = false;                   ///< it is in tell_late_
  };
  void on_frame(const FleetServer::Peer& peer, std::string_view frame);
  void on_message(const FleetServer::Peer& peer, wire::Envelope& envelope, Session& session);
  void open_session(const FleetServer::Peer& peer, const wire::Envelope& envelope, DeviceRecord& device);
  void enrol(const FleetServer::Peer& peer, const wire::Envelope& envelope, const wire::Enrol& message);
  void change_key(Session& session, DeviceRecord& device, const wire::KeyRotation& message);
  void send_metadata(Session& session, const wire::MetadataRequest& request);
  /// The desired state, signed for the device, and where else the artifact may be had.
  void send_desired(Session& session, const DeviceRecord& device);
  bool send(Session& session, wire::Payload payload);
  void answer(const FleetServer::Peer& peer, const wire::Envelope& envelope, wire::Payload payload);
  void send_chunk(Session& session, const wire::ChunkRequest& request);
  void answer_chunk(Session& session, const wire::ChunkRequest& request);
  /// Answers what may be answered by now of what waits in the sites' queues.
  void serve_queues();
  void leave_queue(const DeviceRecord& device);
  /// Written at the end of this turn of the reactor, with what else came in it.
  void save_soon(const DeviceRecord& device);
  /// Written when it returns, on disk with the next sync; with places where a test may end the process
  /// (common/core/fail_point.h).
  Result<void> save_step(const DeviceRecord& device, std::string_view step);
  void store_telemetry(Session& session, DeviceRecord& device, wire::TelemetryBatch& batch);
  void flush_soon();
  /// Writes what waits, in one go; its telemetry is acknowledged when it is on disk.
  Result<void> flush();
  void acknowledge(const DeviceRecord& device, std::uint64_t batch);
  void tell_batch(Session& session);
  /// Those of `devices` from `next` on, a few at a turn of the reactor.
  void tell_batches(std::vector<const DeviceRecord*> devices, std::size_t next);
  /// Nothing while the device is offline.
  Session* session_of(const DeviceRecord& device);
  Session* session_of(const std::string& id);
  std::vector<DeviceClass> class_list() const;
  /// What the device is to serve by now; nothing: as it was told.
  std::optional<DesiredState> changed_state(const DeviceRecord& device,
                                            const std::vector<DeviceClass>& classes) const;
  /// Works out class and desired state; saves and tells the device when they changed.
  void reconsider(DeviceRecord& device);
  /// `batch` is written with it, and is then on disk.
  Result<void> reconsider_all(StoreBatch batch = {});
  void desire(DeviceRecord& device, DesiredState desired);
  void tell(std::vector<std::string> device_ids);  ///< their desired states, once those are on disk
  void tell_site(const std::string& name);
  void limit_site(const Site& site);
  void tell_next();
  void watch_silence();

  boost::asio::io_context& reactor_;
  Store& store_;
  ArtifactStore& artifacts_;
  ArtifactReader reader_;
  const Clock& clock_;
  RandomSource& random_;
  FleetOptions options_;
  ConsumeToken consume_token_;
  std::function<void(const DeviceRecord&)> on_change_ = [](const DeviceRecord&) {};
  Rollouts rollouts_;
  RecordTable<DeviceRecord> device_table_;
  RecordTable<DeviceClass> class_table_;
  RecordTable<Site> site_table_;
  std::map<std::string, DeviceRecord> devices_;
  std::vector<std::map<std::string, DeviceRecord>::node_type> forgotten_;  // so that pointers stay good
  std::unordered_map<std::string, DeviceRecord*> device_of_key_;
  struct Waiting {
    std::string routing_id;
    std::uint64_t epoch = 0;
  };
  std::map<std::string, Waiting> waiting_;  // by device: where one asked that waits for an accept
  CurveKeys keys_;
  std::map<std::string, DeviceClass> classes_;
  std::map<std::string, Site> sites_;
  std::map<std::string, TransferQueue> queues_;        // by site, of those that have limits
  std::unordered_map<std::string, Session> sessions_;  // by routing id
  std::unordered_map<const DeviceRecord*, Session*> session_of_;
  // What is not written yet: records that changed, points, and for each batch among it the device and the
  // number to go back to when it cannot be written.
  std::unordered_set<const DeviceRecord*> unsaved_;
  StoreBatch unsaved_points_;
  std::uint64_t unsaved_point_count_ = 0;
  std::vector<std::pair<DeviceRecord*, std::uint64_t>> unsaved_telemetry_;
  bool flush_posted_ = false;
  /// By device: the last batch on disk, while its record says a later one.
  std::unordered_map<const DeviceRecord*, std::uint64_t> acknowledged_;
  std::vector<const DeviceRecord*> tell_late_;  ///< of a batch on disk; some may be gone
  std::deque<std::string> to_tell_;             ///< devices with a new desired state
  FleetCounters counters_;
  boost::asio::steady_timer silence_timer_, queue_timer_;
  std::unique_ptr<FleetServer> server_;
  std::shared_ptr<int> alive_ = std::make_shared<int>();
  StoreSync sync_;
};

}  // namespace retort
