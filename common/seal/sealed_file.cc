#include "common/seal/sealed_file.h"

#include <fcntl.h>
#include <sodium.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "common/core/hex.h"
#include "common/core/sha256.h"

namespace retort {
namespace {

constexpr char kMagic[8] = {'R', 'T', 'S', 'E', 'A', 'L', 'E', 'D'};
constexpr std::uint32_t kVersion = 1;
constexpr char kFileKeyContext[] = "retort sealed file", kIdContext[] = "retort seal key id";

/// As it lies in the file, little-endian as every machine that we build for.
struct Header {
  char magic[8];
  std::uint32_t version, nothing;
  unsigned char key_id[8], salt[16], artifact[32];
  std::uint64_t length;
  unsigned char tag[16];  ///< of all before it, under the file's key
};
struct RecordHeader {
  std::uint64_t begin;
  std::uint32_t length, nothing;
  unsigned char nonce[crypto_aead_xchacha20poly1305_ietf_NPUBBYTES];
};
static_assert(sizeof(Header) == SealedFile::kHeaderBytes && offsetof(Header, tag) == 80);
static_assert(sizeof(RecordHeader) == SealedFile::kRecordHeaderBytes && offsetof(RecordHeader, nonce) == 16);
static_assert(crypto_aead_xchacha20poly1305_ietf_ABYTES == SealedFile::kTagBytes);
static_assert(crypto_aead_xchacha20poly1305_ietf_KEYBYTES == SealKey::kBytes);
constexpr std::size_t kAuthenticated = offsetof(RecordHeader, nonce);  ///< of a record's header

const unsigned char* raw(const void* bytes) { return static_cast<const unsigned char*>(bytes); }
unsigned char* raw(std::string& bytes) { return reinterpret_cast<unsigned char*>(bytes.data()); }

void require_sodium() {
  if (sodium_init() < 0) std::abort();
}

/// A hash under a key, of a context and some bytes.
template <std::size_t kOut>
std::array<unsigned char, kOut> keyed_hash(std::span<const unsigned char> key, std::string_view context,
                                           std::span<const unsigned char> bytes) {
  require_sodium();
  std::array<unsigned char, kOut> out{};
  crypto_generichash_state state;
  crypto_generichash_init(&state, key.data(), key.size(), kOut);
  crypto_generichash_update(&state, raw(context.data()), context.size());
  crypto_generichash_update(&state, bytes.data(), bytes.size());
  crypto_generichash_final(&state, out.data(), kOut);
  return out;
}
std::array<unsigned char, 8> id_of(const SealKey& key) {
  const auto hash = keyed_hash<crypto_generichash_BYTES_MIN>(key.bytes, kIdContext, {});
  std::array<unsigned char, 8> id{};
  std::copy_n(hash.begin(), id.size(), id.begin());
  return id;
}
std::string hex_of(std::span<const unsigned char> bytes) {
  return to_hex({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}
/// Of what stands before the tag. Artifact, length and key are bound to every record through it.
std::array<unsigned char, 32> file_key_of(const SealKey& key, const Header& header) {
  return keyed_hash<32>(key.bytes, kFileKeyContext, {raw(&header), offsetof(Header, tag)});
}
std::array<unsigned char, 16> tag_of(std::span<const unsigned char> file_key, const Header& header) {
  return keyed_hash<16>(file_key, "", {raw(&header), offsetof(Header, tag)});
}

Result<Header> read_header(const File& file, const std::string& where) {
  Header header{};
  if (RETORT_TRY(file.size()) < sizeof header ||
      !file.read_exact_at(0, {reinterpret_cast<char*>(&header), sizeof header}) ||
      std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    return fail(ErrorCode::kInvalid, where, "not a sealed artifact");
  if (header.version != kVersion)
    return fail(ErrorCode::kUnsupported, where, "sealed in layout {}; this program knows {}", header.version,
                kVersion);
  return header;
}

}  // namespace

SealKey SealKey::make() {
  require_sodium();
  SealKey key;
  randombytes_buf(key.bytes.data(), key.bytes.size());
  return key;
}

std::string SealKey::id() const { return hex_of(id_of(*this)); }

Result<SealKey> read_seal_key(const std::filesystem::path& file) {
  std::string text = RETORT_TRY(read_file(file, 4096));
  while (!text.empty() && text.back() == '\n') text.pop_back();
  const Result<std::string> bytes = from_hex(text);
  if (!bytes || bytes->size() != SealKey::kBytes)
    return fail(ErrorCode::kInvalid, file.string(), "not a sealing key ({} hexadecimal digits)",
                2 * SealKey::kBytes);
  SealKey key;
  std::copy(bytes->begin(), bytes->end(), key.bytes.begin());
  return key;
}

Result<File> seal_key_in_memory(const SealKey& key) {
  File file(::memfd_create("retort-seal-key", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memory for the sealing key");
  if (file.fd() < 0) return fail_errno("memory for the sealing key", "cannot make it");
  RETORT_TRY(file.write_all_at(0, hex_of(key.bytes) + "\n"));
  if (::fcntl(file.fd(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0)
    return fail_errno("memory for the sealing key", "cannot make it read-only");
  return file;
}

std::uint64_t SealedFile::stored_bytes(std::uint64_t length, std::size_t pieces) {
  return kHeaderBytes + length + (length / kMaxRecordBytes + pieces + 1) * (kRecordHeaderBytes + kTagBytes);
}

bool SealedFile::is_sealed(const std::filesystem::path& path) {
  const Result<File> file = File::open_read(path);
  char magic[sizeof kMagic] = {};
  return file && file->read_exact_at(0, magic) && std::memcmp(magic, kMagic, sizeof kMagic) == 0;
}

Result<std::string> SealedFile::artifact_of(const std::filesystem::path& path) {
  const Header header = RETORT_TRY(read_header(RETORT_TRY(File::open_read(path)), path.string()));
  return hex_of(header.artifact);
}

Result<SealedFile> SealedFile::create(File file, std::string where, const SealKey& key,
                                      std::string_view artifact, std::uint64_t length) {
  const std::string hash = RETORT_TRY(from_hex(artifact));
  Header header{};
  if (hash.size() != sizeof header.artifact)
    return fail(ErrorCode::kInvalid, std::string(artifact), "not a SHA-256");
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  const auto id = id_of(key);
  std::copy(id.begin(), id.end(), header.key_id);
  randombytes_buf(header.salt, sizeof header.salt);
  std::copy(hash.begin(), hash.end(), header.artifact);
  header.length = length;
  const auto tag = tag_of(file_key_of(key, header), header);
  std::copy(tag.begin(), tag.end(), header.tag);
  RETORT_TRY(file.write_all_at(0, {reinterpret_cast<const char*>(&header), sizeof header}));
  SealedFile out(std::move(file), std::move(where));
  RETORT_TRY(out.take_header(key));
  return out;
}

Result<SealedFile> SealedFile::open(File file, std::string where, const SealKey& key) {
  SealedFile out(std::move(file), std::move(where));
  RETORT_TRY(out.take_header(key));
  RETORT_TRY(out.find_records());
  return out;
}

Result<void> SealedFile::take_header(const SealKey& key) {
  const Header header = RETORT_TRY(read_header(file_, where_));
  const auto id = id_of(key);
  if (std::memcmp(header.key_id, id.data(), id.size()) != 0)
    return fail(ErrorCode::kDenied, where_, "sealed under key {}, and this device's is {}",
                hex_of(header.key_id), hex_of(id));
  file_key_ = file_key_of(key, header);
  const auto tag = tag_of(file_key_, header);
  if (sodium_memcmp(header.tag, tag.data(), tag.size()) != 0)
    return fail(ErrorCode::kCorrupt, where_, "the header of the sealed artifact is damaged");
  artifact_ = hex_of(header.artifact);
  length_ = header.length;
  return {};
}

Result<std::optional<SealedFile::Record>> SealedFile::record_at(std::uint64_t position,
                                                                std::uint64_t file_size) const {
  if (file_size - position < sizeof(RecordHeader)) return std::nullopt;
  RecordHeader header{};
  RETORT_TRY(file_.read_exact_at(position, {reinterpret_cast<char*>(&header), sizeof header}));
  const bool whole = header.nothing == 0 && header.length > 0 && header.length <= kMaxRecordBytes &&
                     header.begin <= length_ && header.length <= length_ - header.begin &&
                     header.length + kTagBytes <= file_size - position - sizeof header;
  if (!whole) return std::nullopt;
  return Record{header.begin, position, header.length};
}

Result<void> SealedFile::find_records() {
  const std::uint64_t size = RETORT_TRY(file_.size());
  while (const auto record = RETORT_TRY(record_at(end_, size))) {
    add(*record);
    end_ += kRecordHeaderBytes + record->length + kTagBytes;
  }
  return {};
}

void SealedFile::add(const Record& record) {
  const std::uint64_t begin = record.begin, end = record.begin + record.length;
  auto at = extents_.upper_bound(begin);
  if (at != extents_.begin() && std::prev(at)->second.end > begin) {
    const auto before = std::prev(at);
    const Extent was = before->second;
    before->second.end = begin;
    if (before->first == begin) extents_.erase(before);
    if (was.end > end) extents_[end] = was;
  }
  for (at = extents_.lower_bound(begin); at != extents_.end() && at->first < end; at = extents_.erase(at))
    if (at->second.end > end) extents_[end] = at->second;
  extents_[begin] = {end, record};
}

Result<void> SealedFile::write_all_at(std::uint64_t offset, std::string_view bytes) {
  if (offset > length_ || bytes.size() > length_ - offset)
    return fail(ErrorCode::kInvalid, where_, "bytes beyond the artifact's end");
  while (!bytes.empty()) {
    const std::string_view now = bytes.substr(0, kMaxRecordBytes);
    RecordHeader header{offset, static_cast<std::uint32_t>(now.size()), 0, {}};
    randombytes_buf(header.nonce, sizeof header.nonce);
    sealed_.resize(sizeof header + now.size() + kTagBytes);
    std::memcpy(sealed_.data(), &header, sizeof header);
    crypto_aead_xchacha20poly1305_ietf_encrypt(raw(sealed_) + sizeof header, nullptr, raw(now.data()),
                                               now.size(), raw(&header), kAuthenticated, nullptr,
                                               header.nonce, file_key_.data());
    RETORT_TRY(file_.write_all_at(end_, sealed_));
    add({offset, end_, header.length});
    end_ += sealed_.size();
    offset += now.size();
    bytes.remove_prefix(now.size());
  }
  return {};
}

Result<void> SealedFile::decrypt(const Record& record) {
  if (decrypted_ == record.position) return {};
  decrypted_.reset();
  sealed_.resize(kRecordHeaderBytes + record.length + kTagBytes);
  RETORT_TRY(file_.read_exact_at(record.position, sealed_));
  plain_.resize(record.length);
  if (crypto_aead_xchacha20poly1305_ietf_decrypt(
          raw(plain_), nullptr, nullptr, raw(sealed_) + kRecordHeaderBytes, record.length + kTagBytes,
          raw(sealed_), kAuthenticated, raw(sealed_) + kAuthenticated, file_key_.data()) != 0)
    return fail(ErrorCode::kCorrupt, where_, "bytes {} to {} of the sealed artifact are damaged",
                record.begin, record.begin + record.length);
  decrypted_ = record.position;
  return {};
}

Result<void> SealedFile::read_exact_at(std::uint64_t offset, std::span<char> out) {
  while (!out.empty()) {
    const auto after = extents_.upper_bound(offset);
    if (after == extents_.begin() || std::prev(after)->second.end <= offset)
      return fail(ErrorCode::kCorrupt, where_, "the sealed artifact lacks its byte {}", offset);
    const Extent& extent = std::prev(after)->second;
    RETORT_TRY(decrypt(extent.record));
    const std::size_t count = std::min<std::uint64_t>(out.size(), extent.end - offset);
    std::memcpy(out.data(), plain_.data() + (offset - extent.record.begin), count);
    out = out.subspan(count);
    offset += count;
  }
  return {};
}

Result<PrivateMemory> unseal(const std::filesystem::path& path, const SealKey& key) {
  SealedFile sealed = RETORT_TRY(SealedFile::open(RETORT_TRY(File::open_read(path)), path.string(), key));
  // No more than the file can hold, whatever its header says.
  if (sealed.length() > RETORT_TRY(File::open_read(path)).size().value_or(0))
    return fail(ErrorCode::kCorrupt, path.string(), "the sealed artifact is not whole");
  return PrivateMemory::make(sealed.length(), [&](std::span<char> memory) -> Result<void> {
    RETORT_TRY(sealed.read_exact_at(0, memory));
    if (const std::string hash = sha256_hex({memory.data(), memory.size()}); hash != sealed.artifact())
      return fail(ErrorCode::kCorrupt, path.string(), "the unsealed artifact's hash is {}, not {}", hash,
                  sealed.artifact());
    return {};
  });
}

}  // namespace retort
