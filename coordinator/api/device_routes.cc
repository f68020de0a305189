#include "coordinator/api/routes.h"

namespace retort {
namespace {

json::object device_json(const DeviceRecord& d, bool online) {
  const DeviceProfile& p = d.profile;
  const DeviceStatus& s = d.status;
  return {{"id", d.id},
          {"name", d.name},
          {"class", or_null(d.desired.device_class)},
          {"online", online},
          {"revoked", d.revoked},
          {"pending", d.pending},
          {"public_key", d.public_key},
          {"token", or_null(d.token)},
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
                                   {"decode", retort::to_json(p.decode)},
                                   {"agent_version", p.agent_version}}}};
}

json::object device_schema() {
  using schema::count, schema::integer, schema::number, schema::nullable, schema::text;
  return schema::object(
      {{"id", text()},
       {"name", text()},
       {"class", nullable(text("that it falls into"))},
       {"online", schema::boolean("it has a session")},
       {"revoked", schema::boolean()},
       {"pending", schema::boolean("it waits for an accept")},
       {"public_key", text("CURVE, Z85")},
       {"token", nullable(text("id of the one it enrolled with"))},
       {"enrolled", integer("milliseconds since 1970")},
       {"last_seen", nullable(integer("milliseconds since 1970"))},
       {"desired", schema::object({{"generation", count()}, {"artifact", nullable(text("SHA-256"))}})},
       {"actual", schema::object({{"state", text("of the agent")},
                                  {"generation", count("that the agent works on or has reached")},
                                  {"artifact", nullable(text("SHA-256 of what it serves"))},
                                  {"serve_url", nullable(text())},
                                  {"error_code", nullable(text())},
                                  {"error", nullable(text())},
                                  {"bytes_done", count()},
                                  {"bytes_total", count()}})},
       {"telemetry_dropped", count("batches that did not fit its spool")},
       {"profile",
        schema::object({{"hostname", text()},
                        {"architecture", text()},
                        {"cpu_model", text()},
                        {"isa_features", schema::list(text())},
                        {"cores", count()},
                        {"cpu_allowance", number("cores' worth of time")},
                        {"memory_bytes", count()},
                        {"memory_budget_bytes", count()},
                        {"disk_free_bytes", count()},
                        {"memory_bandwidth_bytes_per_second", number()},
                        {"matvec_f32_flops", number()},
                        {"matvec_q8_0_ops", number()},
                        {"accelerators", schema::list(text())},
                        {"energy_meter", nullable(text())},
                        {"budget_source", text()},
                        {"labels", schema::map(text())},
                        {"notes", schema::list(text())},
                        {"decode", schema::list(schema::any_object(
                                       "a model's shape, and the seconds of a token that it writes"))},
                        {"agent_version", text()}})}});
}

}  // namespace

