#include "coordinator/api/routes.h"

namespace retort {
namespace {

using schema::Presence;

json::object token_json(const TokenRecord& t) {
  return {{"id", t.id},
          {"kind", t.kind},
          {"name", t.name},
          {"uses_left", t.uses_left < 0 ? json::value(nullptr) : json::value(t.uses_left)},
          {"created", t.created},
          {"expires", or_null(t.expires)}};
}

json::object token_schema(bool with_secret) {
  std::vector<schema::Member> members{
      {"id", schema::text()},
      {"kind", schema::choice({"operator", "enrolment"})},
      {"name", schema::text()},
      {"uses_left", schema::nullable(schema::count("null: without limit"))},
      {"created", schema::integer("milliseconds since 1970")},
      {"expires", schema::nullable(schema::integer("milliseconds since 1970; null: never"))}};
  if (with_secret) members.push_back({"token", schema::text("the secret: shown here alone")});
  return schema::object(std::move(members));
}

}  // namespace

void add_token_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add(
      {.method = "POST",
       .path = "/v1/tokens",
       .id = "createToken",
       .noun = "tokens",
       .summary = "Makes a token; it is in the answer, once: only its hash is kept",
       .request =
           schema::object({{"kind", schema::text("operator, or enrolment (of devices)")},
                           {"name", schema::text("for people"), Presence::kOptional},
                           {"uses", schema::count("devices that may enrol with it; 1 unless said", 1u << 30),
                            Presence::kOptional},
                           {"expires_seconds", schema::count("from now", 1ull << 32), Presence::kOptional}}),
       .response = token_schema(true),
       .status = 201},
      [&p](const Call& call) -> Result<json::value> {
        const std::string kind = RETORT_TRY(json_string(call.body, "kind", kRequestBody));
        std::int64_t uses = kind == "enrolment" ? 1 : -1;
        if (json_has(call.body, "uses")) uses = RETORT_TRY(json_int(call.body, "uses", kRequestBody));
        if (kind == "operator" && uses != -1)
          return fail(ErrorCode::kInvalid, kRequestBody, "'uses' goes with enrolment tokens only");
        UnixMillis expires = 0;
        if (json_has(call.body, "expires_seconds"))
          expires =
              p.clock.unix_millis() + RETORT_TRY(json_int(call.body, "expires_seconds", kRequestBody)) * 1000;
        const std::string name = RETORT_TRY(optional_text(call.body, "name"));
        const Tokens::Made made = RETORT_TRY(p.tokens.create(kind, name, uses, expires));
        json::object out = token_json(made.record);
        out["token"] = kind == "enrolment" ? "retort-enrol:" + p.server_key + ":" + made.secret : made.secret;
        return json::value(std::move(out));
      });
  api.add({.method = "GET",
           .path = "/v1/tokens",
           .id = "listTokens",
           .noun = "tokens",
           .summary = "Tokens, without their secrets",
           .response = schema::page(token_schema(false))},
          [&p](const Call&) -> Result<json::value> {
            return list_of(RETORT_TRY(p.tokens.all()), [](const TokenRecord& t) { return token_json(t); });
          });
  api.add({.method = "DELETE",
           .path = "/v1/tokens/{id}",
           .id = "revokeToken",
           .noun = "tokens",
           .summary = "Refuses it from now on",
           .response = schema::object({{"id", schema::text()}, {"revoked", schema::boolean()}})},
          [&p](const Call& call) -> Result<json::value> {
            RETORT_TRY(p.tokens.revoke(call.parameter("id")));
            return json::object{{"id", call.parameter("id")}, {"revoked", true}};
          });
}

}  // namespace retort
