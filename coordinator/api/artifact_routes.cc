#include <algorithm>
#include <charconv>

#include "coordinator/api/routes.h"

namespace retort {
namespace {

/// "bytes=0-99", "bytes=100-" or "bytes=-100" of a file; nothing when it is not such a range (several ranges
/// are not: the whole file answers them, RFC 9110 §14.2). A range outside of the file has first > last.
std::optional<std::pair<std::uint64_t, std::uint64_t>> range_of(const std::string& header,
                                                                std::uint64_t size) {
  constexpr std::pair<std::uint64_t, std::uint64_t> kOutside{1, 0};
  if (!header.starts_with("bytes=")) return std::nullopt;
  const std::string_view text = std::string_view(header).substr(6);
  const std::size_t dash = text.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const auto number = [](std::string_view digits) -> std::optional<std::uint64_t> {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
    return value;
  };
  const auto first = number(text.substr(0, dash)), last = number(text.substr(dash + 1));
  if (dash == 0) {  // the last so many bytes
    if (!last) return std::nullopt;
    if (*last == 0 || size == 0) return kOutside;
    return std::pair(size - std::min(*last, size), size - 1);
  }
  if (!first || (!last && dash + 1 != text.size()) || (last && *last < *first)) return std::nullopt;
  if (*first >= size) return kOutside;
  return std::pair(*first, std::min(last.value_or(size - 1), size - 1));
}

/// kConflict: something is to serve it, or to go back to it.
Result<void> check_unused(const ApiParts& p, const std::string& sha256) {
  const std::string what = "artifact " + sha256.substr(0, 12);
  for (const auto& [name, value] : p.fleet.classes())
    if (value.artifact == sha256)
      return fail(ErrorCode::kConflict, "", "{} is what class '{}' serves; assign it another first", what,
                  name);
  for (const auto& [id, device] : p.fleet.devices())
    if (device.desired.artifact == sha256 && !device.revoked)
      return fail(ErrorCode::kConflict, "", "{} is what {} is to serve", what, id);
  for (const auto& [id, rollout] : p.rollouts.all()) {
    for (const RolloutTrack& track : rollout.tracks)
      if ((track.artifact == sha256 || track.before == sha256) && (track.in_force || under_way(rollout)))
        return fail(ErrorCode::kConflict, "", "rollout {} needs {}; abort it or let it end first", id, what);
  }
  return {};
}

}  // namespace

json::object artifact_json(const ArtifactRecord& a) {
  json::value evaluation = nullptr;
  if (!a.evaluation_json.empty())
    if (Result<json::value> parsed = parse_json(a.evaluation_json, "evaluation")) evaluation = *parsed;
  return {{"sha256", a.sha256},    {"name", a.name},
          {"label", a.label},      {"class", or_null(a.device_class)},
          {"format", a.format},    {"parameters", a.parameters},
          {"bytes", a.bytes},      {"bits_per_weight", a.bits_per_weight},
          {"job", or_null(a.job)}, {"teacher", or_null(a.teacher)},
          {"created", a.created},  {"evaluation", evaluation}};
}

json::object artifact_schema() {
  return schema::object(
      {{"sha256", schema::text("of its file: its name")},
       {"name", schema::text()},
       {"label", schema::text("what its job calls it: distilled, cut, …")},
       {"class", schema::nullable(schema::text("that it was made for"))},
       {"format", schema::text("of most of its tensors: Q8_0, …")},
       {"parameters", schema::count()},
       {"bytes", schema::count()},
       {"bits_per_weight", schema::number()},
       {"job", schema::nullable(schema::text())},
       {"teacher", schema::nullable(schema::text())},
       {"created", schema::integer("milliseconds since 1970")},
       {"evaluation", schema::nullable(schema::any_object("perplexity, KL divergence and more"))}});
}

void add_artifact_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add({.method = "GET",
           .path = "/v1/artifacts",
           .id = "listArtifacts",
           .noun = "artifacts",
           .scope = Scope::kViewer,
           .summary = "Students, oldest first",
           .query = page_parameters({{"class", schema::text()},
                                     {"label", schema::text("what its job calls it")},
                                     {"job", schema::text("id")},
                                     {"teacher", schema::text("id")}}),
           .response = schema::page(artifact_schema())},
          [&p](const Call& call) -> Result<json::value> {
            const std::vector<ArtifactRecord> all = RETORT_TRY(p.artifacts.all());
            std::map<std::string, const ArtifactRecord*> sorted;
            for (const ArtifactRecord& artifact : all)
              sorted.emplace(time_key(artifact.created, artifact.sha256), &artifact);
            return page_of(
                call, sorted, [](const auto& entry) { return entry.first; },
                [&](const auto& entry) {
                  const ArtifactRecord& a = *entry.second;
                  return fits(call, "class", a.device_class) && fits(call, "label", a.label) &&
                         fits(call, "job", a.job) && fits(call, "teacher", a.teacher);
                },
                [](const auto& entry) { return artifact_json(*entry.second); });
          });
  api.add({.method = "GET",
           .path = "/v1/artifacts/{sha256}",
           .id = "getArtifact",
           .noun = "artifacts",
           .scope = Scope::kViewer,
           .summary = "One student",
           .response = artifact_schema()},
          [&p](const Call& call) -> Result<json::value> {
            return json::value(artifact_json(RETORT_TRY(p.artifacts.find(call.parameter("sha256")))));
          });
  api.add({.method = "DELETE",
           .path = "/v1/artifacts/{sha256}",
           .id = "removeArtifact",
           .noun = "artifacts",
           .scope = Scope::kOperator,
           .summary = "Removes a student that no class, device or rollout is to serve",
           .response = schema::object({{"sha256", schema::text()}, {"removed", schema::boolean()}})},
          [&p](const Call& call) -> Result<json::value> {
            const std::string sha256 = RETORT_TRY(p.artifacts.find(call.parameter("sha256"))).sha256;
            RETORT_TRY(check_unused(p, sha256));
            RETORT_TRY(p.artifacts.remove(sha256));
            return json::object{{"sha256", sha256}, {"removed", true}};
          });
  api.add_raw(
      {.method = "GET",
       .path = "/v1/artifacts/{sha256}/content",
       .id = "getArtifactContent",
       .noun = "artifacts",
       .scope = Scope::kViewer,
       .summary = "The file; Range works"},
      [&api, &p](const Call& call, const Api::Reply& responder) {
        const Result<ArtifactRecord> artifact = p.artifacts.find(call.parameter("sha256"));
        if (!artifact) return api.problem(*responder, artifact.error());
        const std::filesystem::path path = p.artifacts.path(artifact->sha256);
        HttpHeaders headers{{"ETag", "\"" + artifact->sha256 + "\""}, {"Accept-Ranges", "bytes"}};
        if (const auto range = range_of(call.request.header("range"), artifact->bytes)) {
          if (range->first > range->second) {
            headers.emplace_back("Content-Range", fmt::format("bytes */{}", artifact->bytes));
            return responder->send(416, "text/plain", "the range lies outside of the file\n",
                                   std::move(headers));
          }
          headers.emplace_back("Content-Range",
                               fmt::format("bytes {}-{}/{}", range->first, range->second, artifact->bytes));
          return responder->send_file(206, "application/octet-stream", path, range->first,
                                      range->second - range->first + 1, std::move(headers));
        }
        responder->send_file(200, "application/octet-stream", path, 0, artifact->bytes, std::move(headers));
      });
  api.add_raw({.method = "GET",
               .path = "/v1/artifacts/{sha256}/manifest",
               .id = "getArtifactManifest",
               .noun = "artifacts",
               .scope = Scope::kViewer,
               .summary = "Its manifest, whose hash is in the signed targets"},
              [&api, &p](const Call& call, const Api::Reply& responder) {
                const Result<ArtifactRecord> artifact = p.artifacts.find(call.parameter("sha256"));
                if (!artifact) return api.problem(*responder, artifact.error());
                Result<std::string> manifest = p.artifacts.trust().file(manifest_file_name(artifact->sha256));
                if (!manifest) return api.problem(*responder, manifest.error());
                responder->send(200, "application/json", std::move(*manifest));
              });
}

}  // namespace retort
