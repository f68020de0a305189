#include "agent/control/session.h"

#include <algorithm>

#include "common/core/log.h"

namespace retort {

using std::chrono::milliseconds;

constexpr milliseconds kStoreAgain{10'000};

LinkSession::LinkSession(boost::asio::io_context& reactor, RandomSource& random, std::uint64_t last_epoch,
                         Hooks hooks)
    : reactor_(reactor),
      random_(random),
      hooks_(std::move(hooks)),
      first_timer_(reactor),
      heartbeat_timer_(reactor),
      epoch_(last_epoch) {}

Result<void> LinkSession::connect(const CurveKeys& keys, std::string_view server_key,
                                  const std::string& endpoint) {
  auto told = [this](bool linked, std::string_view reason) { on_link(linked, reason); };
  auto came = [this](std::string_view frame) { on_frame(frame); };
  client_ =
      RETORT_TRY(hooks_.connect ? hooks_.connect(keys, server_key, endpoint, std::move(told), std::move(came))
                                : FleetClient::connect(reactor_, keys, server_key, endpoint, std::move(told),
                                                       std::move(came)));
  return {};
}

void LinkSession::close() {
  first_timer_.cancel();
  heartbeat_timer_.cancel();
  linked_ = up_ = false;
  // Posted: this may be called from inside one of the client's own callbacks.
  if (client_) boost::asio::post(reactor_, [client = std::shared_ptr<FleetClient>(std::move(client_))] {});
}

void LinkSession::restart() {
  if (!linked_) return;
  up_ = false;
  open(milliseconds(0));
}

void LinkSession::on_link(bool linked, std::string_view reason) {
  linked_ = linked;
  silent_tries_ = 0;
  if (linked) return open(milliseconds(0));
  lost(std::string(reason));
}

void LinkSession::lost(const std::string& reason) {
  up_ = false;
  first_timer_.cancel();
  heartbeat_timer_.cancel();
  hooks_.on_session(false, reason);
}

void LinkSession::open(milliseconds after) {
  heartbeat_timer_.cancel();
  first_timer_.expires_after(after);
  first_timer_.async_wait([this, alive = std::weak_ptr<int>(alive_)](const boost::system::error_code& error) {
    if (error || alive.expired() || !linked_) return;
    if (!hooks_.first_message()) return;  // restart() comes when there is one
    const std::uint64_t epoch = epoch_ + 1;
    open(kStoreAgain);  // unless it is stored by then
    hooks_.store_epoch(epoch, [this, alive, epoch] {
      if (alive.expired() || !linked_ || epoch <= epoch_) return;
      epoch_ = epoch;
      sent_ = received_ = 0;
      say_first();
    });
  });
}

void LinkSession::say_first() {
  std::optional<wire::Payload> first = hooks_.first_message();
  if (!first) return;
  send_now(std::move(*first));
  // No answer: again in a new session, ever more slowly.
  const auto pause = std::min<std::uint64_t>(60'000, 5'000ull << std::min(silent_tries_++, 4u));
  open(milliseconds(pause + static_cast<std::uint64_t>(random_.next_unit() * 2000)));
}

bool LinkSession::send_now(wire::Payload payload) {
  if (!client_) return false;
  wire::Envelope envelope;
  envelope.epoch = epoch_;
  envelope.sequence = sent_ + 1;
  envelope.acknowledged = received_;
  envelope.payload = std::move(payload);
  if (!client_->send(wire::encode(envelope))) return false;
  ++sent_;
  return true;
}

bool LinkSession::send(wire::Payload payload) { return up_ && send_now(std::move(payload)); }

void LinkSession::beat() {
  heartbeat_timer_.expires_after(
      milliseconds(static_cast<std::uint64_t>(heartbeat_millis_ * (0.75 + 0.25 * random_.next_unit()))));
  heartbeat_timer_.async_wait(
      [this, alive = std::weak_ptr<int>(alive_)](const boost::system::error_code& error) {
        if (error || alive.expired() || !up_) return;
        send_now(wire::Heartbeat{hooks_.generation()});
        beat();
      });
}

void LinkSession::on_frame(std::string_view frame) {
  Result<wire::Envelope> envelope = wire::decode(frame);
  if (!envelope) {
    if (++bad_frames_ <= 3 || bad_frames_ % 1000 == 0)
      log_warn("link: a frame of {} bytes from the coordinator cannot be read, dropped ({} so far): {}",
               frame.size(), bad_frames_, envelope.error().describe());
    return;
  }
  if (envelope->epoch != epoch_ || envelope->sequence <= received_) return;  // an old session's, or seen
  // Requests are repeated by whoever wants the answer, so a gap needs nothing more than this number.
  received_ = envelope->sequence;
  silent_tries_ = 0;
  if (const auto* welcome = std::get_if<wire::Welcome>(&envelope->payload)) {
    first_timer_.cancel();
    heartbeat_millis_ = std::clamp(welcome->heartbeat_millis, 1000u, 3'600'000u);
    chunk_credit_ = std::clamp(welcome->chunk_credit, 1u, 8u);
    up_ = true;
    beat();
    hooks_.on_payload(std::move(envelope->payload));
    hooks_.on_session(true, "");
    return;
  }
  if (const auto* back = std::get_if<wire::ComeBack>(&envelope->payload)) {
    const std::uint32_t pause = std::min(back->after_millis, 3'600'000u);
    log_info("link: the coordinator is busy, coming back in {} ms", pause);
    lost("the coordinator is busy");
    // Up to a quarter later than asked, so that a fleet does not come back at once.
    return open(milliseconds(pause + static_cast<std::uint64_t>(pause * 0.25 * random_.next_unit())));
  }
  if (std::holds_alternative<wire::Unsupported>(envelope->payload)) {
    const std::uint16_t kind = std::get<wire::Unsupported>(envelope->payload).kind;
    log_debug("link: message kind {} is not understood", kind);
    return;
  }
  if (const auto* refused = std::get_if<wire::Refused>(&envelope->payload))
    if (refused->about == "enrol" || refused->about == "hello") {
      // Said once more a good while later: an operator may have mended it.
      first_timer_.cancel();
      open(milliseconds(static_cast<std::uint64_t>(30'000 + 30'000 * random_.next_unit())));
    }
  hooks_.on_payload(std::move(envelope->payload));
}

}  // namespace retort
