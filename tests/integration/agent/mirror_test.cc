#include "agent/update/mirrors.h"

#include "tests/integration/agent/agent_fixture.h"
#include "tests/integration/agent/mirror_servers.h"

namespace retort {
namespace {

using testing::Nginx;
using testing::partial_content;
using testing::ScriptedServer;

constexpr MirrorPace kImpatient{700ms, 64 << 10};

/// What read_mirror brings of "0123…" of a hostile server.
struct Reading {
  std::string bytes;
  std::vector<std::size_t> chunks;
  Result<void> result;
};
Reading read(
    const std::string& url, MirrorRange range, const std::function<bool()>& go_on = [] { return true; }) {
  Reading out;
  range.artifact = std::string(64, 'a');
  out.result = read_mirror(
      url, range,
      [&](std::string chunk) {
        out.chunks.push_back(chunk.size());
        out.bytes += chunk;
        return true;
      },
      go_on, kImpatient);
  return out;
}

TEST(Mirror, ARangeComesInChunks) {
  const std::string file = [] {
    std::string out;
    for (int i = 0; i < 700'000; ++i) out += static_cast<char>(i * 31 >> 3);
    return out;
  }();
  ScriptedServer server([&](const auto& connection, const auto& request) {
    connection.say(partial_content(request, file.size()));
    connection.say(std::string_view(file).substr(request.first, request.last - request.first + 1));
  });
  const Reading got = read(server.url() + "/sub", {"", 1000, 600'000, file.size()});
  EXPECT_OK(got.result);
  EXPECT_EQ(got.bytes, file.substr(1000, 600'000));
  EXPECT_EQ(got.chunks, (std::vector<std::size_t>{262'144, 262'144, 75'712}));
  EXPECT_TRUE(
      server.requests()[0].head.starts_with("GET /retort/sub/aa/" + std::string(64, 'a') + " HTTP/1.1\r\n"));
}

TEST(Mirror, WhatIsNotTheRangeIsRefused) {
  std::string head;
  ScriptedServer server([&](const auto& connection, const auto&) {
    connection.say(head + "Content-Length: 100\r\n\r\n" + std::string(100, 'x'));
  });
  const auto refused = [&](const std::string& line, std::uint64_t offset) {
    head = line + "\r\n";
    const Reading got = read(server.url(), {"", offset, 100, 1000});
    ASSERT_FALSE(got.result) << line;
    EXPECT_EQ(got.result.error().code, ErrorCode::kUnavailable) << line;
    EXPECT_EQ(got.bytes, "") << line;
  };
  refused("HTTP/1.1 404 Not Found", 0);
  refused("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/", 0);
  refused("HTTP/1.1 500 Oh", 0);
  refused("HTTP/1.1 206 Partial Content", 0);
  refused("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-99/1000", 50);
  refused("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 50-149/1001", 50);
  refused("HTTP/1.1 200 OK", 50);
  refused("SSH-2.0-OpenSSH_9", 0);
  // Without ranges it has to do where the artifact's start is wanted.
  head = "HTTP/1.1 200 OK\r\n";
  EXPECT_OK(read(server.url(), {"", 0, 60, 1000}).result);
  EXPECT_FALSE(read("http://127.0.0.1:1/", {"", 0, 60, 1000}).result) << "nobody listens there";
  EXPECT_FALSE(read("ftp://127.0.0.1/", {"", 0, 60, 1000}).result);
}

/// How a server answers, changed while it may still be at the answer before.
class ScriptedAnswer {
 public:
  using Answer = std::function<void(const ScriptedServer::Connection&, const ScriptedServer::Request&)>;
  ScriptedAnswer& operator=(Answer answer) {
    const std::lock_guard lock(mutex_);
    answer_ = std::move(answer);
    return *this;
  }
  void operator()(const ScriptedServer::Connection& connection, const ScriptedServer::Request& request) {
    Answer answer;
    {
      const std::lock_guard lock(mutex_);
      answer = answer_;
    }
    answer(connection, request);
  }

 private:
  std::mutex mutex_;
  Answer answer_;
};

TEST(Mirror, EndlessTruncatedStalledAndDribbledAnswers) {
  ScriptedAnswer script;
  ScriptedServer server([&](const auto& connection, const auto& request) { script(connection, request); });
  const std::string chunked =
      "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-299999/1000000\r\nTransfer-Encoding: "
      "chunked\r\n\r\n";
  const MirrorRange range{"", 0, 300'000, 1'000'000};

  // Endless: as much as was asked for is taken, and no byte more.
  script = [&](const auto& connection, const auto&) {
    connection.say(chunked);
    while (connection.say("4000\r\n" + std::string(0x4000, 'x') + "\r\n")) {
    }
  };
  Reading got = read(server.url(), range);
  EXPECT_OK(got.result);
  EXPECT_EQ(got.bytes.size(), 300'000u);

  // Endless headers, and an endless line between two chunks.
  script = [&](const auto& connection, const auto&) {
    connection.say("HTTP/1.1 206 Partial Content\r\n");
    while (connection.say("X-More: " + std::string(1000, 'y') + "\r\n")) {
    }
  };
  EXPECT_FALSE(read(server.url(), range).result);
  script = [&](const auto& connection, const auto&) {
    connection.say(chunked + "4000;");
    while (connection.say(std::string(1000, 'y'))) {
    }
  };
  EXPECT_FALSE(read(server.url(), range).result);

  // Truncated: what came before is handed over.
  script = [&](const auto& connection, const auto& request) {
    connection.say(partial_content(request, range.artifact_bytes));
    connection.say(std::string(290'000, 'x'));
  };
  got = read(server.url(), range);
  EXPECT_FALSE(got.result);
  EXPECT_EQ(got.bytes.size(), 290'000u);

  // Stalled before and in the middle; dribbled, as a byte at a time, and as lines of no bytes.
  const auto before = std::chrono::steady_clock::now();
  script = [](const auto& connection, const auto&) { connection.wait(); };
  EXPECT_FALSE(read(server.url(), range).result);
  script = [&](const auto& connection, const auto& request) {
    connection.say(partial_content(request, range.artifact_bytes) + std::string(100'000, 'x'));
    connection.wait();
  };
  got = read(server.url(), range);
  EXPECT_NE(got.result.error().message.find("too slow"), std::string::npos);
  EXPECT_EQ(got.bytes.size(), 100'000u);
  script = [&](const auto& connection, const auto&) {
    connection.say(chunked);
    while (connection.say("1\r\nx\r\n")) connection.wait(5ms);
  };
  EXPECT_FALSE(read(server.url(), range).result);
  script = [&](const auto& connection, const auto&) {
    connection.say(chunked + "1;");
    while (connection.say("y")) connection.wait(5ms);
  };
  EXPECT_FALSE(read(server.url(), range).result);
  EXPECT_LT(std::chrono::steady_clock::now() - before, 8s) << "a step's timeout is 10 s: it was the pace";

  // No longer wanted, while nothing comes.
  script = [](const auto& connection, const auto&) { connection.wait(); };
  EXPECT_EQ(read(server.url(), range, [] { return false; }).result.error().code, ErrorCode::kCancelled);
}

class MirrorTest : public LargerAgentTest {
 protected:
  /// A folder as `retort artifact mirror` makes it.
  void publish(const std::string& sha256, const std::string& name) {
    fs::create_directories(tree() / sha256.substr(0, 2));
    fs::copy_file(folder_ / (name + ".gguf"), tree() / sha256.substr(0, 2) / sha256);
    fs::permissions(tree() / sha256.substr(0, 2) / sha256, fs::perms(0644));
  }
  fs::path tree() const { return folder_ / "tree"; }
  std::uint64_t asked_of_coordinator() {
    const std::lock_guard lock(coordinator_->mutex);
    std::uint64_t bytes = 0;
    for (const auto& request : coordinator_->requests) bytes += request.length;
    return bytes;
  }
};

TEST_F(MirrorTest, NginxBringsAllOfItAndOnlyWhatIsMissing) {
  const std::string first = artifact("first"), second = artifact("second");
  publish(first, "first");
  publish(second, "second");
  const Nginx nginx(tree());
  coordinator_->mirrors = {nginx.url()};
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  EXPECT_NE(nginx.log().find("GET /" + first.substr(0, 2) + "/" + first + " HTTP/1.1\" 206"),
            std::string::npos)
      << nginx.log();
  coordinator_->desire(second);
  ASSERT_TRUE(serving(second));
  EXPECT_EQ(asked_of_coordinator(), 0u);
  const std::string log = nginx.log(), line = log.substr(log.find(second));
  std::uint64_t sent = 0;
  ASSERT_EQ(std::sscanf(line.c_str() + line.find("\" "), "\" 206 %lu", &sent), 1) << line;
  EXPECT_LT(sent, fs::file_size(folder_ / "second.gguf") / 8) << "the header differs, and nothing else";
}

TEST_F(MirrorTest, KilledInMidPullItGoesOnWhereItWas) {
  const std::string first = artifact("first");
  publish(first, "first");
  const Nginx nginx(tree(), "limit_rate 2m;");
  coordinator_->mirrors = {nginx.url()};
  coordinator_->desire(first);
  start_agent();
  const fs::path part = folder_ / "device/slots/a/model.gguf.part";
  const auto done = [&] { return json_int(status(), "bytes_done", "").value_or(0); };
  ASSERT_TRUE(eventually([&] { return done() > 2 << 20; }));
  const std::int64_t before = done();
  EXPECT_EQ(text("mirror"), nginx.url());
  kill_agent(SIGKILL);
  start_agent();
  ASSERT_TRUE(serving(first));
  EXPECT_EQ(asked_of_coordinator(), 0u);
  // The second request begins where the first one was cut off.
  const std::string log = nginx.log();
  std::uint64_t sent = 0;
  ASSERT_EQ(std::sscanf(log.c_str() + log.rfind("\" 206 "), "\" 206 %lu", &sent), 1) << log;
  EXPECT_LE(sent, fs::file_size(folder_ / "first.gguf") - static_cast<std::uint64_t>(before) + (256 << 10));
}

TEST_F(MirrorTest, AMirrorThatDiesIsMadeUpForByTheNextSource) {
  const std::string first = artifact("first");
  publish(first, "first");
  auto nginx = std::make_unique<Nginx>(tree(), "limit_rate 2m;");
  const Nginx other(tree(), "limit_rate 2m;");
  coordinator_->chunk_delay = 10ms;
  coordinator_->mirrors = {nginx->url(), other.url()};
  coordinator_->desire(first);
  start_agent();
  const auto done = [&] {
    return static_cast<std::uint64_t>(json_int(status(), "bytes_done", "").value_or(0));
  };
  ASSERT_TRUE(eventually([&] { return done() > 1 << 20; }));
  nginx->kill();
  ASSERT_TRUE(eventually([&] { return text("mirror") == other.url(); })) << "the second one goes on";
  const std::uint64_t then = done();
  ASSERT_TRUE(eventually([&] { return done() > then + (1 << 20); }));
  EXPECT_EQ(asked_of_coordinator(), 0u);
  const std::uint64_t at_end = done();
  const_cast<Nginx&>(other).kill();
  ASSERT_TRUE(serving(first));
  EXPECT_LE(asked_of_coordinator(), fs::file_size(folder_ / "first.gguf") - at_end + (512 << 10));
  EXPECT_GT(asked_of_coordinator(), 0u);
}

TEST_F(MirrorTest, ALyingMirrorCostsTimeAndNothingElse) {
  const std::string first = artifact("first");
  const std::string file = *read_file(folder_ / "first.gguf");
  // Wrong in its middle, a right start then a stall (so that the next source completes its piece), and
  // nothing.
  ScriptedServer wrong([&](const auto& connection, const auto& request) {
    std::string bytes = file.substr(request.first, request.last - request.first + 1);
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
    connection.say(partial_content(request, file.size()));
    connection.say(bytes);
  });
  ScriptedServer breaks_off([&](const auto& connection, const auto& request) {
    connection.say(partial_content(request, file.size()) + std::string(300'000, 'x'));
  });
  ScriptedServer missing([](const auto& connection, const auto&) {
    connection.say("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
  });
  coordinator_->mirrors = {missing.url(), breaks_off.url(), wrong.url()};
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(serving(first));
  EXPECT_EQ(text("last_error"), "") << "no attempt is lost by it";
  EXPECT_EQ(missing.requests().size(), 1u);
  EXPECT_EQ(breaks_off.requests().size(), 1u);
  EXPECT_GE(wrong.requests().size(), 1u);
  EXPECT_LE(wrong.requests().size(), 2u);
  EXPECT_GT(asked_of_coordinator(), 0u);
  const std::string log = *read_file(folder_ / "agent.log");
  EXPECT_NE(log.find("pulled again, and not from"), std::string::npos);
}

TEST_F(MirrorTest, AMirrorThatStallsIsLeftAfterItsTime) {
  const std::string first = artifact("first");
  const std::string file = *read_file(folder_ / "first.gguf");
  ScriptedServer stalls([&](const auto& connection, const auto& request) {
    connection.say(partial_content(request, file.size()) + file.substr(request.first, 1 << 20));
    connection.wait();
  });
  coordinator_->mirrors = {stalls.url()};
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(eventually([&] { return text("mirror") == stalls.url(); }));
  // A newer desired state does not wait for it; and the one after that, when the mirror is put aside,
  // neither.
  const std::string second = artifact("second");
  ASSERT_TRUE(serving(first));
  EXPECT_EQ(stalls.requests().size(), 1u);
  EXPECT_LE(asked_of_coordinator(), file.size() - (1 << 20) + (256 << 10)) << "its megabyte was good";
  coordinator_->desire(second);
  ASSERT_TRUE(serving(second));
  EXPECT_EQ(stalls.requests().size(), 1u);
}

TEST_F(MirrorTest, ItGoesOnWithoutTheCoordinator) {
  const std::string first = artifact("first");
  publish(first, "first");
  const Nginx nginx(tree(), "limit_rate 2m;");
  coordinator_->mirrors = {nginx.url()};
  coordinator_->desire(first);
  start_agent();
  ASSERT_TRUE(eventually([&] { return json_int(status(), "bytes_done", "").value_or(0) > 1 << 20; }));
  coordinator_.reset();
  EXPECT_TRUE(serving(first));
}

}  // namespace
}  // namespace retort
