#include "agent/update/seal_key_file.h"

#include <algorithm>

#include "common/core/base64.h"
#include "common/core/log.h"
#include "common/net/key_proof.h"

namespace retort {
namespace {

constexpr std::string_view kFirstLine = "retort-seal-key 1\n";

}  // namespace

Result<SealKey> open_seal_key(const std::filesystem::path& file, const CurveKeys& keys) {
  const std::string where = file.string();
  if (!std::filesystem::exists(file)) return fail(ErrorCode::kNotFound, where, "there is no sealing key");
  const std::string text = RETORT_TRY(read_file(file, 4096));
  if (!text.starts_with(kFirstLine)) return fail(ErrorCode::kCorrupt, where, "not a file with a sealing key");
  std::string_view rest = std::string_view(text).substr(kFirstLine.size());
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (!line.starts_with(keys.public_key + " ")) continue;
    const auto box = decode_base64(line.substr(keys.public_key.size() + 1));
    const Result<std::string> opened =
        open_box(keys, box ? std::string_view(reinterpret_cast<const char*>(box->data()), box->size()) : "");
    if (!opened || opened->size() != SealKey::kBytes)
      return fail(ErrorCode::kCorrupt, where, "the sealing key's box is damaged");
    SealKey key;
    std::copy(opened->begin(), opened->end(), key.bytes.begin());
    return key;
  }
  return fail(ErrorCode::kDenied, where, "the sealing key is for another device's key, not for {}",
              keys.public_key);
}

Result<void> write_seal_key(const std::filesystem::path& file, const SealKey& key,
                            const std::vector<std::string>& public_keys) {
  std::string text(kFirstLine);
  for (const std::string& public_key : public_keys) {
    const std::string box =
        RETORT_TRY(box_for(public_key, {reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size()}));
    text += public_key + " " + encode_base64(std::as_bytes(std::span(box))) + "\n";
  }
  return write_file_atomic(file, text, 0600);
}

Result<std::optional<SealKey>> seal_key_at_start(const std::filesystem::path& folder, const CurveKeys& keys,
                                                 bool make) {
  const std::filesystem::path file = folder / "seal";
  Result<SealKey> key = open_seal_key(file, keys);
  if (!key && key.error().code != ErrorCode::kNotFound) {
    if (key.error().code != ErrorCode::kDenied && key.error().code != ErrorCode::kCorrupt)
      return fail(key.error());
    log_error(
        "{}; put aside as seal.unusable: what was sealed under it is of no use here and is pulled again",
        key.error().describe());
    std::error_code error;
    std::filesystem::rename(file, folder / "seal.unusable", error);
    if (error) return fail(ErrorCode::kIo, file.string(), "cannot rename: {}", error.message());
  }
  if (!key && !make) return std::optional<SealKey>();
  if (!key) {
    key = SealKey::make();
    log_info("students are sealed on the disk, under key {}", key->id());
  }
  const std::string text = read_file(file, 4096).value_or("");
  if (std::count(text.begin(), text.end(), '\n') != 2)  // none yet, or the box of an older key too
    RETORT_TRY(write_seal_key(file, *key, {keys.public_key}));
  return std::optional<SealKey>(*key);
}

}  // namespace retort
