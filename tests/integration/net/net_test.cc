#include <dlfcn.h>
#include <sodium/utils.h>

#include <boost/asio/steady_timer.hpp>
#include <cstring>
#include <limits>

#include "common/net/link.h"
#include "tests/support/support.h"

namespace retort {
namespace {

/// Runs the reactor until `done` or 10 s have passed.
void run_until(boost::asio::io_context& reactor, const std::function<bool()>& done) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!done() && std::chrono::steady_clock::now() < end)
    reactor.run_one_for(std::chrono::milliseconds(100));
}

TEST(Link, TwentyThousandEchoesWithoutAStall) {
  boost::asio::io_context reactor;
  const CurveKeys server_keys = make_curve_keys(), client_keys = make_curve_keys();
  std::unique_ptr<FleetServer> server;
  auto bound = FleetServer::bind(
      reactor, server_keys, "tcp://127.0.0.1:*", [](std::string_view) { return true; },
      [&](const FleetServer::Peer& peer, std::string_view frame) {
        EXPECT_EQ(peer.public_key, client_keys.public_key);
        EXPECT_TRUE(server->send(peer.routing_id, std::string(frame)));
      });
  ASSERT_OK(bound);
  server = std::move(*bound);
  constexpr int kCount = 20000;
  int sent = 0, received = 0;
  bool up = false;
  std::unique_ptr<FleetClient> client;
  const auto pump = [&] {
    while (up && sent < kCount && sent - received < 200 && client->send("message " + std::to_string(sent)))
      ++sent;
  };
  auto connected = FleetClient::connect(
      reactor, client_keys, server_keys.public_key, server->endpoint(),
      [&](bool now, std::string_view) { up = now, pump(); },
      [&](std::string_view frame) {
        EXPECT_EQ(frame, "message " + std::to_string(received));
        ++received;
        pump();
      });
  ASSERT_OK(connected);
  client = std::move(*connected);
  run_until(reactor, [&] { return received == kCount; });
  EXPECT_EQ(received, kCount);
}

TEST(Link, AWrongServerKeyIsTold) {
  boost::asio::io_context reactor;
  auto server = FleetServer::bind(
      reactor, make_curve_keys(), "tcp://127.0.0.1:*", [](auto) { return true; },
      [](const auto&, auto) { FAIL(); });
  ASSERT_OK(server);
  std::string reason;
  bool up = false;
  auto client = FleetClient::connect(
      reactor, make_curve_keys(), make_curve_keys().public_key, (*server)->endpoint(),
      [&](bool now, std::string_view why) { up |= now, reason = why; }, [](auto) {});
  ASSERT_OK(client);
  run_until(reactor, [&] { return !reason.empty(); });
  EXPECT_FALSE(up);
  EXPECT_FALSE(reason.empty());
}

TEST(Link, ARefusedKeyNeverGetsUpAndRevocationSilencesALiveOne) {
  boost::asio::io_context reactor;
  const CurveKeys keys = make_curve_keys(), good = make_curve_keys(), bad = make_curve_keys();
  int heard = 0;
  auto server = FleetServer::bind(
      reactor, keys, "tcp://127.0.0.1:*", [&](std::string_view key) { return key != bad.public_key; },
      [&](const auto&, auto) { ++heard; });
  ASSERT_OK(server);
  bool bad_up = false, good_up = false;
  std::string reason;
  auto refused = FleetClient::connect(
      reactor, bad, keys.public_key, (*server)->endpoint(),
      [&](bool now, std::string_view why) { bad_up |= now, reason = why; }, [](auto) {});
  auto admitted = FleetClient::connect(
      reactor, good, keys.public_key, (*server)->endpoint(), [&](bool now, auto) { good_up = now; },
      [](auto) {});
  run_until(reactor, [&] { return good_up && !reason.empty(); });
  EXPECT_TRUE(good_up);
  EXPECT_FALSE(bad_up);
  EXPECT_TRUE((*admitted)->send("a"));
  run_until(reactor, [&] { return heard == 1; });
  (*server)->refuse(good.public_key);
  EXPECT_TRUE((*admitted)->send("b"));
  reactor.run_for(std::chrono::milliseconds(200));
  EXPECT_EQ(heard, 1);
}

TEST(Link, PortInUseAndBadKeyFile) {
  boost::asio::io_context reactor;
  auto server = FleetServer::bind(
      reactor, make_curve_keys(), "tcp://127.0.0.1:*", [](auto) { return true; }, [](const auto&, auto) {});
  ASSERT_OK(server);
  auto second = FleetServer::bind(
      reactor, make_curve_keys(), (*server)->endpoint(), [](auto) { return true; }, [](const auto&, auto) {});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kConflict);
  testing::TemporaryFolder folder;
  const auto keys = load_or_make_curve_keys(folder / "k"), again = load_or_make_curve_keys(folder / "k");
  ASSERT_OK(keys);
  EXPECT_EQ(keys->secret_key, again->secret_key);
}

// libzmq takes its frames' memory by these names: they must be this program's, not libsodium's (link.cc).
TEST(Link, FramesLieInOrdinaryMemory) {
  Dl_info ours{}, theirs{};
  ASSERT_NE(::dladdr(reinterpret_cast<void*>(&make_curve_keys), &ours), 0);
  for (const char* name : {"sodium_malloc", "sodium_allocarray", "sodium_free"}) {
    ASSERT_NE(::dladdr(::dlsym(RTLD_DEFAULT, name), &theirs), 0) << name;
    EXPECT_EQ(theirs.dli_fbase, ours.dli_fbase) << name;
  }
  void* const some = sodium_allocarray(3, 5);
  ASSERT_NE(some, nullptr);
  std::memset(some, 1, 15);
  sodium_free(some);
  sodium_free(nullptr);
  EXPECT_EQ(sodium_allocarray(std::numeric_limits<std::size_t>::max() / 2, 4), nullptr);
}

}  // namespace
}  // namespace retort
