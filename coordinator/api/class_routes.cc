#include <algorithm>

#include "coordinator/api/routes.h"

namespace retort {
namespace {

using schema::Presence;

json::object class_json(const DeviceClass& c) {
  return {{"name", c.name},
          {"priority", c.priority},
          {"rules", json::object{{"min_memory_bytes", c.min_memory_bytes},
                                 {"max_memory_bytes", c.max_memory_bytes},
                                 {"min_cpu", c.min_cpu},
                                 {"max_cpu", c.max_cpu},
                                 {"architecture", c.architecture},
                                 {"labels", to_json(c.labels)}}},
          {"budgets", json::object{{"artifact_bytes", c.artifact_bytes},
                                   {"serving_memory_bytes", c.serving_memory_bytes},
                                   {"p95_token_seconds", c.p95_token_seconds}}},
          {"artifact", or_null(c.artifact)},
          {"generation", c.generation}};
}

json::object rules_schema(Presence presence) {
  return schema::object(
      {{"min_memory_bytes", schema::count("the device's memory budget is at least this"), presence},
       {"max_memory_bytes", schema::count("… and at most this; 0: no limit"), presence},
       {"min_cpu", schema::number("at least so many cores' worth"), presence},
       {"max_cpu", schema::number("at most so many; 0: no limit"), presence},
       {"architecture", schema::text("x86_64, aarch64, …; empty: any", 64), presence},
       {"labels", schema::map(schema::text()), presence}});
}

json::object budgets_schema(Presence presence) {
  return schema::object(
      {{"artifact_bytes", schema::count("the student's file is at most this; 0: no limit"), presence},
       {"serving_memory_bytes", schema::count("memory of retort-serve with it; 0: no limit"), presence},
       {"p95_token_seconds", schema::number("95 of 100 tokens take at most this; 0: no limit"), presence}});
}

json::object class_schema() {
  return schema::object(
      {{"name", schema::text()},
       {"priority", schema::integer("of the classes that match a device, the highest wins")},
       {"rules", rules_schema(Presence::kRequired)},
       {"budgets", budgets_schema(Presence::kRequired)},
       {"artifact", schema::nullable(schema::text("SHA-256 of what its devices should serve"))},
       {"generation", schema::count("of its desired state")}});
}

Result<double> number(const json::object& object, const char* key) {
  if (!json_has(object, key)) return 0.0;
  const double value = RETORT_TRY(json_number(object, key, kRequestBody));
  if (!(value >= 0)) return fail(ErrorCode::kInvalid, kRequestBody, "'{}' must not be negative", key);
  return value;
}
Result<std::uint64_t> bytes(const json::object& object, const char* key) {
  if (!json_has(object, key)) return std::uint64_t{0};
  return json_uint(object, key, kRequestBody);
}

Result<DeviceClass> class_of(const std::string& name, const json::object& body) {
  DeviceClass c;
  c.name = name;
  RETORT_TRY(check_name(c.name, "a class"));
  if (json_has(body, "priority"))
    c.priority = static_cast<std::int32_t>(
        std::clamp<std::int64_t>(RETORT_TRY(json_int(body, "priority", kRequestBody)), -1000000, 1000000));
  if (json_has(body, "rules")) {
    const json::object& rules = *RETORT_TRY(json_object(body, "rules", kRequestBody));
    c.min_memory_bytes = RETORT_TRY(bytes(rules, "min_memory_bytes"));
    c.max_memory_bytes = RETORT_TRY(bytes(rules, "max_memory_bytes"));
    c.min_cpu = RETORT_TRY(number(rules, "min_cpu"));
    c.max_cpu = RETORT_TRY(number(rules, "max_cpu"));
    c.architecture = RETORT_TRY(optional_text(rules, "architecture"));
    if (json_has(rules, "labels"))
      for (const auto& label : *RETORT_TRY(json_object(rules, "labels", kRequestBody)))
        c.labels[std::string(label.key())] = std::string(label.value().as_string());
    if (c.max_memory_bytes != 0 && c.max_memory_bytes < c.min_memory_bytes)
      return fail(ErrorCode::kInvalid, kRequestBody, "no device can have at least {} and at most {} bytes",
                  c.min_memory_bytes, c.max_memory_bytes);
  }
  if (json_has(body, "budgets")) {
    const json::object& budgets = *RETORT_TRY(json_object(body, "budgets", kRequestBody));
    c.artifact_bytes = RETORT_TRY(bytes(budgets, "artifact_bytes"));
    c.serving_memory_bytes = RETORT_TRY(bytes(budgets, "serving_memory_bytes"));
    c.p95_token_seconds = RETORT_TRY(number(budgets, "p95_token_seconds"));
  }
  return c;
}

}  // namespace

void add_class_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add({.method = "GET",
           .path = "/v1/classes",
           .id = "listClasses",
           .noun = "classes",
           .scope = Scope::kViewer,
           .summary = "Classes of devices",
           .query = page_parameters({labels_parameter(), {"artifact", schema::text("SHA-256")}}),
           .response = schema::page(class_schema())},
          [&p](const Call& call) -> Result<json::value> {
            return page_of(
                call, p.fleet.classes(), [](const auto& entry) { return entry.first; },
                [&](const auto& entry) {
                  return fits(call, "artifact", entry.second.artifact) &&
                         fits_labels(call, entry.second.labels);
                },
                [](const auto& entry) { return class_json(entry.second); });
          });
  api.add({.method = "GET",
           .path = "/v1/classes/{name}",
           .id = "getClass",
           .noun = "classes",
           .scope = Scope::kViewer,
           .summary = "One class",
           .response = class_schema()},
          [&p](const Call& call) -> Result<json::value> {
            const auto found = p.fleet.classes().find(call.parameter("name"));
            if (found == p.fleet.classes().end())
              return fail(ErrorCode::kNotFound, "", "there is no class '{}'", call.parameter("name"));
            return json::value(class_json(found->second));
          });
  api.add({.method = "PUT",
           .path = "/v1/classes/{name}",
           .id = "setClass",
           .noun = "classes",
           .scope = Scope::kOperator,
           .summary = "Makes a class or changes its rules and budgets; devices move at once",
           .request = schema::object(
               {{"name", schema::text("ignored: the path has it"), Presence::kOptional},
                {"priority", schema::integer(), Presence::kOptional},
                {"rules", rules_schema(Presence::kOptional), Presence::kOptional},
                {"budgets", budgets_schema(Presence::kOptional), Presence::kOptional},
                {"artifact", schema::text("ignored: see assignClass"), Presence::kOptional},
                {"generation", schema::integer("ignored: the coordinator counts"), Presence::kOptional}}),
           .response = class_schema()},
          [&p](const Call& call) -> Result<json::value> {
            DeviceClass value = RETORT_TRY(class_of(call.parameter("name"), call.body));
            return json::value(class_json(RETORT_TRY(p.fleet.set_class(std::move(value)))));
          });
  api.add({.method = "DELETE",
           .path = "/v1/classes/{name}",
           .id = "removeClass",
           .noun = "classes",
           .scope = Scope::kOperator,
           .summary = "Removes a class that no rollout and no job is for; its devices move at once",
           .response = schema::object({{"name", schema::text()}, {"removed", schema::boolean()}})},
          [&p](const Call& call) -> Result<json::value> {
            const std::string& name = call.parameter("name");
            for (const auto& [id, job] : p.jobs.all())
              if (job.device_class == name && (job.state == "running" || job.state == "queued"))
                return fail(ErrorCode::kConflict, "", "job {} is for this class; cancel it first", id);
            RETORT_TRY(p.rollouts.remove_class(name));
            return json::object{{"name", name}, {"removed", true}};
          });
  api.add({.method = "POST",
           .path = "/v1/classes/{name}/assign",
           .id = "assignClass",
           .noun = "classes",
           .scope = Scope::kOperator,
           .summary = "Says what all devices of a class should serve, at once; supersedes its rollouts",
           .request = schema::object(
               {{"artifact", schema::text("its SHA-256 or a prefix; null: nothing"), Presence::kOptional}}),
           .response = class_schema()},
          [&p](const Call& call) -> Result<json::value> {
            std::string artifact = RETORT_TRY(optional_text(call.body, "artifact"));
            if (!artifact.empty()) artifact = RETORT_TRY(p.artifacts.find(artifact)).sha256;
            return json::value(class_json(RETORT_TRY(p.rollouts.assign(call.parameter("name"), artifact))));
          });
}

}  // namespace retort
