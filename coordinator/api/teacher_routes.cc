#include "coordinator/api/routes.h"

namespace retort {
namespace {

using schema::Presence;

json::object teacher_json(const TeacherRecord& t, const std::string& served) {
  return {{"id", t.id},           {"name", t.name},
          {"family", t.family},   {"parameters", t.parameters},
          {"bytes", t.bytes},     {"vocabulary", t.vocabulary},
          {"context", t.context}, {"served", t.id == served},
          {"created", t.imported}};
}

json::object teacher_schema() {
  return schema::object({{"id", schema::text("SHA-256 over its files")},
                         {"name", schema::text()},
                         {"family", schema::text("llama or gpt2")},
                         {"parameters", schema::count()},
                         {"bytes", schema::count()},
                         {"vocabulary", schema::count()},
                         {"context", schema::count("tokens")},
                         {"served", schema::boolean("the coordinator serves it")},
                         {"created", schema::integer("milliseconds since 1970")}});
}

}  // namespace

void add_teacher_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add_slow({.method = "POST",
                .path = "/v1/teachers",
                .id = "importTeacher",
                .noun = "teachers",
                .scope = Scope::kOperator,
                .summary = "Checks, copies and converts a Hugging Face folder on the coordinator's host",
                .request = schema::object({{"path", schema::text("of the folder")},
                                           {"name", name_schema("to call it by"), Presence::kOptional}}),
                .response = teacher_schema(),
                .status = 201},
               [&p](const Call& call) -> Result<json::value> {
                 const std::string path = RETORT_TRY(json_string(call.body, "path", kRequestBody));
                 const std::string name = RETORT_TRY(optional_name(call.body));
                 return json::value(teacher_json(RETORT_TRY(p.catalog.import_teacher(path, name)), ""));
               });
  api.add({.method = "GET",
           .path = "/v1/teachers",
           .id = "listTeachers",
           .noun = "teachers",
           .scope = Scope::kViewer,
           .summary = "Teachers that were imported",
           .query = page_parameters({{"name", schema::text()}, {"family", schema::text()}}),
           .response = schema::page(teacher_schema())},
          [&p](const Call& call) -> Result<json::value> {
            return page_of(
                call, RETORT_TRY(p.catalog.teachers()), [](const TeacherRecord& t) { return t.id; },
                [&](const TeacherRecord& t) {
                  return fits(call, "name", t.name) && fits(call, "family", t.family);
                },
                [&p](const TeacherRecord& t) { return teacher_json(t, p.teacher_serve.teacher()); });
          });
  api.add({.method = "GET",
           .path = "/v1/teachers/{id}",
           .id = "getTeacher",
           .noun = "teachers",
           .scope = Scope::kViewer,
           .summary = "One teacher",
           .response = teacher_schema()},
          [&p](const Call& call) -> Result<json::value> {
            return json::value(teacher_json(RETORT_TRY(p.catalog.find_teacher(call.parameter("id"))),
                                            p.teacher_serve.teacher()));
          });
  api.add({.method = "DELETE",
           .path = "/v1/teachers/{id}",
           .id = "removeTeacher",
           .noun = "teachers",
           .scope = Scope::kOperator,
           .summary = "Removes a teacher that no job needs",
           .response = schema::object({{"id", schema::text()}, {"removed", schema::boolean()}})},
          [&p](const Call& call) -> Result<json::value> {
            const TeacherRecord teacher = RETORT_TRY(p.catalog.find_teacher(call.parameter("id")));
            for (const auto& [id, job] : p.jobs.all())
              if (job.teacher == teacher.id && (job.state == "running" || job.state == "queued"))
                return fail(ErrorCode::kConflict, "", "job {} needs this teacher; cancel it first", id);
            if (p.teacher_serve.teacher() == teacher.id) {
              for (const auto& [id, rollout] : p.rollouts.all())
                if (under_way(rollout) && !p.rollouts.spec(id).canary_dataset.empty())
                  return fail(ErrorCode::kConflict, "",
                              "rollout {} compares its canary with this teacher; abort it first", id);
              p.teacher_serve.stop();
              StoreBatch batch;
              batch.erase("meta", "served_teacher");
              RETORT_TRY(p.store.write(batch));
            }
            RETORT_TRY(p.catalog.remove_teacher(teacher.id));
            return json::object{{"id", teacher.id}, {"removed", true}};
          });
  api.add({.method = "POST",
           .path = "/v1/teachers/{id}/serve",
           .id = "serveTeacher",
           .noun = "teachers",
           .scope = Scope::kOperator,
           .summary = "Makes it the teacher that the coordinator serves, now and after restarts",
           .response = teacher_schema()},
          [&p](const Call& call) -> Result<json::value> {
            const TeacherRecord teacher = RETORT_TRY(p.catalog.find_teacher(call.parameter("id")));
            StoreBatch batch;
            batch.put("meta", "served_teacher", teacher.id);
            RETORT_TRY(p.store.write(batch));
            p.teacher_serve.serve(teacher.id, p.catalog.teacher_gguf(teacher.id));
            return json::value(teacher_json(teacher, teacher.id));
          });
}

}  // namespace retort
