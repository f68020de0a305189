#include "agent/control/agent.h"

#include <signal.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <future>

#include "agent/update/seal_key_file.h"
#include "common/core/fail_point.h"
#include "common/core/file.h"
#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/core/units.h"
#include "common/net/key_proof.h"

namespace retort {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kReadyPatience{120};  ///< for a student to load
constexpr milliseconds kHealthTimeout{5000}, kClockTolerance{60'000};
constexpr std::uint32_t kHealthFailures = 3;  ///< in a row: it hangs
constexpr seconds kInferenceEvery{60};        ///< a real inference, where nobody has asked for one since
constexpr seconds kInferencePatience{20};
constexpr seconds kCanaryPatience{60};  ///< for one question
constexpr std::size_t kCanaryQuestions = 256;
constexpr seconds kTellPower{60}, kTellMemory{600};
constexpr seconds kPatienceAtMost{600}, kWaitAtMost{24 * 3600};  ///< where the coordinator says to wait
constexpr seconds kPaceWindow{60};                               ///< over which a pull's pace is judged
constexpr std::size_t kCrashesToRollBack = 5;
constexpr seconds kCrashWindow{300};
constexpr std::uint32_t kCandidateStarts = 3;
constexpr std::uint64_t kAgentReserveBytes = 12u << 20;
constexpr std::uint64_t kServeOverheadBytes = 24u << 20;  ///< code, KV cache and buffers of a small student

}  // namespace

Agent::Agent(boost::asio::io_context& reactor, AgentOptions options, Spool spool, CurveKeys keys,
             std::unique_ptr<ServeSupervisor> supervisor, const Clock& clock, RandomSource& random)
    : reactor_(reactor),
      options_(std::move(options)),
      clock_(clock),
      random_(random),
      spool_(std::move(spool)),
      slots_(options_.state_folder / "slots", options_.budgets.disk_bytes, options_.sealing),
      trust_({[this](const wire::MetadataRequest& request) { return session_ && session_->send(request); },
              [this](std::function<void()> work, std::function<void()> then) {
                on_pool(
                    disk_,
                    [work = std::move(work)] {
                      work();
                      return true;
                    },
                    [then = std::move(then)](bool) { then(); });
              },
              [this] { return clock_.unix_millis(); },
              [this](const std::string& key) { return spool_.get(key); },
              [this](const std::map<std::string, std::string>& values) { return spool_.put(values); },
              [this](const std::string& artifact) -> std::string {
                auto pull = spool_.pull();
                return pull && *pull && (*pull)->artifact == artifact ? std::move((*pull)->manifest) : "";
              }}),
      keys_(std::move(keys)),
      supervisor_(std::move(supervisor)),
      retry_timer_(reactor),
      probation_timer_(reactor),
      restart_timer_(reactor),
      persist_timer_(reactor),
      health_timer_(reactor),
      telemetry_timer_(reactor),
      pull_timer_(reactor),
      status_timer_(reactor),
      profile_timer_(reactor),
      decode_timer_(reactor) {}

Agent::~Agent() {
  alive_.reset();
  pull_.reset();
  disk_.join();
  ask_.join();
  mirror_.join();
}

Result<std::unique_ptr<Agent>> Agent::open(boost::asio::io_context& reactor, AgentOptions options,
                                           Spool spool, CurveKeys keys,
                                           std::unique_ptr<ServeSupervisor> supervisor, const Clock& clock,
                                           RandomSource& random) {
  std::unique_ptr<Agent> agent(new Agent(reactor, std::move(options), std::move(spool), std::move(keys),
                                         std::move(supervisor), clock, random));
  Agent& a = *agent;
  const std::string where = (a.options_.state_folder / "state.db").string();
  const auto text = [&](std::string_view key) -> Result<std::string> {
    return RETORT_TRY(a.spool_.get(key)).value_or("");
  };
  a.identity_.device_id = RETORT_TRY(text("device_id"));
  RETORT_TRY(a.trust_.load());
  const auto number = [&](std::string_view key) -> Result<std::uint64_t> {
    const std::string digits = RETORT_TRY(text(key));
    return digits.empty() ? 0 : std::strtoull(digits.c_str(), nullptr, 10);
  };
  a.identity_.epoch = RETORT_TRY(number("epoch"));
  a.identity_.revoked = RETORT_TRY(number("revoked")) != 0;
  if (const std::string told = RETORT_TRY(text("told_profile")); !told.empty())
    if (const auto value = parse_json(told, where))
      if (auto profile = profile_from_json(*value, where)) a.identity_.told_profile = std::move(*profile);
  a.boot_id_ = read_file("/proc/sys/kernel/random/boot_id", 64).value_or("");
  a.boot_id_.resize(std::min(a.boot_id_.find('\n'), a.boot_id_.size()));
  const std::string checked = RETORT_TRY(text("checked_slots"));
  for (const std::string slot : {"a", "b"})
    if (!a.boot_id_.empty() && checked.starts_with(a.boot_id_ + " ") &&
        checked.find(slot, a.boot_id_.size()) != std::string::npos)
      a.checked_slots_.insert(slot);
  const std::string machine = RETORT_TRY(text("machine"));
  if (!machine.empty()) {
    a.record_ = RETORT_TRY(record_from_json(machine));
  } else if (const std::optional<std::string> slot = a.slots_.newest()) {
    a.record_.active = {*slot, a.slots_.artifact_in(*slot)->manifest.sha256, 0};
    if (const auto other = a.slots_.artifact_in(other_slot(*slot)))
      a.record_.previous = {other_slot(*slot), other->manifest.sha256, 0};
    a.record_.error_code = to_string(ErrorCode::kCorrupt);
    a.record_.error = "what this device knew is lost: it serves the student in slot " + *slot +
                      ", and must enrol anew (--token)";
    log_error("{}", a.record_.error);
  }
  if (a.identity_.device_id.empty() && a.record_.active.slot.empty()) {
    if (a.options_.token_secret.empty())
      return fail(ErrorCode::kInvalid, a.options_.state_folder.string(),
                  "this device is not enrolled: give --token or --token-file (the operator makes one with: "
                  "retort token create --kind enrolment)");
    if (a.options_.coordinator.empty())
      return fail(ErrorCode::kInvalid, "--coordinator", "needed to enrol, for example tcp://10.0.0.1:8441");
  }

  const std::string stored_key = RETORT_TRY(text("server_key"));
  // The token that a revoked device was enrolled with may have uses left; it must not undo the revocation.
  if (a.identity_.revoked && sha256_hex(a.options_.token_secret) == RETORT_TRY(text("token_sha256")))
    a.options_.token_secret.clear();
  if (!a.identity_.device_id.empty() && !a.identity_.revoked) {
    if (!a.options_.server_key.empty() && a.options_.server_key != stored_key)
      log_warn(
          "this device is enrolled with another coordinator key than the one given; the enrolled one is "
          "used");
    a.options_.server_key = stored_key;
  } else if (!a.options_.token_secret.empty()) {
    // A new token: enrol (anew, where the old identity was revoked). What serves, serves on.
    a.identity_.device_id.clear();
    a.identity_.revoked = false;
    if (a.record_.state != State::kProfile && a.record_.state != State::kEnrol) {
      AgentRecord fresh;
      fresh.active = a.record_.active, fresh.previous = a.record_.previous;
      a.record_ = fresh;
    }
    const Result<void> noted = a.spool_.put({{"server_key", a.options_.server_key},
                                             {"device_id", ""},
                                             {"revoked", "0"},
                                             {"machine", record_to_json(a.record_)}});
    if (!noted && a.record_.active.slot.empty()) return fail(noted.error());
    if (!noted) {  // it cannot enrol now, but serve
      a.record_.error_code = to_string(noted.error().code), a.record_.error = noted.error().describe();
      a.options_.token_secret.clear();
    }
  } else if (a.options_.server_key.empty()) {
    a.options_.server_key = stored_key;
  }
  return agent;
}

Result<void> Agent::start() {
  supervisor_->on_exit([this](const std::string& slot, int code) { serve_exited(slot, code); });
  LinkSession::Hooks hooks;
  hooks.store_epoch = [this](std::uint64_t epoch, std::function<void()> stored) {
    on_pool(
        disk_,
        [this, epoch] {
          return spool_.put({{"epoch", std::to_string(epoch)}});
        },
        [this, stored = std::move(stored)](Result<void> put) {
          if (put) return stored();
          link_reason_ = "cannot note the session: " + put.error().describe();
          log_error("link: {}", link_reason_);
          changed();
        });
  };
  hooks.first_message = [this] { return first_message(); };
  hooks.on_payload = [this](wire::Payload payload) { on_payload(std::move(payload)); };
  hooks.on_session = [this](bool up, const std::string& reason) { on_session(up, reason); };
  hooks.generation = [this] { return record_.reached; };
  session_ = std::make_unique<LinkSession>(reactor_, random_, identity_.epoch, std::move(hooks));
  if (identity_.revoked) {
    link_ = "revoked";
    log_warn(
        "this device was revoked by its coordinator; what it serves it serves on. Enrol it with a new "
        "--token");
  } else if (options_.coordinator.empty() || options_.server_key.empty()) {
    link_ = "off";
    log_info("{}: serving on, nothing more",
             options_.coordinator.empty() ? "no coordinator was named (--coordinator)"
                                          : "the coordinator's key is not known (--token, --server-key)");
  } else {
    RETORT_TRY(session_->connect(keys_, options_.server_key, options_.coordinator));
  }

  // A slot that runs and is not wanted (a crash in mid-switch) ends; the wanted one is adopted or started.
  for (const std::string slot : {"a", "b"})
    if (supervisor_->find(slot) && slot != record_.active.slot && slot != record_.candidate.slot)
      supervisor_->stop(slot, [] {});
  if (record_.state != State::kServe && record_.state != State::kProbation && record_.state != State::kCommit)
    keep_serving();
  tidy_slots();
  if (options_.sealing.seal) seal_slots();
  post_event(Event::kStart);
  if (!identity_.device_id.empty() && record_.state != State::kIdle && record_.state != State::kProfile)
    measure_profile();
  health_tick();
  telemetry_tick();
  pull_tick();
  watchdog_.emplace(reactor_);
  if (record_.active.slot.empty() && serving_slot().empty()) ready();
  changed();
  return {};
}

void Agent::ready() {
  if (std::exchange(told_ready_, true)) return;
  notify_service_manager("READY=1");
  log_info("ready: {}", record_.active.artifact.empty() ? "nothing to serve yet"
                        : serve_answers_                ? "serving " + record_.active.artifact.substr(0, 12)
                                         : record_.active.artifact.substr(0, 12) + " does not answer yet");
}

void Agent::stop(std::function<void()> done) {
  if (std::exchange(stopping_, true)) return;
  notify_service_manager("STOPPING=1");
  ++work_;
  session_->close();
  for (boost::asio::steady_timer* timer :
       {&retry_timer_, &probation_timer_, &restart_timer_, &health_timer_, &telemetry_timer_, &pull_timer_,
        &persist_timer_, &status_timer_, &profile_timer_, &decode_timer_})
    timer->cancel();
  profile_child_.reset();
  watchdog_.reset();
  if (!options_.stop_serve_on_exit) return done();
  supervisor_->stop("a", [this, done] { supervisor_->stop("b", done); });
}

void Agent::after(boost::asio::steady_timer& timer, milliseconds pause, std::function<void()> then) {
  if (stopping_) return;
  timer.expires_after(pause);
  timer.async_wait([this, alive = std::weak_ptr<int>(alive_),
                    then = std::move(then)](const boost::system::error_code& error) {
    if (!error && !alive.expired() && !stopping_) then();
  });
}

// The machine
// ------------------------------------------------------------------------------------------------

void Agent::post_event(Event event) {
  if (stopping_) return;
  events_.push_back(event);
  pump();
}

void Agent::persist(AgentRecord next, std::function<void()> then, std::function<void()> again) {
  persisting_ = true;
  if (next.state != record_.state) fail_point(fmt::format("agent.{}.saving", to_string(next.state)));
  on_pool(
      disk_,
      [this, text = record_to_json(next)] {
        return spool_.put({{"machine", text}});
      },
      [this, base = record_, next, then = std::move(then),
       again = std::move(again)](Result<void> put) mutable {
        persisting_ = false;
        if (!put) {
          // Not acted on what is not on disk. What serves, serves on.
          log_error("machine: cannot note state {}: {}; again in 5 s", to_string(next.state),
                    put.error().describe());
          record_.error_code = to_string(put.error().code), record_.error = put.error().describe();
          again();
          changed();
          persisting_ = true;
          return after(persist_timer_, seconds(5), [this] {
            persisting_ = false;
            pump();
          });
        }
        // What failed in the meantime is newer than what was just written.
        if (record_.error != base.error) next.error = record_.error, next.error_code = record_.error_code;
        if (record_.attempts != base.attempts) next.attempts = record_.attempts;
        if (next.state != record_.state) fail_point(fmt::format("agent.{}.saved", to_string(next.state)));
        record_ = std::move(next);
        then();
        changed();
        pump();
      });
}

void Agent::pump() {
  if (persisting_ || stopping_) return;
  if (const auto desired = std::exchange(pending_desired_, std::nullopt)) {
    if (!supersedes(record_, *desired)) return pump();
    AgentRecord next = record_;
    next.desired = *desired;
    return persist(
        next, [this] { consider_desired(); },
        [this, desired] {
          if (!pending_desired_) pending_desired_ = desired;
        });
  }
  if (events_.empty()) return;
  const Event event = events_.front();
  events_.pop_front();
  if (event == Event::kSlotLost && lost_ != record_.active) return pump();  // another serves by now
  const Transition* row = find_transition(record_.state, event);
  if (row == nullptr) {
    log_debug("machine: {} means nothing in state {}", to_string(event), to_string(record_.state));
    return pump();
  }
  AgentRecord next = record_;
  apply_transition(next, *row, event);
  const Action action = row->action;
  if (next == record_) {
    act(action);
    return pump();
  }
  if (next.state != record_.state)
    log_info("state {} -> {} ({}){}", to_string(record_.state), to_string(next.state), to_string(event),
             next.candidate.artifact.empty() ? "" : ", artifact " + next.candidate.artifact.substr(0, 12));
  persist(
      next, [this, action] { act(action); }, [this, event] { events_.push_front(event); });
}

void Agent::act(Action action) {
  if (action != Action::kTellProfile && action != Action::kNone) ++work_;
  switch (action) {
    case Action::kNone:
      session_->restart();  // just enrolled
      break;
    case Action::kMeasureProfile:
      measure_profile();
      consider_desired();
      break;
    case Action::kAskEnrolment:
      session_->restart();
      break;
    case Action::kPull:
      if (std::exchange(lost_, std::nullopt))
        keep_serving();  // which tells so again, as a pull may take long
      begin_pull();
      break;
    case Action::kHash: {
      const std::uint64_t work = work_;
      on_pool(
          disk_,
          [this, slot = record_.candidate.slot, artifact = record_.candidate.artifact]() -> Result<void> {
            const auto pull = RETORT_TRY(spool_.pull());
            if (!pull || pull->artifact != artifact) {  // it was staged already, before a restart
              const auto there = slots_.artifact_in(slot);
              if (there && there->manifest.sha256 == artifact && slots_.check(slot, artifact)) return {};
              return fail(ErrorCode::kUnavailable, artifact, "the pull's record is gone");
            }
            const ArtifactManifest manifest = RETORT_TRY(manifest_from_text(pull->manifest));
            return slots_.verify(slot, manifest);
          },
          [this, work](Result<void> verified) {
            if (work != work_) return;
            if (!verified) return work_failed(verified.error());
            post_event(Event::kDone);
          });
      break;
    }
    case Action::kStage: {
      const std::uint64_t work = work_;
      on_pool(
          disk_,
          [this, slot = record_.candidate.slot, artifact = record_.candidate.artifact,
           checked = checked_with(record_.candidate.slot)]() -> Result<void> {
            RETORT_TRY(slots_.stage(spool_, slot, artifact));
            return spool_.put(checked);
          },
          [this, work](Result<void> staged) {
            if (work != work_) return;
            if (!staged) return work_failed(staged.error());
            checked_slots_.insert(record_.candidate.slot);
            post_event(Event::kDone);
          });
      break;
    }
    case Action::kStartCandidate:
      check_candidate([this] { start_candidate(); });
      break;
    case Action::kSwitch:
      check_candidate([this] { switch_over(); });
      break;
    case Action::kWatch:
      check_candidate([this] { watch_probation(); });
      break;
    case Action::kCommit:
      post_event(Event::kDone);  // kAccept's row writes it down
      break;
    case Action::kRestore:
      restore();
      break;
    case Action::kAccept:
      lost_.reset();
      drop_pull();
      if (!serve_answers_) keep_serving();  // restarted in commit: nobody has looked after it yet
      log_info("generation {} reached: serving {}", record_.reached,
               record_.active.artifact.empty() ? "nothing" : record_.active.artifact.substr(0, 12));
      consider_desired();
      break;
    case Action::kStopServing:
      lost_.reset();
      drop_pull();
      log_info("generation {}: nothing is to be served here", record_.reached);
      serve_answers_ = false;
      for (const char* slot : {"a", "b"}) supervisor_->stop(slot, [this] { changed(); });
      tidy_slots();
      consider_desired();
      break;
    case Action::kGiveUp:
      log_error("generation {} given up: {}", record_.reached, record_.error);
      on_pool(
          disk_, [this, slot = record_.active.slot] { return slots_.prefer(slot), true; }, [](bool) {});
      drop_pull();
      tidy_slots();
      if (std::exchange(lost_, std::nullopt)) keep_serving();
      consider_desired();
      break;
    case Action::kTellProfile:
      tell_profile();
      break;
    case Action::kRecover:
      lost_.reset();
      drop_pull();
      keep_serving();
      consider_desired();
      break;
  }
  changed();
}

void Agent::failed_for_good(const Error& error) {
  record_.error_code = to_string(error.code);
  record_.error = error.describe();
  post_event(Event::kFailed);
}

void Agent::work_failed(Error error) {
  drop_pull();
  ++work_;
  const RetryDecision decision = decide_retry(error.code, ++record_.attempts);
  if (!decision.again) return failed_for_good(error);
  record_.error_code = to_string(error.code);
  record_.error = fmt::format("{} (attempt {}, again in {:.1f} s)", error.describe(), record_.attempts,
                              decision.after_millis / 1000.0);
  log_warn("artifact {}: {}", record_.candidate.artifact.substr(0, 12), record_.error);
  changed();
  after(retry_timer_, milliseconds(decision.after_millis), [this, work = work_] {
    if (work == work_) post_event(Event::kRetry);
  });
}

void Agent::consider_desired() {
  if (record_.state == State::kProbe && record_.desired.generation > record_.candidate.generation &&
      record_.desired.artifact != record_.candidate.artifact) {
    // A candidate that hangs must not keep the next one waiting.
    ++work_;
    return failed_for_good(
        {ErrorCode::kCancelled,
         fmt::format("superseded by generation {} while it was probed", record_.desired.generation),
         record_.candidate.artifact});
  }
  Event event;
  if (desired_event(record_, event)) post_event(event);
}

// Profile
// ----------------------------------------------------------------------------------------------------

void Agent::measure_profile(bool decode) {
  if (profile_child_ || stopping_) return;
  // A process of its own: it may use the CPU and memory that the agent must not, and runs under a sandbox.
  const std::filesystem::path out = options_.run_folder / "profile.json";
  std::error_code ignored;
  std::filesystem::remove(out, ignored);
  std::vector<std::string> arguments{"--json", "--state", options_.state_folder.string()};
  const auto add = [&](const char* option, const std::string& value) {
    arguments.insert(arguments.end(), {option, value});
  };
  if (options_.budgets.memory_bytes > 0)
    add("--memory-budget", std::to_string(options_.budgets.memory_bytes));
  if (options_.budgets.cpu_threads > 0) add("--cpu-threads", fmt::format("{}", options_.budgets.cpu_threads));
  if (options_.budgets.disk_bytes > 0) add("--disk-budget", std::to_string(options_.budgets.disk_bytes));
  if (decode) arguments.push_back("--decode");
  const Result<pid_t> child = supervisor_->start_profile(arguments);
  if (!child) {
    log_error("profile: {}", child.error().describe());
    return after(profile_timer_, seconds(30), [this] { measure_profile(); });
  }
  profile_child_ = std::make_unique<ProcessWatch>(reactor_, *child, [this, decode](int code) {
    boost::asio::post(reactor_, [this, alive = std::weak_ptr<int>(alive_), decode, code] {
      if (!alive.expired()) profile_exited(decode, code);
    });
  });
  after(profile_timer_, seconds(decode ? 120 : 20), [this] {
    if (profile_child_) profile_child_->signal(SIGKILL);
  });
}

void Agent::profile_exited(bool decode, int code) {
  profile_timer_.cancel();
  profile_child_.reset();
  const std::string where = (options_.run_folder / "profile.json").string();
  const auto read = [&]() -> Result<DeviceProfile> {
    if (code != 0) return fail(ErrorCode::kUnavailable, where, "the profiling process ended with {}", code);
    return profile_from_json(RETORT_TRY(parse_json(RETORT_TRY(read_file(where, 1 << 20)), where)), where);
  };
  Result<DeviceProfile> profile = read();
  if (!profile && decode) {  // what is known without it stands
    log_error("profile: how fast students generate is not known: {}", profile.error().describe());
    return;
  }
  if (!profile) {
    log_error("profile: {}; again in 30 s", profile.error().describe());
    return after(profile_timer_, seconds(30), [this] { measure_profile(); });
  }
  profile_ = std::move(*profile);
  profile_->labels = options_.labels;
  if (options_.sealing.seal) profile_->notes.push_back("students are sealed on its disk");
  log_info("profile: {}, {} of memory ({}), {:.1f} GB/s", profile_->cpu_model,
           format_bytes(profile_->memory_budget_bytes), profile_->budget_source,
           profile_->memory_bandwidth_bytes_per_second / 1e9);
  // Measured once for a machine, its allowance and a release: it takes seconds of all its cores.
  const auto same_machine = [&](const DeviceProfile& before) {
    return before.agent_version == profile_->agent_version && before.cpu_model == profile_->cpu_model &&
           before.cpu_allowance == profile_->cpu_allowance &&
           before.memory_budget_bytes == profile_->memory_budget_bytes;
  };
  if (profile_->decode.empty() && identity_.told_profile && same_machine(*identity_.told_profile))
    profile_->decode = identity_.told_profile->decode;
  if (!decode) measure_decode_later();
  post_event(Event::kProfiled);
}

void Agent::measure_decode_later() {
  if (!profile_->decode.empty() || options_.decode_after == seconds(0)) return;
  after(decode_timer_, options_.decode_after, [this] {
    if (record_.state != State::kIdle || profile_child_) return measure_decode_later();
    measure_profile(true);
  });
}

void Agent::tell_profile() {
  if (!profile_ || !session_->up() || identity_.device_id.empty()) return;
  if (identity_.told_profile && !worth_telling(*identity_.told_profile, *profile_)) return;
  if (!session_->send(wire::ProfileUpdate{*profile_})) return;
  identity_.told_profile = profile_;
  on_pool(
      disk_,
      [this, text = json::serialize(profile_to_json(*profile_))] {
        return spool_.put({{"told_profile", text}});
      },
      [](Result<void>) {});
}

// Link
// -------------------------------------------------------------------------------------------------------

std::optional<wire::Payload> Agent::first_message() {
  if (!identity_.device_id.empty())
    return wire::Hello{identity_.device_id, options_.version, status(), record_.desired.generation};
  if (!profile_ || options_.token_secret.empty()) return std::nullopt;
  return wire::Enrol{options_.token_secret, options_.name, *profile_, options_.hardware_id};
}

void Agent::on_session(bool up, const std::string& reason) {
  link_ = up ? "up" : "down";
  link_reason_ = reason;
  if (up) {
    log_info("link: session with {} is up", options_.coordinator);
    told_status_.reset();
    batches_in_flight_.clear();
    tell_profile();
    trust_.on_link();
    pull_on();
    send_batch();
  } else {
    log_info("link: down{}{}; serving on", reason.empty() ? "" : ": ", reason);
    rewind_requests();
  }
  changed();
}

void Agent::on_payload(wire::Payload payload) {
  if (const auto* welcome = std::get_if<wire::Welcome>(&payload)) {
    told_time_ = {welcome->coordinator_time, clock_.steady_now()};
    const UnixMillis apart = welcome->coordinator_time - clock_.unix_millis();
    if (apart > 300'000 || apart < -300'000)
      log_warn("clock: this device's differs from the coordinator's by {}",
               format_seconds(static_cast<double>(apart < 0 ? -apart : apart) / 1000));
    if (welcome->telemetry_acknowledged > telemetry_acknowledged_)
      on_payload(wire::TelemetryAck{welcome->telemetry_acknowledged});
  } else if (const auto* enrolled = std::get_if<wire::Enrolled>(&payload)) {
    on_enrolled(*enrolled);
  } else if (const auto* desired = std::get_if<wire::Desired>(&payload)) {
    on_desired(*desired);
  } else if (const auto* metadata = std::get_if<wire::Metadata>(&payload)) {
    trust_.on_metadata(*metadata);
  } else if (std::holds_alternative<wire::RotateKey>(payload)) {
    rotate_key();
  } else if (const auto* rotated = std::get_if<wire::KeyRotated>(&payload)) {
    on_key_rotated(rotated->public_key);
  } else if (auto* chunk = std::get_if<wire::Chunk>(&payload)) {
    on_chunk(std::move(*chunk));
  } else if (const auto* wait = std::get_if<wire::ChunkWait>(&payload)) {
    if (pull_ && wait->artifact == record_.candidate.artifact)
      pull_->patient_until =
          clock_.steady_now() + std::min<milliseconds>(milliseconds(wait->millis), kPatienceAtMost);
  } else if (const auto* canary = std::get_if<wire::Canary>(&payload)) {
    begin_canary(*canary);
  } else if (const auto* ack = std::get_if<wire::TelemetryAck>(&payload)) {
    telemetry_acknowledged_ = std::max(telemetry_acknowledged_, ack->batch);
    batch_sent_ = clock_.steady_now();
    while (!batches_in_flight_.empty() && batches_in_flight_.front() <= telemetry_acknowledged_)
      batches_in_flight_.pop_front();
    on_pool(
        disk_, [this, batch = ack->batch] { return spool_.acknowledge(batch); },
        [this](Result<void> done) {
          if (!done) return log_warn("telemetry: {}", done.error().describe());
          send_batch();
        });
  } else if (const auto* refused = std::get_if<wire::Refused>(&payload)) {
    on_refused(*refused);
  }
}

void Agent::on_enrolled(const wire::Enrolled& enrolled) {
  if (!identity_.device_id.empty()) return;
  Result<std::map<std::string, std::string>> values = TrustPull::first_root(enrolled.root);
  if (!values || enrolled.device_id.empty())
    return log_error("link: the coordinator's answer to the enrolment is malformed, ignored{}{}",
                     values ? "" : ": ", values ? "" : values.error().describe());
  values->merge(std::map<std::string, std::string>{{"device_id", enrolled.device_id},
                                                   {"server_key", options_.server_key},
                                                   {"token_sha256", sha256_hex(options_.token_secret)},
                                                   {"revoked", "0"}});
  on_pool(
      disk_,
      [this, values = std::move(*values)] {
        fail_point("agent.enrolled.saving");
        Result<void> put = spool_.put(values);
        fail_point("agent.enrolled.saved");
        return put;
      },
      [this, enrolled](Result<void> put) {
        if (!put) return log_error("cannot note the enrolment: {}", put.error().describe());
        identity_.device_id = enrolled.device_id;
        identity_.told_profile = profile_;
        trust_.begin_with(enrolled.root);
        record_.error_code.clear(), record_.error.clear();
        log_info("enrolled as {}", enrolled.device_id);
        post_event(Event::kEnrolled);
      });
}

// Nothing is done that is not signed for this device: a link or a mirror in wrong hands directs nobody.
void Agent::on_desired(const wire::Desired& desired, bool refreshed) {
  mirrors_.set(desired.mirrors);
  if (!supersedes(record_, desired.desired)) return;
  Result<AssignmentMetadata> assignment =
      trust_.root()
          ? verify_assignment(desired.assignment, *trust_.root(), identity_.device_id, trust_.trusted_time())
          : fail(ErrorCode::kDenied, "assignment", "there is no root of trust yet");
  if (!assignment && !refreshed) {
    // Root may name another key by now. One refresh at a time, however often the link says something.
    const bool under_way = checking_.has_value();
    checking_ = desired;
    if (under_way) return;
    trust_.refresh([this](Result<void> done) {
      if (!done) log_warn("trust: {}", done.error().describe());
      on_desired(*std::exchange(checking_, std::nullopt), true);
    });
    return;
  }
  if (!assignment) {
    record_.error_code = to_string(assignment.error().code);
    record_.error = "desired state not followed: " + assignment.error().describe();
    log_error("{}", record_.error);
    return changed();
  }
  const DesiredState state{assignment->head.version, assignment->device_class, assignment->artifact};
  if (!supersedes(record_, state)) return;
  log_info("desired: generation {} of class {}: {}", state.generation, state.device_class,
           state.artifact.empty() ? "nothing" : state.artifact.substr(0, 12));
  pending_desired_ = state;
  pump();
}

// The new key is on disk beside the old one before the coordinator hears of it, and takes the old one's place
// only when the coordinator has said that it is on record there. Killed at any moment, the device still has a
// key that is known: until it has come with the new one, the coordinator takes both, and asks again.
void Agent::rotate_key() {
  const std::filesystem::path next = options_.keys_folder / "curve.next";
  on_pool(
      disk_, [next] { return load_or_make_curve_keys(next); },
      [this](Result<CurveKeys> keys) {
        if (!keys) return log_error("key: {}", keys.error().describe());
        Result<std::string> proof = make_key_proof(*keys, options_.server_key, identity_.device_id);
        if (!proof) return log_error("key: {}", proof.error().describe());
        session_->send(wire::KeyRotation{keys->public_key, std::move(*proof)});
      });
}

void Agent::on_key_rotated(const std::string& public_key) {
  const std::filesystem::path folder = options_.keys_folder;
  on_pool(
      disk_,
      [folder, public_key, own = keys_.public_key, seal = options_.sealing.key]() -> Result<CurveKeys> {
        if (!std::filesystem::exists(folder / "curve.next"))
          return fail(ErrorCode::kConflict, (folder / "curve.next").string(),
                      "no change of key is under way");
        const CurveKeys next = RETORT_TRY(load_or_make_curve_keys(folder / "curve.next"));
        if (next.public_key != public_key)
          return fail(ErrorCode::kConflict, (folder / "curve.next").string(), "holds another key");
        // Whichever of the two is this device's after a kill can open the sealing key.
        if (seal) RETORT_TRY(write_seal_key(folder / "seal", *seal, {own, public_key}));
        fail_point("agent.key.saving");
        std::error_code error;
        std::filesystem::rename(folder / "curve.next", folder / "curve", error);
        if (error) return fail(ErrorCode::kIo, folder.string(), "cannot rename: {}", error.message());
        RETORT_TRY(sync_folder(folder));
        fail_point("agent.key.saved");
        if (seal) RETORT_TRY(write_seal_key(folder / "seal", *seal, {public_key}));
        return next;
      },
      [this](Result<CurveKeys> keys) {
        if (!keys) return log_warn("key: {}", keys.error().describe());
        keys_ = *keys;
        log_info("key: this device's new key is {}", keys_.public_key);
        session_->close();
        if (const auto done = session_->connect(keys_, options_.server_key, options_.coordinator); !done)
          log_error("link: {}", done.error().describe());
      });
}

void Agent::on_refused(const wire::Refused& refused) {
  const Error error{error_code_from(refused.code), refused.message, "coordinator, " + refused.about};
  if (refused.code == "revoked") {
    identity_.revoked = true;
    link_ = "revoked";
    record_.error_code = "revoked", record_.error = "the coordinator revoked this device: " + refused.message;
    log_error("{}; serving on", record_.error);
    session_->close();
    drop_pull();
    on_pool(
        disk_,
        [this] {
          return spool_.put({{"revoked", "1"}});
        },
        [](Result<void>) {});
    return changed();
  }
  if (trust_.on_refused(refused)) return;
  if (refused.about == "enrol" || refused.about == "hello") {
    if (refused.code == "pending") link_ = "pending";
    log_error("{}", error.describe());
    record_.error_code = refused.code, record_.error = error.describe();
    return changed();
  }
  if (record_.state == State::kFetch && !record_.candidate.artifact.empty() &&
      refused.about.find(record_.candidate.artifact) != std::string::npos)
    return work_failed(error);
  log_warn("{}", error.describe());
}

// Pull
// -------------------------------------------------------------------------------------------------------

void Agent::drop_pull() {
  pull_.reset();
  bytes_done_ = bytes_total_ = 0;
}

void Agent::tidy_slots() {
  on_pool(
      disk_, [this, wanted = record_.candidate.artifact] { return slots_.tidy(spool_, wanted); },
      [](Result<void> done) {
        if (!done) log_warn("slots: {}", done.error().describe());
      });
}

// What lay here before sealing was asked for. Packed weights are the student's too.
void Agent::seal_slots() {
  on_pool(
      disk_,
      [this]() -> Result<void> {
        RETORT_TRY(slots_.seal_what_is_not());
        std::error_code error;
        for (const auto& entry :
             std::filesystem::directory_iterator(options_.state_folder / "packed", error)) {
          std::error_code ignored;
          std::filesystem::remove(entry.path(), ignored);
        }
        return {};
      },
      [](Result<void> done) {
        if (!done) log_error("what lies in the slots is not sealed yet: {}", done.error().describe());
      });
}

void Agent::begin_pull() {
  drop_pull();
  retry_timer_.cancel();
  pull_.emplace();
  // All of it each time: a manifest that is here already may be of an artifact that was withdrawn since.
  trust_.bring(record_.candidate.artifact, [this, work = work_](Result<std::string> manifest) {
    if (work != work_ || !pull_) return;
    if (!manifest) return work_failed(manifest.error());
    open_pull(*manifest);
  });
}

void Agent::open_pull(const std::string& manifest_text) {
  const std::uint64_t work = work_;
  on_pool(
      disk_,
      [this, manifest_text, candidate = record_.candidate]() -> Result<SlotFiles::Begun> {
        std::string text = manifest_text;
        if (text.empty())
          if (auto noted = RETORT_TRY(spool_.pull())) text = std::move(noted->manifest);
        return slots_.begin(spool_, candidate.slot, candidate.artifact, text);
      },
      [this, work](Result<SlotFiles::Begun> begun) {
        if (work != work_ || !pull_) return;
        if (!begun) return work_failed(begun.error());
        bytes_total_ = begun->manifest.length;
        pull_->cursor = std::make_unique<PullCursor>(begun->manifest, begun->done, begun->cursor);
        pull_->manifest = std::make_shared<const ArtifactManifest>(std::move(begun->manifest));
        pull_->piece_sources.clear();
        if (begun->cursor != 0) pull_->piece_sources.insert("");
        const std::uint64_t missing = pull_->cursor->bytes_missing();
        bytes_done_ = bytes_total_ - missing;
        log_info("artifact {}: {} to pull, {} here already ({} copied from a slot)",
                 record_.candidate.artifact.substr(0, 12), format_bytes(missing), format_bytes(bytes_done_),
                 format_bytes(begun->bytes_copied));
        if (pull_->cursor->complete()) {
          pull_.reset();
          return post_event(Event::kDone);
        }
        pull_on();
        changed();
      });
}

void Agent::pull_on() {
  if (!pull_ || !pull_->cursor || pull_->writing || !pull_->mirror.empty()) return;
  write_next();
  if (pull_->writing) return;
  pull_->arrived.clear();
  rewind_requests();
  pull_->silent_ticks = pull_->silences = 0;
  pull_->window_seconds = 0, pull_->window_bytes = 0;
  pull_->patient_until = {};
  if (const auto url = mirrors_.choose(clock_.steady_now())) return ask_mirror(*url);
  request_chunks();
}

// The mirror's thread reads, and waits until each chunk is on disk. What it reads is believed when its hash
// is right: a mirror that does not send what the manifest says is put aside, and its part of the piece with
// it.
void Agent::ask_mirror(const std::string& url) {
  const auto wanted = std::make_shared<std::atomic<bool>>(true);
  const auto missing = pull_->cursor->missing_from(pull_->cursor->next(), UINT32_MAX);
  pull_->mirror = url;
  pull_->mirror_wanted = wanted;
  log_info("artifact {}: {} from {}", record_.candidate.artifact.substr(0, 12), format_bytes(missing->length),
           url);
  const MirrorRange range{record_.candidate.artifact, missing->offset, missing->length,
                          pull_->manifest->length};
  const auto sink = [this, wanted](std::string chunk) {
    const auto written = std::make_shared<std::promise<void>>();
    std::future<void> done = written->get_future();
    boost::asio::post(reactor_, [this, wanted, written, chunk = std::move(chunk)]() mutable {
      if (*wanted) write_chunk(std::move(chunk), pull_->mirror, [written] { written->set_value(); });
    });
    while (done.wait_for(milliseconds(100)) != std::future_status::ready)
      if (!*wanted) return false;
    return wanted->load();
  };
  on_pool(
      mirror_,
      [url, range, sink, wanted] {
        return read_mirror(url, range, sink, [wanted] { return wanted->load(); });
      },
      [this, wanted](Result<void> result) {
        if (*wanted) mirror_ended(result);
      });
}

void Agent::mirror_ended(const Result<void>& result) {
  if (result) {
    mirrors_.worked(pull_->mirror);
  } else {
    log_warn("mirror put aside for a while: {}", result.error().describe());
    mirrors_.failed(pull_->mirror, clock_.steady_now());
  }
  pull_->leave_mirror();
  pull_on();
}

void Agent::rewind_requests() {
  if (!pull_ || !pull_->cursor) return;
  pull_->in_flight.clear();
  pull_->request_at = pull_->cursor->next();
  while (const auto range = pull_->cursor->missing_from(pull_->request_at, 1)) {
    const auto arrived = pull_->arrived.find(range->offset);
    if (arrived == pull_->arrived.end()) break;
    pull_->request_at = range->offset + arrived->second.size();
  }
}

void Agent::request_chunks() {
  if (!pull_ || !pull_->cursor || !pull_->mirror.empty() || !session_->up()) return;
  while (pull_->in_flight.size() + pull_->arrived.size() < session_->chunk_credit()) {
    const auto range = pull_->cursor->missing_from(pull_->request_at, wire::kMaxChunkBytes);
    if (!range) return;
    if (!session_->send(wire::ChunkRequest{record_.candidate.artifact, range->offset, range->length})) return;
    pull_->in_flight.push_back(*range);
    pull_->request_at = range->offset + range->length;
  }
}

void Agent::on_chunk(wire::Chunk chunk) {
  if (!pull_ || !pull_->cursor || chunk.artifact != record_.candidate.artifact) return;
  auto& in_flight = pull_->in_flight;
  const auto asked = std::find_if(in_flight.begin(), in_flight.end(), [&](const PullCursor::Range& range) {
    return range.offset == chunk.offset;
  });
  if (asked == in_flight.end()) return;  // asked for by an older try
  if (asked->length != chunk.bytes.size())
    return work_failed(
        {ErrorCode::kCorrupt,
         fmt::format("a chunk of {} bytes where {} were asked for", chunk.bytes.size(), asked->length),
         record_.candidate.artifact});
  in_flight.erase(asked);
  pull_->silent_ticks = pull_->silences = pull_->waited_seconds = 0;
  pull_->patient_until = {};
  pull_->window_bytes += chunk.bytes.size();
  pull_->arrived[chunk.offset] = std::move(chunk.bytes);
  write_next();
  request_chunks();
}

void Agent::write_next() {
  if (!pull_ || pull_->writing) return;
  const auto next = pull_->arrived.find(pull_->cursor->next());
  if (next == pull_->arrived.end()) return;
  std::string bytes = std::move(next->second);
  pull_->arrived.erase(next);
  write_chunk(std::move(bytes), "", [this] {
    write_next();
    request_chunks();
  });
}

void Agent::write_chunk(std::string bytes, const std::string& source, std::function<void()> written) {
  const std::uint64_t offset = pull_->cursor->next();
  std::vector<std::uint32_t> completed = pull_->cursor->received(bytes.size());
  const bool next_piece = !completed.empty();
  if (!source.empty()) pull_->piece_sources.insert(source);
  pull_->writing = true;
  const std::uint64_t work = work_;
  on_pool(
      disk_,
      [this, slot = record_.candidate.slot, manifest = pull_->manifest, offset, bytes = std::move(bytes),
       completed = std::move(completed), after_this = pull_->cursor->next()] {
        return slots_.write(spool_, slot, *manifest, offset, bytes, completed, after_this);
      },
      [this, work, source, next_piece, written = std::move(written)](Result<void> done) {
        if (work != work_ || !pull_) return;
        pull_->writing = false;
        if (!done && done.error().code == ErrorCode::kCorrupt && !pull_->piece_sources.empty()) {
          // Not the coordinator's fault, or not surely: the piece is pulled again, without these mirrors.
          log_warn("{}; pulled again, and not from {}", done.error().describe(),
                   fmt::join(pull_->piece_sources, " "));
          for (const std::string& url : pull_->piece_sources) mirrors_.lied(url, clock_.steady_now());
          pull_->leave_mirror();
          pull_->cursor.reset();
          pull_->in_flight.clear();
          pull_->arrived.clear();
          return open_pull("");
        }
        if (!done) return work_failed(done.error());
        if (next_piece) pull_->piece_sources = source.empty() ? std::set<std::string>() : std::set{source};
        bytes_done_ = bytes_total_ - pull_->cursor->bytes_missing();
        if (pull_->cursor->complete()) {
          mirrors_.worked(pull_->mirror);
          pull_.reset();
          return post_event(Event::kDone);
        }
        written();
      });
}

void Agent::pull_tick() {
  after(pull_timer_, seconds(1), [this] { pull_tick(); });
  if (session_->up()) trust_.tick();
  if (!pull_) return;
  changed();  // progress
  if (!pull_->cursor || !pull_->mirror.empty()) return;
  if (mirrors_.choose(clock_.steady_now())) return pull_on();  // a new one, or one that was put aside
  if (!session_->up()) return;
  if (clock_.steady_now() < pull_->patient_until) {
    if (++pull_->waited_seconds > kWaitAtMost.count())
      return work_failed(
          {ErrorCode::kUnavailable,
           fmt::format("waited {} h for its turn at the coordinator", kWaitAtMost.count() / 3600),
           record_.candidate.artifact});
    pull_->silent_ticks = 0, pull_->window_seconds = 0, pull_->window_bytes = 0;
    return;
  }
  if (++pull_->window_seconds >= kPaceWindow.count()) {
    if (pull_->window_bytes < TrustPull::kMinBytesPerSecond * pull_->window_seconds)
      return work_failed(
          {ErrorCode::kUnavailable,
           fmt::format("too slow: {} bytes in {} s, at least {} a second are expected", pull_->window_bytes,
                       pull_->window_seconds, TrustPull::kMinBytesPerSecond),
           record_.candidate.artifact});
    pull_->window_seconds = 0;
    pull_->window_bytes = 0;
  }
  if (pull_->writing) return;
  if (++pull_->silent_ticks < 10) return;
  pull_->silent_ticks = 0;
  if (++pull_->silences >= 4)
    return work_failed(
        {ErrorCode::kUnavailable, "the coordinator sends nothing of it", record_.candidate.artifact});
  pull_->arrived.clear();
  rewind_requests();
  request_chunks();
}

// Serving
// ----------------------------------------------------------------------------------------------------

std::string Agent::serving_slot() const {
  const bool candidate = record_.state == State::kProbation || record_.state == State::kCommit;
  return candidate ? record_.candidate.slot : record_.active.slot;
}

bool Agent::both_fit() const {
  const std::uint64_t budget = profile_ ? profile_->memory_budget_bytes
                               : options_.budgets.memory_bytes > 0
                                   ? std::min(options_.budgets.memory_bytes, memory_allowance_bytes())
                                   : memory_allowance_bytes();
  std::error_code error;
  const auto size = std::filesystem::file_size(slots_.model(record_.candidate.slot), error);
  const std::uint64_t candidate = (error ? 0 : size) + kServeOverheadBytes;
  std::uint64_t old = 0;
  if (const auto running = supervisor_->find(record_.active.slot))
    old = pss_bytes(running->pid).value_or(candidate);
  return kAgentReserveBytes + old + candidate <= budget;
}

void Agent::await_ready(const std::string& slot, const std::string& artifact, seconds patience,
                        std::function<void(Result<void>)> then) {
  const auto deadline = clock_.steady_now() + patience;
  auto poll = std::make_shared<std::function<void()>>();
  auto timer = std::make_shared<boost::asio::steady_timer>(reactor_);
  *poll = [this, slot, artifact, deadline, then = std::move(then), timer, self = std::weak_ptr(poll)] {
    const auto again = self.lock();
    const auto wait = [&] { after(*timer, milliseconds(10), [again] { (*again)(); }); };
    const auto serve = supervisor_->find(slot);
    if (!serve)
      return then(fail(ErrorCode::kUnavailable, "slot " + slot,
                       "retort-serve ended before it was ready (run/serve-{}.log says why)", slot));
    if (clock_.steady_now() > deadline)
      return then(fail(ErrorCode::kUnavailable, "slot " + slot, "retort-serve was not ready in time"));
    if (serve->port == 0) return wait();
    on_pool(
        ask_,
        [this, artifact, port = serve->port] {
          return check_health(options_.serve_host, port, artifact, kHealthTimeout);
        },
        [this, again, timer, then](Result<void> healthy) {
          if (healthy || healthy.error().code != ErrorCode::kUnavailable) return then(std::move(healthy));
          after(*timer, milliseconds(20), [again] { (*again)(); });
        });
  };
  (*poll)();
}

std::map<std::string, std::string> Agent::checked_with(const std::string& slot) const {
  std::set<std::string> slots = checked_slots_;
  slots.insert(slot);
  return {{"checked_slots", fmt::format("{} {}", boot_id_, fmt::join(slots, " "))}};
}

void Agent::check_slot(const SlotStudent& student, std::function<void(Result<void>)> then) {
  if (checked_slots_.count(student.slot) != 0) return then({});
  on_pool(
      disk_,
      [this, student, checked = checked_with(student.slot)]() -> Result<void> {
        RETORT_TRY(slots_.check(student.slot, student.artifact));
        if (const auto noted = spool_.put(checked); !noted)  // then it is hashed again, next time
          log_warn("slot {}: {}", student.slot, noted.error().describe());
        return {};
      },
      [this, student, then = std::move(then)](Result<void> good) {
        if (good) checked_slots_.insert(student.slot);
        then(std::move(good));
      });
}

void Agent::check_candidate(std::function<void()> good) {
  check_slot(record_.candidate, [this, work = work_, good = std::move(good)](Result<void> checked) {
    if (work != work_) return;
    if (checked) return good();
    log_error("slot {}: {}", record_.candidate.slot, checked.error().describe());
    active_held_back_ = false;
    keep_serving();
    post_event(Event::kRetry);
  });
}

void Agent::keep_serving() {
  const SlotStudent active = record_.active;
  if (active.slot.empty() || active_held_back_ || lost_ == active || stopping_) return;
  if (const auto running = supervisor_->find(active.slot); running && running->artifact != active.artifact) {
    supervisor_->stop(active.slot, [this] { keep_serving(); });
    return;
  }
  if (!supervisor_->find(active.slot)) {
    if (checked_slots_.count(active.slot) == 0) {
      if (std::exchange(checking_active_, true)) return;
      return check_slot(active, [this, active](Result<void> good) {
        checking_active_ = false;
        if (good || record_.active != active) return keep_serving();
        log_error("slot {}: {}", active.slot, good.error().describe());
        record_.error_code = to_string(good.error().code), record_.error = good.error().describe();
        ready();
        if (good.error().code != ErrorCode::kCorrupt && good.error().code != ErrorCode::kDenied)
          return after(restart_timer_, seconds(10), [this] { keep_serving(); });
        lost_ = active;
        post_event(Event::kSlotLost);
      });
    }
    const Result<void> started = supervisor_->start(active.slot, active.artifact, start_port());
    if (!started) {
      log_error("slot {}: cannot start retort-serve: {}; again in 10 s", active.slot,
                started.error().describe());
      record_.error_code = to_string(started.error().code), record_.error = started.error().describe();
      ready();  // READY also when it cannot serve: the link is what can mend it
      return after(restart_timer_, seconds(10), [this] { keep_serving(); });
    }
  }
  await_ready(active.slot, active.artifact, kReadyPatience, [this, active](Result<void> good) {
    if (record_.active != active) return;
    if (good) {
      supervisor_->make_public(active.slot);
      serve_answers_ = true;
      serving_since_ = clock_.steady_now();
      log_info("slot {}: serving {} on port {}", active.slot, active.artifact.substr(0, 12),
               supervisor_->find(active.slot)->port);
    } else {
      log_error("slot {}: {}", active.slot, good.error().describe());
      checked_slots_.erase(active.slot);                                   // the file may be why
      if (supervisor_->find(active.slot)) supervisor_->kill(active.slot);  // comes back through serve_exited
    }
    ready();
    changed();
  });
}

void Agent::serve_exited(const std::string& slot, int code) {
  log_warn("slot {}: retort-serve ended by itself ({})", slot,
           code < 0     ? "status unknown"
           : code > 128 ? fmt::format("signal {}", code - 128)
                        : fmt::format("status {}", code));
  if (stopping_) return;
  if (slot == record_.candidate.slot && record_.state == State::kProbation) {
    ++work_;
    // With nothing to go back to it is tried again, as after a restart of the machine: so often at most.
    if (record_.active.slot.empty() && record_.candidate_starts < kCandidateStarts)
      return after(restart_timer_, seconds(1), [this, work = work_] {
        if (work == work_) post_event(Event::kStart);
      });
    failed_for_good({ErrorCode::kUnavailable, fmt::format("the new student died in probation ({})", code),
                     "slot " + slot});
    return;
  }
  if (slot != record_.active.slot) return;  // a candidate in probe: await_ready sees it
  serve_answers_ = false;
  changed();
  const auto now = clock_.steady_now();
  crashes_.push_back(now);
  while (!crashes_.empty() && now - crashes_.front() > kCrashWindow) crashes_.pop_front();
  if (crashes_.size() >= kCrashesToRollBack && record_.state == State::kIdle &&
      !record_.previous.slot.empty() && std::filesystem::exists(slots_.model(record_.previous.slot))) {
    record_.error_code = "unavailable";
    record_.error = fmt::format("crash loop: student {} ended {} times in {} s; back to {}",
                                record_.active.artifact.substr(0, 12), crashes_.size(), kCrashWindow.count(),
                                record_.previous.artifact.substr(0, 12));
    log_error("{}", record_.error);
    crashes_.clear();
    return post_event(Event::kCrashLoop);
  }
  const auto pause =
      milliseconds(std::min<std::uint64_t>(30'000, 200ull << std::min<std::size_t>(crashes_.size() - 1, 8)));
  after(restart_timer_, pause, [this] { keep_serving(); });
}

void Agent::health_tick() {
  after(health_timer_, seconds(5), [this] { health_tick(); });
  const std::string slot = serving_slot();
  const auto serve = slot.empty() ? std::nullopt : supervisor_->find(slot);
  if (!serve || serve->port == 0 || !serve_answers_ || health_asked_) return;
  health_asked_ = true;
  // /health shows that it listens; that it still computes, only an inference shows.
  const bool infer = clock_.steady_now() - inference_seen_ > kInferenceEvery;
  on_pool(
      ask_,
      [this, serve = *serve, infer]() -> Result<void> {
        RETORT_TRY(check_health(options_.serve_host, serve.port, serve.artifact, kHealthTimeout));
        if (!infer) return {};
        Result<void> answered = check_answer(options_.serve_host, serve.port, kInferencePatience);
        if (!answered && answered.error().code == ErrorCode::kOutOfBudget) return {};  // busy: it is well
        return answered;
      },
      [this, slot, pid = serve->pid, infer](Result<void> healthy) {
        health_asked_ = false;
        if (healthy && infer) inference_seen_ = clock_.steady_now();
        const auto now = supervisor_->find(slot);
        if (!now || now->pid != pid || healthy) {
          health_failures_ = 0;
          return;
        }
        // Another file than the one that belongs there is no matter of patience.
        const bool other = healthy.error().code == ErrorCode::kConflict;
        if (!other && ++health_failures_ < kHealthFailures) return;
        health_failures_ = 0;
        log_error("slot {}: retort-serve {} ({}): replaced", slot, other ? "has a wrong file" : "hangs",
                  healthy.error().describe());
        checked_slots_.erase(slot);  // the file may be why
        supervisor_->kill(slot);
      });
}

void Agent::start_candidate() {
  const std::uint64_t work = work_;
  const SlotStudent candidate = record_.candidate;
  if (record_.candidate_starts > kCandidateStarts)
    return failed_for_good({ErrorCode::kUnavailable,
                            fmt::format("was started {} times and the agent or the machine ended each time",
                                        record_.candidate_starts - 1),
                            candidate.artifact});
  const auto go = [this, work, candidate] {
    if (work != work_) return;
    const auto running = supervisor_->find(candidate.slot);
    if (running && running->artifact != candidate.artifact) {
      // The slot's earlier student still runs.
      supervisor_->stop(candidate.slot, [this, work] {
        if (work == work_) start_candidate();
      });
      return;
    }
    if (!running)
      if (const Result<void> started = supervisor_->start(candidate.slot, candidate.artifact, 0); !started)
        return failed_for_good(started.error());
    await_ready(
        candidate.slot, candidate.artifact, kReadyPatience, [this, work, candidate](Result<void> good) {
          if (work != work_) return;
          if (!good) return failed_for_good(good.error());
          const auto serve = supervisor_->find(candidate.slot);
          if (!serve)
            return failed_for_good(
                {ErrorCode::kUnavailable, "ended while it was probed", candidate.artifact});
          on_pool(
              ask_,
              [this, port = serve->port] { return check_answer(options_.serve_host, port, seconds(60)); },
              [this, work](Result<void> answered) {
                if (work != work_) return;
                if (!answered) return failed_for_good(answered.error());
                post_event(Event::kDone);
              });
        });
  };
  if (!both_fit() && !record_.active.slot.empty()) {
    log_warn(
        "memory does not hold the old and the new student at once: stop-swap, nothing is served meanwhile");
    active_held_back_ = true;
    serve_answers_ = false;
    supervisor_->stop(record_.active.slot, go);
    return;
  }
  go();
}

void Agent::switch_over() {
  const std::uint64_t work = work_;
  const SlotStudent candidate = record_.candidate;
  active_held_back_ = true;  // until commit or rollback
  const auto finish = [this, work, candidate](Result<void> good) {
    if (work != work_) return;
    if (!good) return failed_for_good(good.error());
    supervisor_->make_public(candidate.slot);
    serve_answers_ = true;
    serving_since_ = clock_.steady_now();
    post_event(Event::kDone);
  };
  const auto on_public_port = [this, work, candidate, finish] {
    if (work != work_) return;
    const auto running = supervisor_->find(candidate.slot);
    const bool there = running && (options_.serve_port == 0 || running->port == start_port());
    if (there) return await_ready(candidate.slot, candidate.artifact, kReadyPatience, finish);
    supervisor_->stop(candidate.slot, [this, work, candidate, finish] {
      if (work != work_) return;
      if (const Result<void> started = supervisor_->start(candidate.slot, candidate.artifact, start_port());
          !started)
        return finish(fail(started.error()));
      await_ready(candidate.slot, candidate.artifact, kReadyPatience, finish);
    });
  };
  if (start_port() == 0) {
    // The new address is told first, then the old one drains; what comes to a public socket meanwhile waits
    // there.
    on_public_port();
    if (!record_.active.slot.empty()) supervisor_->stop(record_.active.slot, [] {});
  } else if (record_.active.slot.empty()) {
    on_public_port();
  } else {
    supervisor_->stop(record_.active.slot, on_public_port);
  }
}

void Agent::watch_probation() {
  const std::uint64_t work = work_;
  const SlotStudent candidate = record_.candidate;
  active_held_back_ = true;
  if (record_.candidate_starts > kCandidateStarts)
    return failed_for_good({ErrorCode::kUnavailable, "did not live through probation", candidate.artifact});
  if (!supervisor_->find(candidate.slot))  // after a restart of the machine
    if (const Result<void> started = supervisor_->start(candidate.slot, candidate.artifact, start_port());
        !started)
      return failed_for_good(started.error());
  await_ready(candidate.slot, candidate.artifact, kReadyPatience, [this, work, candidate](Result<void> good) {
    if (work != work_) return;
    if (!good) return failed_for_good(good.error());
    supervisor_->make_public(candidate.slot);
    serve_answers_ = true;
    ready();
    changed();
    after(probation_timer_, options_.probation, [this, work, candidate] {
      if (work != work_) return;
      const auto serve = supervisor_->find(candidate.slot);
      if (!serve) return failed_for_good({ErrorCode::kUnavailable, "died in probation", candidate.artifact});
      on_pool(
          ask_,
          [this, serve = *serve] {
            return check_health(options_.serve_host, serve.port, serve.artifact, kHealthTimeout);
          },
          [this, work](Result<void> healthy) {
            if (work != work_) return;
            if (!healthy) return failed_for_good(healthy.error());
            active_held_back_ = false;
            crashes_.clear();
            post_event(Event::kDone);
          });
    });
  });
}

void Agent::restore() {
  const std::uint64_t work = work_;
  log_warn("rolling back to {}: {}",
           record_.active.artifact.empty() ? "nothing" : record_.active.artifact.substr(0, 12),
           record_.error);
  active_held_back_ = false;
  serve_answers_ = !record_.active.slot.empty() && supervisor_->find(record_.active.slot) && serve_answers_;
  supervisor_->stop(record_.candidate.slot, [this, work] {
    if (work != work_) return;
    keep_serving();
    post_event(Event::kDone);
  });
}

// Canary
// ------------------------------------------------------------------------------------------------------

void Agent::begin_canary(const wire::Canary& canary) {
  if (record_.state != State::kIdle || canary.artifact != record_.active.artifact || !serve_answers_)
    return;  // it is asked again
  const bool busy = canary_.has_value();
  if (busy && canary_->canary.id == canary.id && canary_->canary.artifact == canary.artifact) return;
  canary_.emplace();
  canary_->canary = canary;
  if (canary_->canary.questions.size() > kCanaryQuestions) canary_->canary.questions.resize(kCanaryQuestions);
  if (!busy) ask_canary();
}

void Agent::ask_canary() {
  if (!canary_) return;
  const auto serve = supervisor_->find(record_.active.slot);
  if (record_.state != State::kIdle || !serve || serve->artifact != canary_->canary.artifact ||
      serve->port == 0) {
    canary_.reset();  // an update came between
    return;
  }
  if (canary_->next == canary_->canary.questions.size()) {
    session_->send(
        wire::CanaryResult{canary_->canary.id, canary_->canary.artifact, canary_->asked, canary_->agreed});
    log_info("canary: agrees with the teacher on {} of {}", canary_->agreed, canary_->asked);
    canary_.reset();
    return;
  }
  const wire::Canary::Question question = canary_->canary.questions[canary_->next];
  on_pool(
      ask_,
      [this, port = serve->port, prompt = question.prompt] {
        return complete(options_.serve_host, port, prompt, 1, kCanaryPatience);
      },
      [this, question, id = canary_->canary.id](Result<std::string> answer) {
        if (!canary_) return;
        if (canary_->canary.id != id) return ask_canary();  // another one came
        if (!answer && answer.error().code == ErrorCode::kUnavailable) {
          log_warn("canary: {}; the coordinator will ask again", answer.error().describe());
          canary_.reset();
          return;
        }
        // A question that the student refuses is one that it has no answer to.
        ++canary_->asked;
        if (answer && *answer == question.answer) ++canary_->agreed;
        ++canary_->next;
        ask_canary();
      });
}

// Telling
// ----------------------------------------------------------------------------------------------------

DeviceStatus Agent::status() const {
  DeviceStatus status;
  status.state = to_string(record_.state);
  status.generation = record_.reached;
  const std::string slot = serving_slot();
  const auto serve = slot.empty() ? std::nullopt : supervisor_->find(slot);
  if (serve && serve->port != 0 && serve_answers_) {
    status.artifact = serve->artifact;
    const std::uint16_t shared = supervisor_->public_port();
    status.serve_url = fmt::format("http://{}:{}", options_.serve_host, shared != 0 ? shared : serve->port);
  }
  status.error_code = record_.error_code;
  status.error = record_.error;
  status.bytes_done = bytes_done_;
  status.bytes_total = bytes_total_;
  return status;
}

void Agent::changed() {
  if (stopping_) return;
  const DeviceStatus now = status();
  if (session_ && session_->up() && !identity_.device_id.empty() &&
      (!told_status_ || !(*told_status_ == now)))
    if (session_->send(wire::StatusReport{now})) told_status_ = now;
  status_dirty_ = true;
  write_status();
}

void Agent::write_status() {
  if (writing_status_ || !status_dirty_) return;
  writing_status_ = true;
  status_dirty_ = false;
  const DeviceStatus now = status();
  const std::string slot = serving_slot();
  const auto serve = slot.empty() ? std::nullopt : supervisor_->find(slot);
  json::object object{{"device_id", identity_.device_id},
                      {"state", now.state},
                      {"link", link_},
                      {"link_reason", link_reason_},
                      {"class", record_.desired.device_class},
                      {"generation", now.generation},
                      {"desired_generation", record_.desired.generation},
                      {"desired_artifact", record_.desired.artifact},
                      {"artifact", now.artifact},
                      {"serve_url", now.serve_url},
                      {"serve_pid", serve ? json::value(serve->pid) : json::value(nullptr)},
                      {"slot", slot},
                      {"error_code", now.error_code},
                      {"last_error", now.error},
                      {"bytes_done", now.bytes_done},
                      {"bytes_total", now.bytes_total},
                      {"mirror", pull_ ? pull_->mirror : ""},
                      {"pss_bytes", own_pss_},
                      {"serve_pss_bytes", serve_pss_},
                      {"agent_pid", ::getpid()},
                      {"version", options_.version},
                      {"time", to_rfc3339(clock_.unix_millis())}};
  on_pool(
      disk_,
      [object = std::move(object), model = slots_.model(slot), own = options_.run_folder / "status.json",
       given = options_.status_file]() mutable -> Result<void> {
        object["sealed"] = SealedFile::is_sealed(model);
        const std::string text = pretty_json(object);
        RETORT_TRY(write_file_atomic(own, text));
        return given.empty() ? Result<void>() : write_file_atomic(given, text, 0644);
      },
      [this](Result<void> written) {
        writing_status_ = false;
        if (!written) {
          log_warn("status file: {}", written.error().describe());
          return after(status_timer_, seconds(5), [this] { write_status(); });
        }
        write_status();
      });
}

UnixMillis Agent::now_millis() const {
  const UnixMillis own = clock_.unix_millis();
  if (!told_time_) return own;
  const UnixMillis told =
      told_time_->first +
      std::chrono::duration_cast<milliseconds>(clock_.steady_now() - told_time_->second).count();
  return std::abs(own - told) > kClockTolerance.count() ? told : own;
}

void Agent::telemetry_tick() {
  after(telemetry_timer_, seconds(10), [this] { telemetry_tick(); });
  if (telemetry_busy_) return;
  telemetry_busy_ = true;
  const std::string slot = serving_slot();
  const auto serve = slot.empty() ? std::nullopt : supervisor_->find(slot);
  struct Sample {
    std::uint64_t own_pss = 0, serve_pss = 0;
    std::optional<Histogram> first_token, token;
    std::optional<RequestCounts> requests;
    std::optional<double> watts;
    pid_t pid = 0;
  };
  on_pool(
      ask_,
      [this, serve, host = options_.serve_host, ask = serve_answers_] {
        Sample sample;
        sample.watts = power_meter_.watts(Steady::now());
        if (serve) sample.pid = serve->pid;
        sample.own_pss = pss_bytes(::getpid()).value_or(0);
        if (serve) sample.serve_pss = pss_bytes(serve->pid).value_or(0);
        if (serve && serve->port != 0 && ask)
          if (const auto metrics = ask_serve(host, serve->port, "GET", "/metrics", "", seconds(3))) {
            sample.first_token = parse_histogram(metrics->body, "retort_serve_first_token_seconds");
            sample.token = parse_histogram(metrics->body, "retort_serve_token_seconds");
            sample.requests = parse_requests(metrics->body);
          }
        return sample;
      },
      [this](Sample sample) {
        own_pss_ = sample.own_pss, serve_pss_ = sample.serve_pss;
        const UnixMillis now = now_millis();
        const double tokens =
            (sample.first_token ? sample.first_token->count : 0) + (sample.token ? sample.token->count : 0);
        if (sample.first_token && tokens != tokens_seen_) {
          tokens_seen_ = tokens;
          inference_seen_ = clock_.steady_now();
        }
        if (profile_ && profile_->utc_offset_minutes != utc_offset_minutes()) {
          profile_->utc_offset_minutes = utc_offset_minutes();
          tell_profile();
        }
        std::vector<TelemetryPoint> points;
        const auto steady = clock_.steady_now();
        if (sample.watts && steady - told_watts_ > kTellPower) {
          told_watts_ = steady;
          points.push_back({now, "device_power_watts", *sample.watts});
        }
        if (sample.requests) {
          // The first look at a process that was there before says nothing about when.
          const bool same = requests_of_ == sample.pid;
          const double all = sample.requests->all - (same ? requests_->all : 0),
                       errors = sample.requests->errors - (same ? requests_->errors : 0);
          if (requests_ && all > 0) points.push_back({now, "serve_requests", all});
          if (requests_ && errors > 0) points.push_back({now, "serve_errors", errors});
          requests_ = sample.requests, requests_of_ = sample.pid;
        }
        // Memory when it moved by more than a twentieth, of every new process, and now and then.
        const bool anew = sample.pid != told_pss_of_ || steady - told_pss_ > kTellMemory;
        if (anew) told_pss_of_ = sample.pid, told_pss_ = steady;
        const auto moved = [](std::uint64_t a, std::uint64_t b) { return (a > b ? a - b : b - a) > a / 20; };
        if (anew || moved(own_pss_, told_own_pss_))
          points.push_back({now, "agent_pss_bytes", static_cast<double>(told_own_pss_ = own_pss_)});
        if ((anew && serve_pss_ > 0) || moved(serve_pss_, told_serve_pss_))
          points.push_back({now, "serve_pss_bytes", static_cast<double>(told_serve_pss_ = serve_pss_)});
        const auto latency = [&](std::optional<Histogram>& before, std::optional<Histogram>& after_it,
                                 const char* name) {
          if (!after_it) return;
          const Histogram from = before.value_or(Histogram{});
          for (const auto& [quantile, suffix] : {std::pair{0.5, "_p50"}, std::pair{0.95, "_p95"}})
            if (const auto value = quantile_between(from, *after_it, quantile))
              points.push_back({now, name + std::string(suffix), *value});
          before = after_it;
        };
        latency(first_token_, sample.first_token, "serve_first_token_seconds");
        latency(token_, sample.token, "serve_token_seconds");
        status_dirty_ = true;
        write_status();
        if (points.empty()) {
          telemetry_busy_ = false;
          return send_batch();
        }
        on_pool(
            disk_, [this, points = std::move(points), now] { return spool_.append(points, now); },
            [this](Result<std::uint64_t> added) {
              telemetry_busy_ = false;
              if (!added) return log_warn("telemetry: {}", added.error().describe());
              send_batch();
            });
      });
}

void Agent::send_batch() {
  if (batch_read_ || !session_->up() || identity_.device_id.empty()) return;
  if (clock_.steady_now() - batch_sent_ >= seconds(30)) batches_in_flight_.clear();
  if (batches_in_flight_.size() >= wire::kMaxBatchesInFlight) return;
  const auto last_sent = [this] {
    return batches_in_flight_.empty() ? telemetry_acknowledged_ : batches_in_flight_.back();
  };
  batch_read_ = true;
  on_pool(
      disk_, [this, after = last_sent()] { return spool_.next_batch(after); },
      [this, last_sent, after = last_sent()](Result<std::optional<Spool::Batch>> batch) {
        batch_read_ = false;
        if (!batch) return log_warn("telemetry: {}", batch.error().describe());
        if (after != last_sent()) return send_batch();  // a new session begins with what was not acknowledged
        if (!*batch) return;
        const std::uint64_t follows = batches_in_flight_.empty() ? 0 : batches_in_flight_.back();
        if (!session_->send(wire::TelemetryBatch{(*batch)->number, (*batch)->dropped_before,
                                                 std::move((*batch)->points), follows}))
          return;
        batches_in_flight_.push_back((*batch)->number);
        batch_sent_ = clock_.steady_now();
        send_batch();
      });
}

}  // namespace retort
