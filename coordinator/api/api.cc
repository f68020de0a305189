#include "coordinator/api/api.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cctype>
#include <charconv>

#include "common/core/file.h"
#include "common/core/units.h"
#include "common/hf/hf_model.h"
#include "coordinator/tailor/tailor.h"

namespace retort {
namespace {

json::value or_null(const std::string& text) {
  return text.empty() ? json::value(nullptr) : json::value(text);
}
json::value or_null(UnixMillis time) { return time == 0 ? json::value(nullptr) : json::value(time); }

json::object to_json(const TeacherRecord& t, const std::string& served) {
  return {{"id", t.id},           {"name", t.name},
          {"family", t.family},   {"parameters", t.parameters},
          {"bytes", t.bytes},     {"vocabulary", t.vocabulary},
          {"context", t.context}, {"served", t.id == served},
          {"created", t.imported}};
}

json::object to_json(const DatasetRecord& d) {
  return {{"id", d.id},
          {"name", d.name},
          {"documents", d.documents},
          {"bytes", d.bytes},
          {"created", d.imported}};
}

json::object to_json(const std::map<std::string, std::string>& labels) {
  json::object out;
  for (const auto& [key, value] : labels) out[key] = value;
  return out;
}

json::object to_json(const DeviceClass& c) {
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

json::object to_json(const ArtifactRecord& a) {
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

json::array to_json(const std::vector<std::string>& texts) {
  json::array out;
  for (const std::string& text : texts) out.emplace_back(text);
  return out;
}

json::object to_json(const DeviceRecord& d, bool online) {
  const DeviceProfile& p = d.profile;
  const DeviceStatus& s = d.status;
  return {{"id", d.id},
          {"name", d.name},
          {"class", or_null(d.desired.device_class)},
          {"online", online},
          {"revoked", d.revoked},
          {"enrolled", d.enrolled},
          {"last_seen", or_null(d.last_seen)},
          {"desired",
           json::object{{"generation", d.desired.generation}, {"artifact", or_null(d.desired.artifact)}}},
          {"actual", json::object{{"state", s.state},
                                  {"generation", s.generation},
                                  {"artifact", or_null(s.artifact)},
                                  {"serve_url", or_null(s.serve_url)},
                                  {"error_code", or_null(s.error_code)},
                                  {"error", or_null(s.error)},
                                  {"bytes_done", s.bytes_done},
                                  {"bytes_total", s.bytes_total}}},
          {"telemetry_dropped", d.telemetry_dropped},
          {"profile", json::object{{"hostname", p.hostname},
                                   {"architecture", p.architecture},
                                   {"cpu_model", p.cpu_model},
                                   {"isa_features", to_json(p.isa_features)},
                                   {"cores", p.cores},
                                   {"cpu_allowance", p.cpu_allowance},
                                   {"memory_bytes", p.memory_bytes},
                                   {"memory_budget_bytes", p.memory_budget_bytes},
                                   {"disk_free_bytes", p.disk_free_bytes},
                                   {"memory_bandwidth_bytes_per_second", p.memory_bandwidth_bytes_per_second},
                                   {"matvec_f32_flops", p.matvec_f32_flops},
                                   {"matvec_q8_0_ops", p.matvec_q8_0_ops},
                                   {"accelerators", to_json(p.accelerators)},
                                   {"energy_meter", or_null(p.energy_meter)},
                                   {"budget_source", p.budget_source},
                                   {"labels", to_json(p.labels)},
                                   {"notes", to_json(p.notes)},
                                   {"agent_version", p.agent_version}}}};
}

json::object to_json(const TokenRecord& t) {
  return {{"id", t.id},
          {"kind", t.kind},
          {"name", t.name},
          {"uses_left", t.uses_left < 0 ? json::value(nullptr) : json::value(t.uses_left)},
          {"created", t.created},
          {"expires", or_null(t.expires)}};
}

/// A request's body as an object whose members are all among `known`.
Result<json::object> body_of(const HttpRequest& request, const std::vector<std::string>& known) {
  const json::value value =
      RETORT_TRY(parse_json(request.body.empty() ? "{}" : request.body, "request body"));
  const json::object& object = *RETORT_TRY(as_object(value, "request body"));
  for (const auto& member : object) {
    const std::string key(member.key());
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const auto near = nearest(key, known);
    return fail(
        ErrorCode::kInvalid, "request body", "'{}' is not known{}", key,
        near ? "; did you mean '" + *near + "'?" : fmt::format("; known are: {}", fmt::join(known, ", ")));
  }
  return object;
}

Result<std::string> optional_text(const json::object& object, std::string_view key,
                                  std::string fallback = "") {
  if (!json_has(object, key)) return fallback;
  return json_string(object, key, "request body");
}

template <typename Items, typename ToJson>
json::value list_of(const Items& items, ToJson to) {
  json::array out;
  for (const auto& item : items) out.push_back(to(item));
  return json::object{{"items", std::move(out)}, {"next", nullptr}};
}

int http_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalid:
    case ErrorCode::kCorrupt:
      return 400;
    case ErrorCode::kUnsupported:
      return 422;
    case ErrorCode::kNotFound:
      return 404;
    case ErrorCode::kConflict:
      return 409;
    case ErrorCode::kDenied:
      return 401;
    case ErrorCode::kOutOfBudget:
      return 507;
    case ErrorCode::kUnavailable:
      return 503;
    default:
      return 500;
  }
}

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

constexpr std::string_view kProblemType = "application/problem+json";

}  // namespace

Api::Api(ApiParts parts) : p_(std::move(parts)), started_(p_.clock.unix_millis()) { routes(); }

void Api::problem(HttpResponder& responder, const Error& error, int status, HttpHeaders headers) {
  if (status == 0) status = http_status(error.code);
  ++answered_[status];
  if (status == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
  if (status == 503) headers.emplace_back("Retry-After", "1");
  responder.send(status, kProblemType,
                 json::serialize(json::object{{"type", "about:blank"},
                                              {"title", std::string(to_string(error.code))},
                                              {"status", status},
                                              {"detail", error.describe()},
                                              {"code", std::string(to_string(error.code))}}) +
                     "\n",
                 std::move(headers));
}

void Api::add_raw(const char* method, const char* path, std::function<void(const HttpRequest&, Reply)> work) {
  router_.add(method, path, [work = std::move(work)](HttpRequest request, Reply responder) {
    work(request, std::move(responder));
  });
}

void Api::add(const char* method, const char* path,
              std::function<Result<json::value>(const HttpRequest&)> work, int status) {
  add_raw(method, path,
          [this, work = std::move(work), status](const HttpRequest& request, const Reply& responder) {
            const Result<json::value> value = work(request);
            if (!value) return problem(*responder, value.error());
            ++answered_[status];
            responder->send(status, "application/json", json::serialize(*value) + "\n");
          });
}

void Api::add_slow(const char* method, const char* path,
                   std::function<Result<json::value>(const HttpRequest&)> work, int status) {
  add_raw(method, path,
          [this, work = std::move(work), status](const HttpRequest& request, const Reply& responder) {
            boost::asio::post(p_.pool, [this, work, status, request, responder] {
              Result<json::value> value = work(request);
              boost::asio::post(p_.reactor, [this, status, responder, value = std::move(value)] {
                if (!value) return problem(*responder, value.error());
                ++answered_[status];
                responder->send(status, "application/json", json::serialize(*value) + "\n");
              });
            });
          });
}

void Api::handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) {
  if (request.path != "/health") {
    const std::string& header = request.header("authorization");
    constexpr std::string_view kBearer = "Bearer ";
    const bool given = header.starts_with(kBearer);
    const Result<TokenRecord> token = p_.tokens.check(given ? header.substr(kBearer.size()) : "", "operator");
    if (!token && token.error().code != ErrorCode::kDenied) return problem(*responder, token.error());
    if (!token)
      return problem(
          *responder,
          {ErrorCode::kDenied,
           given ? "the token is wrong or expired" : "a bearer token is needed: Authorization: Bearer TOKEN",
           ""},
          401);
  }
  router_.dispatch(
      std::move(request), std::move(responder),
      [this](HttpRequest r, auto out) {
        problem(*out, {ErrorCode::kNotFound, "there is no " + r.path, ""});
      },
      [this](std::string allow, auto out) {
        problem(*out, {ErrorCode::kInvalid, "the method is not allowed here; use " + allow, ""}, 405,
                {{"Allow", allow}});
      });
}

json::object Api::job_json(const JobRecord& job, bool with_artifacts) const {
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
                   {"progress", p_.jobs.progress(job.id)}};
  out["error"] = job.error.empty()
                     ? json::value(nullptr)
                     : json::value(json::object{{"code", job.error_code}, {"message", job.error}});
  json::array artifacts;
  for (const std::string& sha256 : job.artifacts) {
    if (!with_artifacts) {
      artifacts.emplace_back(sha256);
      continue;
    }
    if (const Result<ArtifactRecord> artifact = p_.artifacts.find(sha256)) {
      // One file may come out of several jobs; what this job calls it is in its own record's order.
      artifacts.push_back(to_json(*artifact));
    }
  }
  out["artifacts"] = std::move(artifacts);
  if (!job.plan_json.empty())
    if (Result<json::value> plan = parse_json(job.plan_json, "plan")) out["plan"] = *plan;
  return out;
}

