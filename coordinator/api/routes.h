#pragma once

#include "coordinator/api/api.h"
#include "coordinator/api/schema.h"

/// What the REST interface can do, a noun a file; each adds its operations to the table. `parts` outlives the
/// Api. Thread: reactor.
namespace retort {

void add_status_routes(Api& api, const ApiParts& parts);
void add_teacher_routes(Api& api, const ApiParts& parts);
void add_dataset_routes(Api& api, const ApiParts& parts);
void add_class_routes(Api& api, const ApiParts& parts);
void add_tailor_routes(Api& api, const ApiParts& parts);
void add_job_routes(Api& api, const ApiParts& parts);
void add_artifact_routes(Api& api, const ApiParts& parts);
void add_device_routes(Api& api, const ApiParts& parts);
void add_token_routes(Api& api, const ApiParts& parts);
void add_telemetry_routes(Api& api, const ApiParts& parts);

// What several of these files need.
inline const std::string kRequestBody = "request body";
json::value or_null(const std::string& text);
json::value or_null(UnixMillis time);
json::object to_json(const std::map<std::string, std::string>& labels);
json::array to_json(const std::vector<std::string>& texts);
/// A text of a request that may be missing.
Result<std::string> optional_text(const json::object& object, std::string_view key);
/// {"items": [to(item), …], "next": null}
template <typename Items, typename ToJson>
json::value list_of(const Items& items, ToJson to) {
  json::array out;
  for (const auto& item : items) out.push_back(to(item));
  return json::object{{"items", std::move(out)}, {"next", nullptr}};
}

json::object artifact_json(const ArtifactRecord& artifact);
json::object artifact_schema();
/// Record with its progress; `with_artifacts`: their records instead of their hashes.
json::object job_json(const ApiParts& parts, const JobRecord& job, bool with_artifacts);
json::object job_schema(bool with_artifacts);

}  // namespace retort
