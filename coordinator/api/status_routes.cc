#include "coordinator/api/routes.h"

namespace retort {
namespace {

std::string metrics(const Api& api, const ApiParts& p) {
  std::string out;
  const auto single = [&](const char* name, const char* type, const char* help, double value) {
    out += fmt::format("# HELP {0} {2}\n# TYPE {0} {1}\n{0} {3}\n", name, type, help, value);
  };
  const FleetCounters& c = p.fleet.counters();
  single("retort_devices", "gauge", "Enrolled devices.", static_cast<double>(p.fleet.devices().size()));
  single("retort_devices_online", "gauge", "Devices with a live session.",
         static_cast<double>(p.fleet.online_count()));
  single("retort_devices_silent_total", "counter", "Sessions that ended because the device was not heard.",
         static_cast<double>(c.silent));
  single("retort_devices_longest_silence_seconds", "gauge",
         "The longest that a device with a live session was not heard, since the start.",
         std::chrono::duration<double>(c.longest_silence).count());
  single("retort_fleet_frames_total", "counter", "Frames received.", static_cast<double>(c.frames));
  single("retort_fleet_garbage_frames_total", "counter", "Frames that could not be read.",
         static_cast<double>(c.garbage));
  single("retort_fleet_duplicates_total", "counter", "Messages seen before.",
         static_cast<double>(c.duplicates));
  single("retort_fleet_refused_total", "counter", "Enrolments and sessions refused.",
         static_cast<double>(c.refused));
  single("retort_fleet_chunk_bytes_total", "counter", "Artifact bytes sent.",
         static_cast<double>(c.chunk_bytes));
  single("retort_artifact_reads_total", "counter", "Reads of artifacts' files for devices.",
         static_cast<double>(p.fleet.artifact_reads()));
  single("retort_transfers_waiting", "gauge",
         "Devices that wait for their turn, by the limits of their site.",
         static_cast<double>(p.fleet.transfers_waiting()));
  single("retort_telemetry_points_total", "counter", "Telemetry points stored.",
         static_cast<double>(c.telemetry_points));
  std::map<std::string, int> states;
  for (const auto& [id, job] : p.jobs.all()) ++states[job.state];
  out += "# HELP retort_jobs Jobs by state.\n# TYPE retort_jobs gauge\n";
  for (const auto& [state, count] : states)
    out += fmt::format("retort_jobs{{state=\"{}\"}} {}\n", state, count);
  std::map<std::string, int> rollouts, members;
  for (const auto& [id, record] : p.rollouts.all()) {
    const std::string state = rollout_state(record);
    ++rollouts[state];
    if (state == "running" || state == "paused")
      for (const auto& [device, member] : p.rollouts.members(id)) ++members[member.state];
  }
  out += "# HELP retort_rollouts Rollouts by state.\n# TYPE retort_rollouts gauge\n";
  for (const auto& [state, count] : rollouts)
    out += fmt::format("retort_rollouts{{state=\"{}\"}} {}\n", state, count);
  out +=
      "# HELP retort_rollout_devices Devices of rollouts under way, by state.\n# TYPE retort_rollout_devices "
      "gauge\n";
  for (const auto& [state, count] : members)
    out += fmt::format("retort_rollout_devices{{state=\"{}\"}} {}\n", state, count);
  out += "# HELP retort_http_answers_total Answers by status.\n# TYPE retort_http_answers_total counter\n";
  for (const auto& [status, count] : api.answered())
    out += fmt::format("retort_http_answers_total{{code=\"{}\"}} {}\n", status, count);
  return out;
}

struct Problem {
  const char *type, *what;
};
/// What the "type" of a problem document stands for.
constexpr Problem kProblems[] = {
    {"invalid", "The request or a file in it can never work as given. The detail says where; mend it."},
    {"corrupt", "Bytes are not what they claim to be. Get the file again."},
    {"unsupported", "It is well-formed, but not something that is done here. The detail says what is."},
    {"not_found", "There is no such thing, or no such path."},
    {"conflict", "It exists already, is in use, or another request is at it. Look at it again."},
    {"unauthorized", "No token, or one that is wrong or expired. Give another."},
    {"denied", "The token is good, but its scope does not allow this. Ask an admin for another."},
    {"out_of_budget", "It does not fit: disk, memory, or a class's budget."},
    {"unavailable", "Not now. Try again after the seconds of Retry-After."},
    {"io", "The coordinator's operating system refused. The detail holds its reason."},
    {"cancelled", "Somebody asked it to stop."},
    {"internal", "A bug in the coordinator. Its log says more."},
    {"method_not_allowed", "The path exists, but not with this method. Allow says which there are."},
    {"precondition_failed",
     "If-Match or If-None-Match does not hold: somebody changed it. GET it, and try again."},
    {"rate_limited", "Too many requests. Wait for the seconds of Retry-After."},
    {"idempotency_mismatch",
     "The Idempotency-Key was used for another request. Take a new key for a new request."},
};

}  // namespace

void add_status_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add({.method = "GET",
           .path = "/health",
           .id = "getHealth",
           .noun = "status",
           .scope = Scope::kOpen,
           .summary = "Says that the coordinator answers; without a token",
           .response = schema::object({{"status", schema::choice({"ok"})}})},
          [](const Call&) -> Result<json::value> {
            return json::object{{"status", "ok"}};
          });
  api.add({.method = "GET",
           .path = "/v1/openapi.json",
           .id = "getOpenapi",
           .noun = "status",
           .scope = Scope::kOpen,
           .summary = "This document: OpenAPI 3.1 of the table that dispatches",
           .response = schema::any_object()},
          [&api](const Call&) -> Result<json::value> { return json::value(api.openapi()); });
  api.add({.method = "GET",
           .path = "/v1/problems/{type}",
           .id = "getProblem",
           .noun = "status",
           .scope = Scope::kOpen,
           .summary = "What the type of a problem document stands for",
           .response = schema::object({{"type", schema::text()}, {"description", schema::text()}})},
          [](const Call& call) -> Result<json::value> {
            for (const Problem& problem : kProblems)
              if (call.parameter("type") == problem.type)
                return json::value(json::object{{"type", "/v1/problems/" + std::string(problem.type)},
                                                {"description", problem.what}});
            return fail(ErrorCode::kNotFound, "", "there is no problem '{}'", call.parameter("type"));
          });
  api.add_raw({.method = "GET",
               .path = "/metrics",
               .id = "getMetrics",
               .noun = "status",
               .scope = Scope::kViewer,
               .summary = "Prometheus text"},
              [&api, &p](const Call&, const Api::Reply& responder) {
                responder->send(200, "text/plain; version=0.0.4", metrics(api, p));
              });
  api.add(
      {.method = "GET",
       .path = "/v1/status",
       .id = "getStatus",
       .noun = "status",
       .scope = Scope::kViewer,
       .summary = "The coordinator and its fleet in short",
       .response = schema::object(
           {{"version", schema::text()},
            {"uptime_seconds", schema::count()},
            {"devices", schema::object({{"total", schema::count()}, {"online", schema::count()}})},
            {"jobs", schema::map(schema::count(), "how many in each state")},
            {"teacher_serve", schema::nullable(schema::object({{"teacher", schema::text("id")},
                                                               {"url", schema::nullable(schema::text())},
                                                               {"state", schema::text()}}))},
            {"fleet_endpoint", schema::text("for agents")},
            {"server_key", schema::text("the coordinator's public key on the fleet link, Z85")}})},
      [&p, started = p.clock.unix_millis()](const Call&) -> Result<json::value> {
        json::object jobs{{"queued", 0}, {"running", 0}, {"succeeded", 0}, {"failed", 0}, {"cancelled", 0}};
        for (const auto& [id, job] : p.jobs.all())
          jobs[job.state] = jobs[job.state].to_number<std::int64_t>() + 1;
        json::value serve = nullptr;
        if (!p.teacher_serve.teacher().empty())
          serve = json::object{{"teacher", p.teacher_serve.teacher()},
                               {"url", or_null(p.teacher_serve.url())},
                               {"state", p.teacher_serve.state()}};
        return json::object{{"version", p.version},
                            {"uptime_seconds", (p.clock.unix_millis() - started) / 1000},
                            {"devices", json::object{{"total", p.fleet.devices().size()},
                                                     {"online", p.fleet.online_count()}}},
                            {"jobs", jobs},
                            {"teacher_serve", serve},
                            {"fleet_endpoint", p.fleet.endpoint()},
                            {"server_key", p.server_key}};
      });
}

}  // namespace retort