void Api::routes() {
  add("GET", "/health", [](const HttpRequest&) -> Result<json::value> {
    return json::object{{"status", "ok"}};
  });
  add_raw("GET", "/metrics", [this](const HttpRequest&, const Reply& responder) {
    responder->send(200, "text/plain; version=0.0.4", metrics());
  });
  add("GET", "/v1/status", [this](const HttpRequest&) -> Result<json::value> {
    json::object jobs{{"queued", 0}, {"running", 0}, {"succeeded", 0}, {"failed", 0}, {"cancelled", 0}};
    for (const auto& [id, job] : p_.jobs.all())
      jobs[job.state] = jobs[job.state].to_number<std::int64_t>() + 1;
    json::value serve = nullptr;
    if (!p_.teacher_serve.teacher().empty())
      serve = json::object{{"teacher", p_.teacher_serve.teacher()},
                           {"url", or_null(p_.teacher_serve.url())},
                           {"state", p_.teacher_serve.state()}};
    return json::object{
        {"version", p_.version},
        {"uptime_seconds", (p_.clock.unix_millis() - started_) / 1000},
        {"devices", json::object{{"total", p_.fleet.devices().size()}, {"online", p_.fleet.online_count()}}},
        {"jobs", jobs},
        {"teacher_serve", serve},
        {"fleet_endpoint", p_.fleet.endpoint()},
        {"server_key", p_.server_key}};
  });

  // Teachers
  add_slow(
      "POST", "/v1/teachers",
      [this](const HttpRequest& request) -> Result<json::value> {
        const json::object body = RETORT_TRY(body_of(request, {"path", "name"}));
        const std::string path = RETORT_TRY(json_string(body, "path", "request body"));
        return json::value(to_json(
            RETORT_TRY(p_.catalog.import_teacher(path, RETORT_TRY(optional_text(body, "name")))), ""));
      },
      201);
  add("GET", "/v1/teachers", [this](const HttpRequest&) -> Result<json::value> {
    return list_of(RETORT_TRY(p_.catalog.teachers()),
                   [this](const TeacherRecord& t) { return to_json(t, p_.teacher_serve.teacher()); });
  });
  add("GET", "/v1/teachers/{id}", [this](const HttpRequest& r) -> Result<json::value> {
    return json::value(
        to_json(RETORT_TRY(p_.catalog.find_teacher(r.parameters.at("id"))), p_.teacher_serve.teacher()));
  });
  add("DELETE", "/v1/teachers/{id}", [this](const HttpRequest& r) -> Result<json::value> {
    const TeacherRecord teacher = RETORT_TRY(p_.catalog.find_teacher(r.parameters.at("id")));
    for (const auto& [id, job] : p_.jobs.all())
      if (job.teacher == teacher.id && (job.state == "running" || job.state == "queued"))
        return fail(ErrorCode::kConflict, "", "job {} needs this teacher; cancel it first", id);
    if (p_.teacher_serve.teacher() == teacher.id) {
      p_.teacher_serve.stop();
      StoreBatch batch;
      batch.erase("meta", "served_teacher");
      RETORT_TRY(p_.store.write(batch));
    }
    RETORT_TRY(p_.catalog.remove_teacher(teacher.id));
    return json::object{{"id", teacher.id}, {"removed", true}};
  });
  add("POST", "/v1/teachers/{id}/serve", [this](const HttpRequest& r) -> Result<json::value> {
    const TeacherRecord teacher = RETORT_TRY(p_.catalog.find_teacher(r.parameters.at("id")));
    StoreBatch batch;
    batch.put("meta", "served_teacher", teacher.id);
    RETORT_TRY(p_.store.write(batch));
    p_.teacher_serve.serve(teacher.id, p_.catalog.teacher_gguf(teacher.id));
    return json::value(to_json(teacher, teacher.id));
  });

  // Datasets
  add_slow(
      "POST", "/v1/datasets",
      [this](const HttpRequest& request) -> Result<json::value> {
        if (request.header("content-type").starts_with("application/jsonl")) {
          const auto name = request.query.find("name");
          return json::value(to_json(RETORT_TRY(p_.catalog.import_dataset_text(
              request.body, name == request.query.end() ? "" : name->second))));
        }
        const json::object body = RETORT_TRY(body_of(request, {"path", "name"}));
        return json::value(to_json(
            RETORT_TRY(p_.catalog.import_dataset(RETORT_TRY(json_string(body, "path", "request body")),
                                                 RETORT_TRY(optional_text(body, "name"))))));
      },
      201);
  add("GET", "/v1/datasets", [this](const HttpRequest&) -> Result<json::value> {
    return list_of(RETORT_TRY(p_.catalog.datasets()), [](const DatasetRecord& d) { return to_json(d); });
  });
  add("GET", "/v1/datasets/{id}", [this](const HttpRequest& r) -> Result<json::value> {
    return json::value(to_json(RETORT_TRY(p_.catalog.find_dataset(r.parameters.at("id")))));
  });

  // Classes
  add("GET", "/v1/classes", [this](const HttpRequest&) -> Result<json::value> {
    return list_of(p_.fleet.classes(), [](const auto& entry) { return to_json(entry.second); });
  });
  add("GET", "/v1/classes/{name}", [this](const HttpRequest& r) -> Result<json::value> {
    const auto found = p_.fleet.classes().find(r.parameters.at("name"));
    if (found == p_.fleet.classes().end())
      return fail(ErrorCode::kNotFound, "", "there is no class '{}'", r.parameters.at("name"));
    return json::value(to_json(found->second));
  });
  add("PUT", "/v1/classes/{name}", [this](const HttpRequest& r) -> Result<json::value> {
    const std::string where = "request body";
    const json::object body =
        RETORT_TRY(body_of(r, {"name", "priority", "rules", "budgets", "artifact", "generation"}));
    DeviceClass c;
    c.name = r.parameters.at("name");
    if (c.name.empty() || c.name.size() > 64 ||
        !std::all_of(c.name.begin(), c.name.end(), [](unsigned char ch) {
          return std::isalnum(ch) || ch == '-' || ch == '_' || ch == '.';
        }))
      return fail(ErrorCode::kInvalid, "", "a class's name has 1 to 64 letters, digits, '-', '_' or '.'");
    if (json_has(body, "priority"))
      c.priority = static_cast<std::int32_t>(
          std::clamp<std::int64_t>(RETORT_TRY(json_int(body, "priority", where)), -1000000, 1000000));
    const auto check = [&](const json::object& object, const std::vector<std::string>& known,
                           const std::string& in) -> Result<void> {
      for (const auto& member : object) {
        const std::string key(member.key());
        if (std::find(known.begin(), known.end(), key) == known.end()) {
          const auto near = nearest(key, known);
          return fail(ErrorCode::kInvalid, in, "'{}' is not known{}", key,
                      near ? "; did you mean '" + *near + "'?" : "");
        }
      }
      return {};
    };
    const auto number = [&](const json::object& object, const char* key) -> Result<double> {
      if (!json_has(object, key)) return 0.0;
      const double value = RETORT_TRY(json_number(object, key, where));
      if (!(value >= 0)) return fail(ErrorCode::kInvalid, where, "'{}' must not be negative", key);
      return value;
    };
    const auto bytes = [&](const json::object& object, const char* key) -> Result<std::uint64_t> {
      if (!json_has(object, key)) return std::uint64_t{0};
      return json_uint(object, key, where);
    };
    if (json_has(body, "rules")) {
      const json::object& rules = *RETORT_TRY(json_object(body, "rules", where));
      RETORT_TRY(check(
          rules, {"min_memory_bytes", "max_memory_bytes", "min_cpu", "max_cpu", "architecture", "labels"},
          where + ", rules"));
      c.min_memory_bytes = RETORT_TRY(bytes(rules, "min_memory_bytes"));
      c.max_memory_bytes = RETORT_TRY(bytes(rules, "max_memory_bytes"));
      c.min_cpu = RETORT_TRY(number(rules, "min_cpu"));
      c.max_cpu = RETORT_TRY(number(rules, "max_cpu"));
      c.architecture = RETORT_TRY(optional_text(rules, "architecture"));
      if (json_has(rules, "labels"))
        for (const auto& label : *RETORT_TRY(json_object(rules, "labels", where))) {
          if (!label.value().is_string())
            return fail(ErrorCode::kInvalid, where, "label '{}' must be a text",
                        std::string_view(label.key()));
          c.labels[std::string(label.key())] = std::string(label.value().get_string());
        }
      if (c.max_memory_bytes != 0 && c.max_memory_bytes < c.min_memory_bytes)
        return fail(ErrorCode::kInvalid, where, "no device can have at least {} and at most {} bytes",
                    c.min_memory_bytes, c.max_memory_bytes);
    }
    if (json_has(body, "budgets")) {
      const json::object& budgets = *RETORT_TRY(json_object(body, "budgets", where));
      RETORT_TRY(check(budgets, {"artifact_bytes", "serving_memory_bytes", "p95_token_seconds"},
                       where + ", budgets"));
      c.artifact_bytes = RETORT_TRY(bytes(budgets, "artifact_bytes"));
      c.serving_memory_bytes = RETORT_TRY(bytes(budgets, "serving_memory_bytes"));
      c.p95_token_seconds = RETORT_TRY(number(budgets, "p95_token_seconds"));
    }
    return json::value(to_json(RETORT_TRY(p_.fleet.set_class(std::move(c)))));
  });
  add("POST", "/v1/classes/{name}/assign", [this](const HttpRequest& r) -> Result<json::value> {
    const json::object body = RETORT_TRY(body_of(r, {"artifact"}));
    std::string artifact = RETORT_TRY(optional_text(body, "artifact"));
    if (!artifact.empty()) artifact = RETORT_TRY(p_.artifacts.find(artifact)).sha256;
    return json::value(to_json(RETORT_TRY(p_.fleet.assign(r.parameters.at("name"), artifact))));
  });

  // Jobs
  add(
      "POST", "/v1/jobs", [this](const HttpRequest& r) { return submit_job(r); }, 201);
  add(
      "POST", "/v1/tailor", [this](const HttpRequest& r) { return tailor(r); }, 201);
  add("GET", "/v1/jobs", [this](const HttpRequest&) -> Result<json::value> {
    std::vector<const JobRecord*> jobs;
    for (const auto& [id, job] : p_.jobs.all()) jobs.push_back(&job);
    std::sort(jobs.begin(), jobs.end(), [](const auto* a, const auto* b) { return a->created < b->created; });
    return list_of(jobs, [this](const JobRecord* job) { return job_json(*job, false); });
  });
  add("GET", "/v1/jobs/{id}", [this](const HttpRequest& r) -> Result<json::value> {
    return json::value(job_json(RETORT_TRY(p_.jobs.find(r.parameters.at("id"))), true));
  });
  add_raw("GET", "/v1/jobs/{id}/logs", [this](const HttpRequest& r, const Reply& responder) {
    std::uint64_t offset = 0;
    if (const auto given = r.query.find("offset"); given != r.query.end()) {
      const auto [end, bad] =
          std::from_chars(given->second.data(), given->second.data() + given->second.size(), offset);
      if (bad != std::errc() || *end != '\0')
        return problem(*responder, {ErrorCode::kInvalid, "'offset' is not a number", ""});
    }
    Result<Jobs::Log> log = p_.jobs.log(r.parameters.at("id"), offset);
    if (!log) return problem(*responder, log.error());
    responder->send(200, "application/jsonl", std::move(log->text),
                    {{"Next-Offset", std::to_string(log->next_offset)}});
  });
  add("POST", "/v1/jobs/{id}/cancel", [this](const HttpRequest& r) -> Result<json::value> {
    return json::value(job_json(RETORT_TRY(p_.jobs.cancel(r.parameters.at("id"))), false));
  });

  // Artifacts
  add("GET", "/v1/artifacts", [this](const HttpRequest&) -> Result<json::value> {
    std::vector<ArtifactRecord> all = RETORT_TRY(p_.artifacts.all());
    std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.created < b.created; });
    return list_of(all, [](const ArtifactRecord& a) { return to_json(a); });
  });
  add("GET", "/v1/artifacts/{sha256}", [this](const HttpRequest& r) -> Result<json::value> {
    return json::value(to_json(RETORT_TRY(p_.artifacts.find(r.parameters.at("sha256")))));
  });
  add_raw("GET", "/v1/artifacts/{sha256}/content", [this](const HttpRequest& r, const Reply& responder) {
    const Result<ArtifactRecord> artifact = p_.artifacts.find(r.parameters.at("sha256"));
    if (!artifact) return problem(*responder, artifact.error());
    const std::filesystem::path path = p_.artifacts.path(artifact->sha256);
    HttpHeaders headers{{"ETag", "\"" + artifact->sha256 + "\""}, {"Accept-Ranges", "bytes"}};
    if (const auto range = range_of(r.header("range"), artifact->bytes)) {
      if (range->first > range->second) {
        headers.emplace_back("Content-Range", fmt::format("bytes */{}", artifact->bytes));
        return responder->send(416, "text/plain", "the range lies outside of the file\n", std::move(headers));
      }
      headers.emplace_back("Content-Range",
                           fmt::format("bytes {}-{}/{}", range->first, range->second, artifact->bytes));
      return responder->send_file(206, "application/octet-stream", path, range->first,
                                  range->second - range->first + 1, std::move(headers));
    }
    responder->send_file(200, "application/octet-stream", path, 0, artifact->bytes, std::move(headers));
  });
  add_raw("GET", "/v1/artifacts/{sha256}/manifest", [this](const HttpRequest& r, const Reply& responder) {
    const Result<ArtifactRecord> artifact = p_.artifacts.find(r.parameters.at("sha256"));
    if (!artifact) return problem(*responder, artifact.error());
    Result<std::string> manifest = p_.artifacts.manifest(artifact->sha256);
    if (!manifest) return problem(*responder, manifest.error());
    responder->send(200, "application/json", std::move(*manifest));
  });

  // Devices, tokens, telemetry
  add("GET", "/v1/devices", [this](const HttpRequest&) -> Result<json::value> {
    return list_of(p_.fleet.devices(),
                   [this](const auto& entry) { return to_json(entry.second, p_.fleet.online(entry.first)); });
  });
  add("GET", "/v1/devices/{id}", [this](const HttpRequest& r) -> Result<json::value> {
    const DeviceRecord device = RETORT_TRY(p_.fleet.find(r.parameters.at("id")));
    return json::value(to_json(device, p_.fleet.online(device.id)));
  });
  add("DELETE", "/v1/devices/{id}", [this](const HttpRequest& r) -> Result<json::value> {
    const DeviceRecord device = RETORT_TRY(p_.fleet.find(r.parameters.at("id")));
    RETORT_TRY(p_.fleet.revoke(device.id));
    return json::object{{"id", device.id}, {"revoked", true}};
  });
  add(
      "POST", "/v1/tokens",
      [this](const HttpRequest& r) -> Result<json::value> {
        const json::object body = RETORT_TRY(body_of(r, {"kind", "name", "uses", "expires_seconds"}));
        const std::string kind = RETORT_TRY(json_string(body, "kind", "request body"));
        std::int64_t uses = kind == "enrolment" ? 1 : -1;
        if (json_has(body, "uses"))
          uses = static_cast<std::int64_t>(RETORT_TRY(json_uint(body, "uses", "request body", 1u << 30)));
        if (kind == "operator" && uses != -1)
          return fail(ErrorCode::kInvalid, "request body", "'uses' goes with enrolment tokens only");
        UnixMillis expires = 0;
        if (json_has(body, "expires_seconds"))
          expires = p_.clock.unix_millis() +
                    static_cast<UnixMillis>(
                        RETORT_TRY(json_uint(body, "expires_seconds", "request body", 1ull << 32)) * 1000);
        const Tokens::Made made =
            RETORT_TRY(p_.tokens.create(kind, RETORT_TRY(optional_text(body, "name")), uses, expires));
        json::object out = to_json(made.record);
        out["token"] =
            kind == "enrolment" ? "retort-enrol:" + p_.server_key + ":" + made.secret : made.secret;
        return json::value(std::move(out));
      },
      201);
  add("GET", "/v1/tokens", [this](const HttpRequest&) -> Result<json::value> {
    return list_of(RETORT_TRY(p_.tokens.all()), [](const TokenRecord& t) { return to_json(t); });
  });
  add("DELETE", "/v1/tokens/{id}", [this](const HttpRequest& r) -> Result<json::value> {
    RETORT_TRY(p_.tokens.revoke(r.parameters.at("id")));
    return json::object{{"id", r.parameters.at("id")}, {"revoked", true}};
  });
  add("GET", "/v1/telemetry", [this](const HttpRequest& r) -> Result<json::value> {
    const auto query = [&](const char* name) {
      const auto found = r.query.find(name);
      return found == r.query.end() ? std::string() : found->second;
    };
    std::string device = query("device");
    if (!device.empty()) device = RETORT_TRY(p_.fleet.find(device)).id;
    const UnixMillis since = std::strtoll(query("since").c_str(), nullptr, 10);
    const auto rows = RETORT_TRY(p_.telemetry.query(device, query("metric"), since, 10000));
    return list_of(rows, [](const TelemetryStore::Row& row) {
      return json::object{{"time", row.point.time},
                          {"device", row.device},
                          {"metric", row.point.metric},
                          {"value", row.point.value}};
    });
  });
}

