#include "common/net/link.h"

#include <malloc.h>
#include <sodium/utils.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <set>

#include "common/core/log.h"
#include "common/net/reactor_socket.h"

// libsodium's guarded memory, which libzmq takes twice for each CURVE frame, replaced in every program that
// has a fleet link (docs/adr): guard pages, locks and their release are some ten system calls a frame, 70 %
// of the coordinator's time under load. What they guarded is a frame's plaintext, which lies in ordinary
// memory before and after. It is still wiped when it is freed. sodium_mprotect_*() must not be used on it.
extern "C" {
void* sodium_malloc(std::size_t size) { return std::malloc(std::max<std::size_t>(size, 1)); }
void* sodium_allocarray(std::size_t count, std::size_t size) {
  if (size != 0 && count > std::numeric_limits<std::size_t>::max() / size) return nullptr;
  return sodium_malloc(count * size);
}
void sodium_free(void* memory) {
  if (memory == nullptr) return;
  ::explicit_bzero(memory, ::malloc_usable_size(memory));
  std::free(memory);
}
}

namespace retort {
namespace {

constexpr int kMaxMessageBytes = 2 << 20;
constexpr int kQueueMessages = 1000;
/// A thread of libzmq accepts one connection each time it has looked after all of its others: with one
/// thread, a fleet that comes back at once waits for the handshakes of those before it.
constexpr int kServerThreads = 4;

std::string_view view(const zmq::message_t& frame) {
  return {static_cast<const char*>(frame.data()), frame.size()};
}

/// A frame as libzmq takes it. A large one is not copied, but kept until it was sent.
zmq::message_t message_of(std::string frame) {
  constexpr std::size_t kCopied = 4096;
  if (frame.size() <= kCopied) return zmq::message_t(frame.data(), frame.size());
  auto* const kept = new std::string(std::move(frame));
  return zmq::message_t(
      kept->data(), kept->size(), [](void*, void* owner) { delete static_cast<std::string*>(owner); }, kept);
}

/// Limits that both ends share.
void configure(zmq::socket_t& socket) {
  socket.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(kMaxMessageBytes));
  socket.set(zmq::sockopt::sndhwm, kQueueMessages);
  socket.set(zmq::sockopt::rcvhwm, kQueueMessages);
  socket.set(zmq::sockopt::handshake_ivl, 30000);
}

/// The caller's error for a zmq exception: exceptions stop here.
tl::unexpected<Error> refused(const std::string& endpoint, const zmq::error_t& error) {
  if (error.num() == EADDRINUSE)
    return fail(ErrorCode::kConflict, endpoint,
                "the port is in use by another program; choose another, or * for any free one");
  return fail(error.num() == EINVAL || error.num() == EPROTONOSUPPORT ? ErrorCode::kInvalid : ErrorCode::kIo,
              endpoint, "{}", error.what());
}

class Server final : public FleetServer {
 public:
  Server(boost::asio::io_context& reactor, Admit admit, OnFrame on_frame)
      : context_(kServerThreads),
        admit_(std::move(admit)),
        on_frame_(std::move(on_frame)),
        zap_(std::make_shared<ReactorSocket>(reactor, context_, zmq::socket_type::rep)),
        router_(std::make_shared<ReactorSocket>(reactor, context_, zmq::socket_type::router)) {}
  ~Server() override {
    router_->stop();
    zap_->stop();
    router_.reset();
    zap_.reset();
  }

