#pragma once

#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>
#include <zmq.hpp>

namespace retort {

/// A ZeroMQ socket on an Asio reactor. libzmq's descriptor is edge-triggered and only says that something
/// happened: the socket is drained at every wake until it has no more, some messages at a time, and
/// looked at again after every send (docs/adr). For this folder only. Thread: reactor.
class ReactorSocket : public std::enable_shared_from_this<ReactorSocket> {
 public:
  using OnMessage = std::function<void(std::vector<zmq::message_t>&)>;

  ReactorSocket(boost::asio::io_context& reactor, zmq::context_t& context, zmq::socket_type type)
      : socket(context, type), reactor_(reactor), descriptor_(reactor) {
    socket.set(zmq::sockopt::linger, 0);
  }
  ~ReactorSocket() {
    if (descriptor_.is_open()) descriptor_.release();  // the descriptor is libzmq's
  }
  /// Begins to watch; call it once, after bind or connect.
  void start(OnMessage on_message) {
    on_message_ = std::move(on_message);
    descriptor_.assign(socket.get(zmq::sockopt::fd));
    watch();
    look_again();
  }
  void stop() {
    on_message_ = nullptr;
    stopped_ = true;
    if (descriptor_.is_open()) {
      descriptor_.cancel();
      descriptor_.release();
    }
  }
  /// All frames or none; false when the socket cannot take them now.
  bool send(std::span<zmq::message_t> frames) {
    bool sent = true;
    try {
      for (std::size_t i = 0; i < frames.size() && sent; ++i) {
        const auto flags = zmq::send_flags::dontwait |
                           (i + 1 < frames.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
        sent = socket.send(frames[i], flags).has_value();
      }
    } catch (const zmq::error_t&) {
      sent = false;  // EHOSTUNREACH: the peer is gone
    }
    look_again();
    return sent;
  }

  zmq::socket_t socket;

 private:
  /// A request over REST takes several turns of the reactor, and each waits for so many messages of a storm.
  static constexpr int kAtATime = 16;
  void watch() {
    descriptor_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                           [self = weak_from_this()](const boost::system::error_code& error) {
                             const auto socket_alive = self.lock();
                             if (error || !socket_alive || socket_alive->stopped_) return;
                             socket_alive->drain();
                             if (!socket_alive->stopped_) socket_alive->watch();
                           });
  }
  void look_again() {
    if (look_posted_ || stopped_) return;
    look_posted_ = true;
    boost::asio::post(reactor_, [self = weak_from_this()] {
      if (const auto alive = self.lock()) {
        alive->look_posted_ = false;
        alive->drain();
      }
    });
  }
  void drain() {
    try {
      std::vector<zmq::message_t> frames;
      for (int n = 0; !stopped_ && on_message_; ++n) {
        if (n == kAtATime) return look_again();
        frames.clear();
        do {
          zmq::message_t frame;
          if (!socket.recv(frame, zmq::recv_flags::dontwait)) return;
          frames.push_back(std::move(frame));
        } while (frames.back().more());
        const OnMessage handler = on_message_;  // it may stop us
        handler(frames);
      }
    } catch (const zmq::error_t&) {  // the context is ending
    }
  }

  boost::asio::io_context& reactor_;
  boost::asio::posix::stream_descriptor descriptor_;
  OnMessage on_message_;
  bool look_posted_ = false, stopped_ = false;
};

}  // namespace retort
