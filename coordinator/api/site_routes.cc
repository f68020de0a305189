#include "coordinator/api/routes.h"

namespace retort {
namespace {

using schema::Presence;

constexpr std::size_t kMaxMirrors = 8, kMaxUrlBytes = 512;
constexpr std::uint64_t kLeastRate = 1024;

json::object site_json(const Site& site) {
  return {{"name", site.name},
          {"mirrors", to_json(site.mirrors)},
          {"bytes_per_second", site.bytes_per_second},
          {"transfers", site.transfers}};
}

json::object mirrors_schema() {
  return schema::list(schema::text("http:// or https://", kMaxUrlBytes),
                      "servers near the site that have artifacts too, as URL/<first two>/<sha256>; the first "
                      "is asked first");
}

json::object rate_schema() {
  return schema::count("bytes of artifacts that the coordinator sends to all of the site; 0: no limit",
                       1ull << 40);
}
json::object transfers_schema() {
  return schema::count("devices of the site that it sends to at a time; 0: no limit", 1'000'000);
}

json::object site_schema() {
  return schema::object(
      {{"name", schema::text("value of its devices' label \"site\"; default: of those that have none")},
       {"mirrors", mirrors_schema()},
       {"bytes_per_second", rate_schema()},
       {"transfers", transfers_schema()}});
}

/// "http://HOST:PORT/PATH" or https, where :PORT and /PATH may be missing.
bool is_mirror_address(std::string_view url) {
  const std::size_t scheme = url.starts_with("http://") ? 7 : url.starts_with("https://") ? 8 : 0;
  if (scheme == 0 || url.find_first_of(" \t\r\n?#@") != std::string_view::npos) return false;
  const std::string_view server = url.substr(scheme, url.find('/', scheme) - scheme);
  const std::size_t bracket = server.find(']');  // of an IPv6 address
  const std::size_t colon = server.find(':', bracket == std::string_view::npos ? 0 : bracket);
  const std::string_view host = server.substr(0, colon);
  const std::string_view port = colon == std::string_view::npos ? "80" : server.substr(colon + 1);
  return !host.empty() && !port.empty() && port.find_first_not_of("0123456789") == std::string_view::npos;
}

Result<Site> site_of_request(const std::string& name, const json::object& body) {
  Site site;
  site.name = name;
  RETORT_TRY(check_name(site.name, "a site"));
  if (json_has(body, "mirrors"))
    for (const json::value& mirror : *RETORT_TRY(json_array(body, "mirrors", kRequestBody))) {
      std::string url(mirror.get_string());
      while (url.ends_with('/')) url.pop_back();
      if (!is_mirror_address(url))
        return fail(ErrorCode::kInvalid, kRequestBody,
                    "'{}' is not a mirror's address: http://HOST:PORT/PATH or https://…, without user, query "
                    "and fragment",
                    url);
      site.mirrors.push_back(std::move(url));
    }
  if (json_has(body, "bytes_per_second"))
    site.bytes_per_second = RETORT_TRY(json_uint(body, "bytes_per_second", kRequestBody));
  if (site.bytes_per_second != 0 && site.bytes_per_second < kLeastRate)
    return fail(ErrorCode::kInvalid, kRequestBody, "'bytes_per_second' is at least {}, or 0 for no limit",
                kLeastRate);
  if (json_has(body, "transfers"))
    site.transfers = static_cast<std::uint32_t>(RETORT_TRY(json_uint(body, "transfers", kRequestBody)));
  if (site.mirrors.size() > kMaxMirrors)
    return fail(ErrorCode::kInvalid, kRequestBody, "a site has at most {} mirrors", kMaxMirrors);
  return site;
}

}  // namespace

void add_site_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add({.method = "GET",
           .path = "/v1/sites",
           .id = "listSites",
           .noun = "sites",
           .scope = Scope::kViewer,
           .summary = "Sites of devices",
           .query = page_parameters(),
           .response = schema::page(site_schema())},
          [&p](const Call& call) -> Result<json::value> {
            return page_of(
                call, p.fleet.sites(), [](const auto& entry) { return entry.first; },
                [](const auto&) { return true; }, [](const auto& entry) { return site_json(entry.second); });
          });
  api.add({.method = "GET",
           .path = "/v1/sites/{name}",
           .id = "getSite",
           .noun = "sites",
           .scope = Scope::kViewer,
           .summary = "One site",
           .response = site_schema()},
          [&p](const Call& call) -> Result<json::value> {
            const auto found = p.fleet.sites().find(call.parameter("name"));
            if (found == p.fleet.sites().end())
              return fail(ErrorCode::kNotFound, "", "there is no site '{}'", call.parameter("name"));
            return json::value(site_json(found->second));
          });
  api.add({.method = "PUT",
           .path = "/v1/sites/{name}",
           .id = "setSite",
           .noun = "sites",
           .scope = Scope::kOperator,
           .summary = "Makes a site or changes it; its devices are told at once",
           .request = schema::object({{"name", schema::text("ignored: the path has it"), Presence::kOptional},
                                      {"mirrors", mirrors_schema(), Presence::kOptional},
                                      {"bytes_per_second", rate_schema(), Presence::kOptional},
                                      {"transfers", transfers_schema(), Presence::kOptional}}),
           .response = site_schema()},
          [&p](const Call& call) -> Result<json::value> {
            Site site = RETORT_TRY(site_of_request(call.parameter("name"), call.body));
            return json::value(site_json(RETORT_TRY(p.fleet.set_site(std::move(site)))));
          });
  api.add({.method = "DELETE",
           .path = "/v1/sites/{name}",
           .id = "removeSite",
           .noun = "sites",
           .scope = Scope::kOperator,
           .summary = "Forgets a site: its devices go on as those of one that was never set",
           .response = schema::object({{"name", schema::text()}, {"removed", schema::boolean()}})},
          [&p](const Call& call) -> Result<json::value> {
            RETORT_TRY(p.fleet.remove_site(call.parameter("name")));
            return json::object{{"name", call.parameter("name")}, {"removed", true}};
          });
}

}  // namespace retort
