#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/store/store.h"
#include "common/wire/record_table.h"

namespace retort {

/// Teachers and datasets, kept by hash: DATA/teachers/<id>/ (the Hugging Face folder and model-f16.gguf) and
/// DATA/datasets/<id>.jsonl. Thread: any; the imports are slow and belong on a pool.
class Catalog {
 public:
  Catalog(std::filesystem::path data, Store& store, const Clock& clock);
  /// Removes what interrupted imports left.
  Result<void> clean() const;

  /// Validates, copies and converts a folder. The id is the SHA-256 over its files' names and hashes; the
  /// same files again give the record that is there (under its new name, when one is given).
  Result<TeacherRecord> import_teacher(const std::filesystem::path& folder, const std::string& name);
  Result<std::vector<TeacherRecord>> teachers() const { return teachers_.all(); }
  /// By name, id, or a prefix of the id of at least 8 characters.
  Result<TeacherRecord> find_teacher(const std::string& id) const;
  Result<void> remove_teacher(const std::string& id);
  std::filesystem::path teacher_folder(const std::string& id) const { return data_ / "teachers" / id; }
  std::filesystem::path teacher_gguf(const std::string& id) const {
    return teacher_folder(id) / "model-f16.gguf";
  }

  /// JSONL with a "text" in every line, or with an "input" and a "label", or (.txt) text split at blank
  /// lines. kInvalid names file and line.
  Result<DatasetRecord> import_dataset(const std::filesystem::path& file, const std::string& name);
  /// The same from bytes that came over HTTP.
  Result<DatasetRecord> import_dataset_text(std::string_view jsonl, const std::string& name);
  Result<std::vector<DatasetRecord>> datasets() const { return datasets_.all(); }
  Result<DatasetRecord> find_dataset(const std::string& id) const;
  Result<void> remove_dataset(const std::string& id);
  std::filesystem::path dataset_file(const std::string& id) const {
    return data_ / "datasets" / (id + ".jsonl");
  }

 private:
  std::filesystem::path data_;
  const Clock& clock_;
  RecordTable<TeacherRecord> teachers_;
  RecordTable<DatasetRecord> datasets_;
};

}  // namespace retort
