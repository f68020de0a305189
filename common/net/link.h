#pragma once

#include <boost/asio/io_context.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "common/core/result.h"

namespace retort {

/// A CURVE key pair, Z85 text (40 characters each).
struct CurveKeys {
  std::string public_key, secret_key;
};
CurveKeys make_curve_keys();
/// Reads the pair from `path` (0600), or makes it and writes it first.
Result<CurveKeys> load_or_make_curve_keys(const std::filesystem::path& path);

/// Coordinator's end: a ZeroMQ ROUTER with CURVE on an Asio reactor. ZAP lets every key connect except the
/// refused ones; who may do what is decided per message by the peer's public key. Thread: reactor.
class FleetServer {
 public:
  struct Peer {
    std::string routing_id;  ///< opaque; for send()
    std::string public_key;  ///< Z85, proven by CURVE
  };
  using OnFrame = std::function<void(const Peer& peer, std::string_view frame)>;
  /// Asked at each handshake: false refuses the key.
  using Admit = std::function<bool(std::string_view public_key)>;

  /// Binds; "tcp://127.0.0.1:*" picks a port. kConflict when the port is in use.
  static Result<std::unique_ptr<FleetServer>> bind(boost::asio::io_context& reactor, const CurveKeys& keys,
                                                   const std::string& endpoint, Admit admit,
                                                   OnFrame on_frame);
  virtual ~FleetServer() = default;
  virtual std::string endpoint() const = 0;
  /// False when the peer is gone or its queue is full.
  virtual bool send(std::string_view routing_id, std::string frame) = 0;
  /// Cuts a live session of this key (revocation) by ignoring it and refusing its next handshake.
  virtual void refuse(std::string_view public_key) = 0;
};

/// What the device ends of many links in one process share (ZeroMQ's threads); for simulators.
class LinkContext {
 public:
  virtual ~LinkContext() = default;
};
/// `links`: how many there will be at most at a time.
std::shared_ptr<LinkContext> make_link_context(int links);

/// Device's end: a ZeroMQ DEALER with CURVE. It connects and reconnects by itself, with backoff and full
/// jitter. Thread: reactor.
class FleetClient {
 public:
  using OnFrame = std::function<void(std::string_view frame)>;
  /// Connected (handshake done) or lost, from the socket's monitor. A handshake refused for a wrong server
  /// key is told as lost with a reason.
  using OnLink = std::function<void(bool up, std::string_view reason)>;

  /// Without a `context` it has one of its own.
  static Result<std::unique_ptr<FleetClient>> connect(boost::asio::io_context& reactor, const CurveKeys& keys,
                                                      std::string_view server_key,
                                                      const std::string& endpoint, OnLink on_link,
                                                      OnFrame on_frame,
                                                      std::shared_ptr<LinkContext> context = nullptr);
  virtual ~FleetClient() = default;
  /// False when the queue is full (the link is down or slow): keep it and try again.
  virtual bool send(std::string frame) = 0;
};

}  // namespace retort
