#include "coordinator/api/routes.h"

namespace retort {

void add_telemetry_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add({.method = "GET",
           .path = "/v1/telemetry",
           .id = "listTelemetry",
           .noun = "telemetry",
           .scope = Scope::kViewer,
           .summary = "What devices measured, by device, metric and time",
           .query = page_parameters({{"device", schema::text("id or name")},
                                     {"metric", schema::text()},
                                     {"since", schema::integer("milliseconds since 1970")}},
                                    10000),
           .response = schema::page(schema::object({{"time", schema::integer("milliseconds since 1970")},
                                                    {"device", schema::text("id")},
                                                    {"metric", schema::text()},
                                                    {"value", schema::number()}}))},
          [&p](const Call& call) -> Result<json::value> {
            const PageQuery query = RETORT_TRY(page_query(call));
            std::string device = call.query("device");
            if (!device.empty()) device = RETORT_TRY(p.fleet.find(device)).id;
            const UnixMillis since = std::strtoll(call.query("since").c_str(), nullptr, 10);
            const auto rows =
                RETORT_TRY(p.telemetry.query(device, call.query("metric"), since, query.limit, query.after));
            json::array items;
            for (const TelemetryStore::Row& row : rows)
              items.push_back(json::object{{"time", row.point.time},
                                           {"device", row.device},
                                           {"metric", row.point.metric},
                                           {"value", row.point.value}});
            json::value next = nullptr;
            if (rows.size() == query.limit) next = cursor_of(TelemetryStore::key_of(rows.back()));
            return json::value(json::object{{"items", std::move(items)}, {"next", std::move(next)}});
          });
}

}  // namespace retort