Result<json::value> Api::submit_job(const HttpRequest& request) {
  const json::object body = RETORT_TRY(body_of(request, {"recipe", "class", "name", "assign"}));
  std::string recipe = RETORT_TRY(json_string(body, "recipe", "request body"));
  if (recipe.size() > 1 << 20) return fail(ErrorCode::kInvalid, "recipe", "larger than 1 MiB");
  JobRecord job;
  job.name = RETORT_TRY(optional_text(body, "name"));
  job.device_class = RETORT_TRY(optional_text(body, "class"));
  job.assign = json_has(body, "assign") && RETORT_TRY(json_bool(body, "assign", "request body"));
  if (!job.device_class.empty() && p_.fleet.classes().count(job.device_class) == 0)
    return fail(ErrorCode::kNotFound, "", "there is no class '{}'", job.device_class);
  // The recipe names what the coordinator keeps: "teacher: {id: X}" and "{dataset: X}" become paths.
  // Everything else in it is the worker's to judge.
  const auto quoted = [](const std::filesystem::path& path) {
    return json::serialize(json::string(path.string()));
  };
  recipe =
      RETORT_TRY(replace_member(recipe, "teacher:", "id", [&](const std::string& id) -> Result<std::string> {
        const TeacherRecord teacher = RETORT_TRY(p_.catalog.find_teacher(id));
        job.teacher = teacher.id;
        return "model: " + quoted(p_.catalog.teacher_folder(teacher.id));
      }));
  recipe =
      RETORT_TRY(replace_member(recipe, "", "dataset", [&](const std::string& id) -> Result<std::string> {
        return "file: " + quoted(p_.catalog.dataset_file(RETORT_TRY(p_.catalog.find_dataset(id)).id));
      }));
  return json::value(job_json(RETORT_TRY(p_.jobs.submit(std::move(job), recipe)), false));
}

