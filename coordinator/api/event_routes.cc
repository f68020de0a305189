#include "coordinator/api/routes.h"

namespace retort {

void add_event_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add_raw(
      {.method = "GET",
       .path = "/v1/events",
       .id = "watchEvents",
       .noun = "events",
       .scope = Scope::kViewer,
       .summary = "What changes, as server-sent events; Last-Event-ID resumes",
       .query = {{"kinds", schema::text("device, job, rollout, joined by commas; all unless said", 256)}}},
      [&api, &p](const Call& call, const Api::Reply& responder) {
        if (p.events.full())
          return api.problem(*responder,
                             {ErrorCode::kUnavailable, "too many watch already; come back later", ""});
        std::set<std::string> kinds;
        const std::string given = call.query("kinds");
        for (std::string_view rest = given; !rest.empty();) {
          const std::size_t end = std::min(rest.find(','), rest.size());
          if (end > 0) kinds.emplace(rest.substr(0, end));
          rest.remove_prefix(std::min(end + 1, rest.size()));
        }
        p.events.watch(responder, std::move(kinds), call.request.header("last-event-id"));
      });
}

}  // namespace retort
