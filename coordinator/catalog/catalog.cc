#include "coordinator/catalog/catalog.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/sha256.h"
#include "common/core/units.h"
#include "common/hf/hf_model.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kDiskReserveBytes = 16 << 20;
constexpr std::size_t kChunkBytes = 1 << 20, kMaxLineBytes = 16 << 20;

Result<void> need_disk(const fs::path& folder, std::uint64_t bytes, std::string_view what) {
  const std::uint64_t free = RETORT_TRY(free_disk_bytes(folder));
  if (free >= bytes + kDiskReserveBytes) return {};
  return fail(ErrorCode::kOutOfBudget, folder.string(), "the {} needs {}, the disk has {} left", what,
              format_bytes(bytes), format_bytes(free));
}

bool is_teacher_file(const fs::path& path) {
  static const std::vector<std::string> names = {"config.json",
                                                 "generation_config.json",
                                                 "tokenizer.json",
                                                 "tokenizer_config.json",
                                                 "special_tokens_map.json",
                                                 "model.safetensors.index.json",
                                                 "vocab.json",
                                                 "merges.txt"};
  return path.extension() == ".safetensors" ||
         std::find(names.begin(), names.end(), path.filename().string()) != names.end();
}

/// The hash is that of the bytes written, whatever happens to the source meanwhile.
Result<std::string> copy_hashed(const fs::path& from, const fs::path& to) {
  const File source = RETORT_TRY(File::open_read(from));
  const std::uint64_t size = RETORT_TRY(source.size());
  Sha256 hash;
  RETORT_TRY(write_file_with(to, [&](const File& out) -> Result<void> {
    std::string buffer;
    for (std::uint64_t at = 0; at < size; at += buffer.size()) {
      buffer.resize(std::min<std::uint64_t>(size - at, kChunkBytes));
      RETORT_TRY(source.read_exact_at(at, buffer));
      RETORT_TRY(out.write_all_at(at, buffer));
      hash.update(buffer);
    }
    return {};
  }));
  return hash.finish_hex();
}

/// Calls `visit(line, number)` for each line. Reads rather than maps: a file that shrinks meanwhile is then
/// an error and not a SIGBUS.
Result<void> each_line(const fs::path& path,
                       const std::function<Result<void>(std::string_view, std::size_t)>& visit) {
  const File file = RETORT_TRY(File::open_read(path));
  const std::uint64_t size = RETORT_TRY(file.size());
  std::string chunk, pending;
  std::size_t number = 0;
  for (std::uint64_t at = 0; at < size; at += chunk.size()) {
    chunk.resize(std::min<std::uint64_t>(size - at, kChunkBytes));
    RETORT_TRY(file.read_exact_at(at, chunk));
    for (std::size_t begin = 0; begin < chunk.size();) {
      const std::size_t end = chunk.find('\n', begin);
      pending.append(chunk, begin, end == std::string::npos ? end : end - begin);
      if (pending.size() > kMaxLineBytes)
        return fail(ErrorCode::kInvalid, fmt::format("{}:{}", path.string(), number + 1),
                    "the line is longer than {}", format_bytes(kMaxLineBytes));
      if (end == std::string::npos) break;
      RETORT_TRY(visit(pending, ++number));
      pending.clear();
      begin = end + 1;
    }
  }
  if (!pending.empty()) RETORT_TRY(visit(pending, ++number));
  return {};
}

Result<void> rename_in(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) return fail(ErrorCode::kIo, to.string(), "cannot rename into place: {}", error.message());
  return sync_folder(to.parent_path());
}

Result<TeacherRecord> fill_teacher(const fs::path& source, const fs::path& teachers,
                                   const fs::path& incoming) {
  std::vector<fs::path> files;
  std::uint64_t bytes = 0;
  std::error_code error;
  for (fs::directory_iterator at(source, error), end; !error && at != end; at.increment(error))
    if (is_teacher_file(at->path())) {
      std::error_code bad;
      if (!fs::is_regular_file(at->path(), bad))
        return fail(ErrorCode::kInvalid, at->path().string(), "is not a regular file");
      bytes += RETORT_TRY(RETORT_TRY(File::open_read(at->path())).size());
      files.push_back(at->path());
    }
  if (error) return fail(ErrorCode::kIo, source.string(), "cannot list the folder: {}", error.message());
  std::sort(files.begin(), files.end());
  RETORT_TRY(need_disk(teachers, 2 * bytes, "teacher and its GGUF"));

  Sha256 id;
  for (const fs::path& file : files) {
    const std::string file_name = file.filename().string();
    id.update(file_name + '\0' + RETORT_TRY(copy_hashed(file, incoming / file_name)) + '\n');
  }
  TeacherRecord record;
  record.id = id.finish_hex();
  record.bytes = bytes;
  const HfModel model = RETORT_TRY(open_hf_model(incoming));
  for (const WeightShape& weight : hf_weights(model.config)) {
    std::uint64_t elements = 1;
    for (const std::uint64_t n : weight.shape) elements *= n;
    record.parameters += elements;
  }
  record.family = std::string(to_string(model.config.family));
  record.vocabulary = model.config.n_vocab;
  record.context = model.config.n_ctx;
  std::error_code ignored;
  const fs::path target = teachers / record.id;
  if (fs::exists(target / "model-f16.gguf", ignored)) return record;
  RETORT_TRY(write_gguf_model(incoming / "model-f16.gguf", model.config, model.tokenizer,
                              weight_sources(model), TensorType::kF16,
                              {{"retort.teacher.sha256", record.id}}));
  RETORT_TRY(sync_folder(incoming));
  RETORT_TRY(rename_in(incoming, target));
  return record;
}

}  // namespace

