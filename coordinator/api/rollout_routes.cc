#include <charconv>

#include "coordinator/api/routes.h"

namespace retort {
namespace {

using schema::Presence;

json::object track_json(const ApiParts& p, const RolloutRecord& record, const RolloutTrack& track,
                        std::size_t stages) {
  json::object devices;
  for (const char* state :
       {"holdout", "waiting", "told", "updated", "failed", "returning", "returned", "left"})
    devices[state] = 0;
  for (const auto& [id, member] : p.rollouts.members(record.id))
    if (member.device_class == track.device_class)
      devices[member.state] = devices[member.state].to_number<std::int64_t>() + 1;
  json::value gates = json::array();
  if (!track.gates_json.empty())
    if (Result<json::value> parsed = parse_json(track.gates_json, "gates")) gates = *parsed;
  return {{"class", track.device_class},
          {"artifact", track.artifact},
          {"before", or_null(track.before)},
          {"state", track.state},
          {"paused_from", or_null(track.paused_from)},
          {"reason", track.reason},
          {"stage", track.stage + 1},
          {"stages", stages},
          {"since", track.since},
          {"soak_until", or_null(track.soak_until)},
          {"in_force", track.in_force},
          {"gates", gates},
          {"devices", devices}};
}

json::object rollout_json(const ApiParts& p, const RolloutRecord& record) {
  json::object spec;
  if (const Result<json::value> parsed = parse_json(record.spec_json, "spec"); parsed && parsed->is_object())
    spec = parsed->get_object();
  const std::size_t stages = p.rollouts.spec(record.id).stages.size();
  json::array classes;
  for (const RolloutTrack& track : record.tracks) classes.push_back(track_json(p, record, track, stages));
  return {{"id", record.id},           {"name", record.name}, {"state", rollout_state(record)},
          {"created", record.created}, {"spec", spec},        {"classes", classes},
          {"events", record.events}};
}

json::object track_schema() {
  return schema::object(
      {{"class", schema::text()},
       {"artifact", schema::text("where the class goes to")},
       {"before", schema::nullable(schema::text("what it was to serve"))},
       {"state", schema::choice({"preparing", "rolling", "soaking", "paused", "rolling_back", "completed",
                                 "rolled_back", "aborted", "superseded"})},
       {"paused_from", schema::nullable(schema::text("the state that a pause interrupted"))},
       {"reason", schema::text("why it is in this state")},
       {"stage", schema::count("from 1")},
       {"stages", schema::count()},
       {"since", schema::integer("when it entered the state")},
       {"soak_until", schema::nullable(schema::integer("when the gates judge"))},
       {"in_force", schema::boolean("its devices serve the artifact whatever their class says")},
       {"gates",
        schema::list(
            schema::object({{"gate", schema::text()},
                            {"verdict", schema::choice({"pass", "fail", "insufficient", "not_measured"})},
                            {"text", schema::text("the figures")}}),
            "the last judgement")},
       {"devices", schema::map(schema::count(), "how many in each state")}});
}

json::object rollout_schema() {
  return schema::object(
      {{"id", schema::text()},
       {"name", schema::text()},
       {"state", schema::choice({"running", "paused", "completed", "rolled_back", "aborted", "superseded"})},
       {"created", schema::integer()},
       {"spec", schema::any_object("as it was asked for")},
       {"classes", schema::list(track_schema())},
       {"events", schema::count()}});
}

}  // namespace

json::object rollout_request_schema(bool with_classes) {
  std::vector<schema::Member> members{
      {"name", name_schema(), Presence::kOptional},
      {"stages", schema::list(schema::any_object("one of count, percent, labels; soak_seconds")),
       Presence::kOptional},
      {"holdout", schema::any_object("count or percent of each class's devices that stay"),
       Presence::kOptional},
      {"soak_seconds", schema::count(), Presence::kOptional},
      {"install_deadline_seconds", schema::count(), Presence::kOptional},
      {"silence_seconds", schema::count(), Presence::kOptional},
      {"sample_deadline_seconds", schema::count(), Presence::kOptional},
      {"deadline_seconds", schema::count("of a stage"), Presence::kOptional},
      {"windows", schema::list(schema::any_object("from, to, days, zone")), Presence::kOptional},
      {"gates", schema::any_object("by name; docs/rollouts.md"), Presence::kOptional},
      {"canary", schema::any_object("dataset, prompts"), Presence::kOptional},
      {"supersede", schema::boolean("end what is under way in these classes"), Presence::kOptional}};
  if (with_classes) members.push_back({"classes", schema::map(schema::text(), "class: artifact")});
  return schema::object(std::move(members));
}

void add_rollout_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add({.method = "POST",
           .path = "/v1/rollouts",
           .id = "createRollout",
           .noun = "rollouts",
           .scope = Scope::kOperator,
           .summary = "Brings artifacts to the devices of classes in stages",
           .request = rollout_request_schema(true),
           .response = rollout_schema(),
           .status = 201},
          [&p](const Call& call) -> Result<json::value> {
            return json::value(rollout_json(p, RETORT_TRY(p.rollouts.create(call.body))));
          });
  api.add({.method = "GET",
           .path = "/v1/rollouts",
           .id = "listRollouts",
           .noun = "rollouts",
           .scope = Scope::kViewer,
           .summary = "Rollouts, oldest first",
           .query = page_parameters({{"state", schema::text()}}),
           .response = schema::page(rollout_schema())},
          [&p](const Call& call) -> Result<json::value> {
            std::map<std::string, const RolloutRecord*> all;
            for (const auto& [id, record] : p.rollouts.all()) all[time_key(record.created, id)] = &record;
            return page_of(
                call, all, [](const auto& entry) -> const std::string& { return entry.first; },
                [&](const auto& entry) { return fits(call, "state", rollout_state(*entry.second)); },
                [&p](const auto& entry) { return rollout_json(p, *entry.second); });
          });
  api.add({.method = "GET",
           .path = "/v1/rollouts/{id}",
           .id = "getRollout",
           .noun = "rollouts",
           .scope = Scope::kViewer,
           .summary = "One rollout, with each class's stage, gates and counts of devices",
           .response = rollout_schema()},
          [&p](const Call& call) -> Result<json::value> {
            return json::value(rollout_json(p, RETORT_TRY(p.rollouts.find(call.parameter("id")))));
          });
  api.add({.method = "GET",
           .path = "/v1/rollouts/{id}/devices",
           .id = "listRolloutDevices",
           .noun = "rollouts",
           .scope = Scope::kViewer,
           .summary = "The devices that a rollout has chosen",
           .query = page_parameters({{"state", schema::text()}}),
           .response = schema::page(schema::object({{"device", schema::text("id")},
                                                    {"name", schema::text()},
                                                    {"class", schema::text()},
                                                    {"stage", schema::count("from 1, that chose it")},
                                                    {"state", schema::text()},
                                                    {"told", schema::nullable(schema::integer())},
                                                    {"settled", schema::nullable(schema::integer())},
                                                    {"error_code", schema::nullable(schema::text())},
                                                    {"error", schema::nullable(schema::text())},
                                                    {"canary_asked", schema::count()},
                                                    {"canary_agreed", schema::count()}}))},
          [&p](const Call& call) -> Result<json::value> {
            const RolloutRecord record = RETORT_TRY(p.rollouts.find(call.parameter("id")));
            return page_of(
                call, p.rollouts.members(record.id),
                [](const auto& entry) -> const std::string& { return entry.first; },
                [&](const auto& entry) { return fits(call, "state", entry.second.state); },
                [&p](const auto& entry) {
                  const RolloutMember& m = entry.second;
                  const auto device = p.fleet.devices().find(m.device);
                  return json::object{{"device", m.device},
                                      {"name", device == p.fleet.devices().end() ? "" : device->second.name},
                                      {"class", m.device_class},
                                      {"stage", m.stage + 1},
                                      {"state", m.state},
                                      {"told", or_null(m.told)},
                                      {"settled", or_null(m.settled)},
                                      {"error_code", or_null(m.error_code)},
                                      {"error", or_null(m.error)},
                                      {"canary_asked", m.canary_asked},
                                      {"canary_agreed", m.canary_agreed}};
                });
          });
  api.add({.method = "GET",
           .path = "/v1/rollouts/{id}/events",
           .id = "listRolloutEvents",
           .noun = "rollouts",
           .scope = Scope::kViewer,
           .summary = "What happened, in order; at most 1,000",
           .query = {{"after", schema::count("the sequence number of the last event that is known")}},
           .response = schema::page(schema::object({{"sequence", schema::count()},
                                                    {"time", schema::integer()},
                                                    {"class", schema::text()},
                                                    {"state", schema::text()},
                                                    {"text", schema::text()}}))},
          [&p](const Call& call) -> Result<json::value> {
            const RolloutRecord record = RETORT_TRY(p.rollouts.find(call.parameter("id")));
            std::uint64_t after = 0;
            const std::string given = call.query("after");
            const auto [end, bad] = std::from_chars(given.data(), given.data() + given.size(), after);
            if (!given.empty() && (bad != std::errc() || end != given.data() + given.size()))
              return fail(ErrorCode::kInvalid, "", "'after' is not a number");
            json::array items;
            for (const RolloutEvent& event : RETORT_TRY(p.rollouts.events(record.id, after, 1000)))
              items.push_back(json::object{{"sequence", event.sequence},
                                           {"time", event.time},
                                           {"class", event.device_class},
                                           {"state", event.state},
                                           {"text", event.text}});
            return json::object{{"items", std::move(items)}, {"next", nullptr}};
          });
  struct Verb {
    const char *path, *id, *summary;
    Rollouts::Order order;
  };
  for (const Verb verb :
       {Verb{"/v1/rollouts/{id}/pause", "pauseRollout", "Tells no further device", Rollouts::Order::kPause},
        Verb{"/v1/rollouts/{id}/resume", "resumeRollout", "Goes on; failed devices are told once more",
             Rollouts::Order::kResume},
        Verb{"/v1/rollouts/{id}/abort", "abortRollout", "Ends it; devices keep what they have",
             Rollouts::Order::kAbort},
        Verb{"/v1/rollouts/{id}/rollback", "rollBackRollout",
             "Brings its devices back to what their class serves", Rollouts::Order::kRollBack}}) {
    std::vector<schema::Member> members{
        {"class", schema::text("of this class only; all, where it is missing"), Presence::kOptional}};
    if (verb.order == Rollouts::Order::kResume)
      members.push_back(
          {"force", schema::boolean("go on to the next stage whatever the gates said"), Presence::kOptional});
    api.add({.method = "POST",
             .path = verb.path,
             .id = verb.id,
             .noun = "rollouts",
             .scope = Scope::kOperator,
             .summary = verb.summary,
             .request = schema::object(std::move(members)),
             .response = rollout_schema()},
            [&p, order = verb.order](const Call& call) -> Result<json::value> {
              const bool force =
                  json_has(call.body, "force") && RETORT_TRY(json_bool(call.body, "force", kRequestBody));
              return json::value(rollout_json(
                  p, RETORT_TRY(p.rollouts.order(call.parameter("id"),
                                                 force ? Rollouts::Order::kForceResume : order,
                                                 RETORT_TRY(optional_text(call.body, "class"))))));
            });
  }
}

}  // namespace retort
