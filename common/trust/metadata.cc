#include "common/trust/metadata.h"

#include <fnmatch.h>
#include <sodium.h>

#include <algorithm>

#include "common/core/hex.h"
#include "common/core/sha256.h"

namespace retort {
namespace {

constexpr std::string_view kSpecVersion = "1.0.31";
constexpr std::string_view kRootRoles[] = {"root", "targets", "snapshot", "timestamp"};
constexpr std::uint64_t kMaxVersion = INT64_MAX;

/// A member of the wrong form in something that others wrote: corrupt, whatever the reader called it.
template <typename T>
Result<T> as_corrupt(Result<T> result) {
  if (!result && result.error().code == ErrorCode::kInvalid)
    return fail(Error{ErrorCode::kCorrupt, result.error().message, result.error().where});
  return result;
}

json::object head_of(std::string_view type, const MetadataHead& head) {
  return {{"_type", type},
          {"spec_version", kSpecVersion},
          {"version", head.version},
          {"expires", to_rfc3339(head.expires)}};
}

Result<MetadataHead> read_head(const json::object& body, std::string_view type, std::string_view where) {
  const std::string found = RETORT_TRY(json_string(body, "_type", where));
  if (found != type)
    return fail(ErrorCode::kCorrupt, std::string(where), "is '{}' metadata, not '{}'", found, type);
  const std::string spec = RETORT_TRY(json_string(body, "spec_version", where));
  if (!spec.starts_with("1."))
    return fail(ErrorCode::kUnsupported, std::string(where), "is of specification {}; 1.x is understood",
                spec);
  MetadataHead head;
  head.version = RETORT_TRY(json_uint(body, "version", where, kMaxVersion));
  if (head.version == 0) return fail(ErrorCode::kCorrupt, std::string(where), "has version 0");
  head.expires = RETORT_TRY(from_rfc3339(RETORT_TRY(json_string(body, "expires", where))));
  return head;
}

json::object role_json(const Role& role) {
  json::array ids(role.key_ids.begin(), role.key_ids.end());
  return {{"keyids", std::move(ids)}, {"threshold", role.threshold}};
}

Result<std::vector<std::string>> read_texts(const json::object& object, std::string_view key,
                                            std::string_view where) {
  std::vector<std::string> out;
  for (const json::value& entry : *RETORT_TRY(json_array(object, key, where))) {
    if (!entry.is_string()) return fail(ErrorCode::kCorrupt, std::string(where), "'{}' must hold texts", key);
    out.emplace_back(entry.get_string());
  }
  return out;
}

Result<Role> read_role(const json::object& object, std::string_view where) {
  Role role;
  role.key_ids = RETORT_TRY(read_texts(object, "keyids", where));
  std::vector<std::string> sorted = role.key_ids;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
    return fail(ErrorCode::kCorrupt, std::string(where), "lists a key id twice");
  role.threshold = static_cast<std::uint32_t>(RETORT_TRY(json_uint(object, "threshold", where, UINT32_MAX)));
  if (role.threshold == 0) return fail(ErrorCode::kCorrupt, std::string(where), "has threshold 0");
  return role;
}

Result<KeyMap> read_keys(const json::object& body, std::string_view where) {
  KeyMap out;
  for (const auto& member : *RETORT_TRY(json_object(body, "keys", where))) {
    const json::object& key = *RETORT_TRY(as_object(member.value(), where));
    const json::object& value = *RETORT_TRY(json_object(key, "keyval", where));
    // One by one: g++ 12 leaks what a braced list has made when RETORT_TRY returns from its middle.
    PublicKey& made = out[std::string(member.key())];
    made.keytype = RETORT_TRY(json_string(key, "keytype", where));
    made.scheme = RETORT_TRY(json_string(key, "scheme", where));
    made.value = RETORT_TRY(json_string(value, "public", where));
  }
  return out;
}

json::object keys_json(const KeyMap& keys) {
  json::object out;
  for (const auto& [id, key] : keys) out[id] = to_json(key);
  return out;
}

json::object hashes_json(const std::map<std::string, std::string>& hashes) {
  json::object out;
  for (const auto& [name, value] : hashes) out[name] = value;
  return out;
}

Result<std::map<std::string, std::string>> read_hashes(const json::object& object, std::string_view where) {
  std::map<std::string, std::string> out;
  for (const auto& member : *RETORT_TRY(json_object(object, "hashes", where))) {
    if (!member.value().is_string())
      return fail(ErrorCode::kCorrupt, std::string(where), "a hash must be a text");
    out[std::string(member.key())] = std::string(member.value().get_string());
  }
  if (out.empty()) return fail(ErrorCode::kCorrupt, std::string(where), "'hashes' is empty");
  return out;
}

json::object meta_json(const MetaFile& file) {
  json::object out{{"version", file.version}};
  if (file.length) out["length"] = *file.length;
  if (!file.hashes.empty()) out["hashes"] = hashes_json(file.hashes);
  return out;
}

Result<MetaFile> read_meta(const json::object& object, std::string_view where) {
  MetaFile out;
  out.version = RETORT_TRY(json_uint(object, "version", where, kMaxVersion));
  if (out.version == 0) return fail(ErrorCode::kCorrupt, std::string(where), "has version 0");
  if (json_has(object, "length")) out.length = RETORT_TRY(json_uint(object, "length", where));
  if (json_has(object, "hashes")) out.hashes = RETORT_TRY(read_hashes(object, where));
  return out;
}

std::string sha512_hex(std::string_view bytes) {
  std::string digest(crypto_hash_sha512_BYTES, '\0');
  crypto_hash_sha512(reinterpret_cast<unsigned char*>(digest.data()),
                     reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  return to_hex(digest);
}

std::string hex_number(std::uint32_t value, std::uint32_t digits) {
  return fmt::format("{:0{}x}", value, digits);
}

/// The first `bits` bits of the SHA-256 of a name.
std::uint32_t hash_bin(std::string_view target, std::uint32_t bits) {
  const std::string hex = sha256_hex(target).substr(0, 8);
  return static_cast<std::uint32_t>(std::stoul(hex, nullptr, 16)) >> (32 - bits);
}

/// [spec §4.5] "paths": shell patterns whose wildcards do not match '/'.
bool path_matches(const std::string& pattern, const std::string& target) {
  return ::fnmatch(pattern.c_str(), target.c_str(), FNM_PATHNAME) == 0;
}

}  // namespace

std::vector<Delegation> delegations_for(const TargetsMetadata& metadata, std::string_view target) {
  std::vector<Delegation> out;
  if (metadata.succinct) {
    const SuccinctRoles& s = *metadata.succinct;
    out.push_back({s.name_prefix + "-" + hex_number(hash_bin(target, s.bits), (s.bits + 3) / 4), s.role});
    out.back().terminating = true;
    return out;
  }
  const std::string name(target), hash = sha256_hex(target);
  for (const Delegation& delegation : metadata.delegations) {
    const bool matches =
        std::any_of(delegation.paths.begin(), delegation.paths.end(),
                    [&](const auto& pattern) { return path_matches(pattern, name); }) ||
        std::any_of(delegation.path_hash_prefixes.begin(), delegation.path_hash_prefixes.end(),
                    [&](const auto& prefix) { return hash.starts_with(prefix); });
    if (matches) out.push_back(delegation);
  }
  return out;
}

json::object to_json(const RootMetadata& m) {
  json::object body = head_of("root", m.head), roles;
  for (const auto& [name, role] : m.roles) roles[name] = role_json(role);
  body["consistent_snapshot"] = m.consistent_snapshot;
  body["keys"] = keys_json(m.keys);
  body["roles"] = std::move(roles);
  if (m.assignment) body["retort"] = json::object{{"assignment", role_json(*m.assignment)}};
  return body;
}

json::object to_json(const TimestampMetadata& m) {
  json::object body = head_of("timestamp", m.head);
  body["meta"] = json::object{{"snapshot.json", meta_json(m.snapshot)}};
  if (m.issued != 0) body["retort"] = json::object{{"issued", to_rfc3339(m.issued)}};
  return body;
}

json::object to_json(const SnapshotMetadata& m) {
  json::object body = head_of("snapshot", m.head), meta;
  for (const auto& [name, file] : m.meta) meta[name] = meta_json(file);
  body["meta"] = std::move(meta);
  return body;
}

json::object to_json(const TargetsMetadata& m) {
  json::object body = head_of("targets", m.head), targets;
  for (const auto& [name, file] : m.targets) {
    json::object target{{"length", file.length}, {"hashes", hashes_json(file.hashes)}};
    if (!file.custom.empty()) target["custom"] = file.custom;
    targets[name] = std::move(target);
  }
  body["targets"] = std::move(targets);
  return body;
}

json::object to_json(const AssignmentMetadata& m) {
  json::object body = head_of("assignment", m.head);
  body["device"] = m.device;
  body["class"] = m.device_class;
  body["artifact"] = m.artifact;
  return body;
}

Result<RootMetadata> read_root(const json::object& body) {
  const auto read = [&]() -> Result<RootMetadata> {
    constexpr std::string_view where = "root";
    RootMetadata m;
    m.head = RETORT_TRY(read_head(body, "root", where));
    m.consistent_snapshot =
        json_has(body, "consistent_snapshot") && RETORT_TRY(json_bool(body, "consistent_snapshot", where));
    m.keys = RETORT_TRY(read_keys(body, where));
    const json::object& roles = *RETORT_TRY(json_object(body, "roles", where));
    for (const std::string_view name : kRootRoles) {
      m.roles[std::string(name)] = RETORT_TRY(read_role(*RETORT_TRY(json_object(roles, name, where)), where));
    }
    if (json_has(body, "retort")) {
      const json::object& ours = *RETORT_TRY(json_object(body, "retort", where));
      m.assignment = RETORT_TRY(read_role(*RETORT_TRY(json_object(ours, "assignment", where)), where));
    }
    return m;
  };
  return as_corrupt(read());
}

Result<TimestampMetadata> read_timestamp(const json::object& body) {
  const auto read = [&]() -> Result<TimestampMetadata> {
    constexpr std::string_view where = "timestamp";
    TimestampMetadata m;
    m.head = RETORT_TRY(read_head(body, "timestamp", where));
    const json::object& meta = *RETORT_TRY(json_object(body, "meta", where));
    m.snapshot = RETORT_TRY(read_meta(*RETORT_TRY(json_object(meta, "snapshot.json", where)), where));
    if (json_has(body, "retort"))
      m.issued = RETORT_TRY(from_rfc3339(
          RETORT_TRY(json_string(*RETORT_TRY(json_object(body, "retort", where)), "issued", where))));
    return m;
  };
  return as_corrupt(read());
}

Result<SnapshotMetadata> read_snapshot(const json::object& body) {
  const auto read = [&]() -> Result<SnapshotMetadata> {
    constexpr std::string_view where = "snapshot";
    SnapshotMetadata m;
    m.head = RETORT_TRY(read_head(body, "snapshot", where));
    for (const auto& member : *RETORT_TRY(json_object(body, "meta", where)))
      m.meta[std::string(member.key())] =
          RETORT_TRY(read_meta(*RETORT_TRY(as_object(member.value(), where)), where));
    return m;
  };
  return as_corrupt(read());
}

Result<TargetsMetadata> read_targets(const json::object& body, std::string_view where) {
  const auto read = [&]() -> Result<TargetsMetadata> {
    TargetsMetadata m;
    m.head = RETORT_TRY(read_head(body, "targets", where));
    for (const auto& member : *RETORT_TRY(json_object(body, "targets", where))) {
      const json::object& target = *RETORT_TRY(as_object(member.value(), where));
      TargetFile file;
      file.length = RETORT_TRY(json_uint(target, "length", where));
      file.hashes = RETORT_TRY(read_hashes(target, where));
      if (json_has(target, "custom")) file.custom = *RETORT_TRY(json_object(target, "custom", where));
      m.targets[std::string(member.key())] = std::move(file);
    }
    if (!json_has(body, "delegations")) return m;
    const json::object& delegations = *RETORT_TRY(json_object(body, "delegations", where));
    m.keys = RETORT_TRY(read_keys(delegations, where));
    const bool lists = json_has(delegations, "roles"), bins = json_has(delegations, "succinct_roles");
    if (lists == bins)
      return fail(ErrorCode::kCorrupt, std::string(where),
                  "'delegations' needs either 'roles' or 'succinct_roles'");
    if (bins) {
      const json::object& object = *RETORT_TRY(json_object(delegations, "succinct_roles", where));
      SuccinctRoles s;
      s.role = RETORT_TRY(read_role(object, where));
      s.bits = static_cast<std::uint32_t>(RETORT_TRY(json_uint(object, "bit_length", where, 32)));
      s.name_prefix = RETORT_TRY(json_string(object, "name_prefix", where));
      if (s.bits == 0) return fail(ErrorCode::kCorrupt, std::string(where), "'bit_length' is 0");
      m.succinct = std::move(s);
      return m;
    }
    for (const json::value& entry : *RETORT_TRY(json_array(delegations, "roles", where))) {
      const json::object& object = *RETORT_TRY(as_object(entry, where));
      Delegation d;
      d.name = RETORT_TRY(json_string(object, "name", where));
      d.role = RETORT_TRY(read_role(object, where));
      d.terminating = RETORT_TRY(json_bool(object, "terminating", where));
      if (d.name.empty() ||
          std::find(std::begin(kRootRoles), std::end(kRootRoles), d.name) != std::end(kRootRoles))
        return fail(ErrorCode::kCorrupt, std::string(where), "cannot delegate to a role named '{}'", d.name);
      const bool paths = json_has(object, "paths"), prefixes = json_has(object, "path_hash_prefixes");
      if (paths == prefixes)
        return fail(ErrorCode::kCorrupt, std::string(where),
                    "the delegation '{}' needs either 'paths' or 'path_hash_prefixes'", d.name);
      if (paths) d.paths = RETORT_TRY(read_texts(object, "paths", where));
      if (prefixes) d.path_hash_prefixes = RETORT_TRY(read_texts(object, "path_hash_prefixes", where));
      for (const Delegation& other : m.delegations)
        if (other.name == d.name)
          return fail(ErrorCode::kCorrupt, std::string(where), "delegates to '{}' twice", d.name);
      m.delegations.push_back(std::move(d));
    }
    return m;
  };
  return as_corrupt(read());
}

Result<AssignmentMetadata> read_assignment(const json::object& body) {
  const auto read = [&]() -> Result<AssignmentMetadata> {
    constexpr std::string_view where = "assignment";
    AssignmentMetadata m;
    m.head = RETORT_TRY(read_head(body, "assignment", where));
    m.device = RETORT_TRY(json_string(body, "device", where));
    m.device_class = RETORT_TRY(json_string(body, "class", where));
    m.artifact = RETORT_TRY(json_string(body, "artifact", where));
    return m;
  };
  return as_corrupt(read());
}

Result<void> check_hashes(std::string_view bytes, const std::map<std::string, std::string>& hashes,
                          std::string_view where) {
  bool known = false;
  for (const auto& [algorithm, expected] : hashes) {
    if (algorithm != "sha256" && algorithm != "sha512") continue;
    known = true;
    if ((algorithm == "sha256" ? sha256_hex(bytes) : sha512_hex(bytes)) != expected)
      return fail(ErrorCode::kCorrupt, std::string(where), "its {} is not the signed one", algorithm);
  }
  if (!known)
    return fail(ErrorCode::kUnsupported, std::string(where), "has no hash that we know (sha256, sha512)");
  return {};
}

MetaFile describe_file(std::string_view bytes, std::uint64_t version) {
  return {version, bytes.size(), {{"sha256", sha256_hex(bytes)}}};
}

Result<AssignmentMetadata> verify_assignment(std::string_view text, const RootMetadata& root,
                                             std::string_view device, UnixMillis now) {
  const std::string where = "assignment";
  if (!root.assignment) return fail(ErrorCode::kDenied, where, "root names nobody who may sign one");
  const SignedDocument document = RETORT_TRY(parse_signed(text, where));
  RETORT_TRY(verify(document, root.keys, *root.assignment, check_ed25519, where));
  AssignmentMetadata m = RETORT_TRY(read_assignment(document.body));
  if (m.device != device)
    return fail(ErrorCode::kDenied, where, "was signed for {}, this device is {}", m.device, device);
  if (m.head.expires <= now)
    return fail(ErrorCode::kUnavailable, where, "expired at {}", to_rfc3339(m.head.expires));
  return m;
}

}  // namespace retort
