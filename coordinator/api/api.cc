#include "coordinator/api/api.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <charconv>

#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/wire/record_table.h"
#include "coordinator/api/routes.h"

namespace retort {
namespace {

constexpr std::size_t kMaxDatasetBytes = 256 << 20, kMaxJsonBytes = 16 << 20;

constexpr std::string_view kAnswerTable = "idempotency";

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
      return 403;
    case ErrorCode::kOutOfBudget:
      return 507;
    case ErrorCode::kUnavailable:
      return 503;
    default:
      return 500;
  }
}

/// "/v1/classes/{name}/assign" is about "/v1/classes/{name}"; "" where a path names no one thing.
std::string thing_of(std::string_view path) {
  const std::size_t end = path.rfind('}');
  return end == std::string_view::npos ? std::string() : std::string(path.substr(0, end + 1));
}

std::string etag_of(std::string_view body) { return "\"" + sha256_hex(body).substr(0, 32) + "\""; }

/// Whether a list of entity tags ("*", or "a", W/"b") names this one; nothing there is named by none.
bool names(const std::string& header, const std::optional<std::string>& etag) {
  if (!etag) return false;
  if (header == "*") return true;
  for (std::size_t at = 0; at < header.size();) {
    const std::size_t end = std::min(header.find(',', at), header.size());
    std::string_view one = std::string_view(header).substr(at, end - at);
    while (!one.empty() && one.front() == ' ') one.remove_prefix(1);
    while (!one.empty() && one.back() == ' ') one.remove_suffix(1);
    if (one.starts_with("W/")) one.remove_prefix(2);
    if (one == *etag) return true;
    at = end + 1;
  }
  return false;
}

std::string target_of(const HttpRequest& request) {
  std::string out = request.path;
  char mark = '?';
  for (const auto& [name, value] : request.query) {
    out += mark + name + "=" + value;
    mark = '&';
  }
  return out.substr(0, 1024);
}

std::string_view bearer(const HttpRequest& request) {
  constexpr std::string_view kBearer = "Bearer ";
  const std::string_view header = request.header("authorization");
  return header.starts_with(kBearer) ? header.substr(kBearer.size()) : std::string_view();
}

std::string seconds_of(std::chrono::milliseconds wait) { return std::to_string((wait.count() + 999) / 1000); }

}  // namespace

std::string_view to_string(Scope scope) {
  switch (scope) {
    case Scope::kOpen:
      return "none";
    case Scope::kViewer:
      return "viewer";
    case Scope::kOperator:
      return "operator";
    case Scope::kEnroller:
      return "device-enroller";
    case Scope::kAdmin:
      break;
  }
  return "admin";
}

bool allows(const std::string& kind, Scope scope) {
  if (scope == Scope::kOpen || kind == "admin") return true;
  if (kind == "operator") return scope != Scope::kAdmin;
  if (kind == "device-enroller") return scope == Scope::kEnroller;
  return kind == "viewer" && scope == Scope::kViewer;
}

std::string Call::query(const char* name) const {
  const auto found = request.query.find(name);
  return found == request.query.end() ? std::string() : found->second;
}

/// A request on its way through an operation.
struct Api::Exchange {
  std::shared_ptr<const ApiOperation> operation;
  Call call;
  Reply responder;
  std::string ticket;       // of the audit entry; empty: none
  std::string answer_key;   // where the answer is kept for replays; empty: nowhere
  std::string fingerprint;  // of the request, where answer_key is not empty
  std::string actor() const {
    return call.caller.id.empty()
               ? "anyone"
               : "token:" + call.caller.id + (call.caller.name.empty() ? "" : " (" + call.caller.name + ")");
  }
};

Api::Api(ApiParts parts, ApiLimits limits)
    : p_(std::move(parts)),
      limits_(limits),
      requests_(limits.requests_per_second, limits.requests_burst),
      refusals_(limits.refusals_per_second, limits.refusals_burst) {
  add_status_routes(*this, p_);
  add_teacher_routes(*this, p_);
  add_dataset_routes(*this, p_);
  add_class_routes(*this, p_);
  add_site_routes(*this, p_);
  add_tailor_routes(*this, p_);
  add_rollout_routes(*this, p_);
  add_job_routes(*this, p_);
  add_artifact_routes(*this, p_);
  add_device_routes(*this, p_);
  add_token_routes(*this, p_);
  add_telemetry_routes(*this, p_);
  add_audit_routes(*this, p_);
  add_event_routes(*this, p_);
  add_backup_routes(*this, p_);
  add_trust_routes(*this, p_);
}

