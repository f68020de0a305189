#include "common/trust/artifact_target.h"

#include <algorithm>

#include "common/core/sha256.h"
#include "common/gguf/gguf.h"

namespace retort {
namespace {

constexpr std::size_t kMaxPieces = 1 << 20;
constexpr std::uint64_t kMaxManifestBytes = 16 << 20;

bool is_hash(std::string_view text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

Result<void> check_shape(const ArtifactManifest& m) {
  const auto bad = [&](std::string what) { return fail(ErrorCode::kCorrupt, "manifest", "{}", what); };
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

std::string artifact_target_name(std::string_view sha256) {
  return "artifacts/" + std::string(sha256) + ".gguf";
}
std::string manifest_file_name(std::string_view sha256) {
  return "manifests/" + std::string(sha256) + ".json";
}

TargetFile artifact_target(const ArtifactManifest& manifest, std::string_view text) {
  return {manifest.length,
          {{"sha256", manifest.sha256}},
          {{"manifest", json::object{{"sha256", sha256_hex(text)}, {"length", text.size()}}}}};
}

Result<ManifestReference> manifest_of_target(const TargetFile& target) {
  const auto read = [&]() -> Result<ManifestReference> {
    const json::object& object = *RETORT_TRY(json_object(target.custom, "manifest", "target"));
    ManifestReference made;
    made.sha256 = RETORT_TRY(json_string(object, "sha256", "target"));
    made.length = RETORT_TRY(json_uint(object, "length", "target", kMaxManifestBytes));
    return made;
  };
  Result<ManifestReference> out = read();
  if (!out) return fail(ErrorCode::kCorrupt, "target", "names no manifest: {}", out.error().message);
  return out;
}

Result<std::string> manifest_to_text(const ArtifactManifest& m) {
  RETORT_TRY(check_shape(m));
  json::array pieces;
  for (const ArtifactPiece& piece : m.pieces)
    pieces.push_back(json::object{
        {"name", piece.name}, {"sha256", piece.sha256}, {"offset", piece.offset}, {"length", piece.length}});
  json::object lineage;
  for (const auto& [name, value] : m.lineage) lineage[name] = value;
  return json::serialize(json::object{{"retort_manifest", 2},
                                      {"sha256", m.sha256},
                                      {"length", m.length},
                                      {"format", m.format},
                                      {"pieces", std::move(pieces)},
                                      {"lineage", std::move(lineage)}});
}

Result<ArtifactManifest> manifest_from_text(std::string_view text) {
  const std::string where = "manifest";
  const auto read = [&]() -> Result<ArtifactManifest> {
    const json::value value = RETORT_TRY(parse_json(text, where));
    const json::object& object = *RETORT_TRY(as_object(value, where));
    ArtifactManifest out;
    if (RETORT_TRY(json_uint(object, "retort_manifest", where)) != 2)
      return fail(ErrorCode::kUnsupported, where, "its version is not 2");
    out.sha256 = RETORT_TRY(json_string(object, "sha256", where));
    out.length = RETORT_TRY(json_uint(object, "length", where));
    out.format = RETORT_TRY(json_string(object, "format", where));
    const json::array& pieces = *RETORT_TRY(json_array(object, "pieces", where));
    if (pieces.size() > kMaxPieces) return fail(ErrorCode::kCorrupt, where, "lists {} pieces", pieces.size());
    for (const json::value& entry : pieces) {
      const json::object& piece = *RETORT_TRY(as_object(entry, where));
      ArtifactPiece& made = out.pieces.emplace_back();
      made.name = RETORT_TRY(json_string(piece, "name", where));
      made.sha256 = RETORT_TRY(json_string(piece, "sha256", where));
      made.offset = RETORT_TRY(json_uint(piece, "offset", where));
      made.length = RETORT_TRY(json_uint(piece, "length", where));
    }
    for (const auto& member : *RETORT_TRY(json_object(object, "lineage", where)))
      if (member.value().is_string())
        out.lineage[std::string(member.key())] = std::string(member.value().get_string());
    RETORT_TRY(check_shape(out));
    return out;
  };
  Result<ArtifactManifest> out = read();
  if (!out && out.error().code == ErrorCode::kInvalid)
    return fail(Error{ErrorCode::kCorrupt, out.error().message, where});
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
    std::string hash = RETORT_TRY(sha256_file_hex(gguf, at, end - at));
    out.pieces.push_back({name, std::move(hash), at, end - at});
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
