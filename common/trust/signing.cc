#include "common/trust/signing.h"

#include <sodium.h>

#include <algorithm>
#include <set>

#include "common/core/file.h"
#include "common/core/hex.h"
#include "common/core/sha256.h"

namespace retort {
namespace {

const unsigned char* raw(std::string_view bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}
unsigned char* raw(std::string& bytes) { return reinterpret_cast<unsigned char*>(bytes.data()); }

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

}  // namespace

SigningKey make_signing_key() {
  if (sodium_init() < 0) std::abort();
  SigningKey key{std::string(crypto_sign_PUBLICKEYBYTES, '\0'),
                 std::string(crypto_sign_SECRETKEYBYTES, '\0')};
  crypto_sign_keypair(raw(key.public_key), raw(key.secret_key));
  return key;
}

Result<SigningKey> load_signing_key(const std::filesystem::path& path) {
  std::string text = RETORT_TRY(read_file(path, 4096));
  while (!text.empty() && text.back() == '\n') text.pop_back();
  Result<std::string> secret = from_hex(text);
  if (!secret || secret->size() != crypto_sign_SECRETKEYBYTES)
    return fail(ErrorCode::kCorrupt, path.string(), "not an Ed25519 secret key in hexadecimal");
  SigningKey key{std::string(crypto_sign_PUBLICKEYBYTES, '\0'), *secret};
  crypto_sign_ed25519_sk_to_pk(raw(key.public_key), raw(std::string_view(key.secret_key)));
  return key;
}

Result<void> save_signing_key(const std::filesystem::path& path, const SigningKey& key) {
  if (std::filesystem::exists(path)) return fail(ErrorCode::kConflict, path.string(), "is there already");
  return write_file_atomic(path, to_hex(key.secret_key) + "\n", 0600);
}

std::string sign_bytes(const SigningKey& key, std::string_view message) {
  std::string signature(crypto_sign_BYTES, '\0');
  crypto_sign_detached(raw(signature), nullptr, raw(message), message.size(),
                       raw(std::string_view(key.secret_key)));
  return signature;
}

PublicKey public_key_of(const SigningKey& key) { return {"ed25519", "ed25519", to_hex(key.public_key)}; }

Result<PublicKey> ed25519_public_key(std::string_view hex) {
  const Result<std::string> bytes = from_hex(hex);
  if (!bytes || bytes->size() != crypto_sign_PUBLICKEYBYTES)
    return fail(ErrorCode::kInvalid, "", "'{}' is not an Ed25519 public key (64 hexadecimal characters)",
                hex.substr(0, 80));
  return PublicKey{"ed25519", "ed25519", to_hex(*bytes)};
}

json::object to_json(const PublicKey& key) {
  return {{"keytype", key.keytype}, {"scheme", key.scheme}, {"keyval", json::object{{"public", key.value}}}};
}

std::string key_id(const PublicKey& key) { return sha256_hex(*canonical_json(to_json(key))); }

bool check_ed25519(const PublicKey& key, std::string_view message, std::string_view signature) {
  if (key.keytype != "ed25519" || key.scheme != "ed25519" || sodium_init() < 0) return false;
  const Result<std::string> bytes = from_hex(key.value);
  return bytes && bytes->size() == crypto_sign_PUBLICKEYBYTES && signature.size() == crypto_sign_BYTES &&
         crypto_sign_verify_detached(raw(signature), raw(message), message.size(), raw(*bytes)) == 0;
}

Result<std::string> canonical_json(const json::value& value) {
  std::string out;
  RETORT_TRY(canonical(value, out));
  return out;
}

Result<UnixMillis> from_rfc3339(std::string_view text) {
  std::tm time{};
  const std::string whole(text);
  const char* end = ::strptime(whole.c_str(), "%Y-%m-%dT%H:%M:%SZ", &time);
  if (whole.size() != 20 || end != whole.c_str() + whole.size())
    return fail(ErrorCode::kInvalid, "", "'{}' is not a time of the form 2026-11-23T14:28:07Z",
                text.substr(0, 40));
  return static_cast<UnixMillis>(::timegm(&time)) * 1000;
}

Result<SignedDocument> parse_signed(std::string_view text, std::string_view where) {
  const auto corrupt = [&](const Error& error) {
    return fail(Error{ErrorCode::kCorrupt, error.message, std::string(where)});
  };
  Result<json::value> value = parse_json(text, where);
  if (!value) return corrupt(value.error());
  json::object* root = value->if_object();
  json::value* body = root == nullptr ? nullptr : root->if_contains("signed");
  const json::value* signatures = root == nullptr ? nullptr : root->if_contains("signatures");
  if (body == nullptr || !body->is_object() || signatures == nullptr || !signatures->is_array())
    return fail(ErrorCode::kCorrupt, std::string(where), "has no 'signed' object or no 'signatures'");
  SignedDocument out;
  for (const json::value& entry : signatures->get_array()) {
    if (!entry.is_object()) continue;
    auto id = json_string(entry.get_object(), "keyid", where),
         hex = json_string(entry.get_object(), "sig", where);
    if (!id || !hex) continue;
    if (std::any_of(out.signatures.begin(), out.signatures.end(),
                    [&](const auto& s) { return s.key_id == *id; }))
      return fail(ErrorCode::kCorrupt, std::string(where), "has two signatures of the key {}", *id);
    out.signatures.push_back({std::move(*id), std::move(*hex)});
  }
  Result<std::string> bytes = canonical_json(*body);
  if (!bytes) return corrupt(bytes.error());
  out.signed_bytes = std::move(*bytes);
  out.body = std::move(body->get_object());
  return out;
}

std::string to_text(const SignedDocument& document) {
  json::array signatures;
  for (const auto& [id, hex] : document.signatures)
    signatures.push_back(json::object{{"keyid", id}, {"sig", hex}});
  return json::serialize(json::object{{"signatures", std::move(signatures)}, {"signed", document.body}});
}

Result<SignedDocument> make_document(json::object body) {
  SignedDocument out;
  out.signed_bytes = RETORT_TRY(canonical_json(body));
  out.body = std::move(body);
  return out;
}

void add_signature(SignedDocument& document, const SigningKey& key) {
  const std::string id = key_id(public_key_of(key));
  std::erase_if(document.signatures, [&](const auto& s) { return s.key_id == id; });
  document.signatures.push_back({id, to_hex(sign_bytes(key, document.signed_bytes))});
}

std::uint32_t count_signatures(const SignedDocument& document, const KeyMap& keys, const Role& role,
                               SignatureCheck check) {
  std::set<PublicKey> signers;
  std::set<std::string_view> tried;  // so that a long list of signatures costs one check a key at most
  for (const auto& [id, hex] : document.signatures) {
    if (std::find(role.key_ids.begin(), role.key_ids.end(), id) == role.key_ids.end()) continue;
    const auto key = keys.find(id);
    if (key == keys.end() || !tried.insert(id).second) continue;
    const Result<std::string> signature = from_hex(hex);
    if (signature && check(key->second, document.signed_bytes, *signature)) signers.insert(key->second);
  }
  return static_cast<std::uint32_t>(signers.size());
}

Result<void> verify(const SignedDocument& document, const KeyMap& keys, const Role& role,
                    SignatureCheck check, std::string_view where) {
  const std::uint32_t good = count_signatures(document, keys, role, check);
  if (good < role.threshold || role.threshold == 0)
    return fail(ErrorCode::kDenied, std::string(where), "signed by {} of the {} keys that must", good,
                role.threshold);
  return {};
}

}  // namespace retort