  void open(const CurveKeys& keys, const std::string& endpoint) {
    zap_->socket.bind("inproc://zeromq.zap.01");
    zap_->start([this](std::vector<zmq::message_t>& frames) { authenticate(frames); });
    zmq::socket_t& socket = router_->socket;
    configure(socket);
    socket.set(zmq::sockopt::router_mandatory, true);
    // A dead peer's connection ends by the kernel's doing: libzmq's heartbeats cost a walk over the timers of
    // all connections each. Whether a device is there its own heartbeats tell (coordinator/fleet).
    socket.set(zmq::sockopt::tcp_keepalive, 1);
    socket.set(zmq::sockopt::tcp_keepalive_idle, 60);
    socket.set(zmq::sockopt::tcp_keepalive_intvl, 15);
    socket.set(zmq::sockopt::tcp_keepalive_cnt, 4);
    socket.set(zmq::sockopt::backlog, 4096);  // a whole fleet comes back at once
    socket.set(zmq::sockopt::curve_server, true);
    socket.set(zmq::sockopt::curve_secretkey, keys.secret_key);
    socket.set(zmq::sockopt::zap_domain, "retort");
    socket.bind(endpoint);
    endpoint_ = socket.get(zmq::sockopt::last_endpoint);
    router_->start([this](std::vector<zmq::message_t>& frames) { receive(frames); });
  }

  std::string endpoint() const override { return endpoint_; }
  bool send(std::string_view routing_id, std::string frame) override {
    zmq::message_t frames[] = {zmq::message_t(routing_id.data(), routing_id.size()),
                               message_of(std::move(frame))};
    return router_->send(frames);
  }
  void refuse(std::string_view public_key) override { refused_.insert(std::string(public_key)); }

 private:
  /// ZAP (RFC 27): version, request id, domain, address, identity, mechanism, the client's 32-byte key.
  void authenticate(std::vector<zmq::message_t>& frames) {
    if (frames.size() < 2) return;
    std::string key(41, '\0');
    bool admitted = frames.size() == 7 && view(frames[0]) == "1.0" && view(frames[5]) == "CURVE" &&
                    frames[6].size() == 32;
    if (admitted) {
      zmq_z85_encode(key.data(), static_cast<const std::uint8_t*>(frames[6].data()), 32);
      key.resize(40);
      admitted = refused_.count(key) == 0 && admit_(key);
    }
    std::vector<zmq::message_t> reply;
    const auto add = [&](std::string_view text) { reply.emplace_back(text.data(), text.size()); };
    add("1.0");
    add(view(frames[1]));
    add(admitted ? "200" : "400");
    add(admitted ? "OK" : "this key is refused");
    add(admitted ? std::string_view(key) : std::string_view());
    add("");
    zap_->send(reply);
  }

  void receive(std::vector<zmq::message_t>& frames) {
    if (frames.size() != 2) return;  // a device sends single frames
    const char* user = nullptr;
    try {
      user = frames[1].gets("User-Id");
    } catch (const zmq::error_t&) {
    }
    if (user == nullptr || refused_.count(user) != 0) return;
    on_frame_({std::string(view(frames[0])), user}, view(frames[1]));
  }

  zmq::context_t context_;
  Admit admit_;
  OnFrame on_frame_;
  std::set<std::string> refused_;
  std::shared_ptr<ReactorSocket> zap_, router_;
  std::string endpoint_;
};

class Context final : public LinkContext {
 public:
  zmq::context_t zmq{1};
};

class Client final : public FleetClient {
 public:
  Client(boost::asio::io_context& reactor, std::shared_ptr<Context> context, OnLink on_link, OnFrame on_frame)
      : context_(std::move(context)),
        on_link_(std::move(on_link)),
        on_frame_(std::move(on_frame)),
        dealer_(std::make_shared<ReactorSocket>(reactor, context_->zmq, zmq::socket_type::dealer)),
        monitor_(std::make_shared<ReactorSocket>(reactor, context_->zmq, zmq::socket_type::pair)) {}
  ~Client() override {
    zmq_socket_monitor(dealer_->socket.handle(), nullptr, 0);
    monitor_->stop();
    dealer_->stop();
    monitor_.reset();
    dealer_.reset();
  }

