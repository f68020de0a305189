#include "coordinator/api/routes.h"

namespace retort {
namespace {

using schema::Presence;

json::object trust_progress_schema() {
  return schema::object({{"role", schema::text()},
                         {"version", schema::count()},
                         {"published", schema::boolean("false: it waits to be signed")},
                         {"missing", schema::nullable(schema::text("what it waits for"))}});
}

Result<json::value> trust_progress_json(const Result<TrustRepository::Progress>& progress) {
  if (!progress) return fail(progress.error());
  return json::object{{"role", progress->role},
                      {"version", progress->version},
                      {"published", progress->published},
                      {"missing", or_null(progress->missing)}};
}

std::uint32_t trust_threshold_of(const Call& call) {
  return static_cast<std::uint32_t>(json_uint(call.body, "threshold", kRequestBody, 1000).value_or(0));
}

json::object trust_threshold_schema() {
  return schema::count("signatures that the role needs; as it is unless said", 1000);
}

}  // namespace

void add_trust_routes(Api& api, const ApiParts& parts) {
  TrustRepository& trust = parts.artifacts.trust();
  api.add({.method = "GET",
           .path = "/v1/trust",
           .id = "getTrust",
           .noun = "trust",
           .scope = Scope::kViewer,
           .summary = "Roles, their versions and keys, changes that wait to be signed, warnings",
           .response = schema::any_object()},
          [&trust](const Call&) -> Result<json::value> { return json::value(trust.status()); });
  api.add(
      {.method = "GET",
       .path = "/v1/trust/metadata/{name}",
       .id = "getTrustMetadata",
       .noun = "trust",
       .scope = Scope::kViewer,
       .summary = "A metadata file as devices get it: root.json (the newest), 7.root.json, timestamp.json",
       .response = schema::any_object("docs/format.md, Metadata")},
      [&trust](const Call& call) -> Result<json::value> {
        const std::string& name = call.parameter("name");
        const std::string text = name == "root.json" ? trust.root_text() : RETORT_TRY(trust.file(name));
        return parse_json(text, name);
      });
  api.add({.method = "GET",
           .path = "/v1/trust/drafts/{role}",
           .id = "getTrustDraft",
           .noun = "trust",
           .scope = Scope::kViewer,
           .summary = "The change of root or targets that waits to be signed",
           .response = schema::any_object("docs/format.md, Metadata")},
          [&trust](const Call& call) -> Result<json::value> {
            return parse_json(RETORT_TRY(trust.draft(call.parameter("role"))), "draft");
          });
  api.add({.method = "DELETE",
           .path = "/v1/trust/drafts/{role}",
           .id = "dropTrustDraft",
           .noun = "trust",
           .scope = Scope::kAdmin,
           .summary = "Calls a change of root off",
           .response = schema::object({{"role", schema::text()}, {"dropped", schema::boolean()}})},
          [&trust](const Call& call) -> Result<json::value> {
            RETORT_TRY(trust.drop_draft(call.parameter("role")));
            return json::object{{"role", call.parameter("role")}, {"dropped", true}};
          });
  api.add(
      {.method = "POST",
       .path = "/v1/trust/import",
       .id = "importTrust",
       .noun = "trust",
       .scope = Scope::kAdmin,
       .summary =
           "Takes the signatures of a change that was signed elsewhere; publishes it when they are enough",
       .request = schema::any_object("the draft, with more signatures"),
       .response = trust_progress_schema()},
      [&trust](const Call& call) -> Result<json::value> {
        return trust_progress_json(trust.import(json::serialize(call.body)));
      });
  api.add({.method = "POST",
           .path = "/v1/trust/roles/{role}/keys",
           .id = "addTrustKey",
           .noun = "trust",
           .scope = Scope::kAdmin,
           .summary = "Adds a key to root or targets",
           .request = schema::object({{"public", schema::text("Ed25519, hexadecimal", 64)},
                                      {"threshold", trust_threshold_schema(), Presence::kOptional}}),
           .response = trust_progress_schema()},
          [&trust](const Call& call) -> Result<json::value> {
            const PublicKey key =
                RETORT_TRY(ed25519_public_key(RETORT_TRY(json_string(call.body, "public", kRequestBody))));
            return trust_progress_json(trust.add_key(call.parameter("role"), key, trust_threshold_of(call)));
          });
  api.add({.method = "POST",
           .path = "/v1/trust/roles/{role}/remove-key",
           .id = "removeTrustKey",
           .noun = "trust",
           .scope = Scope::kAdmin,
           .summary = "Takes a key from root or targets: it signs no more",
           .request = schema::object({{"id", schema::text("of the key, or how it begins", 64)},
                                      {"threshold", trust_threshold_schema(), Presence::kOptional}}),
           .response = trust_progress_schema()},
          [&trust](const Call& call) -> Result<json::value> {
            return trust_progress_json(trust.remove_key(
                call.parameter("role"), RETORT_TRY(json_string(call.body, "id", kRequestBody)),
                trust_threshold_of(call)));
          });
  api.add({.method = "POST",
           .path = "/v1/trust/roles/{role}/rotate",
           .id = "rotateTrustKey",
           .noun = "trust",
           .scope = Scope::kAdmin,
           .summary = "New keys in the place of those that the coordinator holds for the role",
           .response = trust_progress_schema()},
          [&trust](const Call& call) -> Result<json::value> {
            return trust_progress_json(trust.rotate(call.parameter("role")));
          });
  api.add(
      {.method = "POST",
       .path = "/v1/trust/roles/{role}/hand-over",
       .id = "handOverTrustRole",
       .noun = "trust",
       .scope = Scope::kAdmin,
       .summary = "Other people's keys in the place of those that the coordinator holds for root or targets",
       .request = schema::object({{"keys", schema::list(schema::text("Ed25519, hexadecimal", 64))},
                                  {"threshold", trust_threshold_schema(), Presence::kOptional}}),
       .response = trust_progress_schema()},
      [&trust](const Call& call) -> Result<json::value> {
        std::vector<PublicKey> keys;
        for (const json::value& key : *RETORT_TRY(json_array(call.body, "keys", kRequestBody)))
          keys.push_back(RETORT_TRY(ed25519_public_key(std::string_view(key.get_string()))));
        return trust_progress_json(trust.hand_over(call.parameter("role"), keys, trust_threshold_of(call)));
      });
}

}  // namespace retort