void Api::problem(HttpResponder& responder, const Error& error, int status, HttpHeaders headers,
                  std::string_view type) {
  if (status == 0) status = http_status(error.code);
  const std::string_view code = to_string(error.code);
  if (type.empty()) type = code;
  ++answered_[status];
  if (status == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
  if (status == 503) headers.emplace_back("Retry-After", "1");
  std::string title(type);
  std::replace(title.begin(), title.end(), '_', ' ');
  responder.send(status, "application/problem+json",
                 json::serialize(json::object{{"type", "/v1/problems/" + std::string(type)},
                                              {"title", title},
                                              {"status", status},
                                              {"detail", error.describe()},
                                              {"code", code}}) +
                     "\n",
                 std::move(headers));
}

void Api::add(ApiOperation operation, Handler work) {
  add_route(std::move(operation), std::move(work), false, {});
}
void Api::add_slow(ApiOperation operation, Handler work) {
  add_route(std::move(operation), std::move(work), true, {});
}
void Api::add_raw(ApiOperation operation, RawHandler work) {
  add_route(std::move(operation), {}, false, std::move(work));
}

void Api::add_route(ApiOperation given, Handler work, bool slow, RawHandler raw) {
  const auto operation = std::make_shared<const ApiOperation>(std::move(given));
  operations_.push_back(operation);
  if (operation->method == "GET" && work) getters_[operation->path] = work;
  router_.add(operation->method, operation->path,
              [this, operation, work = std::move(work), slow, raw = std::move(raw)](HttpRequest request,
                                                                                    const Reply& responder) {
                serve(operation, work, slow, raw, std::move(request), responder);
              });
}

void Api::handle(HttpRequest request, Reply responder) {
  router_.dispatch(
      std::move(request), std::move(responder),
      [this](const HttpRequest& r, const Reply& out) {
        if (authenticate(r, out)) problem(*out, {ErrorCode::kNotFound, "there is no " + r.path, ""});
      },
      [this](const std::string& allow, const Reply& out) {
        problem(*out, {ErrorCode::kInvalid, "the method is not allowed here; use " + allow, ""}, 405,
                {{"Allow", allow}}, "method_not_allowed");
      });
}

std::size_t Api::body_limit(const HttpRequest& head) {
  const Result<TokenRecord> token = p_.tokens.identify(std::string(bearer(head)));
  if (!token || token->kind == "enrolment") return 0;
  const bool dataset = head.method == "POST" && head.path == "/v1/datasets";
  return dataset && allows(token->kind, Scope::kOperator) ? kMaxDatasetBytes : kMaxJsonBytes;
}

std::optional<TokenRecord> Api::authenticate(const HttpRequest& request, const Reply& responder) {
  const auto now = p_.clock.steady_now();
  const auto limited = [&](std::chrono::milliseconds wait, const char* what) {
    problem(*responder, {ErrorCode::kUnavailable, fmt::format("too many {}; come back later", what), ""}, 429,
            {{"Retry-After", seconds_of(wait)}}, "rate_limited");
    return std::nullopt;
  };
  const std::string_view given = bearer(request);
  Result<TokenRecord> token = p_.tokens.identify(std::string(given));
  if (token && token->kind == "enrolment") token = fail(ErrorCode::kDenied, "", "");
  if (!token && token.error().code != ErrorCode::kDenied) {
    problem(*responder, token.error());
    return std::nullopt;
  }
  if (!token) {
    // A good token from the same address goes on working: others behind it must not suffer.
    if (const auto wait = refusals_.take(request.peer, now); wait.count() > 0)
      return limited(wait, "requests without a good token from this address");
    problem(*responder,
            {ErrorCode::kDenied,
             !given.empty() ? "the token is wrong or expired"
                            : "a bearer token is needed: Authorization: Bearer TOKEN",
             ""},
            401, {}, "unauthorized");
    return std::nullopt;
  }
  if (const auto wait = requests_.take(token->id, now); wait.count() > 0)
    return limited(wait, "requests with this token");
  return *token;
}

Result<void> Api::check_query(const ApiOperation& operation, const HttpRequest& request) const {
  for (const auto& [name, text] : request.query) {
    const auto known = std::find_if(operation.query.begin(), operation.query.end(),
                                    [&, &name = name](const QueryParameter& q) { return q.name == name; });
    if (known == operation.query.end()) {
      std::vector<std::string> candidates;
      for (const QueryParameter& parameter : operation.query) candidates.emplace_back(parameter.name);
      const auto near = nearest(name, candidates);
      return fail(ErrorCode::kInvalid, "query", "'{}' is not known{}", name,
                  near                 ? "; did you mean '" + *near + "'?"
                  : candidates.empty() ? "; nothing is"
                                       : fmt::format("; known are: {}", fmt::join(candidates, ", ")));
    }
    json::value value = json::string(text);
    const json::value& type = known->schema.at("type");
    if (type == "integer") {
      std::int64_t number = 0;
      const auto [end, bad] = std::from_chars(text.data(), text.data() + text.size(), number);
      if (bad == std::errc() && end == text.data() + text.size()) value = number;
    } else if (type == "boolean" && (text == "true" || text == "false")) {
      value = text == "true";
    }
    RETORT_TRY(schema::check(value, known->schema, fmt::format("query, '{}'", name)));
  }
  return {};
}

std::optional<std::string> Api::representation(const Exchange& exchange) const {
  const auto getter = getters_.find(thing_of(exchange.operation->path));
  if (getter == getters_.end()) return std::nullopt;
  Call call;
  call.request.method = "GET";
  call.request.parameters = exchange.call.request.parameters;
  const Result<json::value> value = getter->second(call);
  if (!value) return std::nullopt;
  return json::serialize(*value) + "\n";
}

bool Api::check_preconditions(const Exchange& exchange) {
  const std::string& match = exchange.call.request.header("if-match");
  const std::string& none = exchange.call.request.header("if-none-match");
  if (match.empty() && none.empty()) return true;
  const auto now = representation(exchange);
  const auto etag = now ? std::optional(etag_of(*now)) : std::nullopt;
  if ((match.empty() || names(match, etag)) && (none.empty() || !names(none, etag))) return true;
  problem(*exchange.responder,
          {ErrorCode::kConflict,
           etag ? "it is not what it was when you looked: get it again (its ETag is now " + *etag + ")"
                : "there is nothing here that If-Match could match",
           ""},
          412, {}, "precondition_failed");
  return false;
}

/// Answers a request again that was answered before under its Idempotency-Key; false where it is new.
bool Api::replay(Exchange& exchange) {
  const std::string& key = exchange.call.request.header("idempotency-key");
  if (key.empty() || exchange.operation->method != "POST") return false;
  const auto refuse = [&](ErrorCode code, const std::string& why, int status, std::string_view type) {
    problem(*exchange.responder, {code, why, ""}, status, {}, type);
    return true;
  };
  if (key.size() > 255)
    return refuse(ErrorCode::kInvalid, "an Idempotency-Key has at most 255 characters", 400, "");
  const std::string kept_under = exchange.call.caller.id + '\0' + key;
  const HttpRequest& request = exchange.call.request;
  const std::string fingerprint =
      sha256_hex(request.method + '\0' + target_of(request) + '\0' + sha256_hex(request.body));
  if (under_way_.count(kept_under) != 0)
    return refuse(ErrorCode::kConflict, "a request with this Idempotency-Key is under way", 409, "");
  const RecordTable<IdempotencyRecord> answers(p_.store, std::string(kAnswerTable));
  const auto kept = answers.get(kept_under);
  if (!kept) {
    problem(*exchange.responder, kept.error());
    return true;
  }
  const auto oldest = p_.clock.unix_millis() -
                      std::chrono::duration_cast<std::chrono::milliseconds>(limits_.keep_answers).count();
  if (*kept && (*kept)->created > oldest) {
    if ((*kept)->fingerprint != fingerprint)
      return refuse(ErrorCode::kInvalid, "this Idempotency-Key was used for another request", 422,
                    "idempotency_mismatch");
    if ((*kept)->body.empty())
      return refuse(ErrorCode::kConflict,
                    "this was done already; its answer held a secret, which is kept nowhere", 409, "");
    ++answered_[(*kept)->status];
    exchange.responder->send((*kept)->status, "application/json", (*kept)->body,
                             {{"Idempotency-Replayed", "true"}});
    return true;
  }
  exchange.answer_key = kept_under;
  exchange.fingerprint = fingerprint;
  return false;
}

void Api::serve(const std::shared_ptr<const ApiOperation>& operation, const Handler& work, bool slow,
                const RawHandler& raw, HttpRequest request, const Reply& responder) {
  const auto exchange = std::make_shared<Exchange>();
  exchange->operation = operation;
  exchange->responder = responder;
  if (operation->scope != Scope::kOpen) {
    const auto caller = authenticate(request, responder);
    if (!caller) return;
    if (!allows(caller->kind, operation->scope))
      return problem(*responder, {ErrorCode::kDenied,
                                  fmt::format("this needs a token of scope '{}'; yours is '{}'",
                                              to_string(operation->scope), caller->kind),
                                  ""});
    exchange->call.caller = *caller;
  }
  if (const auto ok = check_query(*operation, request); !ok) return problem(*responder, ok.error());
  Call& call = exchange->call;
  call.request = std::move(request);
  if (!operation->request.empty() && !call.request.header("content-type").starts_with("application/jsonl")) {
    const std::string& text = call.request.body;
    Result<json::value> body = parse_json_once(text.empty() ? "{}" : text, kRequestBody);
    if (!body) return problem(*responder, body.error());
    if (const auto ok = schema::check(*body, operation->request, kRequestBody); !ok)
      return problem(*responder, ok.error());
    call.body = std::move(body->as_object());
  }
  if (raw) return raw(call, responder);
  if (operation->method != "GET") {
    if (replay(*exchange) || !check_preconditions(*exchange)) return;
    const json::value* dry = call.body.if_contains("dry_run");
    if (dry == nullptr || !dry->is_bool() || !dry->get_bool()) {
      const auto before = representation(*exchange);
      Result<std::string> ticket = p_.audit.begin(
          {exchange->actor(), operation->id, target_of(call.request), before ? sha256_hex(*before) : ""});
      if (!ticket) return problem(*responder, ticket.error());
      exchange->ticket = std::move(*ticket);
    }
    if (!exchange->answer_key.empty()) under_way_.insert(exchange->answer_key);
  }
  if (!slow) return finish(exchange, work(call));
  boost::asio::post(p_.pool, [this, work, exchange] {
    boost::asio::post(p_.reactor,
                      [this, exchange, value = work(exchange->call)] { finish(exchange, value); });
  });
}

void Api::finish(const std::shared_ptr<Exchange>& exchange, const Result<json::value>& value) {
  const ApiOperation& operation = *exchange->operation;
  const std::string body = value ? json::serialize(*value) + "\n" : std::string();
  HttpHeaders headers;
  if (operation.method == "GET") {
    if (!value) return problem(*exchange->responder, value.error());
    const std::string etag = etag_of(body);
    headers.emplace_back("ETag", etag);
    if (names(exchange->call.request.header("if-none-match"), etag)) {
      ++answered_[304];
      return exchange->responder->send(304, "application/json", "", std::move(headers));
    }
  } else {
    under_way_.erase(exchange->answer_key);
    StoreBatch batch;
    if (value && !exchange->answer_key.empty())
      batch.put(kAnswerTable, exchange->answer_key,
                wire::encode(IdempotencyRecord{exchange->fingerprint, p_.clock.unix_millis(),
                                               static_cast<std::uint16_t>(operation.status),
                                               operation.secret ? "" : body}));
    const auto after = representation(*exchange);
    if (after) headers.emplace_back("ETag", etag_of(*after));
    if (!exchange->ticket.empty()) {
      const bool about_one = getters_.count(thing_of(operation.path)) != 0;
      const std::string digest = after                                      ? sha256_hex(*after)
                                 : value && !about_one && !operation.secret ? sha256_hex(body)
                                                                            : "";
      const Result<void> logged =
          p_.audit.finish(exchange->ticket, digest, value ? "ok" : std::string(to_string(value.error().code)),
                          std::move(batch));
      if (!logged) {
        log_error("audit: {}", logged.error().describe());
        if (value)
          return problem(*exchange->responder,
                         {logged.error().code,
                          "it was done, but the audit log could not be written: " + logged.error().message,
                          logged.error().where});
      }
    }
    if (!value) return problem(*exchange->responder, value.error());
  }
  ++answered_[operation.status];
  exchange->responder->send(operation.status, "application/json", body, std::move(headers));
}

Result<void> Api::sweep() {
  const auto oldest = p_.clock.unix_millis() -
                      std::chrono::duration_cast<std::chrono::milliseconds>(limits_.keep_answers).count();
  StoreBatch batch;
  std::vector<std::pair<UnixMillis, std::string>> kept;
  RETORT_TRY(p_.store.scan(kAnswerTable, "", "", [&](std::string_view key, std::string_view value) {
    const Result<IdempotencyRecord> record = wire::decode_record<IdempotencyRecord>(value);
    if (!record || record->created <= oldest)
      batch.erase(kAnswerTable, std::string(key));
    else
      kept.emplace_back(record->created, key);
    return true;
  }));
  if (kept.size() > limits_.answers) {
    std::sort(kept.begin(), kept.end());
    for (std::size_t i = 0; i + limits_.answers < kept.size(); ++i) batch.erase(kAnswerTable, kept[i].second);
  }
  return batch.changes().empty() ? Result<void>() : p_.store.write(batch, false);
}

}  // namespace retort
