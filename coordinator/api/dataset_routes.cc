#include "coordinator/api/routes.h"

namespace retort {
namespace {

using schema::Presence;

json::object dataset_json(const DatasetRecord& d) {
  return {{"id", d.id},
          {"name", d.name},
          {"documents", d.documents},
          {"bytes", d.bytes},
          {"created", d.imported}};
}

json::object dataset_schema() {
  return schema::object({{"id", schema::text("SHA-256 of its file")},
                         {"name", schema::text()},
                         {"documents", schema::count()},
                         {"bytes", schema::count()},
                         {"created", schema::integer("milliseconds since 1970")}});
}

}  // namespace

void add_dataset_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add_slow(
      {.method = "POST",
       .path = "/v1/datasets",
       .id = "importDataset",
       .noun = "datasets",
       .scope = Scope::kOperator,
       .summary = "Imports JSONL with a \"text\" in each line: a file on the coordinator's host, or the body "
                  "itself when that is application/jsonl",
       .query = {{"name", name_schema("to call it by, where the body is application/jsonl")}},
       .request = schema::object({{"path", schema::text("of a .jsonl or .txt file")},
                                  {"name", name_schema("to call it by"), Presence::kOptional}}),
       .response = dataset_schema(),
       .status = 201},
      [&p](const Call& call) -> Result<json::value> {
        if (call.request.header("content-type").starts_with("application/jsonl")) {
          const std::string name = call.query("name");
          RETORT_TRY(check_text("name", name, "query"));
          return json::value(
              dataset_json(RETORT_TRY(p.catalog.import_dataset_text(call.request.body, name))));
        }
        const std::string path = RETORT_TRY(json_string(call.body, "path", kRequestBody));
        const std::string name = RETORT_TRY(optional_name(call.body));
        return json::value(dataset_json(RETORT_TRY(p.catalog.import_dataset(path, name))));
      });
  api.add({.method = "GET",
           .path = "/v1/datasets",
           .id = "listDatasets",
           .noun = "datasets",
           .scope = Scope::kViewer,
           .summary = "Texts that were imported",
           .query = page_parameters({{"name", schema::text()}}),
           .response = schema::page(dataset_schema())},
          [&p](const Call& call) -> Result<json::value> {
            return page_of(
                call, RETORT_TRY(p.catalog.datasets()), [](const DatasetRecord& d) { return d.id; },
                [&](const DatasetRecord& d) { return fits(call, "name", d.name); },
                [](const DatasetRecord& d) { return dataset_json(d); });
          });
  api.add({.method = "GET",
           .path = "/v1/datasets/{id}",
           .id = "getDataset",
           .noun = "datasets",
           .scope = Scope::kViewer,
           .summary = "One dataset",
           .response = dataset_schema()},
          [&p](const Call& call) -> Result<json::value> {
            return json::value(dataset_json(RETORT_TRY(p.catalog.find_dataset(call.parameter("id")))));
          });
  api.add({.method = "DELETE",
           .path = "/v1/datasets/{id}",
           .id = "removeDataset",
           .noun = "datasets",
           .scope = Scope::kOperator,
           .summary = "Removes a dataset that no job needs",
           .response = schema::object({{"id", schema::text()}, {"removed", schema::boolean()}})},
          [&p](const Call& call) -> Result<json::value> {
            const std::string id = RETORT_TRY(p.catalog.find_dataset(call.parameter("id"))).id;
            if (const std::string job = p.jobs.user_of(p.catalog.dataset_file(id)); !job.empty())
              return fail(ErrorCode::kConflict, "", "job {} needs this dataset; cancel it first", job);
            for (const auto& [rollout, record] : p.rollouts.all())
              if (const std::string& canary = p.rollouts.spec(rollout).canary_dataset;
                  under_way(record) && !canary.empty() && RETORT_TRY(p.catalog.find_dataset(canary)).id == id)
                return fail(ErrorCode::kConflict, "",
                            "rollout {} asks its canary from this dataset; abort it first", rollout);
            RETORT_TRY(p.catalog.remove_dataset(id));
            return json::object{{"id", id}, {"removed", true}};
          });
}

}  // namespace retort
