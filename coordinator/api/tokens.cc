#include "coordinator/api/tokens.h"

#include <algorithm>

#include "common/core/sha256.h"

namespace retort {
namespace {

constexpr std::string_view kUseTable = "token_use";
constexpr UnixMillis kUseMillis = 60000;

}  // namespace

Result<Tokens::Made> Tokens::create(const std::string& kind, const std::string& name, std::int64_t uses,
                                    UnixMillis expires, EnrolmentTerms terms) {
  if (std::find(kTokenKinds.begin(), kTokenKinds.end(), kind) == kTokenKinds.end())
    return fail(ErrorCode::kInvalid, "", "'{}' is not a kind of token; {} are", kind,
                fmt::join(kTokenKinds, ", "));
  Made made;
  made.record.id = random_.hex(6);
  const std::string secret = random_.hex(32);
  made.record.kind = kind;
  made.record.name = name;
  made.record.secret_sha256 = sha256_hex(secret);
  made.record.created = clock_.unix_millis();
  made.record.expires = expires;
  made.record.uses_left = uses;
  if (kind != "enrolment" && (terms.manual || !terms.allowed.empty()))
    return fail(ErrorCode::kInvalid, "", "only enrolment tokens name devices or let them wait");
  made.record.allowed = std::move(terms.allowed);
  made.record.manual = terms.manual;
  RETORT_TRY(table_.put(made.record.id, made.record));
  made.secret = made.record.id + "." + secret;
  return made;
}

Result<TokenRecord> Tokens::identify(const std::string& secret) {
  const auto denied = [] { return fail(ErrorCode::kDenied, "", "the token is wrong, expired or used up"); };
  const std::size_t dot = secret.find('.');
  if (dot == std::string::npos || dot > 64 || secret.size() > 256) return denied();
  const auto record = RETORT_TRY(table_.get(secret.substr(0, dot)));
  if (!record) return denied();
  const std::string hash = sha256_hex(secret.substr(dot + 1));
  const bool same = same_digest(hash, record->secret_sha256);
  const UnixMillis now = clock_.unix_millis();
  const bool live = (record->expires == 0 || now < record->expires) && record->uses_left != 0;
  if (!same || !live) return denied();
  if (UnixMillis& used = used_[record->id]; now - used >= kUseMillis || now < used) {
    // For people only: a crash or a full disk may lose the last of these.
    StoreBatch batch;
    batch.put(kUseTable, record->id, std::to_string(now));
    if (store_.write(batch, false)) used = now;
  }
  return *record;
}

UnixMillis Tokens::last_used(const std::string& id) const {
  const auto text = store_.get(kUseTable, id);
  return text && *text ? std::strtoll((*text)->c_str(), nullptr, 10) : 0;
}

Result<TokenRecord> Tokens::check(const std::string& secret, std::string_view kind) {
  const TokenRecord record = RETORT_TRY(identify(secret));
  if (record.kind != kind)
    return fail(ErrorCode::kDenied, "", "this is a token of kind '{}', not '{}'", record.kind, kind);
  return record;
}

Result<TokenRecord> Tokens::enrol(const std::string& secret, const std::string& public_key,
                                  const std::string& hardware_id) {
  TokenRecord record = RETORT_TRY(check(secret, "enrolment"));
  const auto allows = [&](const std::string& who) {
    return !who.empty() &&
           std::find(record.allowed.begin(), record.allowed.end(), who) != record.allowed.end();
  };
  if (!record.allowed.empty() && !allows(public_key) && !allows(hardware_id))
    return fail(ErrorCode::kDenied, "", "the token is for other devices than this one (key {}{})", public_key,
                hardware_id.empty() ? "" : ", hardware id " + hardware_id);
  if (record.uses_left < 0) return record;
  --record.uses_left;
  StoreBatch batch;
  table_.put(batch, record.id, record);
  RETORT_TRY(store_.write(batch, false));
  return record;
}

Result<void> Tokens::revoke(const std::string& id) {
  if (!RETORT_TRY(table_.get(id))) return fail(ErrorCode::kNotFound, "", "there is no token '{}'", id);
  StoreBatch batch;
  table_.erase(batch, id);
  batch.erase(kUseTable, id);
  used_.erase(id);
  return store_.write(batch);
}

}  // namespace retort