  void open(const CurveKeys& keys, std::string_view server_key, const std::string& endpoint) {
    zmq::socket_t& socket = dealer_->socket;
    configure(socket);
    socket.set(zmq::sockopt::curve_serverkey, std::string(server_key));
    socket.set(zmq::sockopt::curve_publickey, keys.public_key);
    socket.set(zmq::sockopt::curve_secretkey, keys.secret_key);
    // A dead path shows in what the device says anyway, its heartbeats: unacknowledged for so long, the
    // kernel gives the connection up. libzmq's own heartbeats would double an idle device's traffic.
    socket.set(zmq::sockopt::tcp_maxrt, 30000);
    socket.set(zmq::sockopt::reconnect_ivl, 200);  // libzmq adds a random part
    socket.set(zmq::sockopt::reconnect_ivl_max, 30000);
    socket.set(zmq::sockopt::immediate, true);  // no queue for a link that is down
    const std::string monitor = fmt::format("inproc://monitor-{}", static_cast<void*>(this));
    if (zmq_socket_monitor(socket.handle(), monitor.c_str(), ZMQ_EVENT_ALL) != 0) throw zmq::error_t();
    monitor_->socket.connect(monitor);
    monitor_->start([this](std::vector<zmq::message_t>& frames) { observe(frames); });
    socket.connect(endpoint);
    dealer_->start([this](std::vector<zmq::message_t>& frames) {
      if (frames.size() == 1) on_frame_(view(frames[0]));
    });
  }

  bool send(std::string frame) override {
    zmq::message_t message = message_of(std::move(frame));
    return dealer_->send({&message, 1});
  }

 private:
  void observe(std::vector<zmq::message_t>& frames) {
    if (frames.empty() || frames[0].size() < 6) return;
    std::uint16_t event = 0;
    std::memcpy(&event, frames[0].data(), 2);
    const auto lost = [&](std::string_view reason) {
      // A refused handshake comes again and again: it is told even though the link never was up.
      if (up_ || reason != last_reason_) {
        up_ = false;
        last_reason_ = reason;
        on_link_(false, reason);
      }
    };
    switch (event) {
      case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
        up_ = true;
        last_reason_.clear();
        on_link_(true, "");
        break;
      case ZMQ_EVENT_DISCONNECTED:
        lost("the connection was lost");
        break;
      case ZMQ_EVENT_CONNECT_RETRIED:
        lost("the coordinator cannot be reached");
        break;
      case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
        lost("the coordinator refuses this device's key");
        break;
      case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
      case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        lost("the handshake failed: the server key is not the coordinator's, or it refuses this device");
        break;
      default:
        break;
    }
  }

  std::shared_ptr<Context> context_;
  OnLink on_link_;
  OnFrame on_frame_;
  std::shared_ptr<ReactorSocket> dealer_, monitor_;
  bool up_ = false;
  std::string last_reason_ = "not yet";
};

}  // namespace

std::shared_ptr<LinkContext> make_link_context(int links) {
  auto context = std::make_shared<Context>();
  // A link has its socket and two of its monitor's.
  context->zmq.set(zmq::ctxopt::max_sockets, std::min(3 * links + 16, 65535));
  return context;
}

Result<std::unique_ptr<FleetServer>> FleetServer::bind(boost::asio::io_context& reactor,
                                                       const CurveKeys& keys, const std::string& endpoint,
                                                       Admit admit, OnFrame on_frame) {
  try {
    auto server = std::make_unique<Server>(reactor, std::move(admit), std::move(on_frame));
    server->open(keys, endpoint);
    return server;
  } catch (const zmq::error_t& error) {
    return refused(endpoint, error);
  }
}

Result<std::unique_ptr<FleetClient>> FleetClient::connect(boost::asio::io_context& reactor,
                                                          const CurveKeys& keys, std::string_view server_key,
                                                          const std::string& endpoint, OnLink on_link,
                                                          OnFrame on_frame,
                                                          std::shared_ptr<LinkContext> context) {
  if (server_key.size() != 40)
    return fail(ErrorCode::kInvalid, endpoint, "the server key must be 40 characters, not {}",
                server_key.size());
  try {
    auto own = context ? std::static_pointer_cast<Context>(context) : std::make_shared<Context>();
    auto client = std::make_unique<Client>(reactor, std::move(own), std::move(on_link), std::move(on_frame));
    client->open(keys, server_key, endpoint);
    return client;
  } catch (const zmq::error_t& error) {
    return refused(endpoint, error);
  }
}

}  // namespace retort
