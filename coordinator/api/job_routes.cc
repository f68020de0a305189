#include <algorithm>
#include <cctype>
#include <charconv>

#include "coordinator/api/routes.h"

namespace retort {
namespace {

using schema::Presence;

/// Replaces the members "key: VALUE" of flow maps ("{key: VALUE, …}") whose brace follows `before`. VALUE is
/// a name of letters, digits, '.', '_' and '-', quoted or not; anything else is left as it is.
Result<std::string> replace_member(std::string_view text, std::string_view before, std::string_view key,
                                   const std::function<Result<std::string>(const std::string&)>& make) {
  const auto is_name = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  };
  const auto skip_back = [&](std::size_t at) {
    while (at > 0 && std::isspace(static_cast<unsigned char>(text[at - 1]))) --at;
    return at;
  };
  std::string out;
  std::size_t copied = 0;
  const std::string wanted = std::string(key) + ":";
  for (std::size_t at = text.find(wanted); at != std::string_view::npos; at = text.find(wanted, at + 1)) {
    const std::size_t open = skip_back(at);
    if (open == 0 || (text[open - 1] != '{' && text[open - 1] != ',')) continue;
    if (!before.empty() && (text[open - 1] != '{' || !text.substr(0, skip_back(open - 1)).ends_with(before)))
      continue;
    std::size_t begin = at + wanted.size();
    while (begin < text.size() && (text[begin] == ' ' || text[begin] == '"' || text[begin] == '\'')) ++begin;
    std::size_t end = begin;
    while (end < text.size() && is_name(text[end])) ++end;
    if (end == begin) continue;
    const std::string made = RETORT_TRY(make(std::string(text.substr(begin, end - begin))));
    if (end < text.size() && (text[end] == '"' || text[end] == '\'')) ++end;
    out.append(text.substr(copied, at - copied)).append(made);
    copied = end;
  }
  return out.append(text.substr(copied));
}

Result<json::value> submit_job(const ApiParts& p, const json::object& body) {
  std::string recipe = RETORT_TRY(json_string(body, "recipe", kRequestBody));
  if (recipe.size() > 1 << 20) return fail(ErrorCode::kInvalid, "recipe", "larger than 1 MiB");
  JobRecord job;
  job.name = RETORT_TRY(optional_name(body));
  job.device_class = RETORT_TRY(optional_text(body, "class"));
  job.assign = json_has(body, "assign") && RETORT_TRY(json_bool(body, "assign", kRequestBody));
  if (!job.device_class.empty() && p.fleet.classes().count(job.device_class) == 0)
    return fail(ErrorCode::kNotFound, "", "there is no class '{}'", job.device_class);
  // The recipe names what the coordinator keeps: "teacher: {id: X}" and "{dataset: X}" become paths.
  // Everything else in it is the worker's to judge.
  const auto quoted = [](const std::filesystem::path& path) {
    return json::serialize(json::string(path.string()));
  };
  recipe =
      RETORT_TRY(replace_member(recipe, "teacher:", "id", [&](const std::string& id) -> Result<std::string> {
        const TeacherRecord teacher = RETORT_TRY(p.catalog.find_teacher(id));
        job.teacher = teacher.id;
        return "model: " + quoted(p.catalog.teacher_folder(teacher.id));
      }));
  recipe =
      RETORT_TRY(replace_member(recipe, "", "dataset", [&](const std::string& id) -> Result<std::string> {
        return "file: " + quoted(p.catalog.dataset_file(RETORT_TRY(p.catalog.find_dataset(id)).id));
      }));
  return json::value(job_json(p, RETORT_TRY(p.jobs.submit(std::move(job), recipe)), false));
}

}  // namespace

json::object job_json(const ApiParts& p, const JobRecord& job, bool with_artifacts) {
  json::object out{{"id", job.id},
                   {"name", job.name},
                   {"class", or_null(job.device_class)},
                   {"teacher", or_null(job.teacher)},
                   {"state", job.state},
                   {"assign", job.assign},
                   {"created", job.created},
                   {"started", or_null(job.started)},
                   {"finished", or_null(job.finished)},
                   {"starts", job.starts},
                   {"cancel_requested", job.cancel_requested},
                   {"progress", p.jobs.progress(job.id)}};
  out["error"] = job.error.empty()
                     ? json::value(nullptr)
                     : json::value(json::object{{"code", job.error_code}, {"message", job.error}});
  json::array artifacts;
  for (const std::string& sha256 : job.artifacts) {
    if (!with_artifacts) {
      artifacts.emplace_back(sha256);
      continue;
    }
    if (const Result<ArtifactRecord> artifact = p.artifacts.find(sha256)) {
      // One file may come out of several jobs; what this job calls it is in its own record's order.
      artifacts.push_back(artifact_json(*artifact));
    }
  }
  out["artifacts"] = std::move(artifacts);
  if (!job.plan_json.empty())
    if (Result<json::value> plan = parse_json(job.plan_json, "plan")) out["plan"] = *plan;
  return out;
}