Result<TeacherRecord> import_teacher(const fs::path& source, const fs::path& teachers, std::string name,
                                     const Clock& clock) {
  RETORT_TRY(open_hf_model(source));  // refuse before anything is copied
  const fs::path incoming = teachers / "incoming";
  std::error_code ignored;
  fs::remove_all(incoming, ignored);
  RETORT_TRY(make_folders(incoming));
  Result<TeacherRecord> record = fill_teacher(source, teachers, incoming);
  fs::remove_all(incoming, ignored);
  if (!record) return record;
  record->name = name.empty() ? record->id.substr(0, 12) : std::move(name);
  record->imported = clock.unix_millis();
  return record;
}

Result<DatasetRecord> import_dataset(const fs::path& source, const fs::path& datasets, std::string name,
                                     const Clock& clock) {
  std::error_code ignored;
  const bool plain = source.extension() == ".txt";
  if (!plain && source.extension() != ".jsonl")
    return fail(ErrorCode::kUnsupported, source.string(), "a dataset is a .jsonl or a .txt file");
  if (fs::exists(source, ignored) && !fs::is_regular_file(source, ignored))
    return fail(ErrorCode::kInvalid, source.string(), "is not a regular file");
  const std::uint64_t size = RETORT_TRY(RETORT_TRY(File::open_read(source)).size());
  RETORT_TRY(make_folders(datasets));
  RETORT_TRY(need_disk(datasets, size, "dataset"));

  DatasetRecord record;
  Sha256 hash;
  const fs::path incoming = datasets / "incoming.jsonl";
  RETORT_TRY(write_file_with(incoming, [&](const File& out) -> Result<void> {
    std::string buffer, paragraph;
    const auto flush = [&]() -> Result<void> {
      RETORT_TRY(out.write_all_at(record.bytes, buffer));
      hash.update(buffer);
      record.bytes += buffer.size();
      buffer.clear();
      return {};
    };
    const auto add = [&](const std::string& text, std::string_view place) -> Result<void> {
      if (text.empty()) return {};
      json::object object;
      object["text"] = text;
      const std::string line = json::serialize(object);
      if (plain) RETORT_TRY(parse_json(line, place));  // refuses what is not UTF-8
      buffer.append(line).push_back('\n');
      ++record.documents;
      return buffer.size() >= kChunkBytes ? flush() : Result<void>();
    };
    RETORT_TRY(each_line(source, [&](std::string_view line, std::size_t number) -> Result<void> {
      const std::string place = fmt::format("{}:{}", source.string(), number);
      const bool blank = line.find_first_not_of(" \t\r") == std::string_view::npos;
      if (plain && !blank) {
        paragraph.append(line).push_back('\n');
        if (paragraph.size() > kMaxLineBytes)
          return fail(ErrorCode::kInvalid, place, "the paragraph is longer than {}",
                      format_bytes(kMaxLineBytes));
      } else if (plain) {
        RETORT_TRY(add(paragraph, place));
        paragraph.clear();
      } else if (!blank) {
        const json::value value = RETORT_TRY(parse_json(line, place));
        RETORT_TRY(add(RETORT_TRY(json_string(*RETORT_TRY(as_object(value, place)), "text", place)), place));
      }
      return {};
    }));
    RETORT_TRY(add(paragraph, source.string()));
    if (record.documents == 0)
      return fail(ErrorCode::kInvalid, source.string(), "holds no documents; it should have {}",
                  plain ? "paragraphs of text" : "one {\"text\": …} a line");
    return flush();
  }));
  record.id = hash.finish_hex();
  RETORT_TRY(rename_in(incoming, datasets / (record.id + ".jsonl")));
  record.name = name.empty() ? record.id.substr(0, 12) : std::move(name);
  record.imported = clock.unix_millis();
  return record;
}

}  // namespace retort
