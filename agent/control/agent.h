#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "agent/control/loopback.h"
#include "agent/control/record.h"
#include "agent/control/session.h"
#include "agent/control/supervisor.h"
#include "agent/profile/profile.h"
#include "agent/spool/spool.h"
#include "agent/update/mirrors.h"
#include "agent/update/slot_files.h"
#include "agent/update/trust_pull.h"
#include "common/core/clock.h"
#include "common/core/random.h"
#include "common/net/link.h"
#include "common/process/process.h"

namespace retort {

struct AgentOptions {
  std::filesystem::path state_folder, run_folder, status_file, own_binary;
  std::filesystem::path keys_folder;
  Sealing sealing;
  std::string coordinator;   ///< "tcp://host:port"
  std::string server_key;    ///< Z85; from the token, --server-key, or the state
  std::string token_secret;  ///< empty: none given
  std::string name, version, hardware_id, serve_host = "127.0.0.1";
  std::uint16_t serve_port = 0;  ///< public port; 0: any, told in the status. A public socket comes before it
  std::map<std::string, std::string> labels;
  DeclaredBudgets budgets;
  std::chrono::milliseconds probation{5000};
  /// How long after its profile a device that rests measures how fast it generates; 0: it never does.
  std::chrono::seconds decode_after{30};
  bool stop_serve_on_exit = false;
};

/// What the agent has on disk besides the machine's record; read once at start.
struct AgentIdentity {
  std::string device_id;
  std::uint64_t epoch = 0;
  bool revoked = false;
  std::optional<DeviceProfile> told_profile;
};

/// The device's control loop: link, state machine (state_table.h), serving. One reactor thread owns all of
/// it; files and SQLite are touched on a pool of one thread ("disk"), serve is asked on another ("ask"),
/// mirrors on a third.
/// Thread: reactor.
class Agent {
 public:
  /// Loads what is on disk. kCorrupt and kUnsupported name the file.
  static Result<std::unique_ptr<Agent>> open(boost::asio::io_context& reactor, AgentOptions options,
                                             Spool spool, CurveKeys keys,
                                             std::unique_ptr<ServeSupervisor> supervisor, const Clock& clock,
                                             RandomSource& random);
  ~Agent();

  Result<void> start();
  /// Everything ends but serve (unless the options say so); `done` is posted when it has.
  void stop(std::function<void()> done);

 private:
  using Steady = std::chrono::steady_clock;
  Agent(boost::asio::io_context& reactor, AgentOptions options, Spool spool, CurveKeys keys,
        std::unique_ptr<ServeSupervisor> supervisor, const Clock& clock, RandomSource& random);

  // Values go to a pool's thread, the result comes back here, unless the agent is gone by then.
  template <typename Work, typename Then>
  void on_pool(boost::asio::thread_pool& pool, Work work, Then then) {
    boost::asio::post(pool, [this, alive = std::weak_ptr<int>(alive_), work = std::move(work),
                             then = std::move(then)]() mutable {
      auto result = std::make_shared<decltype(work())>(work());
      boost::asio::post(reactor_, [alive, then = std::move(then), result]() mutable {
        if (!alive.expired()) then(std::move(*result));
      });
    });
  }
  void after(boost::asio::steady_timer& timer, std::chrono::milliseconds pause, std::function<void()> then);

  // The machine: events are taken one at a time; record to disk, then the action.
  void post_event(Event event);
  void pump();
  void act(Action action);
  /// Puts `next` on disk, then makes it the record and calls `then`; when it cannot, `again` before a new
  /// try.
  void persist(AgentRecord next, std::function<void()> then, std::function<void()> again);
  void work_failed(Error error);  ///< retry later or give up
  void failed_for_good(const Error& error);
  void consider_desired();

  // Getting an identity and a profile.
  void measure_profile(bool decode = false);
  void profile_exited(bool decode, int code);
  void measure_decode_later();
  void tell_profile();

  // Link.
  std::optional<wire::Payload> first_message();
  void on_payload(wire::Payload payload);
  void on_session(bool up, const std::string& reason);
  void on_enrolled(const wire::Enrolled& enrolled);
  void on_desired(const wire::Desired& desired, bool refreshed = false);
  void rotate_key();
  void on_key_rotated(const std::string& public_key);
  void on_refused(const wire::Refused& refused);

  // Pull.
  void begin_pull();
  /// "": the manifest that is noted; what lies here by now is not pulled again.
  void open_pull(const std::string& manifest_text);
  /// Goes on with the first mirror that is not put aside, else with the coordinator.
  void pull_on();
  void ask_mirror(const std::string& url);
  void mirror_ended(const Result<void>& result);
  /// What was asked for is asked for again: all but what has arrived. What still comes of it is dropped.
  void rewind_requests();
  void request_chunks();
  void on_chunk(wire::Chunk chunk);
  void write_next();
  /// Of `source`: a mirror's URL, or "" for the coordinator.
  void write_chunk(std::string bytes, const std::string& source, std::function<void()> written);
  void pull_tick();
  void drop_pull();
  /// What no pull needs any more goes from the disk.
  void tidy_slots();
  void seal_slots();

