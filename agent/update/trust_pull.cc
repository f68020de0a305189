#include "agent/update/trust_pull.h"

#include "common/core/fail_point.h"
#include "common/core/log.h"
#include "common/core/sha256.h"

namespace retort {
namespace {

constexpr const char* kRoles[] = {"root", "timestamp", "snapshot", "targets"};
constexpr const char* kVerifiedTime = "verified_time";

std::string key_of(const std::string& role) { return "trust/" + role; }

}  // namespace

/// Verified metadata, and the time that it vouches for, in one transaction.
Result<void> TrustPull::keep(TrustClient::Changes changes, UnixMillis& verified_time) {
  std::map<std::string, std::string> values;
  for (auto& [role, bytes] : changes) values[key_of(role)] = bytes.value_or("");
  if (values.empty()) return {};
  // Root changed the timestamp's key: the time that the old one told is no longer vouched for.
  const auto timestamp = changes.find("timestamp");
  if (timestamp != changes.end() && !timestamp->second) verified_time = 0;
  values[kVerifiedTime] = std::to_string(verified_time);
  fail_point("agent.trust.saving");
  RETORT_TRY(hooks_.put(values));
  fail_point("agent.trust.saved");
  return {};
}

Result<void> TrustPull::load() {
  const auto text = [&](const std::string& key) -> Result<std::string> {
    return RETORT_TRY(hooks_.get(key)).value_or("");
  };
  old_key_ = RETORT_TRY(text("signing_key"));
  verified_time_ = std::strtoll(RETORT_TRY(text(kVerifiedTime)).c_str(), nullptr, 10);
  if (const std::string root = RETORT_TRY(text(key_of("root"))); !root.empty())
    root_ = RETORT_TRY(TrustClient::check_first_root(root));
  return {};
}

Result<std::map<std::string, std::string>> TrustPull::first_root(const std::string& text) {
  RETORT_TRY(TrustClient::check_first_root(text));
  std::map<std::string, std::string> values{{"signing_key", ""}, {kVerifiedTime, "0"}};
  for (const char* role : kRoles) values[key_of(role)] = "";
  values[key_of("root")] = text;
  return values;
}

void TrustPull::begin_with(const std::string& root_text) {
  if (auto root = TrustClient::check_first_root(root_text)) root_ = std::move(*root);
  old_key_.clear();
  verified_time_ = 0;
}

void TrustPull::refresh(std::function<void(Result<void>)> then) {
  add({"", [then = std::move(then)](Result<std::string> done) {
         then(done ? Result<void>() : Result<void>(fail(done.error())));
       }});
}

void TrustPull::bring(const std::string& artifact, std::function<void(Result<std::string>)> then) {
  add({artifact, std::move(then)});
}

void TrustPull::add(Job job) {
  jobs_.push_back(std::move(job));
  start_next();
}

void TrustPull::start_next() {
  if (running_ || jobs_.empty()) return;
  running_ = true;
  searched_ = false;
  if (!root_) return adopt_first_root();
  auto opened = std::make_shared<Result<TrustClient>>(fail(ErrorCode::kInternal, "", "not opened"));
  const UnixMillis now = trusted_time();
  hooks_.on_disk(
      [this, opened, now] {
        *opened = [&]() -> Result<TrustClient> {
          TrustClient::Stored stored;
          for (const char* role : kRoles) {
            std::string text = RETORT_TRY(hooks_.get(key_of(role))).value_or("");
            if (!text.empty()) stored[role] = std::move(text);
          }
          TrustClient client = RETORT_TRY(TrustClient::open(std::move(stored)));
          client.refresh(now);
          return client;
        }();
      },
      [this, opened] {
        if (!*opened) return finish(fail(opened->error()));
        client_ = std::make_shared<TrustClient>(std::move(**opened));
        step();
      });
}

void TrustPull::adopt_first_root() {
  if (old_key_.empty())
    return finish(fail(ErrorCode::kDenied, "trust",
                       "this device has no root of trust: enrol it anew with a new token"));
  fetch("1.root.json", TrustClient::kMaxRootBytes, [this](Result<std::optional<std::string>> file) {
    if (!file) return finish(fail(file.error()));
    const auto take = [&]() -> Result<void> {
      if (!*file) return fail(ErrorCode::kNotFound, "1.root.json", "the coordinator does not have it");
      const SignedDocument document = RETORT_TRY(parse_signed(**file, "root"));
      const PublicKey old = RETORT_TRY(ed25519_public_key(old_key_));
      return verify(document, {{key_id(old), old}}, {{key_id(old)}, 1}, check_ed25519,
                    "the first root, by the key that this device was enrolled with");
    };
    Result<std::map<std::string, std::string>> values = first_root(file->value_or(""));
    if (const Result<void> good = take(); !good) return finish(fail(good.error()));
    if (!values) return finish(fail(values.error()));
    auto stored = std::make_shared<Result<void>>();
    hooks_.on_disk([this, stored, values = *values] { *stored = hooks_.put(values); },
                   [this, stored, text = **file] {
                     if (!*stored) return finish(fail(stored->error()));
                     log_info("trust: first root taken from the key of this device's enrolment");
                     begin_with(text);
                     running_ = false;
                     start_next();
                   });
  });
}

void TrustPull::step() {
  const std::optional<TrustClient::Wanted> wanted = client_->wanted();
  if (!wanted) return look_up();
  fetch(TrustClient::file_name(*wanted), wanted->max_bytes, [this](Result<std::optional<std::string>> file) {
    if (!file) return finish(fail(file.error()));
    auto done = std::make_shared<Result<void>>();
    auto time = std::make_shared<UnixMillis>(verified_time_);
    hooks_.on_disk(
        [this, client = client_, done, time, bytes = std::move(*file)] {
          *done = bytes ? client->provide(*bytes) : client->absent();
          if (*done && client->has_timestamp()) *time = std::max(*time, client->timestamp().issued);
          // What was verified before an error is kept too: a new root must last though the rest fails.
          if (const Result<void> kept = keep(client->take_changes(), *time); !kept && *done) *done = kept;
        },
        [this, done, time] {
          verified_time_ = *time;
          root_ = client_->root();
          if (!*done) return finish(fail(done->error()));
          step();
        });
  });
}

void TrustPull::look_up() {
  const std::string artifact = jobs_.front().artifact;
  if (artifact.empty()) return finish("");
  if (!std::exchange(searched_, true)) {
    client_->find(artifact_target_name(artifact));
    return step();
  }
  const std::optional<TargetFile>& found = client_->found();
  if (!found)
    return finish(fail(ErrorCode::kNotFound, artifact, "the signed targets do not list this artifact"));
  const auto hash = found->hashes.find("sha256");
  if (hash == found->hashes.end() || hash->second != artifact)
    return finish(fail(ErrorCode::kCorrupt, artifact, "the signed targets list it with another hash"));
  const Result<ManifestReference> reference = manifest_of_target(*found);
  if (!reference) return finish(fail(reference.error()));
  bring_manifest(*reference);
}

void TrustPull::bring_manifest(const ManifestReference& reference) {
  const std::string artifact = jobs_.front().artifact;
  auto known = std::make_shared<std::string>();
  hooks_.on_disk(
      [this, known, artifact] { *known = hooks_.known_manifest(artifact); },
      [this, known, artifact, reference] {
        if (known->size() == reference.length && sha256_hex(*known) == reference.sha256)
          return finish(std::move(*known));
        fetch(manifest_file_name(artifact), reference.length,
              [this, artifact, reference](Result<std::optional<std::string>> file) {
                if (!file) return finish(fail(file.error()));
                if (!*file) return finish(fail(ErrorCode::kNotFound, artifact, "its manifest is not there"));
                if ((*file)->size() != reference.length || sha256_hex(**file) != reference.sha256)
                  return finish(fail(ErrorCode::kCorrupt, artifact, "its manifest is not the signed one"));
                finish(std::move(**file));
              });
      });
}

void TrustPull::finish(Result<std::string> result) {
  const auto then = std::move(jobs_.front().then);
  jobs_.pop_front();
  client_.reset();
  fetch_.reset();
  running_ = false;
  then(std::move(result));
  start_next();
}

// One file ------------------------------------------------------------------------------------------

void TrustPull::fetch(std::string name, std::uint64_t max_bytes,
                      std::function<void(Result<std::optional<std::string>>)> then) {
  fetch_ = Fetch{};
  fetch_->name = std::move(name);
  fetch_->max_bytes = max_bytes;
  fetch_->then = std::move(then);
  ask();
}

void TrustPull::end_fetch(Result<std::optional<std::string>> result) {
  const auto then = std::move(fetch_->then);
  fetch_.reset();
  then(std::move(result));
}

void TrustPull::ask() {
  if (!fetch_) return;
  fetch_->silent = std::chrono::seconds(0);
  (void)hooks_.ask({fetch_->name, fetch_->bytes.size()});
}

void TrustPull::on_link() { ask(); }

void TrustPull::on_metadata(const wire::Metadata& part) {
  if (!fetch_ || part.name != fetch_->name || part.offset != fetch_->bytes.size()) return;  // an older try's
  if (part.total > fetch_->max_bytes || part.offset > part.total ||
      part.bytes.size() > part.total - part.offset || (part.bytes.empty() && part.offset < part.total))
    return end_fetch(fail(ErrorCode::kCorrupt, fetch_->name, "{} bytes are offered, at most {} are allowed",
                          part.total, fetch_->max_bytes));
  fetch_->bytes += part.bytes;
  if (fetch_->bytes.size() < part.total) return ask();
  end_fetch(std::move(fetch_->bytes));
}

bool TrustPull::on_refused(const wire::Refused& refused) {
  if (!fetch_ || refused.about != "metadata " + fetch_->name) return false;
  if (refused.code == to_string(ErrorCode::kNotFound))
    end_fetch(std::optional<std::string>());
  else
    end_fetch(fail(Error{error_code_from(refused.code), refused.message, fetch_->name}));
  return true;
}

void TrustPull::tick() {
  if (!fetch_) return;
  const std::chrono::seconds one(1);
  fetch_->up += one;
  if (fetch_->up > kPatience + std::chrono::seconds(fetch_->bytes.size() / kMinBytesPerSecond))
    return end_fetch(fail(ErrorCode::kUnavailable, fetch_->name,
                          "too slow: {} bytes in {} s, at least {} a second are expected",
                          fetch_->bytes.size(), fetch_->up.count(), kMinBytesPerSecond));
  if ((fetch_->silent += one) >= kAskAgain) ask();
}

}  // namespace retort
