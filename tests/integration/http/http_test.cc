#include "common/http/http.h"

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <future>
#include <thread>

#include "common/core/file.h"
#include "tests/support/support.h"

namespace retort {
namespace {

namespace asio = boost::asio;

/// A server on a thread of its own, with an echo, a stream and a file.
class Http : public ::testing::Test {
 protected:
  void SetUp() override {
    HttpLimits limits;
    limits.body_bytes = 1000;
    limits.header_bytes = 2000;
    limits.read_timeout = std::chrono::seconds(1);
    ASSERT_OK(write_file_atomic(folder_ / "f", std::string(600000, 'f')));
    router_.add("POST", "/echo/{name}", [](HttpRequest r, auto responder) {
      responder->send(200, "text/plain", r.parameters["name"] + "|" + r.query["q"] + "|" + r.body,
                      {{"X-Test", "1"}});
    });
    router_.add("GET", "/file", [this](HttpRequest, auto responder) {
      responder->send_file(200, "text/plain", folder_ / "f", 10, 500000);
    });
    router_.add("GET", "/drop", [](HttpRequest, auto) {});
    router_.add("GET", "/stream", [this](HttpRequest, auto responder) {
      responder->start_stream(200, "text/event-stream");
      responder->on_closed([this] { closed_.set_value(); });
      responder->write("one");
      held_ = responder;
    });
    router_.add("GET", "/short-stream", [](HttpRequest, auto responder) {
      responder->start_stream(200, "text/event-stream");
      responder->write("a");
      responder->write("bc");
      responder->finish();
    });
    server_ = std::make_unique<HttpServer>(
        io_, limits,
        [this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
          router_.dispatch(
              std::move(request), std::move(responder),
              [](HttpRequest, auto r) { r->send(404, "text/plain", "no"); },
              [](std::string allow, auto r) {
                r->send(405, "text/plain", "no", {{"Allow", allow}});
              });
        },
        nullptr,
        [](int status, const std::string& why, const std::shared_ptr<HttpResponder>& responder) {
          responder->send(status, "application/json", "{\"why\": \"" + why + "\"}");
        },
        [](const HttpRequest& head) -> std::size_t {
          return head.header("who") == "nobody" ? 0 : head.path == "/echo/short" ? 10 : 1 << 20;
        });
    const auto port = server_->listen("127.0.0.1", 0);
    ASSERT_OK(port);
    port_ = *port;
    thread_ = std::thread([this] {
      auto work = asio::make_work_guard(io_);
      io_.run();
    });
  }
  void TearDown() override {
    held_.reset();
    io_.stop();
    thread_.join();
    server_.reset();
  }
  std::string url(const std::string& path) const {
    return "http://127.0.0.1:" + std::to_string(port_) + path;
  }
  /// Sends raw bytes and returns all that comes back until the server closes.
  std::string raw(const std::string& bytes) {
    asio::io_context io;
    asio::ip::tcp::socket socket(io);
    socket.connect({asio::ip::make_address("127.0.0.1"), port_});
    boost::system::error_code error;
    asio::write(socket, asio::buffer(bytes), error);
    std::string out;
    asio::read(socket, asio::dynamic_buffer(out), error);
    return out;
  }

