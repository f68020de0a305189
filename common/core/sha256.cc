#include "common/core/sha256.h"

#include <openssl/evp.h>

#include <array>
#include <cstdlib>

#include "common/core/file.h"
#include "common/core/hex.h"

namespace retort {

struct Sha256::Impl {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~Impl() { EVP_MD_CTX_free(context); }
  void start() {
    if (context == nullptr || EVP_DigestInit_ex(context, EVP_sha256(), nullptr) != 1) std::abort();
  }
};

Sha256::Sha256() : impl_(std::make_unique<Impl>()) { impl_->start(); }
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::update(std::string_view bytes) { EVP_DigestUpdate(impl_->context, bytes.data(), bytes.size()); }

std::string Sha256::finish_hex() {
  std::array<char, 32> digest{};
  EVP_DigestFinal_ex(impl_->context, reinterpret_cast<unsigned char*>(digest.data()), nullptr);
  impl_->start();
  return to_hex(std::string_view(digest.data(), digest.size()));
}

std::string sha256_hex(std::string_view bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.finish_hex();
}

bool same_digest(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  volatile unsigned difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    difference = difference | (static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]));
  return difference == 0;
}

Result<std::string> sha256_file_hex(const std::filesystem::path& path, std::uint64_t offset,
                                    std::uint64_t length) {
  const File file = RETORT_TRY(File::open_read(path));
  const std::uint64_t size = RETORT_TRY(file.size());
  if (offset > size)
    return fail(ErrorCode::kCorrupt, path.string(), "offset {} beyond its {} bytes", offset, size);
  if (length == UINT64_MAX) length = size - offset;
  if (length > size - offset)
    return fail(ErrorCode::kCorrupt, path.string(), "{} bytes wanted at {}, but it ends at {}", length,
                offset, size);
  Sha256 hash;
  std::string buffer(std::min<std::uint64_t>(length, 1 << 20), '\0');
  while (length > 0) {
    const std::size_t n = std::min<std::uint64_t>(length, buffer.size());
    RETORT_TRY(file.read_exact_at(offset, std::span(buffer.data(), n)));
    hash.update({buffer.data(), n});
    offset += n;
    length -= n;
  }
  return hash.finish_hex();
}

}  // namespace retort
