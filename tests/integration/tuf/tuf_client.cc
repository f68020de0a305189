// A command-line client over common/trust, for conformance suites of The Update Framework that drive one:
//   tuf_client --metadata-dir DIR init TRUSTED_ROOT
//   tuf_client --metadata-dir DIR --metadata-url URL refresh
//   tuf_client --metadata-dir DIR --metadata-url URL --target-name NAME --target-base-url URL
//              --target-dir DIR download
// DIR holds what is trusted, as "root.json", "timestamp.json", and so on. Exit status 0, or 1 with the reason
// on standard error. Devices' agents verify with the same code, but with Ed25519 keys alone; here RSA and
// ECDSA keys are known as well, by OpenSSL.
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>

#include <cstdio>
#include <filesystem>

#include "common/core/file.h"
#include "common/http/http.h"
#include "common/trust/client.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

/// "rsassa-pss-sha256" gives EVP_sha256().
const EVP_MD* digest_of(const std::string& scheme) {
  return scheme.ends_with("256")   ? EVP_sha256()
         : scheme.ends_with("384") ? EVP_sha384()
         : scheme.ends_with("512") ? EVP_sha512()
                                   : nullptr;
}

bool check_any(const PublicKey& key, std::string_view message, std::string_view signature) {
  if (key.keytype == "ed25519") return check_ed25519(key, message, signature);
  const bool rsa = key.keytype == "rsa" && key.scheme.starts_with("rsassa-pss-");
  const bool ecdsa = key.keytype.starts_with("ecdsa") && key.scheme.starts_with("ecdsa-sha2-");
  const EVP_MD* digest = digest_of(key.scheme);
  if ((!rsa && !ecdsa) || digest == nullptr) return false;
  BIO* bio = BIO_new_mem_buf(key.value.data(), static_cast<int>(key.value.size()));
  EVP_PKEY* public_key = PEM_read_bio_PUBKEY(bio, nullptr, nullptr, nullptr);
  BIO_free(bio);
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  EVP_PKEY_CTX* settings = nullptr;
  const bool good =
      public_key != nullptr && EVP_PKEY_base_id(public_key) == (rsa ? EVP_PKEY_RSA : EVP_PKEY_EC) &&
      EVP_DigestVerifyInit(context, &settings, digest, nullptr, public_key) == 1 &&
      (!rsa || (EVP_PKEY_CTX_set_rsa_padding(settings, RSA_PKCS1_PSS_PADDING) == 1 &&
                EVP_PKEY_CTX_set_rsa_pss_saltlen(settings, RSA_PSS_SALTLEN_AUTO) == 1)) &&
      EVP_DigestVerify(context, reinterpret_cast<const unsigned char*>(signature.data()), signature.size(),
                       reinterpret_cast<const unsigned char*>(message.data()), message.size()) == 1;
  EVP_MD_CTX_free(context);
  EVP_PKEY_free(public_key);
  return good;
}

