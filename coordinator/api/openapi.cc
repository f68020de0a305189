#include "coordinator/api/routes.h"

namespace retort {
namespace {

json::object problem_schema() {
  return schema::object({{"type", schema::text("URI reference of the kind of problem; it answers to a GET")},
                         {"title", schema::text()},
                         {"status", schema::integer()},
                         {"detail", schema::text("what is wrong, where, what to do")},
                         {"code", schema::text("what to do about it, as one of few words")}});
}

json::object header(const char* name, const char* description) {
  return {{"name", name}, {"in", "header"}, {"description", description}, {"schema", schema::text()}};
}

json::object content(const char* type, const json::object& of) {
  return {{type, json::object{{"schema", of}}}};
}

json::object describe(const ApiOperation& o) {
  json::array parameters;
  for (std::size_t at = 0; (at = o.path.find('{', at)) != std::string::npos; ++at)
    parameters.push_back(json::object{{"name", o.path.substr(at + 1, o.path.find('}', at) - at - 1)},
                                      {"in", "path"},
                                      {"required", true},
                                      {"schema", schema::text()}});
  for (const QueryParameter& q : o.query)
    parameters.push_back(json::object{{"name", q.name}, {"in", "query"}, {"schema", q.schema}});
  const bool one = o.path.find('}') != std::string::npos;
  if (o.method == "GET" && !o.response.empty())
    parameters.push_back(header("If-None-Match", "an ETag: 304 where it still is that"));
  if (o.method != "GET" && one)
    parameters.push_back(header("If-Match", "an ETag of its GET: 412 where it is another now"));
  if (o.method == "POST")
    parameters.push_back(header("Idempotency-Key", "the same request under the same key is done once"));
  json::object out{{"operationId", o.id}, {"tags", json::array{o.noun}}, {"summary", o.summary}};
  if (!parameters.empty()) out["parameters"] = std::move(parameters);
  if (!o.request.empty()) {
    // An operation all of whose members may be missing also does without a body.
    out["requestBody"] = json::object{{"required", o.request.contains("required")},
                                      {"content", content("application/json", o.request)}};
  }
  json::object success{{"description", o.summary}};
  if (!o.response.empty()) success["content"] = content("application/json", o.response);
  out["responses"] = json::object{{std::to_string(o.status), std::move(success)},
                                  {"default", json::object{{"$ref", "#/components/responses/Problem"}}}};
  out["security"] =
      o.scope == Scope::kOpen ? json::array{} : json::array{json::object{{"token", json::array{}}}};
  out["x-scope"] = to_string(o.scope);
  return out;
}

}  // namespace

json::object Api::openapi() const {
  json::object paths;
  for (const auto& operation : operations_) {
    std::string method = operation->method;
    for (char& c : method) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    json::value& path = paths[operation->path];
    if (!path.is_object()) path = json::object();
    path.get_object()[method] = describe(*operation);
  }
  return {{"openapi", "3.1.0"},
          {"info", json::object{{"title", "Retort coordinator"}, {"version", p_.version}}},
          {"paths", std::move(paths)},
          {"components",
           json::object{{"responses",
                         json::object{{"Problem", json::object{{"description", "RFC 9457 problem document"},
                                                               {"content", content("application/problem+json",
                                                                                   problem_schema())}}}}},
                        {"securitySchemes",
                         json::object{{"token", json::object{{"type", "http"}, {"scheme", "bearer"}}}}}}}};
}

}  // namespace retort
