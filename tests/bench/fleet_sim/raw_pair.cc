#include "tests/bench/fleet_sim/raw_pair.h"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <zmq.hpp>

#include "common/net/link.h"

namespace retort::sim {
namespace {

void send_all(const std::string& endpoint, const CurveKeys& server, std::uint64_t messages,
              std::size_t message_bytes) {
  zmq::context_t context(1);
  zmq::socket_t socket(context, zmq::socket_type::push);
  const CurveKeys own = make_curve_keys();
  socket.set(zmq::sockopt::curve_serverkey, server.public_key);
  socket.set(zmq::sockopt::curve_publickey, own.public_key);
  socket.set(zmq::sockopt::curve_secretkey, own.secret_key);
  socket.set(zmq::sockopt::sndhwm, 64);
  socket.connect(endpoint);
  const std::string bytes(message_bytes, 'x');
  for (std::uint64_t i = 0; i < messages; ++i) {
    zmq::message_t message(bytes.data(), bytes.size());
    (void)socket.send(message, zmq::send_flags::none);
  }
}

}  // namespace

Result<double> raw_pair_bytes_per_second(std::uint64_t bytes, std::size_t message_bytes) {
  const std::uint64_t messages = std::max<std::uint64_t>(bytes / message_bytes, 2);
  const CurveKeys server = make_curve_keys();
  int told[2];
  if (::pipe(told) != 0) return fail_errno("pipe", "cannot be made");
  const pid_t child = ::fork();
  if (child < 0) return fail_errno("fork", "failed");
  if (child == 0) {
    char endpoint[256] = "";
    const ssize_t length = ::read(told[0], endpoint, sizeof endpoint - 1);
    if (length > 0) send_all(endpoint, server, messages, message_bytes);
    ::_exit(0);
  }
  zmq::context_t context(1);
  zmq::socket_t socket(context, zmq::socket_type::pull);
  socket.set(zmq::sockopt::curve_server, true);
  socket.set(zmq::sockopt::curve_secretkey, server.secret_key);
  socket.set(zmq::sockopt::rcvhwm, 64);
  socket.set(zmq::sockopt::rcvtimeo, 10000);
  socket.bind("tcp://127.0.0.1:*");
  const std::string endpoint = socket.get(zmq::sockopt::last_endpoint);
  if (::write(told[1], endpoint.data(), endpoint.size()) < 0) return fail_errno("pipe", "cannot be written");
  ::close(told[0]), ::close(told[1]);
  std::chrono::steady_clock::time_point begin;
  Result<double> out = fail(ErrorCode::kUnavailable, "raw pair", "nothing came for 10 s");
  for (std::uint64_t i = 0; i < messages; ++i) {
    zmq::message_t message;
    if (!socket.recv(message)) break;
    if (i == 0) begin = std::chrono::steady_clock::now();
    if (i + 1 == messages)
      out = static_cast<double>((messages - 1) * message_bytes) /
            std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  ::waitpid(child, nullptr, 0);
  return out;
}

}  // namespace retort::sim
