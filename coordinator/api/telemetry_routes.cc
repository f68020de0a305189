#include "coordinator/api/routes.h"

namespace retort {

using schema::Presence;

void add_telemetry_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add(
      {.method = "GET",
       .path = "/v1/telemetry",
       .id = "listTelemetry",
       .noun = "telemetry",
       .scope = Scope::kViewer,
       .summary = "What devices measured, by device, metric and time",
       .query = page_parameters(
           {{"device", schema::text("id or name")},
            {"metric", schema::text()},
            {"since", schema::integer("milliseconds since 1970")},
            {"resolution",
             schema::choice({"raw", "minute", "hour"}, "minute, hour: means, with what they are of")}},
           10000),
       .response = schema::page(schema::object({{"time", schema::integer("milliseconds since 1970")},
                                                {"device", schema::text("id")},
                                                {"metric", schema::text()},
                                                {"value", schema::number()},
                                                {"count", schema::count("of points"), Presence::kOptional},
                                                {"least", schema::number(), Presence::kOptional},
                                                {"most", schema::number(), Presence::kOptional}}))},
      [&p](const Call& call) -> Result<json::value> {
        const PageQuery query = RETORT_TRY(page_query(call));
        std::string device = call.query("device");
        if (!device.empty()) device = RETORT_TRY(p.fleet.find(device)).id;
        const UnixMillis since = std::strtoll(call.query("since").c_str(), nullptr, 10);
        json::array items;
        json::value next = nullptr;
        if (const std::string resolution = call.query("resolution");
            !resolution.empty() && resolution != "raw") {
          const UnixMillis width = resolution == "hour" ? TelemetryStore::kHour : TelemetryStore::kMinute;
          const auto found = RETORT_TRY(
              p.telemetry.buckets(width, device, call.query("metric"), since, query.limit, query.after));
          for (const TelemetryStore::Bucket& bucket : found)
            items.push_back(json::object{{"time", bucket.start},
                                         {"device", bucket.device},
                                         {"metric", bucket.metric},
                                         {"value", bucket.sum.mean()},
                                         {"count", bucket.sum.count},
                                         {"least", bucket.sum.least},
                                         {"most", bucket.sum.most}});
          if (found.size() == query.limit) next = cursor_of(found.back().key);
          return json::value(json::object{{"items", std::move(items)}, {"next", std::move(next)}});
        }
        const auto rows =
            RETORT_TRY(p.telemetry.query(device, call.query("metric"), since, query.limit, query.after));
        for (const TelemetryStore::Row& row : rows)
          items.push_back(json::object{{"time", row.point.time},
                                       {"device", row.device},
                                       {"metric", row.point.metric},
                                       {"value", row.point.value}});
        if (rows.size() == query.limit) next = cursor_of(TelemetryStore::key_of(rows.back()));
        return json::value(json::object{{"items", std::move(items)}, {"next", std::move(next)}});
      });
}

}  // namespace retort
