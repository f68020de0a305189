#include "common/trust/client.h"

#include <algorithm>

namespace retort {
namespace {

Result<void> expired(const MetadataHead& head, UnixMillis now, std::string_view where) {
  if (head.expires > now) return {};
  return fail(ErrorCode::kUnavailable, std::string(where), "expired at {}", to_rfc3339(head.expires));
}

Result<void> check_meta(std::string_view bytes, const MetaFile& meta, std::string_view where) {
  if (meta.length && bytes.size() > *meta.length)
    return fail(ErrorCode::kCorrupt, std::string(where), "has {} bytes, {} are signed", bytes.size(),
                *meta.length);
  if (meta.hashes.empty()) return {};
  return check_hashes(bytes, meta.hashes, where);
}

}  // namespace

std::string TrustClient::file_name(const Wanted& wanted) {
  return (wanted.version ? std::to_string(*wanted.version) + "." : "") + wanted.role + ".json";
}

Result<RootMetadata> TrustClient::check_first_root(std::string_view bytes, SignatureCheck check) {
  const SignedDocument document = RETORT_TRY(parse_signed(bytes, "root"));
  RootMetadata root = RETORT_TRY(read_root(document.body));
  RETORT_TRY(verify(document, root.keys, root.roles.at("root"), check, "root"));
  return root;
}

Result<TrustClient> TrustClient::open(Stored stored, SignatureCheck check) {
  TrustClient client;
  client.check_ = check;
  client.stored_ = std::move(stored);
  const auto root = client.stored_.find("root");
  if (root == client.stored_.end()) return fail(ErrorCode::kNotFound, "root", "there is no trusted root");
  client.root_ = RETORT_TRY(check_first_root(root->second, check));
  return client;
}

void TrustClient::keep(const std::string& role, std::string_view bytes) {
  changes_[role] = std::string(bytes);
  stored_[role] = std::string(bytes);
}

void TrustClient::forget(const std::string& role) {
  if (stored_.erase(role) > 0) changes_[role] = std::nullopt;
}

Result<void> TrustClient::stop(Error error) {
  step_ = Step::kIdle;
  asks_.clear();
  return fail(std::move(error));
}

void TrustClient::refresh(UnixMillis now) {
  now_ = now;
  step_ = Step::kRoot;
  rotations_ = 0;
  timestamp_.reset();
  snapshot_.reset();
  targets_.clear();
  asks_.clear();
  found_.reset();
}

std::optional<TrustClient::Wanted> TrustClient::wanted() {
  switch (step_) {
    case Step::kIdle:
      return std::nullopt;
    case Step::kRoot:
      return Wanted{"root", root_.head.version + 1, kMaxRootBytes};
    case Step::kTimestamp:
      return Wanted{"timestamp", std::nullopt, kMaxTimestampBytes};
    default:
      break;
  }
  const bool snapshot = step_ == Step::kSnapshot;
  const std::string role = snapshot ? "snapshot" : asks_.back().role;
  const MetaFile& meta = snapshot ? timestamp_->snapshot : *meta_of(role).value();
  const std::uint64_t limit = snapshot ? kMaxSnapshotBytes : kMaxTargetsBytes;
  return Wanted{role, root_.consistent_snapshot ? std::optional(meta.version) : std::nullopt,
                std::min(meta.length.value_or(limit), limit)};
}

Result<void> TrustClient::provide(std::string_view bytes) {
  const std::optional<Wanted> asked = wanted();
  if (!asked) return fail(ErrorCode::kConflict, "trust", "no file is wanted now");
  if (bytes.size() > asked->max_bytes)
    return stop({ErrorCode::kCorrupt,
                 fmt::format("has {} bytes or more, at most {} are allowed", bytes.size(), asked->max_bytes),
                 file_name(*asked)});
  Result<void> done = step_ == Step::kRoot        ? provide_root(bytes)
                      : step_ == Step::kTimestamp ? provide_timestamp(bytes)
                      : step_ == Step::kSnapshot  ? provide_snapshot(bytes)
                                                  : provide_targets(bytes);
  if (!done) return stop(done.error());
  return {};
}

Result<void> TrustClient::absent() {
  if (step_ != Step::kRoot) {
    const std::optional<Wanted> asked = wanted();
    return stop({ErrorCode::kNotFound, "is not there", asked ? file_name(*asked) : "trust"});
  }
  if (Result<void> done = finish_roots(); !done) return stop(done.error());
  return {};
}

// §5.3
Result<void> TrustClient::provide_root(std::string_view bytes) {
  const std::string where = fmt::format("root version {}", root_.head.version + 1);
  const SignedDocument document = RETORT_TRY(parse_signed(bytes, where));
  RETORT_TRY(verify(document, root_.keys, root_.roles.at("root"), check_, where + ", by the root before it"));
  RootMetadata next = RETORT_TRY(read_root(document.body));
  RETORT_TRY(verify(document, next.keys, next.roles.at("root"), check_, where + ", by itself"));
  if (next.head.version != root_.head.version + 1)
    return fail(ErrorCode::kDenied, where, "calls itself version {}", next.head.version);
  // §5.3.11, at each link of the chain, so that a crash in its middle forgets nothing of this.
  for (const char* role : {"timestamp", "snapshot"}) {
    std::set<PublicKey> before, after;
    for (const std::string& id : root_.roles.at(role).key_ids)
      if (root_.keys.count(id) > 0) before.insert(root_.keys.at(id));
    for (const std::string& id : next.roles.at(role).key_ids)
      if (next.keys.count(id) > 0) after.insert(next.keys.at(id));
    if (before == after) continue;
    forget("timestamp");
    forget("snapshot");
  }
  root_ = std::move(next);
  keep("root", bytes);
  if (++rotations_ >= kMaxRootRotations) return finish_roots();
  return {};
}

Result<void> TrustClient::finish_roots() {
  RETORT_TRY(expired(root_.head, now_, "root"));
  use_stored_timestamp();
  step_ = Step::kTimestamp;
  return {};
}

Result<TimestampMetadata> TrustClient::check_timestamp(std::string_view bytes) const {
  const SignedDocument document = RETORT_TRY(parse_signed(bytes, "timestamp"));
  RETORT_TRY(verify(document, root_.keys, root_.roles.at("timestamp"), check_, "timestamp"));
  return read_timestamp(document.body);
}

void TrustClient::use_stored_timestamp() {
  const auto known = stored_.find("timestamp");
  if (known == stored_.end()) return;
  if (Result<TimestampMetadata> good = check_timestamp(known->second)) timestamp_ = std::move(*good);
}

// §5.4
Result<void> TrustClient::provide_timestamp(std::string_view bytes) {
  TimestampMetadata next = RETORT_TRY(check_timestamp(bytes));
  if (timestamp_) {
    if (next.head.version < timestamp_->head.version)
      return fail(ErrorCode::kDenied, "timestamp", "rollback: version {} after {}", next.head.version,
                  timestamp_->head.version);
    if (next.snapshot.version < timestamp_->snapshot.version)
      return fail(ErrorCode::kDenied, "timestamp", "rollback: names snapshot version {} after {}",
                  next.snapshot.version, timestamp_->snapshot.version);
    if (next.head.version == timestamp_->head.version) return accept_timestamp();  // nothing new
  }
  RETORT_TRY(expired(next.head, now_, "timestamp"));
  timestamp_ = std::move(next);
  keep("timestamp", bytes);
  return accept_timestamp();
}

Result<void> TrustClient::accept_timestamp() {
  RETORT_TRY(expired(timestamp_->head, now_, "timestamp"));
  step_ = Step::kSnapshot;
  const auto known = stored_.find("snapshot");
  if (known == stored_.end()) return {};
  Result<SnapshotMetadata> good = check_snapshot(known->second);
  if (!good) return {};
  const bool current = good->head.version == timestamp_->snapshot.version &&
                       check_meta(known->second, timestamp_->snapshot, "snapshot").has_value();
  snapshot_ = std::move(*good);  // an old one still says which versions there were
  if (!current) return {};
  SnapshotMetadata same = *snapshot_;
  return accept_snapshot(std::move(same));
}

Result<SnapshotMetadata> TrustClient::check_snapshot(std::string_view bytes) const {
  const SignedDocument document = RETORT_TRY(parse_signed(bytes, "snapshot"));
  RETORT_TRY(verify(document, root_.keys, root_.roles.at("snapshot"), check_, "snapshot"));
  return read_snapshot(document.body);
}

// §5.5
Result<void> TrustClient::provide_snapshot(std::string_view bytes) {
  RETORT_TRY(check_meta(bytes, timestamp_->snapshot, "snapshot"));
  SnapshotMetadata next = RETORT_TRY(check_snapshot(bytes));
  if (next.head.version != timestamp_->snapshot.version)
    return fail(ErrorCode::kCorrupt, "snapshot", "is version {}, the timestamp names {}", next.head.version,
                timestamp_->snapshot.version);
  if (snapshot_)
    for (const auto& [name, old] : snapshot_->meta) {
      const auto found = next.meta.find(name);
      if (found == next.meta.end())
        return fail(ErrorCode::kDenied, "snapshot", "rollback: '{}' is gone from it", name);
      if (found->second.version < old.version)
        return fail(ErrorCode::kDenied, "snapshot", "rollback: '{}' goes from version {} to {}", name,
                    old.version, found->second.version);
    }
  RETORT_TRY(expired(next.head, now_, "snapshot"));
  keep("snapshot", bytes);
  return accept_snapshot(std::move(next));
}

Result<void> TrustClient::accept_snapshot(SnapshotMetadata snapshot) {
  RETORT_TRY(expired(snapshot.head, now_, "snapshot"));
  snapshot_ = std::move(snapshot);
  step_ = Step::kTargets;
  target_.clear();
  asks_ = {{"targets", "root"}};
  visited_.clear();
  return advance();
}

Result<const MetaFile*> TrustClient::meta_of(const std::string& role) const {
  const auto found = snapshot_->meta.find(role + ".json");
  if (found == snapshot_->meta.end())
    return fail(ErrorCode::kDenied, role, "the snapshot does not name this role");
  return &found->second;
}

Result<TargetsMetadata> TrustClient::check_targets(std::string_view bytes, const Ask& ask) const {
  const MetaFile& meta = *RETORT_TRY(meta_of(ask.role));
  RETORT_TRY(check_meta(bytes, meta, ask.role));
  const SignedDocument document = RETORT_TRY(parse_signed(bytes, ask.role));
  if (ask.parent == "root") {
    RETORT_TRY(verify(document, root_.keys, root_.roles.at("targets"), check_, ask.role));
  } else {
    const TargetsMetadata& parent = targets_.at(ask.parent);
    const std::vector<Delegation> matching = delegations_for(parent, target_);
    const auto delegation =
        std::find_if(matching.begin(), matching.end(), [&](const auto& d) { return d.name == ask.role; });
    if (delegation == matching.end())
      return fail(ErrorCode::kInternal, ask.role, "nobody delegates to this role");
    RETORT_TRY(verify(document, parent.keys, delegation->role, check_, ask.role));
  }
  TargetsMetadata next = RETORT_TRY(read_targets(document.body, ask.role));
  if (next.head.version != meta.version)
    return fail(ErrorCode::kCorrupt, ask.role, "is version {}, the snapshot names {}", next.head.version,
                meta.version);
  RETORT_TRY(expired(next.head, now_, ask.role));
  return next;
}

// §5.6
Result<void> TrustClient::provide_targets(std::string_view bytes) {
  const Ask ask = asks_.back();
  targets_[ask.role] = RETORT_TRY(check_targets(bytes, ask));
  keep(ask.role, bytes);
  return advance();
}

/// Takes roles that are known or stored, searches them, and stops where one must be downloaded.
Result<void> TrustClient::advance() {
  while (!asks_.empty()) {
    const Ask ask = asks_.back();
    RETORT_TRY(meta_of(ask.role));
    if (targets_.count(ask.role) == 0) {
      const auto known = stored_.find(ask.role);
      if (known == stored_.end()) return {};
      Result<TargetsMetadata> good = check_targets(known->second, ask);
      if (!good) return {};
      targets_[ask.role] = std::move(*good);
    }
    asks_.pop_back();
    if (target_.empty()) continue;  // the refresh: the top-level role is enough
    const TargetsMetadata& metadata = targets_.at(ask.role);
    visited_.insert(ask.role);
    if (const auto hit = metadata.targets.find(target_); hit != metadata.targets.end()) {
      found_ = hit->second;
      asks_.clear();
      break;
    }
    std::vector<Ask> children;
    for (const Delegation& delegation : delegations_for(metadata, target_)) {
      children.push_back({delegation.name, ask.role});
      if (!delegation.terminating) continue;
      asks_.clear();
      break;
    }
    asks_.insert(asks_.end(), children.rbegin(), children.rend());
    // A role that was searched is not searched again: delegations may go in circles.
    while (!asks_.empty() && visited_.count(asks_.back().role) > 0) asks_.pop_back();
    if (visited_.size() >= static_cast<std::size_t>(kMaxDelegations)) asks_.clear();
  }
  step_ = Step::kIdle;
  return {};
}

void TrustClient::find(std::string target) {
  target_ = std::move(target);
  found_.reset();
  visited_.clear();
  if (targets_.count("targets") == 0 || target_.empty()) return;
  asks_ = {{"targets", "root"}};
  step_ = Step::kTargets;
  if (Result<void> done = advance(); !done) (void)stop(done.error()).has_value();
}

Result<void> TrustClient::check_target(std::string_view bytes, const TargetFile& file,
                                       std::string_view name) {
  if (bytes.size() != file.length)
    return fail(ErrorCode::kCorrupt, std::string(name), "has {} bytes, {} are signed", bytes.size(),
                file.length);
  return check_hashes(bytes, file.hashes, name);
}

}  // namespace retort
