#pragma once

#include "common/core/request.h"
#include "coordinator/api/api.h"
#include "coordinator/api/schema.h"

/// What the REST interface can do, a noun a file; each adds its operations to the table. `parts` outlives the
/// Api. Thread: reactor.
namespace retort {

void add_status_routes(Api& api, const ApiParts& parts);
void add_teacher_routes(Api& api, const ApiParts& parts);
void add_dataset_routes(Api& api, const ApiParts& parts);
void add_class_routes(Api& api, const ApiParts& parts);
void add_site_routes(Api& api, const ApiParts& parts);
void add_tailor_routes(Api& api, const ApiParts& parts);
void add_rollout_routes(Api& api, const ApiParts& parts);
void add_job_routes(Api& api, const ApiParts& parts);
void add_artifact_routes(Api& api, const ApiParts& parts);
void add_device_routes(Api& api, const ApiParts& parts);
void add_token_routes(Api& api, const ApiParts& parts);
void add_telemetry_routes(Api& api, const ApiParts& parts);
void add_audit_routes(Api& api, const ApiParts& parts);
void add_event_routes(Api& api, const ApiParts& parts);
void add_backup_routes(Api& api, const ApiParts& parts);
void add_trust_routes(Api& api, const ApiParts& parts);

// What several of these files need.
inline const std::string kRequestBody = "request body";
json::value or_null(const std::string& text);
json::value or_null(UnixMillis time);
json::object to_json(const std::map<std::string, std::string>& labels);
json::array to_json(const std::vector<std::string>& texts);
/// kInvalid, unless it is fit to be the name of `what` ("a class").
Result<void> check_name(std::string_view name, std::string_view what);
/// A text of a request that may be missing.
Result<std::string> optional_text(const json::object& object, std::string_view key);
/// "name" of a request that may be missing, for people: what is fit to be shown.
Result<std::string> optional_name(const json::object& object);
json::object name_schema(std::string_view description = "");
/// Parameters of a list: `filters` of its own, and those that every list has.
std::vector<QueryParameter> page_parameters(std::vector<QueryParameter> filters = {},
                                            std::size_t most = 1000);
/// Which part of a list is wanted.
struct PageQuery {
  std::size_t limit = 100;
  std::string after;  ///< the key of the last item of the page before; "" for the first page
};
/// kInvalid where the cursor is none of ours.
Result<PageQuery> page_query(const Call& call);
std::string cursor_of(const std::string& key);
/// {"items": […], "next": cursor or null} of the items after the cursor for which `keep` is true. `items` are
/// in the order of `key`, which is never "". An item that comes or goes between two pages is missed or seen
/// by none of the others.
template <typename Items, typename Key, typename Keep, typename ToJson>
Result<json::value> page_of(const Call& call, const Items& items, Key key, Keep keep, ToJson to) {
  const PageQuery query = RETORT_TRY(page_query(call));
  json::array out;
  std::string last;
  for (const auto& item : items) {
    const std::string& at = key(item);
    if (at <= query.after || !keep(item)) continue;
    if (out.size() == query.limit)
      return json::value(json::object{{"items", std::move(out)}, {"next", cursor_of(last)}});
    out.push_back(to(item));
    last = at;
  }
  return json::value(json::object{{"items", std::move(out)}, {"next", nullptr}});
}
/// True where a filter is not given or is this.
bool fits(const Call& call, const char* filter, std::string_view value);
bool fits(const Call& call, const char* filter, bool value);
/// True where all of "key=value,key,…" is among the labels; "key" alone: with any value.
bool fits_labels(const Call& call, const std::map<std::string, std::string>& labels);
QueryParameter labels_parameter();
/// A time and an id as one key, in the order of time.
std::string time_key(UnixMillis time, const std::string& id);

/// What a rollout is asked for with; without classes where a job's student decides them.
json::object rollout_request_schema(bool with_classes);
json::object artifact_json(const ArtifactRecord& artifact);
json::object artifact_schema();
/// Record with its progress; `with_artifacts`: their records instead of their hashes.
json::object job_json(const ApiParts& parts, const JobRecord& job, bool with_artifacts);
json::object job_schema(bool with_artifacts);

}  // namespace retort