  // Serving.
  std::string serving_slot() const;
  /// Hashes a student's file, where that was not done since the machine started: a power cut may have taken
  /// of it what the disk had promised to keep. At once where it was.
  void check_slot(const SlotStudent& student, std::function<void(Result<void>)> then);
  /// The candidate's; what was lost of it is brought here again.
  void check_candidate(std::function<void()> good);
  /// For the spool: the slots that were hashed since the machine started, `slot` with them.
  std::map<std::string, std::string> checked_with(const std::string& slot) const;
  /// What start() is given: any port where students are handed a public socket.
  std::uint16_t start_port() const { return supervisor_->public_port() != 0 ? 0 : options_.serve_port; }
  void await_ready(const std::string& slot, const std::string& artifact, std::chrono::seconds patience,
                   std::function<void(Result<void>)> then);
  void keep_serving();
  void serve_exited(const std::string& slot, int code);
  void health_tick();
  void start_candidate();
  void switch_over();
  void watch_probation();
  void restore();
  bool both_fit() const;

  // A canary's questions, one at a time.
  void begin_canary(const wire::Canary& canary);
  void ask_canary();

  // Telling.
  /// Milliseconds since 1970: the coordinator's clock, where this device's is far from it (none that works,
  /// or one that jumped).
  UnixMillis now_millis() const;
  void telemetry_tick();
  void send_batch();
  DeviceStatus status() const;
  void changed();
  void write_status();
  void ready();

  boost::asio::io_context& reactor_;
  AgentOptions options_;
  const Clock& clock_;
  RandomSource& random_;
  std::shared_ptr<int> alive_ = std::make_shared<int>();
  Spool spool_;  ///< disk pool only, once started
  SlotFiles slots_;
  TrustPull trust_;
  CurveKeys keys_;
  std::unique_ptr<ServeSupervisor> supervisor_;
  AgentIdentity identity_;
  AgentRecord record_;
  std::unique_ptr<LinkSession> session_;

  std::deque<Event> events_;
  std::optional<DesiredState> pending_desired_;
  std::optional<wire::Desired> checking_;  ///< not verified yet: root is being refreshed
  bool persisting_ = false, stopping_ = false, told_ready_ = false;
  std::uint64_t work_ = 0;  ///< grows with each action: results of an older one are dropped
  boost::asio::steady_timer retry_timer_, probation_timer_, restart_timer_, persist_timer_, health_timer_,
      telemetry_timer_, pull_timer_, status_timer_, profile_timer_, decode_timer_;
  std::optional<ServiceWatchdog> watchdog_;

  std::optional<DeviceProfile> profile_;
  std::unique_ptr<ProcessWatch> profile_child_;

  struct PullWork {
    ~PullWork() { leave_mirror(); }
    void leave_mirror() {
      if (mirror_wanted) *mirror_wanted = false;
      mirror_wanted.reset();
      mirror.clear();
    }
    std::shared_ptr<const ArtifactManifest> manifest;
    std::unique_ptr<PullCursor> cursor;
    std::string mirror;  ///< that is read now; "": the coordinator is asked
    std::shared_ptr<std::atomic<bool>> mirror_wanted;
    /// Whose bytes the piece at the cursor has: mirrors' URLs, "" where that is not known.
    std::set<std::string> piece_sources;
    std::deque<PullCursor::Range> in_flight;
    std::map<std::uint64_t, std::string> arrived;
    std::uint64_t request_at = 0;
    bool writing = false;
    std::uint32_t silent_ticks = 0, silences = 0;
    Steady::time_point patient_until{};  ///< the coordinator said that it is to wait for its turn
    std::uint32_t waited_seconds = 0;
    std::uint32_t window_seconds = 0;  ///< of the pace that is judged [slow retrieval]
    std::uint64_t window_bytes = 0;
  };
  std::optional<PullWork> pull_;
  Mirrors mirrors_;
  std::uint64_t bytes_done_ = 0, bytes_total_ = 0;

  std::set<std::string> checked_slots_;
  bool checking_active_ = false;     ///< its file is being hashed
  std::optional<SlotStudent> lost_;  ///< whose file is not what was put there; the machine hears of it
  std::string boot_id_;
  std::deque<Steady::time_point> crashes_;
  std::uint32_t health_failures_ = 0;
  bool active_held_back_ = false;  ///< stop-swap: the old student rests while the candidate is tried
  bool health_asked_ = false, serve_answers_ = false;
  Steady::time_point inference_seen_{};  ///< when serve last made a token, as far as we know
  double tokens_seen_ = -1;

  struct CanaryWork {
    wire::Canary canary;
    std::size_t next = 0;
    std::uint32_t asked = 0, agreed = 0;
  };
  std::optional<CanaryWork> canary_;

  std::string link_ = "connecting", link_reason_;
  std::optional<DeviceStatus> told_status_;
  bool writing_status_ = false, status_dirty_ = false, telemetry_busy_ = false;
  std::uint64_t own_pss_ = 0, serve_pss_ = 0, telemetry_acknowledged_ = 0;
  std::deque<std::uint64_t> batches_in_flight_;  ///< their numbers; sent, and above telemetry_acknowledged_
  bool batch_read_ = false;                      ///< the next one is being read
  std::uint64_t told_own_pss_ = 0, told_serve_pss_ = 0;
  Steady::time_point batch_sent_{}, serving_since_{};
  std::optional<Histogram> first_token_, token_;
  std::optional<RequestCounts> requests_;
  pid_t requests_of_ = 0, told_pss_of_ = 0;  ///< the processes that these were of
  Steady::time_point told_pss_{}, told_watts_{};
  PowerMeter power_meter_;                                              ///< ask pool only
  std::optional<std::pair<UnixMillis, Steady::time_point>> told_time_;  ///< the coordinator's clock, and when

  // Last, so that their threads end before anything they use goes.
  boost::asio::thread_pool disk_{1}, ask_{1}, mirror_{1};
};

}  // namespace retort
