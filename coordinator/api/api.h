#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/core/json.h"
#include "common/http/http.h"
#include "coordinator/api/tokens.h"
#include "coordinator/catalog/catalog.h"
#include "coordinator/catalog/teacher_serve.h"
#include "coordinator/fleet/fleet.h"
#include "coordinator/jobs/jobs.h"

namespace retort {

/// All that the REST interface speaks about.
struct ApiParts {
  boost::asio::io_context& reactor;
  boost::asio::thread_pool& pool;
  Store& store;
  Catalog& catalog;
  ArtifactStore& artifacts;
  Fleet& fleet;
  Jobs& jobs;
  Tokens& tokens;
  TelemetryStore& telemetry;
  TeacherServe& teacher_serve;
  const Clock& clock;
  std::string server_key, version;
};

struct QueryParameter {
  const char* name;
  json::object schema;  ///< with its description
};

/// One entry of the table of routes: what dispatches, and what is told about it.
struct ApiOperation {
  std::string method, path;  ///< "POST", "/v1/classes/{name}/assign"
  std::string id, noun;      ///< "assignClass", "classes"
  std::string summary;
  std::vector<QueryParameter> query = {};
  json::object request = {};   ///< JSON Schema (coordinator/api/schema.h) of the body; empty: it has none
  json::object response = {};  ///< of the answer's body; empty: it is not JSON
  int status = 200;            ///< of success
  bool open = false;           ///< answers without a token
};

/// A request that was let in.
struct Call {
  HttpRequest request;
  json::object body;  ///< checked against the operation's schema; empty when that has none

  const std::string& parameter(const char* name) const { return request.parameters.at(name); }
  /// "" when it is not there.
  std::string query(const char* name) const;
};

/// The REST interface of docs/rest.md: bearer tokens, JSON, errors as RFC 9457 problem documents. The files
/// *_routes.cc add what it can do, a noun a file. Thread: reactor; slow operations run on the pool and are
/// answered from there.
class Api {
 public:
  using Reply = std::shared_ptr<HttpResponder>;
  using Handler = std::function<Result<json::value>(const Call&)>;

  explicit Api(ApiParts parts);
  void handle(HttpRequest request, Reply responder);

  void add(ApiOperation operation, Handler work);
  /// The same where the work is slow: it runs on the pool.
  void add_slow(ApiOperation operation, Handler work);
  /// For answers that are not JSON; `work` answers or calls problem().
  void add_raw(ApiOperation operation, std::function<void(const Call&, const Reply&)> work);
  /// `status` 0: the one that goes with the error's code.
  void problem(HttpResponder& responder, const Error& error, int status = 0, HttpHeaders headers = {});
  const std::map<int, std::uint64_t>& answered() const { return answered_; }

 private:
  void add_route(ApiOperation operation, std::function<void(Call, const Reply&)> work);
  void answer(HttpResponder& responder, const Result<json::value>& value, int status);

  ApiParts p_;
  std::vector<std::shared_ptr<const ApiOperation>> operations_;
  HttpRouter router_;
  std::map<int, std::uint64_t> answered_;
};

}  // namespace retort
