#include "coordinator/api/routes.h"

namespace retort {

void add_telemetry_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add({.method = "GET",
           .path = "/v1/telemetry",
           .id = "listTelemetry",
           .noun = "telemetry",
           .summary = "What devices measured: at most 10,000 points",
           .query = {{"device", schema::text("id or name")},
                     {"metric", schema::text()},
                     {"since", schema::integer("milliseconds since 1970")}},
           .response = schema::page(schema::object({{"time", schema::integer("milliseconds since 1970")},
                                                    {"device", schema::text("id")},
                                                    {"metric", schema::text()},
                                                    {"value", schema::number()}}))},
          [&p](const Call& call) -> Result<json::value> {
            std::string device = call.query("device");
            if (!device.empty()) device = RETORT_TRY(p.fleet.find(device)).id;
            const UnixMillis since = std::strtoll(call.query("since").c_str(), nullptr, 10);
            const auto rows = RETORT_TRY(p.telemetry.query(device, call.query("metric"), since, 10000));
            return list_of(rows, [](const TelemetryStore::Row& row) {
              return json::object{{"time", row.point.time},
                                  {"device", row.device},
                                  {"metric", row.point.metric},
                                  {"value", row.point.value}};
            });
          });
}

}  // namespace retort