  testing::TemporaryFolder folder_;
  asio::io_context io_;
  HttpRouter router_;
  std::unique_ptr<HttpServer> server_;
  std::shared_ptr<HttpResponder> held_;
  std::promise<void> closed_;
  std::uint16_t port_ = 0;
  std::thread thread_;
};

TEST_F(Http, TheHeadDecidesHowMuchOfABodyIsTaken) {
  const auto post = [&](const std::string& name, const std::string& headers, const std::string& body) {
    return raw("POST /echo/" + name + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + headers + "\r\n" +
               body);
  };
  EXPECT_NE(post("short", "Content-Length: 10\r\n", "0123456789").find("short||0123456789"),
            std::string::npos);
  EXPECT_NE(post("short", "Content-Length: 11\r\n", "0123456789a").find("larger than 10 bytes"),
            std::string::npos);
  EXPECT_NE(
      post("short", "Transfer-Encoding: chunked\r\n", "b\r\n0123456789a\r\n0\r\n\r\n").find("HTTP/1.1 413"),
      std::string::npos);
  EXPECT_NE(post("long", "Content-Length: 1001\r\n", std::string(1001, 'x')).find("larger than 1000 bytes"),
            std::string::npos);
  // Nothing is waited for from who may send nothing: the answer comes before the body.
  const std::string early = post("a", "Who: nobody\r\nContent-Length: 900\r\n", "");
  EXPECT_NE(early.find("HTTP/1.1 200"), std::string::npos) << early;
  EXPECT_NE(early.find("Connection: close"), std::string::npos) << early;
  EXPECT_NE(early.find("a||"), std::string::npos) << early;
  const std::string asked = post("a", "Expect: 100-continue\r\nContent-Length: 2\r\n", "ok");
  EXPECT_EQ(asked.find("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200"), 0u) << asked;
  EXPECT_NE(asked.find("a||ok"), std::string::npos) << asked;
}

TEST_F(Http, RoutesDecodesAndAnswers) {
  HttpCall call;
  call.method = "POST";
  call.url = url("/echo/a%20b?q=x%26y");
  call.body = "hello";
  const auto answer = http_call(call);
  ASSERT_OK(answer);
  EXPECT_EQ(answer->status, 200);
  EXPECT_EQ(answer->body, "a b|x&y|hello");
  EXPECT_EQ(answer->headers.at("x-test"), "1");
  EXPECT_EQ(http_call({.url = url("/none")})->status, 404);
  const auto wrong = http_call({.url = url("/echo/x")});
  EXPECT_EQ(wrong->status, 405);
  EXPECT_EQ(wrong->headers.at("allow"), "POST");
  EXPECT_EQ(http_call({.url = url("/drop")})->status, 500);
}

TEST_F(Http, SendsFilesAndStreams) {
  const auto file = http_call({.url = url("/file")});
  ASSERT_OK(file);
  EXPECT_EQ(file->body, std::string(500000, 'f'));
  std::string got;
  HttpCall call;
  call.url = url("/short-stream");
  call.on_body = [&](std::string_view bytes) { return got += bytes, true; };
  ASSERT_OK(http_call(call));
  EXPECT_EQ(got, "abc");
  EXPECT_EQ(http_call({.method = "HEAD", .url = url("/file")})->body, "");
}

TEST_F(Http, NoticesAClientThatLeaves) {
  HttpCall call;
  call.url = url("/stream");
  call.on_body = [](std::string_view) { return false; };
  ASSERT_OK(http_call(call));
  EXPECT_EQ(closed_.get_future().wait_for(std::chrono::seconds(5)), std::future_status::ready);
}

TEST_F(Http, BadRequestsGetClearAnswers) {
  EXPECT_NE(raw("garbage\r\n\r\n").find(" 400 "), std::string::npos);
  EXPECT_NE(raw("GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n").find(" 400 "), std::string::npos);
  EXPECT_NE(raw("GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n").find(" 400 "), std::string::npos);
  EXPECT_NE(raw("GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n").find(" 400 "), std::string::npos);
  EXPECT_NE(raw("GET /a?b=%ff HTTP/1.1\r\nHost: x\r\n\r\n").find(" 400 "), std::string::npos);
  EXPECT_NE(raw("POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n").find(" 413 "),
            std::string::npos);
  EXPECT_NE(raw("GET / HTTP/1.1\r\nX: " + std::string(5000, 'x') + "\r\n\r\n").find(" 431 "),
            std::string::npos);
  EXPECT_EQ(raw("GET / HT"), "");  // a client that never finishes its request is cut
}

TEST_F(Http, WhatIsNoRequestIsRefusedInTheServersOwnForm) {
  const auto refused = [](const std::string& answer, const std::string& status, const std::string& why) {
    return answer.find(" " + status + " ") != std::string::npos &&
           answer.find("application/json") != std::string::npos &&
           answer.find("{\"why\": \"") != std::string::npos && answer.find(why) != std::string::npos &&
           answer.find("Connection: close") != std::string::npos;
  };
  EXPECT_TRUE(refused(raw("garbage\r\n\r\n"), "400", "not a valid HTTP request"));
  EXPECT_TRUE(refused(raw("GET / HTTP/1.1\r\nX: " + std::string(5000, 'x') + "\r\n\r\n"), "431", "header"));
  // All of a large body is sent before the answer is read: it is not lost in a reset connection.
  EXPECT_TRUE(refused(raw("POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n" +
                          std::string(30'000'000, 'x')),
                      "413", "larger than 1000 bytes"));
  for (const char* coding : {"gzip", "gzip, chunked", "chunked\r\nTransfer-Encoding: gzip"}) {
    const std::string answer = raw(std::string("POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: ") +
                                   coding + "\r\nContent-Length: 2\r\n\r\nhi");
    EXPECT_TRUE(refused(answer, "501", "gzip") || refused(answer, "400", "not a valid")) << answer;
  }
}

TEST_F(Http, ARequestOnItsWayWhenTheServerStopsIsAnswered) {
  asio::io_context io;
  asio::ip::tcp::socket socket(io);
  socket.connect({asio::ip::make_address("127.0.0.1"), port_});
  // The server has the connection once it has answered somebody who came later.
  ASSERT_OK(http_call({.url = url("/short-stream")}));
  std::promise<void> stopped;
  asio::post(io_, [&] {
    server_->stop();
    stopped.set_value();
  });
  stopped.get_future().wait();
  asio::write(socket,
              asio::buffer(std::string("POST /echo/late HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")));
  std::string answer;
  boost::system::error_code end;
  asio::read(socket, asio::dynamic_buffer(answer), end);
  EXPECT_NE(answer.find("200 OK"), std::string::npos) << answer << end.message();
  EXPECT_NE(answer.find("late||x"), std::string::npos) << answer;
}

TEST_F(Http, PipelinedRequestsAreAnsweredInOrder) {
  const std::string answers =
      raw("POST /echo/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
          "POST /echo/2 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
  const std::size_t one = answers.find("1||"), two = answers.find("2||");
  ASSERT_NE(one, std::string::npos);
  ASSERT_NE(two, std::string::npos);
  EXPECT_LT(one, two);
}

TEST_F(Http, PortInUseIsNamed) {
  asio::io_context io;
  HttpServer second(io, {}, [](HttpRequest, auto) {});
  const auto port = second.listen("127.0.0.1", port_);
  ASSERT_FALSE(port);
  EXPECT_EQ(port.error().code, ErrorCode::kConflict);
  EXPECT_NE(port.error().describe().find(std::to_string(port_)), std::string::npos);
}

TEST(HttpClient, UnreachableIsUnavailable) {
  const auto answer = http_call({.url = "http://127.0.0.1:1/x"});
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, ErrorCode::kUnavailable);
}

TEST(HttpClient, AnIpv6AddressStandsInBrackets) {
  for (const char* url : {"http://[::1]:1/x", "http://[::1]/x"}) {
    const auto answer = http_call({.url = url});
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().message.find("resolve"), std::string::npos) << answer.error().describe();
  }
}

/// Answers "hello" to everything, with or without TLS, on a thread of its own.
class HelloServer {
 public:
  HelloServer(HttpLimits limits, std::shared_ptr<const TlsServer> tls) {
    server_ = std::make_unique<HttpServer>(
        io_, limits,
        [](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
          responder->send(200, "text/plain", "hello " + request.peer + " " + request.body);
        },
        std::move(tls));
    const auto port = server_->listen("127.0.0.1", 0);
    EXPECT_OK(port);
    port_ = *port;
    thread_ = std::thread([this] {
      auto work = asio::make_work_guard(io_);
      io_.run();
    });
  }
  ~HelloServer() {
    io_.stop();
    thread_.join();
  }
  std::uint16_t port() const { return port_; }
  asio::ip::tcp::socket connect() {
    asio::ip::tcp::socket socket(client_);
    socket.connect({asio::ip::make_address("127.0.0.1"), port_});
    return socket;
  }