void add_device_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add({.method = "GET",
           .path = "/v1/devices",
           .id = "listDevices",
           .noun = "devices",
           .scope = Scope::kViewer,
           .summary = "The fleet",
           .query = page_parameters({labels_parameter(),
                                     {"class", schema::text("class= (empty): those of none")},
                                     {"state", schema::text("of the agent: serving, …")},
                                     {"artifact", schema::text("SHA-256 of what it serves")},
                                     {"name", schema::text()},
                                     {"online", schema::boolean()},
                                     {"revoked", schema::boolean("revoked, or rejected")},
                                     {"pending", schema::boolean("those that wait for an accept")}}),
           .response = schema::page(device_schema())},
          [&p](const Call& call) -> Result<json::value> {
            return page_of(
                call, p.fleet.devices(), [](const auto& entry) { return entry.first; },
                [&](const auto& entry) {
                  const DeviceRecord& d = entry.second;
                  return fits(call, "class", d.desired.device_class) && fits(call, "state", d.status.state) &&
                         fits(call, "artifact", d.status.artifact) && fits(call, "name", d.name) &&
                         fits(call, "revoked", d.revoked) && fits(call, "pending", d.pending) &&
                         fits(call, "online", p.fleet.online(d.id)) && fits_labels(call, d.profile.labels);
                },
                [&p](const auto& entry) { return device_json(entry.second, p.fleet.online(entry.first)); });
          });
  api.add({.method = "GET",
           .path = "/v1/devices/{id}",
           .id = "getDevice",
           .noun = "devices",
           .scope = Scope::kViewer,
           .summary = "One device: profile, class, desired and actual state",
           .response = device_schema()},
          [&p](const Call& call) -> Result<json::value> {
            const DeviceRecord device = RETORT_TRY(p.fleet.find(call.parameter("id")));
            return json::value(device_json(device, p.fleet.online(device.id)));
          });
  api.add({.method = "DELETE",
           .path = "/v1/devices/{id}",
           .id = "revokeDevice",
           .noun = "devices",
           .scope = Scope::kOperator,
           .summary = "Revokes it: its session ends, its key is refused from now on",
           .response = schema::object({{"id", schema::text()}, {"revoked", schema::boolean()}})},
          [&p](const Call& call) -> Result<json::value> {
            const DeviceRecord device = RETORT_TRY(p.fleet.find(call.parameter("id")));
            RETORT_TRY(p.fleet.revoke(device.id));
            return json::object{{"id", device.id}, {"revoked", true}};
          });
  api.add({.method = "POST",
           .path = "/v1/devices/{id}/accept",
           .id = "acceptDevice",
           .noun = "devices",
           .scope = Scope::kOperator,
           .summary = "Lets a device in that waits (its token was made with manual)",
           .response = device_schema()},
          [&p](const Call& call) -> Result<json::value> {
            const DeviceRecord device = RETORT_TRY(p.fleet.find(call.parameter("id")));
            RETORT_TRY(p.fleet.accept(device.id));
            return json::value(device_json(RETORT_TRY(p.fleet.find(device.id)), p.fleet.online(device.id)));
          });
  api.add({.method = "POST",
           .path = "/v1/devices/{id}/reject",
           .id = "rejectDevice",
           .noun = "devices",
           .scope = Scope::kOperator,
           .summary = "Keeps a device out that waits: its key is refused from now on",
           .response = schema::object({{"id", schema::text()}, {"revoked", schema::boolean()}})},
          [&p](const Call& call) -> Result<json::value> {
            const DeviceRecord device = RETORT_TRY(p.fleet.find(call.parameter("id")));
            if (!device.pending)
              return fail(ErrorCode::kConflict, "", "{} does not wait; DELETE revokes a device", device.id);
            RETORT_TRY(p.fleet.revoke(device.id));
            return json::object{{"id", device.id}, {"revoked", true}};
          });
  api.add({.method = "POST",
           .path = "/v1/devices/{id}/forget",
           .id = "forgetDevice",
           .noun = "devices",
           .scope = Scope::kOperator,
           .summary = "Removes all that is kept of a revoked device; with a token it may enrol anew",
           .response = schema::object({{"id", schema::text()}, {"forgotten", schema::boolean()}})},
          [&p](const Call& call) -> Result<json::value> {
            const DeviceRecord device = RETORT_TRY(p.fleet.find(call.parameter("id")));
            RETORT_TRY(p.fleet.forget(device.id));
            return json::object{{"id", device.id}, {"forgotten", true}};
          });
  api.add({.method = "POST",
           .path = "/v1/devices/{id}/rotate",
           .id = "rotateDeviceKey",
           .noun = "devices",
           .scope = Scope::kOperator,
           .summary = "Has the device make itself a new key, now or when it is there again",
           .response = schema::object({{"id", schema::text()}, {"rotate_key", schema::boolean()}})},
          [&p](const Call& call) -> Result<json::value> {
            const DeviceRecord device = RETORT_TRY(p.fleet.find(call.parameter("id")));
            RETORT_TRY(p.fleet.rotate_key(device.id));
            return json::object{{"id", device.id}, {"rotate_key", true}};
          });
}

}  // namespace retort
