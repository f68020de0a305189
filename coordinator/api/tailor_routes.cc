#include <algorithm>
#include <cctype>
#include <set>

#include "common/hf/classifier_model.h"
#include "common/hf/hf_model.h"
#include "coordinator/api/routes.h"
#include "coordinator/tailor/tailor.h"

namespace retort {
namespace {

using schema::Presence;

Result<json::value> tailor(const ApiParts& p, const json::object& body) {
  const std::string& where = kRequestBody;
  const TeacherRecord teacher =
      RETORT_TRY(p.catalog.find_teacher(RETORT_TRY(json_string(body, "teacher", where))));
  const DatasetRecord train =
      RETORT_TRY(p.catalog.find_dataset(RETORT_TRY(json_string(body, "train", where))));
  const DatasetRecord held_out =
      RETORT_TRY(p.catalog.find_dataset(RETORT_TRY(json_string(body, "held_out", where))));
  if (train.id == held_out.id)
    return fail(
        ErrorCode::kInvalid, where,
        "'train' and 'held_out' are the same dataset: a student must not be judged on what it learnt from");
  const bool dry_run = json_has(body, "dry_run") && RETORT_TRY(json_bool(body, "dry_run", where));
  std::string rollout;
  if (json_has(body, "rollout")) {
    json::object asked = *RETORT_TRY(json_object(body, "rollout", where));
    rollout = json::serialize(asked);
    json::object names;  // its classes are those of the jobs
    for (const json::value& name : *RETORT_TRY(json_array(body, "classes", where)))
      names[std::string(name.as_string())] = "";
    asked["classes"] = std::move(names);
    RETORT_TRY(p.rollouts.check(asked));
  }
  const bool assign = !json_has(body, "assign") || RETORT_TRY(json_bool(body, "assign", where));
  const GgufFile gguf = RETORT_TRY(GgufFile::open(p.catalog.teacher_gguf(teacher.id)));
  TeacherShape shape;
  if (is_gguf_classifier(gguf))
    shape.classifier = RETORT_TRY(read_gguf_classifier_config(gguf));
  else
    shape.config = RETORT_TRY(read_gguf_config(gguf));
  if (shape.config.is_encoder() && !shape.classifies() && !shape.config.encoder.mlm_head)
    return fail(ErrorCode::kUnsupported, where,
                "teacher '{}' is an encoder without a head: there is nothing to distil it on",
                teacher.name.empty() ? teacher.id : teacher.name);
  const char* const amount = shape.classifies() ? "examples" : "tokens";
  if (const char* other = shape.classifies() ? "tokens" : "examples"; json_has(body, other))
    return fail(ErrorCode::kInvalid, where, "teacher '{}' is a {}: it learns from '{}', not from '{}'",
                teacher.name.empty() ? teacher.id : teacher.name,
                shape.classifies() ? "classifier" : "language model", amount, other);
  std::uint64_t tokens = shape.classifies() ? 100000 : 300000;
  if (json_has(body, amount)) tokens = RETORT_TRY(json_uint(body, amount, where, 1ull << 40));
  if (tokens == 0) return fail(ErrorCode::kInvalid, where, "'{}' must be at least 1", amount);
  // All plans before the first job: either every class gets one, or the request changes nothing.
  struct Planned {
    JobRecord job;
    std::string recipe;
    json::object shown;
  };
  std::vector<Planned> planned;
  const json::array& classes = *RETORT_TRY(json_array(body, "classes", where));
  if (classes.empty()) return fail(ErrorCode::kInvalid, where, "'classes' names no class");
  std::set<std::string> names;
  for (const json::value& entry : classes) {
    const std::string name(entry.as_string());
    if (!names.insert(name).second)
      return fail(ErrorCode::kInvalid, where, "'classes' names '{}' twice", name);
    const auto found = p.fleet.classes().find(name);
    if (found == p.fleet.classes().end())
      return fail(ErrorCode::kNotFound, "", "there is no class '{}'", name);
    std::vector<const DeviceProfile*> devices;
    for (const auto& [id, device] : p.fleet.devices())
      if (device.desired.device_class == name) devices.push_back(&device.profile);
    const ClassSpeed speed = slowest(devices);
    const StudentPlan plan = RETORT_TRY(plan_student(shape, gguf.header_length(), found->second, speed));
    RecipeInputs inputs;
    inputs.teacher_folder = p.catalog.teacher_folder(teacher.id).string();
    inputs.train_file = p.catalog.dataset_file(train.id).string();
    inputs.held_out_file = p.catalog.dataset_file(held_out.id).string();
    inputs.tokens = tokens;
    std::string base = teacher.name.empty() ? teacher.id.substr(0, 8) : teacher.name;
    for (char& c : base)
      if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_') c = '-';
    inputs.base_name =
        plan.parameters < 100'000
            ? fmt::format("{}-{:.1f}K-{}-v0.1", base, static_cast<double>(plan.parameters) / 1e3, name)
            : fmt::format("{}-{:.1f}M-{}-v0.1", base, static_cast<double>(plan.parameters) / 1e6, name);
    Planned one;
    one.job.name = "tailor " + name;
    one.job.device_class = name;
    one.job.teacher = teacher.id;
    one.job.assign = assign;
    one.job.rollout_json = rollout;
    json::object shown = retort::to_json(plan);
    shown[amount] = tokens;
    shown["token_seconds_from"] = speed.measured(shape) ? "its retort-serve's measurements"
                                  : speed.bandwidth > 0 ? "the file's size over its memory's bandwidth"
                                                        : "nothing: no device is measured";
    if (found->second.p95_token_seconds > 0 && plan.token_seconds == 0)
      shown["warning"] =
          "the class has a latency budget, and none of its devices has been measured: it was not looked at";
    one.job.plan_json = json::serialize(shown);
    one.recipe = write_recipe(shape, plan, inputs);
    shown["class"] = name;
    shown["recipe"] = one.recipe;
    one.shown = std::move(shown);
    planned.push_back(std::move(one));
  }
  json::array jobs;
  for (Planned& one : planned) {
    if (dry_run)
      jobs.push_back(std::move(one.shown));
    else
      jobs.push_back(job_json(p, RETORT_TRY(p.jobs.submit(std::move(one.job), one.recipe)), false));
  }
  return json::object{{"jobs", std::move(jobs)}, {"dry_run", dry_run}};
}

}  // namespace

void add_tailor_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add(
      {.method = "POST",
       .path = "/v1/tailor",
       .id = "tailor",
       .noun = "jobs",
       .scope = Scope::kOperator,
       .summary = "Starts one job a class that makes the best student for it: all classes or none",
       .request = schema::object(
           {{"teacher", schema::text("name or id")},
            {"classes", schema::list(schema::text("name"))},
            {"train", schema::text("dataset to distil on")},
            {"held_out", schema::text("dataset to judge on")},
            {"tokens", schema::count("to distil each student on", 1ull << 40), Presence::kOptional},
            {"examples", schema::count("the same of a classifier", 1ull << 40), Presence::kOptional},
            {"dry_run", schema::boolean("only plans and recipes"), Presence::kOptional},
            {"assign", schema::boolean("to their classes, at once; true unless said"), Presence::kOptional},
            {"rollout", rollout_request_schema(false), Presence::kOptional}}),
       .response = schema::object({{"jobs", schema::list(schema::any_object("jobs, or with dry_run plans"))},
                                   {"dry_run", schema::boolean()}}),
       .status = 201},
      [&p](const Call& call) { return tailor(p, call.body); });
}

}  // namespace retort