 private:
  asio::io_context io_, client_;
  std::unique_ptr<HttpServer> server_;
  std::uint16_t port_ = 0;
  std::thread thread_;
};

struct Tls : ::testing::Test {
  testing::TemporaryFolder folder;
  std::shared_ptr<TlsServer> identity(const char* name) {
    const auto files = load_or_make_self_signed(folder / name, {"localhost", "127.0.0.1"});
    EXPECT_OK(files);
    const auto loaded = TlsServer::load(files->certificate, files->key);
    EXPECT_OK(loaded);
    return *loaded;
  }
};

TEST_F(Tls, SelfSignedCertificateIsKeptAndPinned) {
  const auto first = identity("a"), again = identity("a"), other = identity("b");
  EXPECT_EQ(first->fingerprint(), again->fingerprint());
  EXPECT_NE(first->fingerprint(), other->fingerprint());
  EXPECT_EQ(parse_fingerprint(first->fingerprint()).value(), first->fingerprint());
  EXPECT_EQ(std::filesystem::status(folder / "a/server.key").permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  HelloServer server({}, first);
  const std::string url = "https://127.0.0.1:" + std::to_string(server.port()) + "/";
  HttpCall call{.method = "POST", .url = url, .body = std::string(200000, 'x')};
  call.fingerprint = first->fingerprint();
  const auto answer = http_call(call);
  ASSERT_OK(answer);
  EXPECT_EQ(answer->body, "hello 127.0.0.1 " + call.body);
  EXPECT_EQ(https_fingerprint(url).value(), first->fingerprint());
  call.fingerprint = other->fingerprint();
  EXPECT_EQ(http_call(call).error().code, ErrorCode::kDenied);
  EXPECT_NE(http_call(call).error().message.find(first->fingerprint()), std::string::npos);
  call.fingerprint.clear();  // no authority vouches for it
  EXPECT_EQ(http_call(call).error().code, ErrorCode::kDenied);
  call.url = "http://127.0.0.1:" + std::to_string(server.port()) + "/";
  EXPECT_EQ(http_call(call).error().code, ErrorCode::kUnavailable);
}

TEST_F(Tls, WrongFilesAreNamed) {
  (void)identity("a");
  (void)identity("b");
  EXPECT_EQ(TlsServer::load(folder / "none", folder / "a/server.key").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(TlsServer::load(folder / "a/server.key", folder / "a/server.key").error().code,
            ErrorCode::kInvalid);
  EXPECT_EQ(TlsServer::load(folder / "a/server.crt", folder / "b/server.key").error().code,
            ErrorCode::kInvalid);
  for (const char* bad : {"", "sha256:", "abc", "zz"})
    EXPECT_FALSE(parse_fingerprint(bad).has_value()) << bad;
}

TEST_F(Tls, GarbageAndSlowHandshakesHarmNobody) {
  HttpLimits limits;
  limits.handshake_timeout = std::chrono::seconds(1);
  const auto own = identity("a");
  HelloServer server(limits, own);
  auto silent = server.connect(), garbage = server.connect();
  asio::write(garbage, asio::buffer(std::string(5000, '\x16')));
  HttpCall call{.url = "https://127.0.0.1:" + std::to_string(server.port()) + "/"};
  call.fingerprint = own->fingerprint();
  EXPECT_OK(http_call(call));
  boost::system::error_code error;
  std::string out;
  asio::read(garbage, asio::dynamic_buffer(out), error);
  EXPECT_TRUE(error);
  asio::read(silent, asio::dynamic_buffer(out), error);  // ends when its time is up
  EXPECT_TRUE(error);
  EXPECT_OK(http_call(call));
}

TEST(HttpCrowd, HalfRequestsLockNobodyOut) {
  HttpLimits limits;
  limits.connections = 30;
  limits.connections_per_address = 20;
  limits.read_timeout = std::chrono::seconds(60);
  HelloServer server(limits, nullptr);
  std::vector<asio::ip::tcp::socket> half;
  HttpCall call{.url = "http://127.0.0.1:" + std::to_string(server.port()) + "/"};
  for (int i = 0; i < 200; ++i) {
    half.push_back(server.connect());
    boost::system::error_code ignored;
    asio::write(half.back(), asio::buffer(std::string("GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")), ignored);
    if (i % 20 == 19) {
      EXPECT_OK(http_call(call)) << i;
    }
  }
}

}  // namespace
}  // namespace retort
