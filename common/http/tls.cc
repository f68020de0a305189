#include "common/http/tls.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>

#include <boost/asio/ip/address.hpp>
#include <cctype>

#include "common/core/file.h"
#include "common/core/hex.h"
#include "common/core/sha256.h"
#include "common/http/tls_impl.h"

namespace retort {
namespace {

constexpr long kSelfSignedSeconds = 10l * 365 * 24 * 3600;

template <typename Object, void (*release)(Object*)>
struct Release {
  void operator()(Object* object) const { release(object); }
};
using X509Ptr = std::unique_ptr<X509, Release<X509, X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Release<EVP_PKEY, EVP_PKEY_free>>;
struct ReleaseBio {
  void operator()(BIO* bio) const { BIO_free_all(bio); }
};
using BioPtr = std::unique_ptr<BIO, ReleaseBio>;

std::string openssl_reason() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  const char* reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  return reason == nullptr ? "unknown reason" : reason;
}

std::string text_of(const BioPtr& bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<std::size_t>(size));
}

/// The certificate's and the key's PEM text.
Result<std::pair<std::string, std::string>> make_self_signed(const std::vector<std::string>& names) {
  const auto failed = [] {
    return fail(ErrorCode::kInternal, "", "cannot make a certificate: {}", openssl_reason());
  };
  const KeyPtr key(EVP_EC_gen("P-256"));
  const X509Ptr certificate(X509_new());
  if (!key || !certificate) return failed();
  std::string alternatives;
  for (const std::string& name : names) {
    boost::system::error_code no_address;
    (void)boost::asio::ip::make_address(name, no_address);
    alternatives += (alternatives.empty() ? "" : ",") + std::string(no_address ? "DNS:" : "IP:") + name;
  }
  unsigned char serial[16];
  if (RAND_bytes(serial, sizeof serial) != 1) return failed();
  serial[0] = (serial[0] & 0x7f) | 1;
  BIGNUM* number = BN_bin2bn(serial, sizeof serial, nullptr);
  BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate.get()));
  BN_free(number);
  X509_set_version(certificate.get(), 2);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600);  // clocks differ
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), kSelfSignedSeconds);
  X509_set_pubkey(certificate.get(), key.get());
  X509_NAME* name = X509_get_subject_name(certificate.get());
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("retort"), -1,
                             -1, 0);
  X509_set_issuer_name(certificate.get(), name);
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, certificate.get(), certificate.get(), nullptr, nullptr, 0);
  const std::pair<int, std::string> extensions[] = {{NID_basic_constraints, "critical,CA:FALSE"},
                                                    {NID_key_usage, "critical,digitalSignature"},
                                                    {NID_ext_key_usage, "serverAuth"},
                                                    {NID_subject_alt_name, alternatives}};
  for (const auto& [kind, value] : extensions) {
    if (value.empty()) continue;
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str());
    if (extension == nullptr) return failed();
    X509_add_ext(certificate.get(), extension, -1);
    X509_EXTENSION_free(extension);
  }
  if (X509_sign(certificate.get(), key.get(), EVP_sha256()) == 0) return failed();
  const BioPtr certificate_text(BIO_new(BIO_s_mem())), key_text(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_X509(certificate_text.get(), certificate.get()) != 1 ||
      PEM_write_bio_PKCS8PrivateKey(key_text.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) != 1)
    return failed();
  return std::pair(text_of(certificate_text), text_of(key_text));
}

}  // namespace

std::string certificate_fingerprint(const x509_st* certificate) {
  unsigned char* der = nullptr;
  const int size = i2d_X509(certificate, &der);
  if (size <= 0) return "";
  const std::string hash =
      sha256_hex(std::string_view(reinterpret_cast<const char*>(der), static_cast<std::size_t>(size)));
  OPENSSL_free(der);
  return "sha256:" + hash;
}

Result<std::shared_ptr<TlsServer>> TlsServer::load(const std::filesystem::path& certificate,
                                                   const std::filesystem::path& key) {
  const std::string certificate_text = RETORT_TRY(read_file(certificate, 1 << 20));
  const std::string key_text = RETORT_TRY(read_file(key, 1 << 20));
  auto out = std::make_shared<TlsServer>();
  out->impl_ = std::make_shared<Impl>();
  boost::asio::ssl::context& context = out->impl_->context;
  SSL_CTX* raw = context.native_handle();
  SSL_CTX_set_min_proto_version(raw, TLS1_2_VERSION);
  SSL_CTX_set_security_level(raw, 2);
  context.set_options(boost::asio::ssl::context::no_compression | SSL_OP_NO_RENEGOTIATION |
                      SSL_OP_CIPHER_SERVER_PREFERENCE);
  const BioPtr bio(BIO_new_mem_buf(certificate_text.data(), static_cast<int>(certificate_text.size())));
  const X509Ptr leaf(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  if (!leaf)
    return fail(ErrorCode::kInvalid, certificate.string(), "holds no PEM certificate: {}", openssl_reason());
  out->fingerprint_ = certificate_fingerprint(leaf.get());
  boost::system::error_code error;
  context.use_certificate_chain(boost::asio::buffer(certificate_text), error);
  if (error)
    return fail(ErrorCode::kInvalid, certificate.string(), "cannot use the certificate: {}", error.message());
  context.use_private_key(boost::asio::buffer(key_text), boost::asio::ssl::context::pem, error);
  if (error || SSL_CTX_check_private_key(raw) != 1)
    return fail(ErrorCode::kInvalid, key.string(), "is no PEM key of that certificate: {}",
                error ? error.message() : openssl_reason());
  return out;
}

Result<TlsFiles> load_or_make_self_signed(const std::filesystem::path& folder,
                                          const std::vector<std::string>& names) {
  TlsFiles files{folder / "server.crt", folder / "server.key"};
  std::error_code ignored;
  if (std::filesystem::exists(files.certificate, ignored)) return files;
  RETORT_TRY(make_folders(folder));
  const auto [certificate, key] = RETORT_TRY(make_self_signed(names));
  // The certificate last: it says that both are there.
  RETORT_TRY(write_file_atomic(files.key, key, 0600));
  RETORT_TRY(write_file_atomic(files.certificate, certificate, 0644));
  return files;
}

Result<std::string> parse_fingerprint(const std::string& text) {
  std::string digits;
  std::string_view rest = text;
  if (rest.size() > 7 && (rest.starts_with("sha256:") || rest.starts_with("SHA256:"))) rest.remove_prefix(7);
  for (const char c : rest)
    if (c != ':') digits += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (digits.size() != 64 || !from_hex(digits))
    return fail(ErrorCode::kInvalid, "fingerprint",
                "'{}' is not the SHA-256 of a certificate: 64 hexadecimal digits", text);
  return "sha256:" + digits;
}

}  // namespace retort
