#include <algorithm>
#include <array>

#include "coordinator/api/routes.h"

namespace retort {
namespace {

constexpr std::array<std::string_view, 3> kKinds = {"device", "job", "rollout"};

}  // namespace

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
          const std::string kind(rest.substr(0, end));
          if (!kind.empty() && std::find(kKinds.begin(), kKinds.end(), kind) == kKinds.end())
            return api.problem(*responder,
                               {ErrorCode::kInvalid,
                                fmt::format("'{}' is no kind of event; device, job and rollout are", kind),
                                "query, 'kinds'"});
          if (!kind.empty()) kinds.insert(kind);
          rest.remove_prefix(std::min(end + 1, rest.size()));
        }
        p.events.watch(responder, std::move(kinds), call.request.header("last-event-id"));
      });
}

}  // namespace retort
