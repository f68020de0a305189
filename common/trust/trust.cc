#include "common/trust/trust.h"

#include <sodium.h>

#include <algorithm>

#include "common/core/file.h"
#include "common/core/hex.h"
#include "common/core/sha256.h"
#include "common/gguf/gguf.h"

namespace retort {
namespace {

constexpr std::size_t kMaxMetadataBytes = 16 << 20, kMaxPieces = 1 << 20;

bool start_sodium() {
  static const bool ready = sodium_init() >= 0;
  return ready;
}

bool is_hash(std::string_view text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

Result<void> canonical(const json::value& value, std::string& out) {
  const auto text = [&](std::string_view s) {  // OLPC: only quote and backslash are escaped
    out += '"';
    for (const char c : s) {
      if (c == '"' || c == '\\') out += '\\';
      out += c;
    }
    out += '"';
  };
  switch (value.kind()) {
    case json::kind::null:
      out += "null";
      return {};
    case json::kind::bool_:
      out += value.get_bool() ? "true" : "false";
      return {};
    case json::kind::int64:
      out += std::to_string(value.get_int64());
      return {};
    case json::kind::uint64:
      out += std::to_string(value.get_uint64());
      return {};
    case json::kind::double_:
      return fail(ErrorCode::kInvalid, "", "canonical JSON holds no fractions");
    case json::kind::string:
      text(value.get_string());
      return {};
    case json::kind::array: {
      out += '[';
      bool first = true;
      for (const json::value& element : value.get_array()) {
        if (!std::exchange(first, false)) out += ',';
        RETORT_TRY(canonical(element, out));
      }
      out += ']';
      return {};
    }
    case json::kind::object: {
      std::vector<std::string_view> keys;
      for (const auto& member : value.get_object()) keys.emplace_back(member.key());
      std::sort(keys.begin(), keys.end());
      out += '{';
      bool first = true;
      for (const std::string_view key : keys) {
        if (!std::exchange(first, false)) out += ',';
        text(key);
        out += ':';
        RETORT_TRY(canonical(value.get_object().at(key), out));
      }
      out += '}';
      return {};
    }
  }
  return {};
}

json::object public_key_object(std::string_view public_key) {
  return json::object{{"keytype", "ed25519"},
                      {"keyval", json::object{{"public", to_hex(public_key)}}},
                      {"scheme", "ed25519"}};
}

std::string target_name(const std::string& sha256) { return "artifacts/" + sha256 + ".gguf"; }

/// Milliseconds of "2026-11-23T14:28:07Z"; nothing when it is not of that form.
std::optional<UnixMillis> from_rfc3339(const std::string& text) {
  std::tm time{};
  const char* end = ::strptime(text.c_str(), "%Y-%m-%dT%H:%M:%SZ", &time);
  if (end == nullptr || *end != '\0') return std::nullopt;
  return static_cast<UnixMillis>(::timegm(&time)) * 1000;
}

Result<void> check_shape(const ArtifactManifest& m, std::string_view where) {
  const auto bad = [&](std::string what) {
    return fail(ErrorCode::kCorrupt, std::string(where), "{}", what);
  };
  if (!is_hash(m.sha256)) return bad("the artifact's hash is not 64 hexadecimal characters");
  std::uint64_t at = 0;
  for (const ArtifactPiece& piece : m.pieces) {
    if (!is_hash(piece.sha256)) return bad(fmt::format("piece '{}' has no proper hash", piece.name));
    if (piece.offset != at || piece.length == 0 || piece.length > m.length - at)
      return bad(
          fmt::format("piece '{}' ({} bytes at {}) leaves a hole, overlaps, or exceeds the file's {} bytes",
                      piece.name, piece.length, piece.offset, m.length));
    at += piece.length;
  }
  if (at != m.length) return bad(fmt::format("its pieces cover {} of {} bytes", at, m.length));
  return {};
}

}  // namespace

SigningKey make_signing_key() {
  if (!start_sodium()) std::abort();
  SigningKey key{std::string(crypto_sign_PUBLICKEYBYTES, '\0'),
                 std::string(crypto_sign_SECRETKEYBYTES, '\0')};
  crypto_sign_keypair(reinterpret_cast<unsigned char*>(key.public_key.data()),
                      reinterpret_cast<unsigned char*>(key.secret_key.data()));
  return key;
}

Result<SigningKey> load_or_make_signing_key(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) {
    const SigningKey key = make_signing_key();
    RETORT_TRY(write_file_atomic(path, to_hex(key.secret_key) + "\n", 0600));
    return key;
  }
  std::string text = RETORT_TRY(read_file(path, 4096));
  while (!text.empty() && text.back() == '\n') text.pop_back();
  Result<std::string> secret = from_hex(text);
  if (!secret || secret->size() != crypto_sign_SECRETKEYBYTES)
    return fail(ErrorCode::kCorrupt, path.string(), "not an Ed25519 secret key in hexadecimal");
  SigningKey key{std::string(crypto_sign_PUBLICKEYBYTES, '\0'), *secret};
  crypto_sign_ed25519_sk_to_pk(reinterpret_cast<unsigned char*>(key.public_key.data()),
                               reinterpret_cast<const unsigned char*>(key.secret_key.data()));
  return key;
}

Result<std::string> canonical_json(const json::value& value) {
  std::string out;
  RETORT_TRY(canonical(value, out));
  return out;
}

std::string key_id(std::string_view public_key) {
  return sha256_hex(*canonical_json(public_key_object(public_key)));
}

Result<std::string> sign_manifest(const ArtifactManifest& manifest, std::uint64_t version, UnixMillis expires,
                                  const SigningKey& key) {
  if (!start_sodium()) return fail(ErrorCode::kInternal, "", "libsodium does not start");
  RETORT_TRY(check_shape(manifest, "manifest"));
  json::array pieces;
  for (const ArtifactPiece& piece : manifest.pieces)
    pieces.push_back(json::object{
        {"name", piece.name}, {"sha256", piece.sha256}, {"offset", piece.offset}, {"length", piece.length}});
  json::object lineage;
  for (const auto& [name, value] : manifest.lineage) lineage[name] = value;
  const json::object target{{"length", manifest.length},
                            {"hashes", json::object{{"sha256", manifest.sha256}}},
                            {"custom", json::object{{"retort_manifest", 1},
                                                    {"format", manifest.format},
                                                    {"pieces", std::move(pieces)},
                                                    {"lineage", std::move(lineage)}}}};
  const json::object body{{"_type", "targets"},
                          {"spec_version", "1.0.31"},
                          {"version", version},
                          {"expires", to_rfc3339(expires)},
                          {"targets", json::object{{target_name(manifest.sha256), target}}}};
  const std::string bytes = RETORT_TRY(canonical_json(body));
  std::string signature(crypto_sign_BYTES, '\0');
  crypto_sign_detached(reinterpret_cast<unsigned char*>(signature.data()), nullptr,
                       reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
                       reinterpret_cast<const unsigned char*>(key.secret_key.data()));
  return json::serialize(json::object{
      {"signed", body},
      {"signatures",
       json::array{json::object{{"keyid", key_id(key.public_key)}, {"sig", to_hex(signature)}}}}});
}

Result<ArtifactManifest> verify_manifest(std::string_view text, std::string_view public_key, UnixMillis now) {
  const std::string where = "manifest";
  if (!start_sodium()) return fail(ErrorCode::kInternal, where, "libsodium does not start");
  const auto corrupt = [&](Error error) {
    return fail(Error{ErrorCode::kCorrupt, std::move(error.message), where});
  };
  if (text.size() > kMaxMetadataBytes)
    return fail(ErrorCode::kCorrupt, where, "{} bytes, the limit is {}", text.size(), kMaxMetadataBytes);
  if (public_key.size() != crypto_sign_PUBLICKEYBYTES)
    return fail(ErrorCode::kDenied, where, "the public key must have 32 bytes");
  // The signature first: nothing that is not signed is looked at more closely than it takes to find the
  // signature.
  const Result<json::value> document = parse_json(text, where);
  if (!document) return corrupt(document.error());
  const json::object* root = document->if_object();
  const json::value* body = root == nullptr ? nullptr : root->if_contains("signed");
  const json::value* signatures = root == nullptr ? nullptr : root->if_contains("signatures");
  if (body == nullptr || !body->is_object() || signatures == nullptr || !signatures->is_array())
    return fail(ErrorCode::kCorrupt, where, "has no 'signed' object or no 'signatures'");
  const Result<std::string> bytes = canonical_json(*body);
  if (!bytes) return corrupt(bytes.error());
  const std::string wanted = key_id(public_key);
  bool good = false;
  for (const json::value& entry : signatures->get_array()) {
    if (!entry.is_object()) continue;
    const auto id = json_string(entry.get_object(), "keyid", where),
               signature_hex = json_string(entry.get_object(), "sig", where);
    if (!id || !signature_hex || *id != wanted) continue;
    const Result<std::string> signature = from_hex(*signature_hex);
    good = signature && signature->size() == crypto_sign_BYTES &&
           crypto_sign_verify_detached(reinterpret_cast<const unsigned char*>(signature->data()),
                                       reinterpret_cast<const unsigned char*>(bytes->data()), bytes->size(),
                                       reinterpret_cast<const unsigned char*>(public_key.data())) == 0;
    if (good) break;
  }
  if (!good) return fail(ErrorCode::kDenied, where, "is not signed by the coordinator's key");

  const auto read = [&]() -> Result<ArtifactManifest> {
    const json::object& object = body->get_object();
    if (RETORT_TRY(json_string(object, "_type", where)) != "targets")
      return fail(ErrorCode::kCorrupt, where, "is not targets metadata");
    const std::string expires = RETORT_TRY(json_string(object, "expires", where));
    const auto until = from_rfc3339(expires);
    if (!until) return fail(ErrorCode::kCorrupt, where, "'expires' is not a time: {}", expires);
    if (*until <= now) return fail(ErrorCode::kUnavailable, where, "expired at {}", expires);
    const json::object& targets = *RETORT_TRY(json_object(object, "targets", where));
    if (targets.size() != 1)
      return fail(ErrorCode::kCorrupt, where, "lists {} targets, not one", targets.size());
    const json::object& target = *RETORT_TRY(as_object(targets.begin()->value(), where));
    const json::object& custom = *RETORT_TRY(json_object(target, "custom", where));
    ArtifactManifest out;
    if (RETORT_TRY(json_uint(custom, "retort_manifest", where)) != 1)
      return fail(ErrorCode::kUnsupported, where, "its version is not 1");
    out.length = RETORT_TRY(json_uint(target, "length", where));
    out.sha256 = RETORT_TRY(json_string(*RETORT_TRY(json_object(target, "hashes", where)), "sha256", where));
    if (std::string_view(targets.begin()->key()) != target_name(out.sha256))
      return fail(ErrorCode::kCorrupt, where, "its target's name does not match its hash");
    out.format = RETORT_TRY(json_string(custom, "format", where));
    const json::array& pieces = *RETORT_TRY(json_array(custom, "pieces", where));
    if (pieces.size() > kMaxPieces) return fail(ErrorCode::kCorrupt, where, "lists {} pieces", pieces.size());
    for (const json::value& entry : pieces) {
      const json::object& piece = *RETORT_TRY(as_object(entry, where));
      out.pieces.push_back(
          {RETORT_TRY(json_string(piece, "name", where)), RETORT_TRY(json_string(piece, "sha256", where)),
           RETORT_TRY(json_uint(piece, "offset", where)), RETORT_TRY(json_uint(piece, "length", where))});
    }
    for (const auto& member : *RETORT_TRY(json_object(custom, "lineage", where)))
      if (member.value().is_string())
        out.lineage[std::string(member.key())] = std::string(member.value().get_string());
    RETORT_TRY(check_shape(out, where));
    return out;
  };
  Result<ArtifactManifest> out = read();
  if (!out && out.error().code == ErrorCode::kInvalid) return corrupt(out.error());
  return out;
}

Result<ArtifactManifest> make_manifest(const std::filesystem::path& gguf) {
  const GgufFile file = RETORT_TRY(GgufFile::open(gguf));
  ArtifactManifest out;
  out.format = "gguf";
  out.length = file.file_length();
  out.sha256 = RETORT_TRY(sha256_file_hex(gguf));
  std::vector<const GgufTensor*> tensors;
  for (const GgufTensor& tensor : file.tensors()) tensors.push_back(&tensor);
  std::sort(tensors.begin(), tensors.end(),
            [](const auto* a, const auto* b) { return a->offset < b->offset; });
  std::uint64_t at = 0;
  const auto piece = [&](const std::string& name, std::uint64_t end) -> Result<void> {
    out.pieces.push_back({name, RETORT_TRY(sha256_file_hex(gguf, at, end - at)), at, end - at});
    at = end;
    return {};
  };
  RETORT_TRY(piece("header", tensors.empty() ? out.length : tensors[0]->offset));
  for (std::size_t i = 0; i < tensors.size(); ++i)
    RETORT_TRY(piece(tensors[i]->name, i + 1 < tensors.size() ? tensors[i + 1]->offset : out.length));
  for (const auto& [key, value] : file.metadata())
    if (key.starts_with("retort."))
      if (const auto* text = std::get_if<std::string>(&value)) out.lineage[key] = *text;
  return out;
}

}  // namespace retort
