#include "coordinator/api/api.h"

#include <algorithm>
#include <boost/asio/post.hpp>

#include "coordinator/api/routes.h"

namespace retort {
namespace {

int http_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalid:
    case ErrorCode::kCorrupt:
      return 400;
    case ErrorCode::kUnsupported:
      return 422;
    case ErrorCode::kNotFound:
      return 404;
    case ErrorCode::kConflict:
      return 409;
    case ErrorCode::kDenied:
      return 401;
    case ErrorCode::kOutOfBudget:
      return 507;
    case ErrorCode::kUnavailable:
      return 503;
    default:
      return 500;
  }
}

constexpr std::string_view kProblemType = "application/problem+json";

}  // namespace

std::string Call::query(const char* name) const {
  const auto found = request.query.find(name);
  return found == request.query.end() ? std::string() : found->second;
}

Api::Api(ApiParts parts) : p_(std::move(parts)) {
  add_status_routes(*this, p_);
  add_teacher_routes(*this, p_);
  add_dataset_routes(*this, p_);
  add_class_routes(*this, p_);
  add_tailor_routes(*this, p_);
  add_job_routes(*this, p_);
  add_artifact_routes(*this, p_);
  add_device_routes(*this, p_);
  add_token_routes(*this, p_);
  add_telemetry_routes(*this, p_);
}

void Api::problem(HttpResponder& responder, const Error& error, int status, HttpHeaders headers) {
  if (status == 0) status = http_status(error.code);
  ++answered_[status];
  if (status == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
  if (status == 503) headers.emplace_back("Retry-After", "1");
  responder.send(status, kProblemType,
                 json::serialize(json::object{{"type", "about:blank"},
                                              {"title", std::string(to_string(error.code))},
                                              {"status", status},
                                              {"detail", error.describe()},
                                              {"code", std::string(to_string(error.code))}}) +
                     "\n",
                 std::move(headers));
}

void Api::answer(HttpResponder& responder, const Result<json::value>& value, int status) {
  if (!value) return problem(responder, value.error());
  ++answered_[status];
  responder.send(status, "application/json", json::serialize(*value) + "\n");
}

void Api::add_route(ApiOperation given, std::function<void(Call, const Reply&)> work) {
  const auto operation = std::make_shared<const ApiOperation>(std::move(given));
  operations_.push_back(operation);
  router_.add(operation->method, operation->path,
              [this, operation, work = std::move(work)](HttpRequest request, const Reply& responder) {
                Call call{std::move(request), {}};
                if (!operation->request.empty() &&
                    !call.request.header("content-type").starts_with("application/jsonl")) {
                  const std::string& text = call.request.body;
                  Result<json::value> body = parse_json(text.empty() ? "{}" : text, kRequestBody);
                  if (!body) return problem(*responder, body.error());
                  if (const auto ok = schema::check(*body, operation->request, kRequestBody); !ok)
                    return problem(*responder, ok.error());
                  call.body = std::move(body->as_object());
                }
                work(std::move(call), responder);
              });
}

void Api::add_raw(ApiOperation operation, std::function<void(const Call&, const Reply&)> work) {
  add_route(std::move(operation),
            [work = std::move(work)](const Call& call, const Reply& responder) { work(call, responder); });
}

void Api::add(ApiOperation operation, Handler work) {
  const int status = operation.status;
  add_route(std::move(operation),
            [this, work = std::move(work), status](const Call& call, const Reply& responder) {
              answer(*responder, work(call), status);
            });
}

void Api::add_slow(ApiOperation operation, Handler work) {
  const int status = operation.status;
  add_route(std::move(operation), [this, work = std::move(work), status](Call call, const Reply& responder) {
    boost::asio::post(p_.pool, [this, work, status, call = std::move(call), responder] {
      boost::asio::post(p_.reactor,
                        [this, status, responder, value = work(call)] { answer(*responder, value, status); });
    });
  });
}

void Api::handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) {
  const bool open = std::any_of(operations_.begin(), operations_.end(),
                                [&](const auto& o) { return o->open && o->path == request.path; });
  if (!open) {
    const std::string& header = request.header("authorization");
    constexpr std::string_view kBearer = "Bearer ";
    const bool given = header.starts_with(kBearer);
    const Result<TokenRecord> token = p_.tokens.check(given ? header.substr(kBearer.size()) : "", "operator");
    if (!token && token.error().code != ErrorCode::kDenied) return problem(*responder, token.error());
    if (!token)
      return problem(
          *responder,
          {ErrorCode::kDenied,
           given ? "the token is wrong or expired" : "a bearer token is needed: Authorization: Bearer TOKEN",
           ""},
          401);
  }
  router_.dispatch(
      std::move(request), std::move(responder),
      [this](HttpRequest r, auto out) {
        problem(*out, {ErrorCode::kNotFound, "there is no " + r.path, ""});
      },
      [this](std::string allow, auto out) {
        problem(*out, {ErrorCode::kInvalid, "the method is not allowed here; use " + allow, ""}, 405,
                {{"Allow", allow}});
      });
}

}  // namespace retort
