#include "coordinator/catalog/catalog.h"

#include <algorithm>
#include <functional>
#include <memory>

#include "common/core/documents.h"
#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/sha256.h"
#include "common/core/units.h"
#include "common/hf/classifier_model.h"
#include "common/hf/hf_model.h"

namespace retort {
namespace {

constexpr std::uint64_t kDiskReserveBytes = 16 << 20, kMaxDatasetBytes = 4ull << 30;

/// The record whose name or id is `id`, or whose id begins with it.
template <typename Record>
Result<Record> pick(const std::vector<Record>& records, const std::string& id, std::string_view noun) {
  const Record* found = nullptr;
  for (const Record& record : records) {
    if (record.id == id) return record;
    const bool match =
        (!record.name.empty() && record.name == id) || (id.size() >= 8 && record.id.starts_with(id));
    if (!match) continue;
    if (found != nullptr)
      return fail(ErrorCode::kConflict, "", "several {}s match '{}'; give the whole id", noun, id);
    found = &record;
  }
  if (found == nullptr) return fail(ErrorCode::kNotFound, "", "there is no {} '{}'", noun, id);
  return *found;
}

/// Lines of a dataset: texts, or a classifier's examples {"input", "label"}, as the first line has them.
/// kInvalid names the line.
Result<std::uint64_t> count_documents(std::string_view text) {
  const std::string_view first = text.substr(0, text.find('\n'));
  const Result<json::value> value = parse_json(first, "line:1");
  const bool examples = value && value->is_object() && value->get_object().contains("input") &&
                        !value->get_object().contains("text");
  if (!examples)
    return visit_documents(text, DocumentFormat::kJsonLines, "line", [](const std::string&) { return true; });
  std::uint64_t found = 0, number = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string place = fmt::format("line:{}", number);
    const json::value parsed = RETORT_TRY(parse_json(line, place));
    const json::object& example = *RETORT_TRY(as_object(parsed, place));
    for (const char* member : {"input", "label"})
      if (!example.contains(member)) return fail(ErrorCode::kInvalid, place, "has no '{}'", member);
    ++found;
  }
  return found;
}

/// A teacher's folder, opened and checked: what its record tells, and how it becomes GGUF.
struct Opened {
  TeacherRecord record;
  std::function<Result<void>(const std::filesystem::path& gguf, const GgufMetadata& extra)> write_gguf;
};

Result<Opened> open_teacher(const std::filesystem::path& folder) {
  Opened out;
  if (is_classifier_type(RETORT_TRY(model_type_of(folder)))) {
    const auto model = std::make_shared<ClassifierModel>(RETORT_TRY(open_classifier_model(folder)));
    out.record.family = to_string(model->config.family);
    out.record.parameters = parameter_count(model->config);
    out.write_gguf = [model](const std::filesystem::path& gguf, const GgufMetadata& extra) {
      return write_gguf_classifier(gguf, model->config, weight_sources(*model), TensorType::kF16, extra);
    };
    return out;
  }
  const auto model = std::make_shared<HfModel>(RETORT_TRY(open_hf_model(folder)));
  out.record.family = to_string(model->config.family);
  out.record.parameters = parameter_count(model->config);
  out.record.vocabulary = model->config.n_vocab;
  out.record.context = model->config.n_ctx;
  out.write_gguf = [model](const std::filesystem::path& gguf, const GgufMetadata& extra) {
    return write_gguf_model(gguf, model->config, model->tokenizer, weight_sources(*model), TensorType::kF16,
                            extra);
  };
  return out;
}

}  // namespace

Catalog::Catalog(std::filesystem::path data, Store& store, const Clock& clock)
    : data_(std::move(data)), clock_(clock), teachers_(store, "teachers"), datasets_(store, "datasets") {}

Result<void> Catalog::clean() const {
  for (const char* name : {"teachers", "datasets"}) {
    RETORT_TRY(make_folders(data_ / name));
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(data_ / name, error))
      if (entry.path().filename().string().find(".tmp-") != std::string::npos)
        std::filesystem::remove_all(entry.path(), error);
  }
  return {};
}

