#include "tests/support/tuf_repository.h"

namespace retort::testing {

std::string sign_body(json::object body, const std::vector<SigningKey>& signers) {
  SignedDocument document = *make_document(std::move(body));
  for (const SigningKey& key : signers) add_signature(document, key);
  return to_text(document);
}

TufRepository::TufRepository(UnixMillis now) {
  const UnixMillis expires = now + 30ll * 24 * 3600 * 1000;
  for (const char* role : {"root", "targets", "snapshot", "timestamp", "assignment"}) replace_key(role);
  root.head.expires = timestamp.head.expires = snapshot.head.expires = targets.head.expires =
      assignment_expires = expires;
  root.head.version = timestamp.head.version = snapshot.head.version = targets.head.version = 0;
  timestamp.issued = now;
  publish_root({});
  publish();
}

void TufRepository::set_key(const std::string& role, const SigningKey& key) {
  keys[role] = key;
  const PublicKey open = public_key_of(key);
  const std::string id = key_id(open);
  root.keys[id] = open;
  if (role == "assignment")
    root.assignment = Role{{id}, 1};
  else
    root.roles[role] = {{id}, 1};
}

SigningKey TufRepository::replace_key(const std::string& role) {
  SigningKey before = keys[role];
  set_key(role, make_signing_key());
  return before;
}

void TufRepository::publish_root(const std::vector<SigningKey>& signers) {
  ++root.head.version;
  std::vector<SigningKey> all = signers;
  all.push_back(keys.at("root"));
  files[std::to_string(root.head.version) + ".root.json"] = sign_body(to_json(root), all);
}

void TufRepository::publish() {
  const std::string t = std::to_string(++targets.head.version), s = std::to_string(++snapshot.head.version);
  ++timestamp.head.version;
  files[t + ".targets.json"] = sign_body(to_json(targets), {keys.at("targets")});
  snapshot.meta["targets.json"] = describe_file(files[t + ".targets.json"], targets.head.version);
  files[s + ".snapshot.json"] = sign_body(to_json(snapshot), {keys.at("snapshot")});
  timestamp.snapshot = describe_file(files[s + ".snapshot.json"], snapshot.head.version);
  files["timestamp.json"] = sign_body(to_json(timestamp), {keys.at("timestamp")});
}

void TufRepository::add(const ArtifactManifest& manifest) {
  const std::string text = *manifest_to_text(manifest);
  files[manifest_file_name(manifest.sha256)] = text;
  targets.targets[artifact_target_name(manifest.sha256)] = artifact_target(manifest, text);
}

std::string TufRepository::assignment(const std::string& device, std::uint64_t generation,
                                      const std::string& device_class, const std::string& artifact) const {
  AssignmentMetadata body;
  body.head = {generation, assignment_expires};
  body.device = device, body.device_class = device_class, body.artifact = artifact;
  return sign_body(to_json(body), {keys.at("assignment")});
}

Result<void> TufRepository::serve(TrustClient& client) const {
  while (const auto wanted = client.wanted()) {
    const auto file = files.find(TrustClient::file_name(*wanted));
    RETORT_TRY(file == files.end() ? client.absent() : client.provide(file->second));
  }
  return {};
}

}  // namespace retort::testing
