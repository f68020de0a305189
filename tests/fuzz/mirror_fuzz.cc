// fuzz-links: agent_update
// What an HTTP mirror answers: refused, or at most the bytes that were asked for, and all of them where it is
// taken for good. The answer passes through a real connection.
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "agent/update/mirrors.h"
#include "tests/fuzz/fuzz_seeds.h"

using namespace retort;

namespace {

constexpr std::uint64_t kOffset = 100, kLength = 50, kArtifactBytes = 1000;

int listener(std::uint16_t& port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  fuzz::require(::bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0 && ::listen(fd, 8) == 0);
  fuzz::require(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  port = ntohs(address.sin_port);
  return fd;
}

/// Takes one connection, says `bytes`, and waits until the client goes.
void answer_once(int listening, std::string_view bytes) {
  const int fd = ::accept4(listening, nullptr, nullptr, SOCK_CLOEXEC);
  if (fd < 0) return;
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) break;
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  ::shutdown(fd, SHUT_WR);
  char rest[4096];
  pollfd gone{fd, POLLIN, 0};
  while (::poll(&gone, 1, 1000) > 0 && ::recv(fd, rest, sizeof rest, 0) > 0) {
  }
  ::close(fd);
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
  const std::string range = "Content-Range: bytes 100-149/1000\r\n", body(50, 'x');
  return {"HTTP/1.1 206 Partial Content\r\nContent-Length: 50\r\n" + range + "\r\n" + body,
          "HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n" + range + "\r\n1e;a=b\r\n" +
              body.substr(20) + "\r\n14\r\n" + body.substr(30) + "\r\n0\r\nT: u\r\n\r\n",
          "HTTP/1.0 206 OK\r\n" + range + "\r\n" + body + body,
          "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n" + body,
          "HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static std::uint16_t port = 0;
  static const int listening = listener(port);
  std::thread server(answer_once, listening, std::string_view(reinterpret_cast<const char*>(data), size));
  std::uint64_t got = 0;
  const Result<void> read = read_mirror(
      "http://127.0.0.1:" + std::to_string(port), {std::string(64, 'a'), kOffset, kLength, kArtifactBytes},
      [&](std::string chunk) {
        got += chunk.size();
        return true;
      },
      [] { return true; });
  server.join();
  fuzz::require(got <= kLength && (!read || got == kLength));
  return 0;
}