Result<TeacherRecord> Catalog::import_teacher(const std::filesystem::path& folder, const std::string& name) {
  const Opened opened = RETORT_TRY(open_teacher(folder));
  std::vector<std::string> files;
  std::uint64_t bytes = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string file = entry.path().filename().string();
    const bool wanted = file == "config.json" || file == "tokenizer.json" ||
                        file == "tokenizer_config.json" || file == "model.safetensors.index.json" ||
                        entry.path().extension() == ".safetensors";
    if (!wanted) continue;
    const std::uint64_t size = entry.file_size(error);
    if (error)
      return fail(ErrorCode::kInvalid, entry.path().string(), "not a regular file: {}", error.message());
    files.push_back(file);
    bytes += size;
  }
  if (error) return fail(ErrorCode::kIo, folder.string(), "cannot list the folder: {}", error.message());
  std::sort(files.begin(), files.end());
  std::string list;
  for (const std::string& file : files)
    list += file + " " + RETORT_TRY(sha256_file_hex(folder / file)) + "\n";
  TeacherRecord record = opened.record;
  record.id = sha256_hex(list);
  if (const auto known = RETORT_TRY(teachers_.get(record.id))) {
    record = *known;
    if (!name.empty() && name != record.name) {
      record.name = name;
      RETORT_TRY(teachers_.put(record.id, record));
    }
    return record;
  }
  if (!name.empty())
    for (const TeacherRecord& other : RETORT_TRY(teachers_.all()))
      if (other.name == name)
        return fail(ErrorCode::kConflict, "", "a teacher named '{}' is there already ({})", name,
                    other.id.substr(0, 12));
  record.name = name;
  record.imported = clock_.unix_millis();

  const std::uint64_t needed = bytes + 2 * record.parameters + kDiskReserveBytes,
                      free = RETORT_TRY(free_disk_bytes(data_));
  if (free < needed)
    return fail(ErrorCode::kOutOfBudget, data_.string(),
                "the teacher needs {} on disk, {} are left: make room", format_bytes(needed),
                format_bytes(free));
  const std::filesystem::path target = teacher_folder(record.id), temporary = target.string() + ".tmp-import";
  std::filesystem::remove_all(temporary, error);
  const auto fill = [&]() -> Result<void> {
    RETORT_TRY(make_folders(temporary));
    for (const std::string& file : files) RETORT_TRY(copy_file_atomic(folder / file, temporary / file));
    RETORT_TRY(opened.write_gguf(temporary / "model-f16.gguf",
                                 {{"general.name", name.empty() ? record.id.substr(0, 12) : name},
                                  {"retort.teacher.sha256", record.id}}));
    record.bytes = std::filesystem::file_size(temporary / "model-f16.gguf", error);
    std::filesystem::remove_all(target, error);
    if (::rename(temporary.c_str(), target.c_str()) != 0)
      return fail_errno(target.string(), "cannot rename into place");
    return sync_folder(target.parent_path());
  };
  if (const Result<void> done = fill(); !done) {
    std::filesystem::remove_all(temporary, error);
    return fail(done.error());
  }
  RETORT_TRY(teachers_.put(record.id, record));
  return record;
}

Result<TeacherRecord> Catalog::find_teacher(const std::string& id) const {
  return pick(RETORT_TRY(teachers_.all()), id, "teacher");
}

Result<void> Catalog::remove_teacher(const std::string& id) {
  const TeacherRecord record = RETORT_TRY(find_teacher(id));
  RETORT_TRY(teachers_.erase(record.id));
  std::error_code ignored;
  std::filesystem::remove_all(teacher_folder(record.id), ignored);
  return {};
}

Result<void> Catalog::remove_dataset(const std::string& id) {
  const DatasetRecord record = RETORT_TRY(find_dataset(id));
  RETORT_TRY(datasets_.erase(record.id));
  std::error_code ignored;
  std::filesystem::remove(dataset_file(record.id), ignored);
  return {};
}

Result<DatasetRecord> Catalog::import_dataset(const std::filesystem::path& file, const std::string& name) {
  // A device or a pipe would be read for ever, or never end.
  std::error_code error;
  if (std::filesystem::exists(file, error) && !std::filesystem::is_regular_file(file, error))
    return fail(ErrorCode::kInvalid, file.string(), "is not a regular file");
  const std::string text = RETORT_TRY(read_file(file, kMaxDatasetBytes));
  const auto named = [&](Result<DatasetRecord> result) -> Result<DatasetRecord> {
    if (!result)
      return fail(Error{result.error().code, result.error().message,
                        file.string() + (result.error().where.empty() ? "" : ", " + result.error().where)});
    return result;
  };
  if (document_format(file) == DocumentFormat::kJsonLines) return named(import_dataset_text(text, name));
  std::string jsonl;
  RETORT_TRY(visit_documents(text, DocumentFormat::kPlainText, file.string(), [&](std::string document) {
    jsonl += json::serialize(json::object{{"text", std::move(document)}}) + "\n";
    return true;
  }));
  return named(import_dataset_text(jsonl, name));
}

Result<DatasetRecord> Catalog::import_dataset_text(std::string_view text, const std::string& name) {
  DatasetRecord record;
  record.documents = RETORT_TRY(count_documents(text));
  record.id = sha256_hex(text);
  record.name = name;
  record.bytes = text.size();
  record.imported = clock_.unix_millis();
  if (const auto known = RETORT_TRY(datasets_.get(record.id)); known && (name.empty() || name == known->name))
    return *known;
  if (!name.empty())
    for (const DatasetRecord& other : RETORT_TRY(datasets_.all()))
      if (other.name == name && other.id != record.id)
        return fail(ErrorCode::kConflict, "", "a dataset named '{}' is there already ({})", name,
                    other.id.substr(0, 12));
  const std::uint64_t free = RETORT_TRY(free_disk_bytes(data_));
  if (free < text.size() + kDiskReserveBytes)
    return fail(ErrorCode::kOutOfBudget, data_.string(),
                "the dataset needs {} on disk, {} are left: make room", format_bytes(text.size()),
                format_bytes(free));
  RETORT_TRY(write_file_atomic(dataset_file(record.id), text));
  RETORT_TRY(datasets_.put(record.id, record));
  return record;
}

Result<DatasetRecord> Catalog::find_dataset(const std::string& id) const {
  return pick(RETORT_TRY(datasets_.all()), id, "dataset");
}

}  // namespace retort
