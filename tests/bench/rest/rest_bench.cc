// Measures, never gates: REST over HTTP on loopback with many device records.
//   build/release/bin/bench_rest [DEVICES=20000] [CALLS=300]
// Each call is a connection of its own, as curl's are. One thread is the coordinator, one the client.
#include <algorithm>
#include <thread>

#include "tests/support/coordinator_fixture.h"

using namespace retort;

int main(int argc, char** argv) {
  const std::size_t devices = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 20000;
  const int calls = argc > 2 ? std::atoi(argv[2]) : 300;
  ApiLimits limits;
  limits.requests_per_second = 0;
  retort::testing::CoordinatorFixture c(limits, devices);
  (void)c.call("PUT", "/v1/classes/all", "{}");
  HttpServer server(c.reactor, {}, [&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    c.api->handle(std::move(request), std::move(responder));
  });
  const std::uint16_t port = server.listen("127.0.0.1", 0).value();
  std::thread thread([&] {
    c.reactor.restart();
    auto work = boost::asio::make_work_guard(c.reactor);
    c.reactor.run();
  });
  std::printf("%zu devices, %d calls each\n%-52s %9s %9s %9s %9s\n", devices, calls, "", "p50 ms", "p99 ms",
              "max ms", "KiB");
  struct Request {
    const char *method, *target, *body;
  };
  for (const Request& request : std::initializer_list<Request>{
           {"GET", "/v1/devices/device-77", ""},
           {"GET", "/v1/devices", ""},
           {"GET", "/v1/devices?limit=1000", ""},
           {"GET", "/v1/devices?limit=1000&cursor=6465762d30303030303030303030303034653030", ""},
           {"GET", "/v1/devices?labels=number=19999", ""},
           {"GET", "/v1/devices?state=failed&labels=site=yard", ""},
           {"GET", "/v1/status", ""},
           {"GET", "/metrics", ""},
           {"PUT", "/v1/classes/other",
            "{\"priority\": -1, \"rules\": {\"labels\": {\"site\": \"nowhere\"}}}"}}) {
    std::vector<double> times;
    std::size_t bytes = 0;
    for (int i = 0; i < calls; ++i) {
      HttpCall call{.method = request.method,
                    .url = "http://127.0.0.1:" + std::to_string(port) + request.target,
                    .headers = {{"Authorization", "Bearer " + c.admin}},
                    .body = request.body};
      const auto begin = std::chrono::steady_clock::now();
      const auto answer = http_call(call);
      times.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
      if (!answer || answer->status != 200) {
        std::printf("%s %s: %s\n", request.method, request.target,
                    answer ? answer->body.c_str() : answer.error().describe().c_str());
        break;
      }
      bytes = answer->body.size();
    }
    std::sort(times.begin(), times.end());
    std::printf("%-4s %-47s %9.2f %9.2f %9.2f %9.1f\n", request.method, request.target,
                times[times.size() / 2], times[times.size() * 99 / 100], times.back(),
                static_cast<double>(bytes) / 1024);
  }
  c.reactor.stop();
  thread.join();
  return 0;
}