Result<json::value> Api::tailor(const HttpRequest& request) {
  const std::string where = "request body";
  const json::object body = RETORT_TRY(
      body_of(request, {"teacher", "classes", "train", "held_out", "tokens", "dry_run", "assign"}));
  const TeacherRecord teacher =
      RETORT_TRY(p_.catalog.find_teacher(RETORT_TRY(json_string(body, "teacher", where))));
  const DatasetRecord train =
      RETORT_TRY(p_.catalog.find_dataset(RETORT_TRY(json_string(body, "train", where))));
  const DatasetRecord held_out =
      RETORT_TRY(p_.catalog.find_dataset(RETORT_TRY(json_string(body, "held_out", where))));
  if (train.id == held_out.id)
    return fail(
        ErrorCode::kInvalid, where,
        "'train' and 'held_out' are the same dataset: a student must not be judged on what it learnt from");
  std::uint64_t tokens = 300000;
  if (json_has(body, "tokens")) tokens = RETORT_TRY(json_uint(body, "tokens", where, 1ull << 40));
  if (tokens == 0) return fail(ErrorCode::kInvalid, where, "'tokens' must be at least 1");
  const bool dry_run = json_has(body, "dry_run") && RETORT_TRY(json_bool(body, "dry_run", where));
  const bool assign = !json_has(body, "assign") || RETORT_TRY(json_bool(body, "assign", where));
  const GgufFile gguf = RETORT_TRY(GgufFile::open(p_.catalog.teacher_gguf(teacher.id)));
  const ModelConfig config = RETORT_TRY(read_gguf_config(gguf));
  // All plans before the first job: either every class gets one, or the request changes nothing.
  struct Planned {
    JobRecord job;
    std::string recipe;
    json::object shown;
  };
  std::vector<Planned> planned;
  const json::array& classes = *RETORT_TRY(json_array(body, "classes", where));
  if (classes.empty()) return fail(ErrorCode::kInvalid, where, "'classes' names no class");
  for (const json::value& entry : classes) {
    if (!entry.is_string()) return fail(ErrorCode::kInvalid, where, "'classes' must hold names");
    const std::string name(entry.get_string());
    const auto found = p_.fleet.classes().find(name);
    if (found == p_.fleet.classes().end())
      return fail(ErrorCode::kNotFound, "", "there is no class '{}'", name);
    double bandwidth = 0;
    for (const auto& [id, device] : p_.fleet.devices())
      if (device.desired.device_class == name && device.profile.memory_bandwidth_bytes_per_second > 0)
        bandwidth = bandwidth == 0 ? device.profile.memory_bandwidth_bytes_per_second
                                   : std::min(bandwidth, device.profile.memory_bandwidth_bytes_per_second);
    const StudentPlan plan = RETORT_TRY(plan_student(config, gguf.header_length(), found->second, bandwidth));
    RecipeInputs inputs;
    inputs.teacher_folder = p_.catalog.teacher_folder(teacher.id).string();
    inputs.train_file = p_.catalog.dataset_file(train.id).string();
    inputs.held_out_file = p_.catalog.dataset_file(held_out.id).string();
    inputs.tokens = tokens;
    std::string base = teacher.name.empty() ? teacher.id.substr(0, 8) : teacher.name;
    for (char& c : base)
      if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_') c = '-';
    inputs.base_name =
        fmt::format("{}-{:.1f}M-{}-v0.1", base, static_cast<double>(plan.parameters) / 1e6, name);
    Planned one;
    one.job.name = "tailor " + name;
    one.job.device_class = name;
    one.job.teacher = teacher.id;
    one.job.assign = assign;
    json::object shown = retort::to_json(plan);
    shown["tokens"] = tokens;
    one.job.plan_json = json::serialize(shown);
    one.recipe = write_recipe(config, plan, inputs);
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
      jobs.push_back(job_json(RETORT_TRY(p_.jobs.submit(std::move(one.job), one.recipe)), false));
  }
  return json::object{{"jobs", std::move(jobs)}, {"dry_run", dry_run}};
}

