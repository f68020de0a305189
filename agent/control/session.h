#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "common/core/clock.h"
#include "common/core/random.h"
#include "common/net/link.h"
#include "common/wire/messages.h"

namespace retort {

/// The agent's end of the fleet link: sessions with growing epochs, numbering, heartbeats. What is said goes
/// through hooks; what is lost with a session is said again by the next one. Thread: reactor.
class LinkSession {
 public:
  struct Hooks {
    /// Puts a new epoch on disk, then calls `stored` (never when it cannot).
    std::function<void(std::uint64_t epoch, std::function<void()> stored)> store_epoch;
    /// Enrol or Hello; nothing while there is neither.
    std::function<std::optional<wire::Payload>()> first_message;
    std::function<void(wire::Payload)> on_payload;
    /// The session is up (Welcome came) or gone; why.
    std::function<void(bool up, const std::string& reason)> on_session;
    std::function<std::uint64_t()> generation;  ///< for heartbeats
    /// How links are made; FleetClient::connect unless given.
    std::function<Result<std::unique_ptr<FleetClient>>(const CurveKeys& keys, std::string_view server_key,
                                                       const std::string& endpoint, FleetClient::OnLink,
                                                       FleetClient::OnFrame)>
        connect;
  };
  LinkSession(boost::asio::io_context& reactor, RandomSource& random, std::uint64_t last_epoch, Hooks hooks);

  Result<void> connect(const CurveKeys& keys, std::string_view server_key, const std::string& endpoint);
  /// For good: the device was revoked, or the agent ends.
  void close();
  /// Opens a new session with the first message of now (after enrolment, or when a profile came).
  void restart();
  /// False when there is no session or its queue is full.
  bool send(wire::Payload payload);
  bool up() const { return up_; }
  std::uint32_t chunk_credit() const { return chunk_credit_; }

 private:
  void on_link(bool linked, std::string_view reason);
  void on_frame(std::string_view frame);
  void open(std::chrono::milliseconds after);
  void say_first();
  void beat();
  bool send_now(wire::Payload payload);
  void lost(const std::string& reason);

  boost::asio::io_context& reactor_;
  RandomSource& random_;
  Hooks hooks_;
  std::unique_ptr<FleetClient> client_;
  boost::asio::steady_timer first_timer_, heartbeat_timer_;
  bool linked_ = false, up_ = false;
  std::uint64_t epoch_, sent_ = 0, received_ = 0, bad_frames_ = 0;
  std::uint32_t heartbeat_millis_ = 10000, chunk_credit_ = 4, silent_tries_ = 0;
  std::shared_ptr<int> alive_ = std::make_shared<int>();
};

}  // namespace retort