/// Percent-encoded but for unreserved characters and those of `keep`.
std::string quote(std::string_view text, std::string_view keep) {
  std::string out;
  for (const char c : text) {
    if (std::isalnum(static_cast<unsigned char>(c)) ||
        std::string_view("-._~").find(c) != std::string_view::npos || keep.find(c) != std::string_view::npos)
      out += c;
    else
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

std::string with_slash(std::string url) { return url.ends_with('/') ? url : url + '/'; }

struct Options {
  fs::path metadata, target_folder;
  std::string metadata_url, target_name, target_url;
};

/// The body; nothing where the server says that there is none. Never reads more than `max_bytes` and a bit.
Result<std::optional<std::string>> download(const std::string& url, std::uint64_t max_bytes) {
  constexpr std::chrono::seconds kPatience(10);
  constexpr std::uint64_t kMinBytesPerSecond = 1024;
  HttpCall call;
  call.url = url;
  call.timeout = std::chrono::seconds(10);
  std::string body;
  const auto begin = std::chrono::steady_clock::now();
  bool slow = false, endless = false;
  call.on_body = [&](std::string_view piece) {
    body += piece;
    endless = body.size() > max_bytes;
    slow = std::chrono::steady_clock::now() - begin >
           kPatience + std::chrono::seconds(body.size() / kMinBytesPerSecond);
    return !endless && !slow;
  };
  const HttpResponse response = RETORT_TRY(http_call(call));
  if (slow) return fail(ErrorCode::kUnavailable, url, "too slow");
  if (endless) return fail(ErrorCode::kCorrupt, url, "is longer than {} bytes", max_bytes);
  if (response.status == 403 || response.status == 404) return std::nullopt;
  if (response.status != 200) return fail(ErrorCode::kUnavailable, url, "answered {}", response.status);
  return std::optional(std::move(body));
}

Result<void> run_client(const Options& options, TrustClient& client) {
  while (const auto wanted = client.wanted()) {
    const std::string name =
        (wanted->version ? std::to_string(*wanted->version) + "." : "") + quote(wanted->role, "") + ".json";
    const auto file = RETORT_TRY(download(with_slash(options.metadata_url) + name, wanted->max_bytes));
    const Result<void> taken = file ? client.provide(*file) : client.absent();
    for (const auto& [role, bytes] : client.take_changes()) {
      const fs::path path = options.metadata / (quote(role, "") + ".json");
      std::error_code ignored;
      if (bytes)
        RETORT_TRY(write_file_atomic(path, *bytes, 0644));
      else
        fs::remove(path, ignored);
    }
    RETORT_TRY(taken);
  }
  return {};
}

Result<TrustClient> refresh(const Options& options) {
  TrustClient::Stored stored;
  for (const auto& entry : fs::directory_iterator(options.metadata)) {
    const auto role = percent_decode(entry.path().stem().string());
    if (entry.path().extension() == ".json" && role)
      stored[*role] = RETORT_TRY(read_file(entry.path(), TrustClient::kMaxTargetsBytes));
  }
  TrustClient client = RETORT_TRY(TrustClient::open(std::move(stored), check_any));
  client.refresh(SystemClock().unix_millis());
  RETORT_TRY(run_client(options, client));
  return client;
}

Result<void> init(const Options& options, const fs::path& root) {
  const std::string text = RETORT_TRY(read_file(root, TrustClient::kMaxRootBytes));
  RETORT_TRY(TrustClient::check_first_root(text, check_any));
  RETORT_TRY(make_folders(options.metadata));
  return write_file_atomic(options.metadata / "root.json", text, 0644);
}

Result<void> download_target(const Options& options) {
  TrustClient client = RETORT_TRY(refresh(options));
  client.find(options.target_name);
  RETORT_TRY(run_client(options, client));
  if (!client.found())
    return fail(ErrorCode::kNotFound, options.target_name, "no trusted role lists this target");
  const TargetFile file = *client.found();
  const fs::path path = options.target_folder / quote(options.target_name, "");
  if (const auto have = read_file(path); have && TrustClient::check_target(*have, file, options.target_name))
    return {};
  std::string name = options.target_name;
  if (client.root().consistent_snapshot) {
    const auto sha256 = file.hashes.find("sha256");
    const std::string& hash = sha256 != file.hashes.end() ? sha256->second : file.hashes.begin()->second;
    const std::size_t slash = name.rfind('/');
    name.insert(slash == std::string::npos ? 0 : slash + 1, hash + ".");
  }
  const auto bytes = RETORT_TRY(download(with_slash(options.target_url) + quote(name, "/"), file.length));
  if (!bytes) return fail(ErrorCode::kNotFound, name, "is not there");
  RETORT_TRY(TrustClient::check_target(*bytes, file, options.target_name));
  RETORT_TRY(make_folders(options.target_folder));
  return write_file_atomic(path, *bytes, 0644);
}

int run(const std::vector<std::string>& arguments) {
  Options options;
  std::vector<std::string> words;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = arguments[i];
    const bool known = name == "--metadata-dir" || name == "--metadata-url" || name == "--target-name" ||
                       name == "--target-base-url" || name == "--target-dir";
    if (!known) {
      words.push_back(name);
      continue;
    }
    const std::string value = ++i < arguments.size() ? arguments[i] : "";
    if (name == "--metadata-dir") options.metadata = value;
    if (name == "--metadata-url") options.metadata_url = value;
    if (name == "--target-name") options.target_name = value;
    if (name == "--target-base-url") options.target_url = value;
    if (name == "--target-dir") options.target_folder = value;
  }
  const std::string verb = words.empty() ? "" : words[0];
  Result<void> done =
      fail(ErrorCode::kInvalid, "", "usage: tuf_client OPTIONS init ROOT | refresh | download");
  if (!options.metadata.empty()) {
    if (verb == "init" && words.size() == 2) done = init(options, words[1]);
    if (verb == "refresh") {
      const Result<TrustClient> client = refresh(options);
      done = client ? Result<void>() : fail(client.error());
    }
    if (verb == "download") done = download_target(options);
  }
  if (done) return 0;
  std::fprintf(stderr, "tuf_client: %s\n", done.error().describe().c_str());
  return 1;
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) { return retort::run({argv + 1, argv + argc}); }