std::string Api::metrics() const {
  std::string out;
  const auto single = [&](const char* name, const char* type, const char* help, double value) {
    out += fmt::format("# HELP {0} {2}\n# TYPE {0} {1}\n{0} {3}\n", name, type, help, value);
  };
  const FleetCounters& c = p_.fleet.counters();
  single("retort_devices", "gauge", "Enrolled devices.", static_cast<double>(p_.fleet.devices().size()));
  single("retort_devices_online", "gauge", "Devices with a live session.",
         static_cast<double>(p_.fleet.online_count()));
  single("retort_fleet_frames_total", "counter", "Frames received.", static_cast<double>(c.frames));
  single("retort_fleet_garbage_frames_total", "counter", "Frames that could not be read.",
         static_cast<double>(c.garbage));
  single("retort_fleet_duplicates_total", "counter", "Messages seen before.",
         static_cast<double>(c.duplicates));
  single("retort_fleet_refused_total", "counter", "Enrolments and sessions refused.",
         static_cast<double>(c.refused));
  single("retort_fleet_chunk_bytes_total", "counter", "Artifact bytes sent.",
         static_cast<double>(c.chunk_bytes));
  single("retort_telemetry_points_total", "counter", "Telemetry points stored.",
         static_cast<double>(c.telemetry_points));
  std::map<std::string, int> states;
  for (const auto& [id, job] : p_.jobs.all()) ++states[job.state];
  out += "# HELP retort_jobs Jobs by state.\n# TYPE retort_jobs gauge\n";
  for (const auto& [state, count] : states)
    out += fmt::format("retort_jobs{{state=\"{}\"}} {}\n", state, count);
  out += "# HELP retort_http_answers_total Answers by status.\n# TYPE retort_http_answers_total counter\n";
  for (const auto& [status, count] : answered_)
    out += fmt::format("retort_http_answers_total{{code=\"{}\"}} {}\n", status, count);
  return out;
}

}  // namespace retort
