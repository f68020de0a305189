#include "coordinator/api/api.h"

#include <set>

#include "common/core/file.h"
#include "common/core/sha256.h"
#include "common/trust/client.h"
#include "tests/support/coordinator_fixture.h"

namespace retort {
namespace {

using testing::Answer;
using testing::CoordinatorFixture;

/// What does not fit a JSON Schema; written apart from the product's check, which only reads requests.
void misfits(const json::value& value, const json::object& schema, const std::string& where,
             std::vector<std::string>& out) {
  if (const json::value* type = schema.if_contains("type")) {
    std::set<std::string> allowed;
    if (type->is_string()) allowed.insert(std::string(type->as_string()));
    if (type->is_array())
      for (const json::value& one : type->as_array()) allowed.insert(std::string(one.as_string()));
    const bool whole = value.is_int64() || value.is_uint64();
    const std::string kind = value.is_object()   ? "object"
                             : value.is_array()  ? "array"
                             : value.is_string() ? "string"
                             : value.is_bool()   ? "boolean"
                             : value.is_null()   ? "null"
                             : whole             ? "integer"
                                                 : "number";
    if (allowed.count(kind) == 0 && !(whole && allowed.count("number") != 0))
      return out.push_back(where + ": is of type " + kind);
  }
  if (const json::value* values = schema.if_contains("enum")) {
    bool found = false;
    for (const json::value& one : values->as_array()) found |= one == value;
    if (!found)
      out.push_back(where + ": " + json::serialize(value) + " is none of " + json::serialize(*values));
  }
  if (value.is_array() && schema.contains("items"))
    for (std::size_t i = 0; i < value.as_array().size(); ++i)
      misfits(value.as_array()[i], schema.at("items").as_object(), where + "/" + std::to_string(i), out);
  if (!value.is_object()) return;
  const json::object none;
  const json::object& properties = schema.contains("properties") ? schema.at("properties").as_object() : none;
  for (const auto& member : value.as_object()) {
    const std::string at = where + "/" + std::string(member.key());
    if (const json::value* known = properties.if_contains(member.key()))
      misfits(member.value(), known->as_object(), at, out);
    else if (const json::value* others = schema.if_contains("additionalProperties")) {
      if (others->is_object())
        misfits(member.value(), others->as_object(), at, out);
      else
        out.push_back(at + ": is not in the schema");
    }
  }
  if (const json::value* required = schema.if_contains("required"))
    for (const json::value& name : required->as_array())
      if (!value.as_object().contains(name.as_string()))
        out.push_back(where + "/" + std::string(name.as_string()) + ": is missing");
}

std::string text_at(const Answer& answer, const char* member) {
  const json::value value = answer.parsed();
  if (!value.is_object() || !value.as_object().contains(member)) return "";
  const json::value& found = value.as_object().at(member);
  return found.is_string() ? std::string(found.as_string()) : json::serialize(found);
}

TEST(Api, EveryOperationAnswersAsTheOpenapiDocumentSays) {
  CoordinatorFixture c({}, 2, true);
  const json::value document = c.call("GET", "/v1/openapi.json").parsed();
  ASSERT_EQ(document.at("openapi").as_string(), "3.1.0");
  ASSERT_OK(testing::write_tiny_model(c.folder / "model", ModelFamily::kLlama, 1));
  ASSERT_OK(write_file_atomic(c.folder / "a.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n"));
  ASSERT_OK(write_file_atomic(c.folder / "b.jsonl", "{\"text\": \"three\"}\n"));
  StoreBatch points;
  TelemetryStore::put(points, "dev-0000000000000000", {{1000, "a", 1.5}});
  ASSERT_OK(c.store->write(points));

  std::set<std::string> called;
  std::map<std::string, std::string> ids;  // "{id}" of a path, by what the calls before it made
  const auto run = [&](const std::string& method, const std::string& pattern, std::string target,
                       const std::string& body = "") {
    SCOPED_TRACE(method + " " + target);
    const Answer answer = c.call(method, target, body);
    std::string lower = method;
    for (char& ch : lower) ch = static_cast<char>(std::tolower(static_cast<unsigned char>(ch)));
    const json::object& paths = document.at("paths").as_object();
    EXPECT_TRUE(paths.contains(pattern)) << pattern;
    const json::object& operation = paths.at(pattern).as_object().at(lower).as_object();
    called.insert(std::string(operation.at("operationId").as_string()));
    const json::object& responses = operation.at("responses").as_object();
    EXPECT_TRUE(responses.contains(std::to_string(answer.status)))
        << answer.status << " is not in the document: " << answer.body;
    if (!responses.contains(std::to_string(answer.status))) return answer;
    const json::object& success = responses.at(std::to_string(answer.status)).as_object();
    if (success.contains("content")) {
      std::vector<std::string> out;
      misfits(answer.parsed(), success.at("content").at("application/json").at("schema").as_object(), "",
              out);
      EXPECT_TRUE(out.empty()) << fmt::format("{}\n{}", fmt::join(out, "\n"), answer.body);
    }
    return answer;
  };
  const auto quoted = [](const std::filesystem::path& path) {
    return json::serialize(json::string(path.string()));
  };

  run("GET", "/health", "/health");
  run("GET", "/metrics", "/metrics");
  run("GET", "/v1/openapi.json", "/v1/openapi.json");
  run("GET", "/v1/problems/{type}", "/v1/problems/not_found");
  run("GET", "/v1/status", "/v1/status");
  const std::string teacher =
      text_at(run("POST", "/v1/teachers", "/v1/teachers",
                  "{\"path\": " + quoted(c.folder / "model") + ", \"name\": \"tiny\"}"),
              "id");
  run("GET", "/v1/teachers", "/v1/teachers");
  run("GET", "/v1/teachers/{id}", "/v1/teachers/tiny");
  run("POST", "/v1/teachers/{id}/serve", "/v1/teachers/tiny/serve");
  for (const char* name : {"a", "b"})
    run("POST", "/v1/datasets", "/v1/datasets",
        "{\"path\": " + quoted(c.folder / (std::string(name) + ".jsonl")) + ", \"name\": \"" + name + "\"}");
  run("GET", "/v1/datasets", "/v1/datasets");
  run("GET", "/v1/datasets/{id}", "/v1/datasets/a");
  run("PUT", "/v1/classes/{name}", "/v1/classes/small",
      "{\"priority\": 1, \"rules\": {\"min_cpu\": 0, \"labels\": {\"site\": \"hall\"}}, \"budgets\": "
      "{\"artifact_bytes\": 100000000}}");
  run("GET", "/v1/classes", "/v1/classes");
  run("GET", "/v1/classes/{name}", "/v1/classes/small");
  run("PUT", "/v1/sites/{name}", "/v1/sites/hall", "{\"mirrors\": [\"http://10.0.0.2:8080/retort/\"]}");
  run("GET", "/v1/sites", "/v1/sites");
  EXPECT_EQ(text_at(run("GET", "/v1/sites/{name}", "/v1/sites/hall"), "mirrors"),
            "[\"http://10.0.0.2:8080/retort\"]");
  run("PUT", "/v1/sites/{name}", "/v1/sites/hall", "{\"bytes_per_second\": 2000000, \"transfers\": 4}");
  EXPECT_EQ(text_at(c.call("GET", "/v1/sites/hall"), "mirrors"), "[]");
  EXPECT_EQ(text_at(c.call("GET", "/v1/sites/hall"), "transfers"), "4");
  EXPECT_EQ(c.call("PUT", "/v1/sites/hall", "{\"bytes_per_second\": 10}").status, 400);
  EXPECT_EQ(c.call("PUT", "/v1/sites/hall", "{\"transfers\": -1}").status, 400);
  for (const char* bad : {"10.0.0.2", "ftp://a", "http://user@a", "http://a/?q", "http://a b",
                          "http://a:", "http://a:/x", "http://:80", "http://", "http://a:b", "http://[::1]:"})
    EXPECT_EQ(c.call("PUT", "/v1/sites/hall", std::string("{\"mirrors\": [\"") + bad + "\"]}").status, 400)
        << bad;
  for (const char* good : {"http://a:80", "https://[::1]:8080/x", "https://a"})
    EXPECT_EQ(c.call("PUT", "/v1/sites/hall", std::string("{\"mirrors\": [\"") + good + "\"]}").status, 200)
        << good;
  EXPECT_EQ(c.call("PUT", "/v1/sites/a%20b", "{}").status, 400);
  run("DELETE", "/v1/sites/{name}", "/v1/sites/hall");
  EXPECT_EQ(c.call("PUT", "/v1/classes/other", "{}").status, 200);
  run("DELETE", "/v1/classes/{name}", "/v1/classes/other");
  EXPECT_EQ(c.call("DELETE", "/v1/classes/other").status, 404);
  EXPECT_EQ(c.call("GET", "/v1/sites/hall").status, 404);
  run("POST", "/v1/tailor", "/v1/tailor",
      "{\"teacher\": \"tiny\", \"classes\": [\"small\"], \"train\": \"a\", \"held_out\": \"b\", \"dry_run\": "
      "true}");
  EXPECT_EQ(c.call("POST", "/v1/tailor",
                   "{\"teacher\": \"tiny\", \"classes\": [\"small\", \"small\"], \"train\": \"a\", "
                   "\"held_out\": \"b\", \"dry_run\": true}")
                .status,
            400);
  const std::string job = text_at(
      run("POST", "/v1/jobs", "/v1/jobs", "{\"recipe\": \"teacher: {id: tiny}\", \"class\": \"small\"}"),
      "id");
  run("GET", "/v1/jobs", "/v1/jobs");
  run("GET", "/v1/jobs/{id}", "/v1/jobs/" + job);
  run("GET", "/v1/jobs/{id}/logs", "/v1/jobs/" + job + "/logs");
  EXPECT_EQ(c.call("POST", "/v1/jobs/nothing/cancel").status, 404);
  c.call("POST", "/v1/jobs/" + job + "/cancel");  // it may have ended: 409 then
  called.insert("cancelJob");
  const auto artifact = c.artifacts->import(c.catalog.teacher_gguf(teacher), {});
  ASSERT_OK(artifact);
  run("GET", "/v1/artifacts", "/v1/artifacts");
  run("GET", "/v1/artifacts/{sha256}", "/v1/artifacts/" + artifact->sha256);
  run("GET", "/v1/artifacts/{sha256}/content", "/v1/artifacts/" + artifact->sha256 + "/content");
  run("GET", "/v1/artifacts/{sha256}/manifest", "/v1/artifacts/" + artifact->sha256 + "/manifest");
  const std::string wanted = "{\"classes\": {\"small\": \"" + artifact->sha256.substr(0, 12) + "\"}}";
  const std::string rollout = text_at(run("POST", "/v1/rollouts", "/v1/rollouts", wanted), "id");
  EXPECT_EQ(c.call("POST", "/v1/rollouts", wanted).status, 409) << "one is under way in this class";
  EXPECT_EQ(c.call("DELETE", "/v1/classes/small").status, 409) << "a rollout is for it";
  run("GET", "/v1/rollouts", "/v1/rollouts");
  run("POST", "/v1/rollouts/{id}/pause", "/v1/rollouts/" + rollout + "/pause", "{\"class\": \"small\"}");
  run("POST", "/v1/rollouts/{id}/resume", "/v1/rollouts/" + rollout + "/resume", "{\"force\": true}");
  run("GET", "/v1/rollouts/{id}", "/v1/rollouts/" + rollout);
  run("GET", "/v1/rollouts/{id}/devices", "/v1/rollouts/" + rollout + "/devices");
  run("GET", "/v1/rollouts/{id}/events", "/v1/rollouts/" + rollout + "/events?after=1");
  run("POST", "/v1/rollouts/{id}/abort", "/v1/rollouts/" + rollout + "/abort", "{}");
  EXPECT_EQ(c.call("POST", "/v1/rollouts/" + rollout + "/pause", "{}").status, 409);
  const std::string second = text_at(run("POST", "/v1/rollouts", "/v1/rollouts", wanted), "id");
  run("POST", "/v1/rollouts/{id}/rollback", "/v1/rollouts/" + second + "/rollback", "{}");
  run("POST", "/v1/classes/{name}/assign", "/v1/classes/small/assign",
      "{\"artifact\": \"" + artifact->sha256 + "\"}");
  run("GET", "/v1/devices", "/v1/devices");
  run("GET", "/v1/devices/{id}", "/v1/devices/device-0");
  EXPECT_EQ(c.call("POST", "/v1/devices/device-1/forget").status, 409) << "it is not revoked";
  run("DELETE", "/v1/devices/{id}", "/v1/devices/device-1");
  run("POST", "/v1/devices/{id}/forget", "/v1/devices/device-1/forget");
  EXPECT_EQ(c.call("GET", "/v1/devices/device-1").status, 404);
  EXPECT_EQ(c.call("POST", "/v1/devices/device-0/accept").status, 409) << "it does not wait";
  run("POST", "/v1/devices/{id}/accept", "/v1/devices/waits-0/accept");
  run("POST", "/v1/devices/{id}/reject", "/v1/devices/waits-1/reject");
  EXPECT_EQ(c.call("POST", "/v1/devices/waits-0/reject").status, 409) << "it was let in";
  EXPECT_EQ(text_at(c.call("GET", "/v1/devices/waits-1"), "revoked"), "true");
  run("POST", "/v1/devices/{id}/rotate", "/v1/devices/waits-0/rotate");
  EXPECT_EQ(c.call("POST", "/v1/tokens", "{\"kind\": \"viewer\", \"manual\": true}").status, 400);
  const std::string token = text_at(run("POST", "/v1/tokens", "/v1/tokens",
                                        "{\"kind\": \"enrolment\", \"name\": \"x\", \"devices\": [\"a\", "
                                        "\"b\"], \"manual\": true}"),
                                    "id");
  run("GET", "/v1/tokens", "/v1/tokens");
  run("DELETE", "/v1/tokens/{id}", "/v1/tokens/" + token);
  run("GET", "/v1/telemetry", "/v1/telemetry");
  run("GET", "/v1/telemetry", "/v1/telemetry?resolution=hour&metric=serve_requests");
  run("GET", "/v1/audit", "/v1/audit");
  run("GET", "/v1/audit/head", "/v1/audit/head");
  EXPECT_TRUE(run("GET", "/v1/events", "/v1/events").streamed);
  EXPECT_TRUE(c.call("GET", "/v1/events?kinds=device,rollout").streamed);
  EXPECT_NE(text_at(c.call("GET", "/v1/events?kinds=device,bogus"), "detail").find("'bogus'"),
            std::string::npos);
  EXPECT_EQ(c.call("POST", "/v1/backups", "{\"path\": \"/x\"}").status, 422);  // a store in memory
  called.insert("createBackup");
  EXPECT_EQ(c.call("POST", "/v1/backups", "{\"path\": " + quoted(c.folder / "x" / ".." / "y") + "}").status,
            400);
  run("GET", "/v1/trust", "/v1/trust");
  run("GET", "/v1/trust/metadata/{name}", "/v1/trust/metadata/root.json");
  run("POST", "/v1/trust/roles/{role}/rotate", "/v1/trust/roles/timestamp/rotate");
  const SigningKey alice = make_signing_key(), bob = make_signing_key();
  const std::string alices = public_key_of(alice).value, bobs = public_key_of(bob).value;
  run("POST", "/v1/trust/roles/{role}/keys", "/v1/trust/roles/root/keys", "{\"public\": \"" + alices + "\"}");
  run("POST", "/v1/trust/roles/{role}/remove-key", "/v1/trust/roles/root/remove-key",
      "{\"id\": \"" + key_id(public_key_of(alice)) + "\"}");
  // Root in other hands: it waits until they have signed, and may be called off until then.
  const std::string hand_over = "{\"keys\": [\"" + alices + "\", \"" + bobs + "\"], \"threshold\": 2}";
  EXPECT_EQ(
      text_at(run("POST", "/v1/trust/roles/{role}/hand-over", "/v1/trust/roles/root/hand-over", hand_over),
              "published"),
      "false");
  run("DELETE", "/v1/trust/drafts/{role}", "/v1/trust/drafts/root");
  c.call("POST", "/v1/trust/roles/root/hand-over", hand_over);
  const Answer draft = run("GET", "/v1/trust/drafts/{role}", "/v1/trust/drafts/root");
  auto document_of_root = parse_signed(draft.body, "draft");
  ASSERT_OK(document_of_root);
  add_signature(*document_of_root, alice);
  add_signature(*document_of_root, bob);
  EXPECT_EQ(
      text_at(run("POST", "/v1/trust/import", "/v1/trust/import", to_text(*document_of_root)), "published"),
      "true");
  const std::string its_path = "/v1/artifacts/" + artifact->sha256;
  EXPECT_EQ(c.call("DELETE", its_path).status, 409) << "a class serves it";
  EXPECT_EQ(c.call("POST", "/v1/classes/small/assign", "{\"artifact\": null}").status, 200);
  run("DELETE", "/v1/artifacts/{sha256}", its_path);
  EXPECT_EQ(c.call("GET", its_path).status, 404);
  EXPECT_FALSE(c.artifacts->trust().lists(artifact->sha256));
  EXPECT_FALSE(std::filesystem::exists(c.artifacts->path(artifact->sha256)));
  run("DELETE", "/v1/datasets/{id}", "/v1/datasets/a");
  EXPECT_EQ(c.call("GET", "/v1/datasets/a").status, 404);
  EXPECT_EQ(c.call("GET", "/v1/datasets/b").status, 200);
  const auto ended = [&] {
    const std::string state = text_at(c.call("GET", "/v1/jobs/" + job), "state");
    return state == "failed" || state == "cancelled";
  };
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!ended() && std::chrono::steady_clock::now() < end)
    c.reactor.run_one_for(std::chrono::milliseconds(10));
  run("DELETE", "/v1/jobs/{id}", "/v1/jobs/" + job);
  EXPECT_EQ(c.call("GET", "/v1/jobs/" + job).status, 404);
  run("DELETE", "/v1/teachers/{id}", "/v1/teachers/tiny");
  for (const auto& operation : c.api->operations()) {
    EXPECT_EQ(called.count(operation->id), 1u) << operation->id << " is called by no line of this test";
    const json::value& described = document.at("paths").at(operation->path);
    EXPECT_FALSE(described.as_object().empty());
  }
  EXPECT_TRUE(verify_audit(*c.store).has_value());
}

TEST(Api, WhatTheTargetsDoNotListIsServedByNoClass) {
  CoordinatorFixture c;
  ASSERT_OK(testing::write_tiny_model(c.folder / "model", ModelFamily::kLlama, 1));
  const Answer teacher = c.call(
      "POST", "/v1/teachers",
      "{\"path\": " + json::serialize(json::string((c.folder / "model").string())) + ", \"name\": \"tiny\"}");
  ASSERT_EQ(c.call("PUT", "/v1/classes/small", "{\"priority\": 1}").status, 200);
  const SigningKey alice = make_signing_key();
  // The keys of targets in other hands: artifacts wait for them.
  ASSERT_EQ(c.call("POST", "/v1/trust/roles/targets/hand-over",
                   "{\"keys\": [\"" + public_key_of(alice).value + "\"]}")
                .status,
            200);
  const auto artifact = c.artifacts->import(c.catalog.teacher_gguf(text_at(teacher, "id")), {});
  ASSERT_OK(artifact);
  const auto assign = [&] {
    return c.call("POST", "/v1/classes/small/assign", "{\"artifact\": \"" + artifact->sha256 + "\"}");
  };
  const auto roll = [&] {
    return c.call("POST", "/v1/rollouts", "{\"classes\": {\"small\": \"" + artifact->sha256 + "\"}}");
  };
  EXPECT_EQ(assign().status, 409);
  EXPECT_NE(text_at(assign(), "detail").find("signed targets"), std::string::npos);
  EXPECT_EQ(roll().status, 409);
  const Answer draft = c.call("GET", "/v1/trust/drafts/targets");
  auto document = parse_signed(draft.body, "draft");
  ASSERT_OK(document);
  add_signature(*document, alice);
  EXPECT_EQ(text_at(c.call("POST", "/v1/trust/import", to_text(*document)), "published"), "true");
  EXPECT_EQ(roll().status, 201);
  EXPECT_EQ(assign().status, 200);
}

TEST(Api, ScopesDecideBetween401And403) {
  CoordinatorFixture c;
  const auto with = [&](const std::string& kind) {
    return std::map<std::string, std::string>{
        {"authorization", "Bearer " + c.tokens.create(kind, kind, -1, 0)->secret}};
  };
  const std::string put = "{\"priority\": 1}";
  EXPECT_EQ(c.call("GET", "/v1/devices", "", {{"authorization", ""}}).status, 401);
  EXPECT_EQ(c.call("GET", "/v1/devices", "", {{"authorization", "Bearer abc.def"}}).status, 401);
  EXPECT_EQ(c.call("GET", "/v1/nowhere", "", {{"authorization", ""}}).status, 401);
  EXPECT_EQ(c.call("GET", "/v1/devices", "", with("enrolment")).status, 401);
  EXPECT_EQ(c.call("GET", "/v1/devices", "", with("viewer")).status, 200);
  const Answer refused = c.call("PUT", "/v1/classes/x", put, with("viewer"));
  EXPECT_EQ(refused.status, 403);
  EXPECT_EQ(text_at(refused, "type"), "/v1/problems/denied");
  EXPECT_EQ(c.call("PUT", "/v1/classes/x", put, with("operator")).status, 200);
  EXPECT_EQ(c.call("GET", "/v1/audit", "", with("operator")).status, 403);
  EXPECT_EQ(c.call("GET", "/v1/trust", "", with("viewer")).status, 200);
  EXPECT_EQ(c.call("POST", "/v1/trust/roles/timestamp/rotate", "", with("operator")).status, 403);
  EXPECT_EQ(c.call("POST", "/v1/trust/roles/timestamp/rotate").status, 200);
  EXPECT_EQ(c.call("POST", "/v1/devices/device-0/rotate", "", with("viewer")).status, 403);
  EXPECT_EQ(c.call("POST", "/v1/devices/device-0/rotate", "", with("operator")).status, 200);
  EXPECT_EQ(c.call("GET", "/v1/audit", "").status, 200);
  EXPECT_EQ(c.call("GET", "/v1/devices", "", with("device-enroller")).status, 403);
  EXPECT_EQ(c.call("POST", "/v1/tokens", "{\"kind\": \"enrolment\"}", with("device-enroller")).status, 201);
  EXPECT_EQ(c.call("POST", "/v1/tokens", "{\"kind\": \"admin\"}", with("device-enroller")).status, 403);
  EXPECT_EQ(c.call("POST", "/v1/tokens", "{\"kind\": \"admin\"}", with("operator")).status, 403);
  EXPECT_EQ(c.call("GET", "/v1/openapi.json", "", {{"authorization", ""}}).status, 200);
}

TEST(Api, LastUseAndExpiryOfTokens) {
  CoordinatorFixture c;
  const auto made = c.tokens.create("viewer", "v", -1, c.clock.unix_millis() + 120000);
  EXPECT_EQ(c.tokens.last_used(made->record.id), 0);
  const std::map<std::string, std::string> header{{"authorization", "Bearer " + made->secret}};
  EXPECT_EQ(c.call("GET", "/v1/devices", "", header).status, 200);
  EXPECT_EQ(c.tokens.last_used(made->record.id), c.clock.unix_millis());
  c.clock.advance(std::chrono::minutes(2));
  EXPECT_EQ(c.call("GET", "/v1/devices", "", header).status, 401);
}

TEST(Api, RateLimitsTokensAndAddressesThatGuess) {
  ApiLimits limits;
  limits.requests_per_second = 1, limits.requests_burst = 3;
  limits.refusals_per_second = 1, limits.refusals_burst = 2;
  CoordinatorFixture c(limits);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(c.call("GET", "/v1/status").status, 200);
  const Answer limited = c.call("GET", "/v1/status");
  EXPECT_EQ(limited.status, 429);
  EXPECT_EQ(limited.headers.at("Retry-After"), "1");
  c.clock.advance(std::chrono::seconds(1));
  EXPECT_EQ(c.call("GET", "/v1/status").status, 200);
  c.clock.advance(std::chrono::seconds(10));
  for (int i = 0; i < 2; ++i)
    EXPECT_EQ(c.call("GET", "/v1/status", "", {{"authorization", "Bearer a.b"}}).status, 401);
  EXPECT_EQ(c.call("GET", "/v1/status", "", {{"authorization", "Bearer a.b"}}).status, 429);
  EXPECT_EQ(c.call("GET", "/v1/status").status, 200);  // a good token from there is none of it
  c.clock.advance(std::chrono::seconds(1));
  EXPECT_EQ(c.call("GET", "/v1/status", "", {{"authorization", "Bearer a.b"}}).status, 401);
}

TEST(Api, EtagsKeepTwoOperatorsFromOverwritingEachOther) {
  CoordinatorFixture c;
  ASSERT_EQ(c.call("PUT", "/v1/classes/a", "{\"priority\": 1}").status, 200);
  const Answer got = c.call("GET", "/v1/classes/a");
  const std::string etag = got.headers.at("ETag");
  const Answer same = c.call("GET", "/v1/classes/a", "", {{"if-none-match", etag}});
  EXPECT_EQ(same.status, 304);
  EXPECT_EQ(same.body, "");
  const Answer first = c.call("PUT", "/v1/classes/a", "{\"priority\": 2}", {{"if-match", etag}});
  EXPECT_EQ(first.status, 200);
  EXPECT_EQ(first.headers.at("ETag"), c.call("GET", "/v1/classes/a").headers.at("ETag"));
  const Answer second = c.call("PUT", "/v1/classes/a", "{\"priority\": 3}", {{"if-match", etag}});
  EXPECT_EQ(second.status, 412);
  EXPECT_EQ(text_at(second, "type"), "/v1/problems/precondition_failed");
  EXPECT_EQ(text_at(c.call("GET", "/v1/classes/a"), "priority"), "2");
  EXPECT_EQ(c.call("PUT", "/v1/classes/a", "{}", {{"if-none-match", "*"}}).status, 412);
  EXPECT_EQ(c.call("PUT", "/v1/classes/b", "{}", {{"if-match", "*"}}).status, 412);
  EXPECT_EQ(c.call("PUT", "/v1/classes/b", "{}", {{"if-none-match", "*"}}).status, 200);
  EXPECT_EQ(c.call("GET", "/v1/classes/a", "", {{"if-none-match", etag + ", W/" + first.headers.at("ETag")}})
                .status,
            304);
}

TEST(Api, IdempotencyKeysAnswerAgainWithoutDoingItAgain) {
  CoordinatorFixture c;
  ASSERT_EQ(c.call("PUT", "/v1/classes/a", "{}").status, 200);
  const std::string body = "{\"recipe\": \"x: 1\", \"class\": \"a\"}";
  const Answer first = c.call("POST", "/v1/jobs", body, {{"idempotency-key", "k1"}});
  ASSERT_EQ(first.status, 201) << first.body;
  const Answer again = c.call("POST", "/v1/jobs", body, {{"idempotency-key", "k1"}});
  EXPECT_EQ(again.status, 201);
  EXPECT_EQ(again.body, first.body);
  EXPECT_EQ(again.headers.at("Idempotency-Replayed"), "true");
  EXPECT_EQ(c.jobs->all().size(), 1u);
  const Answer other = c.call("POST", "/v1/jobs", "{\"recipe\": \"x: 2\"}", {{"idempotency-key", "k1"}});
  EXPECT_EQ(other.status, 422);
  EXPECT_EQ(text_at(other, "type"), "/v1/problems/idempotency_mismatch");
  // A secret is kept nowhere: it is not given again, and no second token is made.
  const std::string token = "{\"kind\": \"viewer\"}";
  EXPECT_EQ(c.call("POST", "/v1/tokens", token, {{"idempotency-key", "t"}}).status, 201);
  const std::size_t tokens = c.tokens.all()->size();
  EXPECT_EQ(c.call("POST", "/v1/tokens", token, {{"idempotency-key", "t"}}).status, 409);
  EXPECT_EQ(c.tokens.all()->size(), tokens);
  // What failed changed nothing, and may be tried again.
  EXPECT_EQ(c.call("POST", "/v1/classes/b/assign", "{}", {{"idempotency-key", "k2"}}).status, 404);
  ASSERT_EQ(c.call("PUT", "/v1/classes/b", "{}").status, 200);
  EXPECT_EQ(c.call("POST", "/v1/classes/b/assign", "{}", {{"idempotency-key", "k2"}}).status, 200);
  c.clock.advance(std::chrono::hours(25));
  ASSERT_OK(c.api->sweep());
  EXPECT_EQ(
      c.call("POST", "/v1/jobs", body, {{"idempotency-key", "k1"}}).headers.count("Idempotency-Replayed"),
      0u);
  EXPECT_EQ(c.jobs->all().size(), 2u);
}

TEST(Api, ListsHavePagesAndFilters) {
  CoordinatorFixture c({}, 250, true);
  std::set<std::string> seen;
  std::string cursor;
  int pages = 0;
  do {
    const Answer page =
        c.call("GET", "/v1/devices?limit=60&labels=site=hall" + (cursor.empty() ? "" : "&cursor=" + cursor));
    ASSERT_EQ(page.status, 200) << page.body;
    const json::value parsed = page.parsed();
    for (const json::value& item : parsed.at("items").as_array())
      EXPECT_TRUE(seen.insert(std::string(item.at("id").as_string())).second);
    cursor = parsed.at("next").is_null() ? "" : std::string(parsed.at("next").as_string());
    ++pages;
  } while (!cursor.empty());
  EXPECT_EQ(seen.size(), 125u);
  EXPECT_EQ(pages, 3);
  const auto count = [&](const std::string& query) {
    return c.call("GET", "/v1/devices?limit=1000&" + query).parsed().at("items").as_array().size();
  };
  EXPECT_EQ(count("state=failed&pending=false"), 50u);
  EXPECT_EQ(count("state=failed&labels=site=yard"), 25u);
  EXPECT_EQ(count("labels=site,number=7"), 1u);
  EXPECT_EQ(count("labels=nothing"), 0u);
  EXPECT_EQ(count("online=false"), 252u);
  EXPECT_EQ(count("online=true"), 0u);
  EXPECT_EQ(count("pending=true"), 2u);
  EXPECT_EQ(count("pending=false&revoked=true"), 0u);
  ASSERT_EQ(c.call("DELETE", "/v1/devices/dev-0000000000000001").status, 200);
  ASSERT_EQ(c.call("POST", "/v1/devices/waits-0/reject").status, 200);
  EXPECT_EQ(count("pending=true"), 1u);
  EXPECT_EQ(count("revoked=true"), 2u);
  EXPECT_EQ(c.call("GET", "/v1/devices?limit=0").status, 400);
  EXPECT_EQ(c.call("GET", "/v1/devices?limit=1001").status, 400);
  EXPECT_EQ(c.call("GET", "/v1/devices?cursor=zz").status, 400);
  const Answer unknown = c.call("GET", "/v1/devices?lables=a");
  EXPECT_EQ(unknown.status, 400);
  EXPECT_NE(text_at(unknown, "detail").find("did you mean 'labels'"), std::string::npos);
}

TEST(Api, RequestsAreCheckedAgainstTheirSchema) {
  CoordinatorFixture c;
  for (const char* body :
       {"[]", "{\"rules\": 1}", "{\"rules\": {\"min_cpus\": 1}}", "{\"priority\": \"x\"}",
        "{\"rules\": {\"labels\": {\"a\": 1}}}", "{", "{\"budgets\": {\"artifact_bytes\": -1}}"})
    EXPECT_EQ(c.call("PUT", "/v1/classes/a", body).status, 400) << body;
  EXPECT_NE(text_at(c.call("PUT", "/v1/classes/a", "{\"rules\": {\"min_cpus\": 1}}"), "detail")
                .find("did you mean 'min_cpu'"),
            std::string::npos);
  EXPECT_EQ(c.call("POST", "/v1/teachers", "{}").status, 400);
  EXPECT_EQ(c.call("PATCH", "/v1/devices").status, 405);
}

TEST(Api, NamesAreShortAndHarmless) {
  CoordinatorFixture c;
  ASSERT_OK(testing::write_tiny_model(c.folder / "model", ModelFamily::kLlama, 1));
  ASSERT_OK(write_file_atomic(c.folder / "a.jsonl", "{\"text\": \"one\"}\n"));
  ASSERT_EQ(c.call("PUT", "/v1/classes/small", "{}").status, 200);
  const std::string path = "\"path\": \"" + c.folder.path().string();
  const std::vector<std::pair<std::string, std::string>> makers{
      {"/v1/tokens", "\"kind\": \"viewer\""},
      {"/v1/teachers", path + "/model\""},
      {"/v1/datasets", path + "/a.jsonl\""},
      {"/v1/jobs", "\"recipe\": \"x: 1\""},
      {"/v1/rollouts", "\"classes\": {\"small\": \"0123456789\"}"}};
  for (const auto& [target, members] : makers)
    for (const std::string& name : {std::string(257, 'x'), std::string("\\u001b[2J"), std::string("a\\nb"),
                                    std::string("\\u007f"), std::string("\\u009b2J"), std::string("\xff")}) {
      const Answer refused = c.call("POST", target, "{" + members + ", \"name\": \"" + name + "\"}");
      EXPECT_EQ(refused.status, 400) << target << " " << name;
      if (name != "\xff") {
        EXPECT_NE(text_at(refused, "detail").find("'name'"), std::string::npos) << refused.body;
      }
    }
  for (const std::string& name :
       {std::string("%1b"), std::string("a\x1b"), std::string("a\xff"), std::string(257, 'x')})
    EXPECT_EQ(c.call("POST", "/v1/datasets?name=" + name, "{\"text\": \"one\"}\n",
                     {{"content-type", "application/jsonl"}})
                  .status,
              name == "%1b" ? 201 : 400);  // no server has decoded it
  for (const std::string& name : {std::string(256, 'x'), std::string("Übersicht der Geräte")})
    EXPECT_EQ(c.call("POST", "/v1/tokens", "{\"kind\": \"viewer\", \"name\": \"" + name + "\"}").status, 201);
}

TEST(Api, TokensThatWouldLetNobodyInAreRefused) {
  CoordinatorFixture c;
  const auto status = [&](const std::string& members) {
    return c.call("POST", "/v1/tokens", "{\"kind\": \"enrolment\", " + members + "}").status;
  };
  EXPECT_EQ(status("\"uses\": 0"), 400);
  EXPECT_EQ(status("\"expires_seconds\": 0"), 400);
  EXPECT_EQ(status("\"uses\": 1, \"expires_seconds\": 1"), 201);
  const auto devices = [](std::size_t count) {
    json::array out;
    for (std::size_t i = 0; i < count; ++i) out.emplace_back(std::to_string(i));
    return "\"devices\": " + json::serialize(out);
  };
  EXPECT_EQ(status(devices(10'000)), 201);
  EXPECT_EQ(status(devices(10'001)), 400);
  EXPECT_EQ(status("\"devices\": [\"a\", \"b\", \"a\"]"), 400);
  EXPECT_EQ(status("\"devices\": [\"\\u001b\"]"), 400);
  EXPECT_EQ(status("\"devices\": [\"\"]"), 400);
}

TEST(Api, AMemberTwiceIsRefused) {
  CoordinatorFixture c;
  const Answer refused = c.call("POST", "/v1/tokens", "{\"kind\": \"viewer\", \"kind\": \"admin\"}");
  EXPECT_EQ(refused.status, 400);
  EXPECT_NE(text_at(refused, "detail").find("'kind' is there twice"), std::string::npos) << refused.body;
  EXPECT_EQ(c.call("PUT", "/v1/classes/a", "{\"rules\": {\"min_cpu\": 1, \"min_\\u0063pu\": 2}}").status,
            400);
  EXPECT_EQ(c.call("PUT", "/v1/classes/a", "{\"rules\": {\"min_cpu\": 1}, \"priority\": 1}").status, 200);
}

TEST(Api, AClassGoesAndItsDevicesFallIntoTheNext) {
  CoordinatorFixture c({}, 4);
  ASSERT_OK(testing::write_tiny_model(c.folder / "model", ModelFamily::kLlama, 1));
  const std::string teacher =
      text_at(c.call("POST", "/v1/teachers", "{\"path\": \"" + (c.folder / "model").string() + "\"}"), "id");
  const auto artifact = c.artifacts->import(c.catalog.teacher_gguf(teacher), {});
  ASSERT_OK(artifact);
  ASSERT_EQ(c.call("PUT", "/v1/classes/any", "{}").status, 200);
  ASSERT_EQ(
      c.call("PUT", "/v1/classes/hall", "{\"priority\": 1, \"rules\": {\"labels\": {\"site\": \"hall\"}}}")
          .status,
      200);
  ASSERT_EQ(c.call("POST", "/v1/classes/any/assign", "{\"artifact\": \"" + artifact->sha256 + "\"}").status,
            200);
  const std::string device = "dev-0000000000000000";
  EXPECT_EQ(c.fleet->devices().at(device).desired.device_class, "hall");
  const std::uint64_t generation = c.fleet->devices().at(device).desired.generation;
  // A class that a rollout or a job is for stays.
  const std::string rollout = text_at(
      c.call("POST", "/v1/rollouts", "{\"classes\": {\"hall\": \"" + artifact->sha256 + "\"}}"), "id");
  EXPECT_EQ(c.call("DELETE", "/v1/classes/hall").status, 409);
  ASSERT_EQ(c.call("POST", "/v1/rollouts/" + rollout + "/abort", "{}").status, 200);
  EXPECT_EQ(c.call("DELETE", "/v1/classes/hall", "", {{"if-match", "\"another\""}}).status, 412);
  ASSERT_EQ(c.call("DELETE", "/v1/classes/hall").status, 200);
  EXPECT_EQ(c.call("GET", "/v1/classes/hall").status, 404);
  const auto stored = RecordTable<DeviceRecord>(*c.store, "devices").get(device);
  ASSERT_OK(stored);
  for (const DeviceRecord& now : {c.fleet->devices().at(device), **stored}) {
    EXPECT_EQ(now.desired.device_class, "any");
    EXPECT_EQ(now.desired.artifact, artifact->sha256);
    EXPECT_EQ(now.desired.generation, generation + 1);
  }
  EXPECT_FALSE(*RecordTable<DeviceClass>(*c.store, "classes").get("hall"));
  const auto entries = c.audit.page(0, 100);
  ASSERT_OK(entries);
  EXPECT_EQ(entries->back().action, "removeClass");
  EXPECT_EQ(entries->back().result, "ok");
  EXPECT_EQ(c.rollouts->all().at(rollout).tracks.at(0).in_force, false);
}

TEST(Api, EveryChangeIsInTheAuditLog) {
  CoordinatorFixture c;
  c.call("PUT", "/v1/classes/a", "{\"priority\": 1}");
  c.call("PUT", "/v1/classes/a", "{\"priority\": 2}");
  c.call("POST", "/v1/classes/none/assign", "{}");
  c.call("GET", "/v1/classes/a");
  const auto entries = c.audit.page(0, 100);
  ASSERT_OK(entries);
  ASSERT_EQ(entries->size(), 3u);
  EXPECT_EQ((*entries)[0].action, "setClass");
  EXPECT_EQ((*entries)[0].target, "/v1/classes/a");
  EXPECT_EQ((*entries)[0].before, "");
  EXPECT_EQ((*entries)[0].after, (*entries)[1].before);
  EXPECT_NE((*entries)[1].after, (*entries)[1].before);
  EXPECT_NE((*entries)[1].actor.find("(test)"), std::string::npos);
  EXPECT_EQ((*entries)[2].result, "not_found");
}

TEST(Audit, ChainShowsChangesAndClosesWhatACrashLeft) {
  const auto store = make_memory_store();
  testing::ManualClock clock;
  SeededRandom random(1);
  Audit audit(*store, clock, random, 50);
  ASSERT_OK(audit.start());
  for (int i = 0; i < 10; ++i) ASSERT_OK(audit.record({"a", "b", "/c", ""}, "", "ok"));
  ASSERT_OK(audit.begin({"x", "y", "/z", ""}));
  Audit later(*store, clock, random, 50);  // as after a crash
  ASSERT_OK(later.start());
  EXPECT_EQ(later.head().sequence, 11u);
  EXPECT_EQ(later.page(10, 10)->at(0).result, "interrupted");
  ASSERT_OK(verify_audit(*store));
  // Bounded: old entries go, the chain goes on from the anchor.
  for (int i = 0; i < 1100; ++i) ASSERT_OK(later.record({"a", "b", "/c", ""}, "", "ok"));
  EXPECT_GT(later.anchor().sequence, 0u);
  ASSERT_OK(verify_audit(*store));
  Audit third(*store, clock, random, 50);
  ASSERT_OK(third.start());
  EXPECT_EQ(third.head().hash, later.head().hash);
  // One entry changed: found.
  std::string key, value;
  ASSERT_OK(store->scan("audit", "e", "", [&](std::string_view k, std::string_view v) {
    key = k, value = v;
    return false;
  }));
  AuditEntry entry = *wire::decode_record<AuditEntry>(value);
  entry.actor = "somebody else";
  StoreBatch batch;
  batch.put("audit", key, wire::encode(entry));
  ASSERT_OK(store->write(batch));
  EXPECT_EQ(verify_audit(*store).error().code, ErrorCode::kCorrupt);
  StoreBatch gone;
  gone.erase("audit", key);
  ASSERT_OK(store->write(gone));
  EXPECT_EQ(verify_audit(*store).error().code, ErrorCode::kCorrupt);
}

TEST(Events, ResumeAndReset) {
  boost::asio::io_context reactor;
  SeededRandom random(1);
  Events events(reactor, random, 3);
  const auto watch = [&](const std::string& last, std::set<std::string> kinds = {}) {
    const auto answer = std::make_shared<std::optional<Answer>>();
    events.watch(std::make_shared<testing::RecordingResponder>(answer), std::move(kinds), last);
    return answer;
  };
  const auto first = watch("");
  EXPECT_NE((*first)->body.find("event: hello"), std::string::npos);
  events.publish("device", "a", {{"state", "x"}});
  events.publish("device", "a", {{"state", "x"}});  // nothing new
  events.publish("job", "j", {{"state", "y"}});
  const std::string text = (*first)->body;
  EXPECT_EQ(text.find("\"x\""), text.rfind("\"x\""));
  const std::size_t at = text.find("id: ", text.find("hello"));
  const std::string id = text.substr(at + 4, text.find('\n', at) - at - 4);
  const auto resumed = watch(id);
  EXPECT_EQ((*resumed)->body.find("\"x\""), std::string::npos);
  EXPECT_NE((*resumed)->body.find("\"y\""), std::string::npos);
  const auto devices = watch(id, {"device"});
  EXPECT_EQ((*devices)->body, "");
  for (int i = 0; i < 5; ++i) events.publish("device", "a", {{"state", i}});
  EXPECT_NE((*watch(id))->body.find("event: reset"), std::string::npos);
  EXPECT_NE((*watch("other-1"))->body.find("event: reset"), std::string::npos);
  EXPECT_NE((*devices)->body.find("{\"state\":4}"), std::string::npos);
  events.stop();
  EXPECT_EQ(events.watchers(), 0u);
}

struct StateTest : ::testing::Test {
  /// What a device makes of the metadata that is served; it keeps what it has seen.
  Result<void> see(const TrustRepository& trust) {
    TrustClient client = RETORT_TRY(TrustClient::open(stored));
    client.refresh(clock.unix_millis());
    while (const auto wanted = client.wanted()) {
      const auto file = trust.file(TrustClient::file_name(*wanted));
      RETORT_TRY(file ? client.provide(*file) : client.absent());
    }
    for (auto& [role, bytes] : client.take_changes()) stored[role] = bytes.value_or("");
    std::erase_if(stored, [](const auto& entry) { return entry.second.empty(); });
    return {};
  }
  TrustClient::Stored stored;
  testing::TemporaryFolder folder;
  testing::ManualClock clock;
};

TEST_F(StateTest, UnversionedStoresAreMigratedAndNewerOnesRefused) {
  {
    const auto old = open_rocksdb_store(folder / "data" / "store", {"meta", "devices", "tokens"});
    ASSERT_OK(old);
    const RecordTable<TokenRecord> tokens(**old, "tokens");
    TokenRecord record;
    record.id = "1", record.kind = "operator";
    ASSERT_OK(tokens.put("1", record));
    record.id = "2", record.kind = "enrolment";
    ASSERT_OK(tokens.put("2", record));
  }
  {
    const auto store = open_state(folder / "data");
    ASSERT_OK(store);
    const RecordTable<TokenRecord> tokens(**store, "tokens");
    EXPECT_EQ((*tokens.get("1"))->kind, "admin");
    EXPECT_EQ((*tokens.get("2"))->kind, "enrolment");
    StoreBatch batch;
    batch.put("meta", "store_version", std::to_string(kStoreVersion + 1));
    ASSERT_OK((*store)->write(batch));
  }
  EXPECT_EQ(open_state(folder / "data").error().code, ErrorCode::kUnsupported);
}

TEST_F(StateTest, VersionOneKeepsItsTokensScopes) {
  const auto store = make_memory_store();
  const RecordTable<TokenRecord> tokens(*store, "tokens");
  TokenRecord record;
  record.id = "1", record.kind = "operator";
  ASSERT_OK(tokens.put("1", record));
  StoreBatch batch;
  batch.put("meta", "store_version", "1");
  ASSERT_OK(store->write(batch));
  ASSERT_OK(migrate(*store));
  EXPECT_EQ((*tokens.get("1"))->kind, "operator");
}

TEST_F(StateTest, BackupWhileOpenRestoreAndCheck) {
  const std::filesystem::path data = folder / "data";
  const std::string bytes = "these are an artifact's bytes";
  ArtifactRecord artifact;
  artifact.sha256 = sha256_hex(bytes);
  const std::filesystem::path blob = data / "blobs" / artifact.sha256.substr(0, 2) / artifact.sha256;
  ASSERT_OK(make_folders(blob.parent_path()));
  ASSERT_OK(write_file_atomic(blob, bytes));
  ASSERT_OK(make_folders(data / "keys"));
  ASSERT_OK(write_file_atomic(data / "keys" / "k", "key"));
  {
    const auto store = open_state(data);
    ASSERT_OK(store);
    SeededRandom random(1);
    Audit audit(**store, clock, random);
    ASSERT_OK(audit.start());
    ASSERT_OK(audit.record({"a", "b", "/c", ""}, "", "ok"));
    ASSERT_OK(RecordTable<ArtifactRecord>(**store, "artifacts").put(artifact.sha256, artifact));
    DeviceClass value;
    value.name = "small", value.artifact = artifact.sha256, value.generation = 3;
    ASSERT_OK(RecordTable<DeviceClass>(**store, "classes").put("small", value));
    const auto trust = TrustRepository::open(**store, data / "keys", clock);
    ASSERT_OK(trust);
    stored["root"] = (*trust)->root_text();
    ASSERT_OK(back_up(data, **store, folder / "backup", clock, "test"));
    // What a device sees after the backup is newer than what is in it.
    clock.advance(std::chrono::hours(1));
    ASSERT_OK((*trust)->add({{artifact.sha256, 29, "gguf", {{"header", artifact.sha256, 0, 29}}, {}}}));
    ASSERT_OK(see(**trust));
    EXPECT_EQ(back_up(data, **store, folder / "backup", clock, "test").error().code, ErrorCode::kConflict);
    // What is written later is not in the backup.
    value.name = "later";
    ASSERT_OK(RecordTable<DeviceClass>(**store, "classes").put("later", value));
  }
  clock.advance(std::chrono::hours(1));
  ASSERT_OK(restore(folder / "backup", folder / "restored", clock));
  EXPECT_EQ(restore(folder / "backup", folder / "restored", clock).error().code, ErrorCode::kConflict);
  const auto report = check_state(folder / "restored");
  ASSERT_OK(report);
  EXPECT_EQ(report->findings, std::vector<std::string>());
  EXPECT_EQ(report->files, 1u);
  {
    const auto store = open_state(folder / "restored");
    ASSERT_OK(store);
    const RecordTable<DeviceClass> classes(**store, "classes");
    EXPECT_GT((*classes.get("small"))->generation, 3u);
    EXPECT_FALSE((*classes.get("later")).has_value());
    EXPECT_EQ(*read_file(folder / "restored" / "keys" / "k"), "key");
    const auto trust = TrustRepository::open(**store, folder / "restored" / "keys", clock);
    ASSERT_OK(trust);
    EXPECT_OK(see(**trust)) << "a device that has seen later metadata than the backup's";
    StoreBatch batch;
    batch.put("jobs", "j", "no record");
    ASSERT_OK((*store)->write(batch));
  }
  ASSERT_OK(
      write_file_atomic(folder / "restored" / "blobs" / artifact.sha256.substr(0, 2) / artifact.sha256, "x"));
  EXPECT_EQ(check_state(folder / "restored")->findings.size(), 2u);
  // Without the keys that the coordinator signs with, no device would follow it.
  for (const auto& entry : std::filesystem::directory_iterator(folder / "restored" / "keys"))
    if (entry.path().extension() == ".ed25519") std::filesystem::remove(entry.path());
  EXPECT_EQ(check_state(folder / "restored")->findings.size(), 3u);
  EXPECT_EQ(*read_file(blob), bytes);
}

TEST(State, AMissingFleetKeyIsTold) {
  testing::TemporaryFolder folder;
  const auto store = open_state(folder.path());
  ASSERT_OK(store);
  EXPECT_OK(check_fleet_key(**store, folder.path())) << "nobody knows the key yet";
  DeviceRecord device;
  device.id = "dev-1";
  ASSERT_OK(RecordTable<DeviceRecord>(**store, "devices").put(device.id, device));
  const auto gone = check_fleet_key(**store, folder.path());
  ASSERT_FALSE(gone);
  EXPECT_NE(gone.error().message.find("backup"), std::string::npos);
  ASSERT_OK(make_folders(folder / "keys"));
  ASSERT_OK(write_file_atomic(folder / "keys" / "fleet.curve", "k"));
  EXPECT_OK(check_fleet_key(**store, folder.path()));
}

}  // namespace
}  // namespace retort