json::object job_schema(bool with_artifacts) {
  const auto time = [](std::string_view what) { return schema::nullable(schema::integer(what)); };
  return schema::object(
      {{"id", schema::text()},
       {"name", schema::text()},
       {"class", schema::nullable(schema::text("that it is for"))},
       {"teacher", schema::nullable(schema::text("id"))},
       {"state", schema::choice({"queued", "running", "succeeded", "failed", "cancelled"})},
       {"assign", schema::boolean("its student is rolled out to the class")},
       {"created", schema::integer("milliseconds since 1970")},
       {"started", time("milliseconds since 1970")},
       {"finished", time("milliseconds since 1970")},
       {"starts", schema::count("of its worker")},
       {"cancel_requested", schema::boolean()},
       {"progress", schema::any_object("the worker's last word")},
       {"error", schema::nullable(schema::object({{"code", schema::text()}, {"message", schema::text()}}))},
       {"artifacts", schema::list(with_artifacts ? artifact_schema() : schema::text("SHA-256"))},
       {"plan", schema::any_object("of a tailored student"), Presence::kOptional}});
}

void add_job_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add({.method = "POST",
           .path = "/v1/jobs",
           .id = "submitJob",
           .noun = "jobs",
           .scope = Scope::kOperator,
           .summary = "Starts a job from a recipe",
           .request = schema::object(
               {{"recipe", schema::text("YAML, in which {id: X} of a teacher and {dataset: X} name what the "
                                        "coordinator keeps",
                                        1 << 20)},
                {"class", schema::text("that it is for"), Presence::kOptional},
                {"name", name_schema(), Presence::kOptional},
                {"assign", schema::boolean("roll the student out to the class"), Presence::kOptional}}),
           .response = job_schema(false),
           .status = 201},
          [&p](const Call& call) { return submit_job(p, call.body); });
  api.add({.method = "GET",
           .path = "/v1/jobs",
           .id = "listJobs",
           .noun = "jobs",
           .scope = Scope::kViewer,
           .summary = "Jobs, oldest first",
           .query = page_parameters(
               {{"state", schema::text()}, {"class", schema::text()}, {"teacher", schema::text("id")}}),
           .response = schema::page(job_schema(false))},
          [&p](const Call& call) -> Result<json::value> {
            std::map<std::string, const JobRecord*> jobs;
            for (const auto& [id, job] : p.jobs.all()) jobs.emplace(time_key(job.created, id), &job);
            return page_of(
                call, jobs, [](const auto& entry) { return entry.first; },
                [&](const auto& entry) {
                  return fits(call, "state", entry.second->state) &&
                         fits(call, "class", entry.second->device_class) &&
                         fits(call, "teacher", entry.second->teacher);
                },
                [&p](const auto& entry) { return job_json(p, *entry.second, false); });
          });
  api.add({.method = "GET",
           .path = "/v1/jobs/{id}",
           .id = "getJob",
           .noun = "jobs",
           .scope = Scope::kViewer,
           .summary = "One job with its last progress and its artifacts",
           .response = job_schema(true)},
          [&p](const Call& call) -> Result<json::value> {
            return json::value(job_json(p, RETORT_TRY(p.jobs.find(call.parameter("id"))), true));
          });
  api.add_raw(
      {.method = "GET",
       .path = "/v1/jobs/{id}/logs",
       .id = "getJobLog",
       .noun = "jobs",
       .scope = Scope::kViewer,
       .summary = "The worker's JSON lines from a byte on; the header Next-Offset says where to go on",
       .query = {{"offset", schema::count("in bytes")}}},
      [&api, &p](const Call& call, const Api::Reply& responder) {
        std::uint64_t offset = 0;
        if (const std::string given = call.query("offset"); !given.empty()) {
          const auto [end, bad] = std::from_chars(given.data(), given.data() + given.size(), offset);
          if (bad != std::errc() || *end != '\0')
            return api.problem(*responder, {ErrorCode::kInvalid, "'offset' is not a number", ""});
        }
        Result<Jobs::Log> log = p.jobs.log(call.parameter("id"), offset);
        if (!log) return api.problem(*responder, log.error());
        responder->send(200, "application/jsonl", std::move(log->text),
                        {{"Next-Offset", std::to_string(log->next_offset)}});
      });
  api.add({.method = "DELETE",
           .path = "/v1/jobs/{id}",
           .id = "removeJob",
           .noun = "jobs",
           .scope = Scope::kOperator,
           .summary = "Removes one that has ended, with its folder; its artifacts stay",
           .response = schema::object({{"id", schema::text()}, {"removed", schema::boolean()}})},
          [&p](const Call& call) -> Result<json::value> {
            const std::string id = RETORT_TRY(p.jobs.find(call.parameter("id"))).id;
            RETORT_TRY(p.jobs.remove(id));
            return json::object{{"id", id}, {"removed", true}};
          });
  api.add({.method = "POST",
           .path = "/v1/jobs/{id}/cancel",
           .id = "cancelJob",
           .noun = "jobs",
           .scope = Scope::kOperator,
           .summary = "Stops it at its next step",
           .response = job_schema(false)},
          [&p](const Call& call) -> Result<json::value> {
            return json::value(job_json(p, RETORT_TRY(p.jobs.cancel(call.parameter("id"))), false));
          });
}

}  // namespace retort
