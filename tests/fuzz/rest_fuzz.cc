// fuzz-links: retort_api
// What a client may send to the coordinator: "METHOD TARGET\nHEADER: VALUE\n…\n\nBODY", through the handlers
// of every route over a store in memory. Whatever comes, there is one answer, and the audit log's chain
// holds.
#include "tests/fuzz/fuzz_seeds.h"
#include "tests/support/coordinator_fixture.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  return {
      "PUT /v1/classes/a\nif-match: *\n\n"
      R"({"priority":1,"rules":{"min_memory_bytes":1,"labels":{"a":"b"}},"budgets":{"p95_token_seconds":0.5}})",
      "POST /v1/tokens\nidempotency-key: k\n\n"
      R"({"kind":"enrolment","name":"x","uses":3,"expires_seconds":60})",
      "POST /v1/jobs\n\n"
      R"({"recipe":"teacher: {id: x}\ndata: {dataset: y}","class":"a","assign":true})",
      "POST /v1/tailor\n\n"
      R"({"teacher":"t","classes":["a"],"train":"x","held_out":"y","dry_run":true})",
      "POST /v1/classes/a/assign\n\n"
      R"({"artifact":null})",
      "GET /v1/devices?limit=2&labels=site=hall,number&cursor=646576\nif-none-match: \"x\", W/\"y\"\n\n",
      "GET /v1/events?kinds=device,job\nlast-event-id: 00000000-3\n\n",
      "GET /v1/telemetry?since=-1&device=device-0&metric=a\n\n",
      "POST /v1/datasets?name=x\ncontent-type: application/jsonl\n\n{\"text\": \"a\"}\n",
      "DELETE /v1/devices/device-1\n\n",
      "GET /v1/audit?limit=1&cursor=31\n\n",
  };
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto coordinator = [] {
    ApiLimits limits;
    limits.requests_per_second = limits.refusals_per_second = 0;
    return std::make_unique<retort::testing::CoordinatorFixture>(limits);
  }();
  const std::string text(reinterpret_cast<const char*>(data), size);
  const std::size_t line = std::min(text.find('\n'), text.size()), space = std::min(text.find(' '), line);
  const std::size_t blank = std::min(text.find("\n\n", line == 0 ? 0 : line - 1), text.size());
  std::map<std::string, std::string> headers;
  for (std::size_t at = line + 1; at < blank;) {
    const std::size_t end = std::min(text.find('\n', at), blank), colon = text.find(": ", at);
    if (colon != std::string::npos && colon < end)
      headers[text.substr(at, colon - at)] = text.substr(colon + 2, end - colon - 2);
    at = end + 1;
  }
  headers.erase("authorization");
  if (const std::string method = text.substr(0, space); method == "POST" && text.find("/v1/backups") < line)
    return 0;  // it writes to the disk
  const auto answer =
      coordinator->call(text.substr(0, space), space < line ? text.substr(space + 1, line - space - 1) : "/",
                        text.substr(std::min(blank + 2, text.size())), std::move(headers));
  fuzz::require(answer.status >= 200 && answer.status < 600);
  static int runs = 0;
  if (++runs % 1000 == 0) fuzz::require(verify_audit(*coordinator->store).has_value());
  return 0;
}
