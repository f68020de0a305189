#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/core/json.h"
#include "common/http/http.h"
#include "coordinator/api/events.h"
#include "coordinator/api/rate_limit.h"
#include "coordinator/api/tokens.h"
#include "coordinator/catalog/catalog.h"
#include "coordinator/catalog/teacher_serve.h"
#include "coordinator/fleet/fleet.h"
#include "coordinator/jobs/jobs.h"
#include "coordinator/rollout/rollouts.h"
#include "coordinator/state/audit.h"

namespace retort {

/// All that the REST interface speaks about.
struct ApiParts {
  boost::asio::io_context& reactor;
  boost::asio::thread_pool& pool;
  Store& store;
  Catalog& catalog;
  ArtifactStore& artifacts;
  Fleet& fleet;
  Rollouts& rollouts;
  Jobs& jobs;
  Tokens& tokens;
  Audit& audit;
  Events& events;
  TelemetryStore& telemetry;
  TeacherServe& teacher_serve;
  const Clock& clock;
  std::filesystem::path data;
  std::string server_key, version;
};

/// What a token may do. A viewer sees all but secrets; an operator changes classes, jobs and devices; an
/// admin also makes tokens, changes the roles of trust and reads the audit log; an enroller makes enrolment
/// tokens for devices and nothing else.
enum class Scope { kOpen, kViewer, kOperator, kEnroller, kAdmin };
/// "viewer", …; "none" for kOpen: no token is needed.
std::string_view to_string(Scope scope);
/// `kind`: a token's. Operators and admins may also do what enrollers may.
bool allows(const std::string& kind, Scope scope);

struct QueryParameter {
  const char* name;
  json::object schema;  ///< with its description
};

/// One entry of the table of routes: what dispatches, and what is told about it (/v1/openapi.json).
struct ApiOperation {
  std::string method, path;  ///< "POST", "/v1/classes/{name}/assign"
  std::string id, noun;      ///< "assignClass", "classes"
  Scope scope = Scope::kAdmin;
  std::string summary;
  std::vector<QueryParameter> query = {};
  json::object request = {};   ///< JSON Schema (coordinator/api/schema.h) of the body; empty: it has none
  json::object response = {};  ///< of the answer's body; empty: it is not JSON
  int status = 200;            ///< of success
  bool secret = false;         ///< the answer holds a secret: it is kept nowhere, not even for a replay
};

/// A request that was let in.
struct Call {
  HttpRequest request;
  json::object body;   ///< checked against the operation's schema; empty when that has none
  TokenRecord caller;  ///< empty where the operation is open

  const std::string& parameter(const char* name) const { return request.parameters.at(name); }
  /// "" when it is not there.
  std::string query(const char* name) const;
};

struct ApiLimits {
  double requests_per_second = 200, requests_burst = 400;  ///< of a token
  double refusals_per_second = 1, refusals_burst = 20;     ///< of an address: wrong tokens
  std::chrono::hours keep_answers{24};                     ///< for Idempotency-Key
  std::size_t answers = 10000;
};

/// The REST interface of docs/rest.md: bearer tokens with scopes, JSON, errors as RFC 9457 problem documents,
/// ETags, idempotency keys, an audit entry for every change. The files *_routes.cc add what it can do, a noun
/// a file. Thread: reactor; slow operations run on the pool and are answered from there.
class Api {
 public:
  using Reply = std::shared_ptr<HttpResponder>;
  using Handler = std::function<Result<json::value>(const Call&)>;
  using RawHandler = std::function<void(const Call&, const Reply&)>;

  explicit Api(ApiParts parts, ApiLimits limits = {});
  void handle(HttpRequest request, Reply responder);
  /// How many bytes of a body may come after this head: none of who has no good token, a dataset of an
  /// operator, else what JSON needs.
  std::size_t body_limit(const HttpRequest& head);

  /// A GET of "/v1/x/{id}" also is how changes below that path are digested, and what If-Match speaks of.
  void add(ApiOperation operation, Handler work);
  /// The same where the work is slow: it runs on the pool.
  void add_slow(ApiOperation operation, Handler work);
  /// For answers that are not JSON, of GETs alone; `work` answers or calls problem().
  void add_raw(ApiOperation operation, RawHandler work);
  /// `status` 0 and `type` "": those that go with the error's code.
  void problem(HttpResponder& responder, const Error& error, int status = 0, HttpHeaders headers = {},
               std::string_view type = "");
  const std::map<int, std::uint64_t>& answered() const { return answered_; }
  const std::vector<std::shared_ptr<const ApiOperation>>& operations() const { return operations_; }
  /// OpenAPI 3.1, of the table that dispatches.
  json::object openapi() const;
  /// Drops answers that were kept for replays and are too old or too many.
  Result<void> sweep();

 private:
  struct Exchange;
  void add_route(ApiOperation operation, Handler work, bool slow, RawHandler raw);
  void serve(const std::shared_ptr<const ApiOperation>& operation, const Handler& work, bool slow,
             const RawHandler& raw, HttpRequest request, const Reply& responder);
  std::optional<TokenRecord> authenticate(const HttpRequest& request, const Reply& responder);
  Result<void> check_query(const ApiOperation& operation, const HttpRequest& request) const;
  /// What the GET of the thing that a request is about answers now; nothing where there is none.
  std::optional<std::string> representation(const Exchange& exchange) const;
  /// True where it goes on; else it was answered.
  bool check_preconditions(const Exchange& exchange);
  bool replay(Exchange& exchange);
  void finish(const std::shared_ptr<Exchange>& exchange, const Result<json::value>& value);

  ApiParts p_;
  const ApiLimits limits_;
  std::vector<std::shared_ptr<const ApiOperation>> operations_;
  std::map<std::string, Handler> getters_;  // by path pattern
  HttpRouter router_;
  RateLimit requests_, refusals_;
  std::set<std::string> under_way_;  // idempotency keys
  std::map<int, std::uint64_t> answered_;
};

}  // namespace retort
