#include <set>

#include "coordinator/api/routes.h"

namespace retort {
namespace {

using schema::Presence;

json::object token_json(const TokenRecord& t, UnixMillis last_used) {
  return {{"id", t.id},
          {"kind", t.kind},
          {"name", t.name},
          {"uses_left", t.uses_left < 0 ? json::value(nullptr) : json::value(t.uses_left)},
          {"devices", to_json(t.allowed)},
          {"manual", t.manual},
          {"created", t.created},
          {"expires", or_null(t.expires)},
          {"last_used", or_null(last_used)}};
}

json::object token_schema(bool with_secret) {
  std::vector<schema::Member> members{
      {"id", schema::text()},
      {"kind", schema::choice({"viewer", "operator", "admin", "device-enroller", "enrolment"})},
      {"name", schema::text()},
      {"uses_left", schema::nullable(schema::count("null: without limit"))},
      {"devices", schema::list(schema::text(), "that it is for; empty: any")},
      {"manual", schema::boolean("devices that come with it wait for an accept")},
      {"created", schema::integer("milliseconds since 1970")},
      {"expires", schema::nullable(schema::integer("milliseconds since 1970; null: never"))},
      {"last_used", schema::nullable(schema::integer("milliseconds since 1970, to the minute"))}};
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
       .scope = Scope::kEnroller,
       .summary = "Makes a token; it is in the answer, once: only its hash is kept",
       .request = schema::object(
           {{"kind", schema::choice({"viewer", "operator", "admin", "device-enroller", "enrolment"},
                                    "what it is for; enrolment: lets devices in")},
            {"name", name_schema("for people"), Presence::kOptional},
            {"uses", schema::count("devices that may enrol with it; 1 unless said", 1u << 30, 1),
             Presence::kOptional},
            {"expires_seconds", schema::count("from now", 1ull << 32, 1), Presence::kOptional},
            {"devices",
             schema::list(schema::text("public key or hardware id", 128),
                          "the devices that it is for, each once; any unless said", 10'000),
             Presence::kOptional},
            {"manual", schema::boolean("devices that come with it wait for an accept"),
             Presence::kOptional}}),
       .response = token_schema(true),
       .status = 201,
       .secret = true},
      [&p](const Call& call) -> Result<json::value> {
        const std::string kind = RETORT_TRY(json_string(call.body, "kind", kRequestBody));
        if (kind != "enrolment" && !allows(call.caller.kind, Scope::kAdmin))
          return fail(ErrorCode::kDenied, "", "a token of scope '{}' makes enrolment tokens only",
                      call.caller.kind);
        std::int64_t uses = kind == "enrolment" ? 1 : -1;
        EnrolmentTerms terms;
        std::set<std::string_view> named;
        if (json_has(call.body, "devices"))
          for (const json::value& device : *RETORT_TRY(json_array(call.body, "devices", kRequestBody))) {
            const std::string_view id = device.get_string();
            RETORT_TRY(check_text("devices", id, kRequestBody));
            if (id.empty() || !named.insert(id).second)
              return fail(ErrorCode::kInvalid, kRequestBody, "'devices' names '{}'{}", id,
                          id.empty() ? "" : " twice");
            terms.allowed.emplace_back(id);
          }
        if (!terms.allowed.empty()) uses = static_cast<std::int64_t>(terms.allowed.size());
        terms.manual =
            json_has(call.body, "manual") && RETORT_TRY(json_bool(call.body, "manual", kRequestBody));
        if (json_has(call.body, "uses")) uses = RETORT_TRY(json_int(call.body, "uses", kRequestBody));
        if (kind != "enrolment" && json_has(call.body, "uses"))
          return fail(ErrorCode::kInvalid, kRequestBody, "'uses' goes with enrolment tokens only");
        UnixMillis expires = 0;
        if (json_has(call.body, "expires_seconds"))
          expires =
              p.clock.unix_millis() + RETORT_TRY(json_int(call.body, "expires_seconds", kRequestBody)) * 1000;
        const std::string name = RETORT_TRY(optional_name(call.body));
        const Tokens::Made made = RETORT_TRY(p.tokens.create(kind, name, uses, expires, std::move(terms)));
        json::object out = token_json(made.record, 0);
        out["token"] = kind == "enrolment" ? "retort-enrol:" + p.server_key + ":" + made.secret : made.secret;
        return json::value(std::move(out));
      });
  api.add(
      {.method = "GET",
       .path = "/v1/tokens",
       .id = "listTokens",
       .noun = "tokens",
       .scope = Scope::kAdmin,
       .summary = "Tokens, without their secrets",
       .query = page_parameters({{"kind", schema::text()}, {"name", schema::text()}}),
       .response = schema::page(token_schema(false))},
      [&p](const Call& call) -> Result<json::value> {
        return page_of(
            call, RETORT_TRY(p.tokens.all()), [](const TokenRecord& t) { return t.id; },
            [&](const TokenRecord& t) { return fits(call, "kind", t.kind) && fits(call, "name", t.name); },
            [&p](const TokenRecord& t) { return token_json(t, p.tokens.last_used(t.id)); });
      });
  api.add({.method = "DELETE",
           .path = "/v1/tokens/{id}",
           .id = "revokeToken",
           .noun = "tokens",
           .scope = Scope::kAdmin,
           .summary = "Refuses it from now on",
           .response = schema::object({{"id", schema::text()}, {"revoked", schema::boolean()}})},
          [&p](const Call& call) -> Result<json::value> {
            RETORT_TRY(p.tokens.revoke(call.parameter("id")));
            return json::object{{"id", call.parameter("id")}, {"revoked", true}};
          });
}

}  // namespace retort
