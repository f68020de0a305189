#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/core/result.h"

namespace retort {

/// A server's certificate and key, ready for handshakes: TLS 1.2 and 1.3 with OpenSSL's ciphers of security
/// level 2. Thread: any, after it was made.
class TlsServer {
 public:
  /// kInvalid: no PEM certificate and key, or they do not belong together; kNotFound.
  static Result<std::shared_ptr<TlsServer>> load(const std::filesystem::path& certificate,
                                                 const std::filesystem::path& key);
  /// Of the certificate that clients see.
  const std::string& fingerprint() const { return fingerprint_; }
  struct Impl;  ///< holds the OpenSSL context; common/http alone knows it
  const std::shared_ptr<Impl>& impl() const { return impl_; }

 private:
  std::shared_ptr<Impl> impl_;
  std::string fingerprint_;
};

struct TlsFiles {
  std::filesystem::path certificate, key;
};
/// FOLDER/server.crt and server.key (0600); where they are not there yet: a self-signed certificate with an
/// ECDSA P-256 key, for these host names and addresses, good for ten years. Clients pin its fingerprint.
Result<TlsFiles> load_or_make_self_signed(const std::filesystem::path& folder,
                                          const std::vector<std::string>& names);

/// "sha256:" and the SHA-256 of a certificate's DER form: what `openssl x509 -fingerprint -sha256` shows. It
/// reads such a text in either case, with or without colons and the prefix; kInvalid otherwise.
Result<std::string> parse_fingerprint(const std::string& text);

}  // namespace retort
