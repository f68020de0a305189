#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/clock.h"
#include "common/core/json.h"
#include "common/core/result.h"

namespace retort {

/// An Ed25519 key; libsodium inside. Thread: any.
struct SigningKey {
  std::string public_key;  ///< 32 raw bytes
  std::string secret_key;  ///< 64 raw bytes
};
SigningKey make_signing_key();
/// The key of a file that save_signing_key() wrote: the secret key, hexadecimal. kCorrupt when it is none.
Result<SigningKey> load_signing_key(const std::filesystem::path& path);
/// Mode 0600; never overwrites another key (kConflict).
Result<void> save_signing_key(const std::filesystem::path& path, const SigningKey& key);
/// A detached signature, 64 raw bytes.
std::string sign_bytes(const SigningKey& key, std::string_view message);

/// A public key as TUF metadata writes it. Two are the same key when all three members are equal, whatever
/// ids they go by.
struct PublicKey {
  std::string keytype, scheme;
  std::string value;  ///< "keyval"."public": hexadecimal for ed25519, PEM for the others
  auto operator<=>(const PublicKey&) const = default;
};
PublicKey public_key_of(const SigningKey& key);
/// From 64 hexadecimal characters; kInvalid.
Result<PublicKey> ed25519_public_key(std::string_view hex);
/// TUF key id: SHA-256 of the canonical JSON of the public key object, hexadecimal.
std::string key_id(const PublicKey& key);
json::object to_json(const PublicKey& key);

/// Whether `signature` (raw bytes) is `key`'s over `message`. False for a key type or scheme it does not
/// know.
using SignatureCheck = bool (*)(const PublicKey& key, std::string_view message, std::string_view signature);
/// ed25519 alone: all that our coordinator signs with.
bool check_ed25519(const PublicKey& key, std::string_view message, std::string_view signature);

/// OLPC canonical JSON, the form that TUF signs: keys sorted, no white space, integers only.
Result<std::string> canonical_json(const json::value& value);

/// Milliseconds of "2026-11-23T14:28:07Z"; kInvalid when it is not of that form.
Result<UnixMillis> from_rfc3339(std::string_view text);

/// {"signed": body, "signatures": [{"keyid", "sig"}]} taken apart. Nothing in `body` is to be believed before
/// verify().
struct SignedDocument {
  struct Signature {
    std::string key_id, hex;
  };
  json::object body;
  std::string signed_bytes;  ///< canonical JSON of the body
  std::vector<Signature> signatures;
};
/// kCorrupt: not such a document. `where` goes into errors.
Result<SignedDocument> parse_signed(std::string_view text, std::string_view where);
std::string to_text(const SignedDocument& document);
/// kInvalid when the body is not canonical JSON (it holds a fraction).
Result<SignedDocument> make_document(json::object body);
/// Adds the signature of `key`, or replaces the one it made before.
void add_signature(SignedDocument& document, const SigningKey& key);

/// Who may sign something, and how many of them must.
struct Role {
  std::vector<std::string> key_ids;
  std::uint32_t threshold = 1;
  bool operator==(const Role&) const = default;
};
using KeyMap = std::map<std::string, PublicKey>;  ///< by key id
/// How many of the role's keys signed the document. A key counts once, however often it signed and under
/// however many ids it is listed.
std::uint32_t count_signatures(const SignedDocument& document, const KeyMap& keys, const Role& role,
                               SignatureCheck check);
/// kDenied below the threshold.
Result<void> verify(const SignedDocument& document, const KeyMap& keys, const Role& role,
                    SignatureCheck check, std::string_view where);

}  // namespace retort
