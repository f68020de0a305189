#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <memory>
#include <string>

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

/// The REST interface of docs/rest.md: bearer tokens, JSON, errors as RFC 9457 problem documents. Thread:
/// reactor; slow imports run on the pool and are answered from there.
class Api {
 public:
  explicit Api(ApiParts parts);
  void handle(HttpRequest request, std::shared_ptr<HttpResponder> responder);
  /// Job record with its progress, as GET /v1/jobs/{id} shows it; also for tests.
  json::object job_json(const JobRecord& job, bool with_artifacts) const;

 private:
  using Reply = std::shared_ptr<HttpResponder>;
  void add(const char* method, const char* path, std::function<Result<json::value>(const HttpRequest&)> work,
           int status = 200);
  /// The same where the work is slow: it runs on the pool.
  void add_slow(const char* method, const char* path,
                std::function<Result<json::value>(const HttpRequest&)> work, int status);
  void add_raw(const char* method, const char* path, std::function<void(const HttpRequest&, Reply)> work);
  void routes();
  Result<json::value> tailor(const HttpRequest& request);
  Result<json::value> submit_job(const HttpRequest& request);
  void problem(HttpResponder& responder, const Error& error, int status = 0, HttpHeaders headers = {});
  std::string metrics() const;

  ApiParts p_;
  UnixMillis started_;
  HttpRouter router_;
  std::map<int, std::uint64_t> answered_;
};

}  // namespace retort
