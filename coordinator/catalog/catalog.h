#pragma once

#include <filesystem>
#include <string>

#include "common/core/clock.h"
#include "common/core/result.h"
#include "common/model/records.h"

/// Teachers and datasets as files of the data folder, named by their content's hash. These functions read,
/// check and copy; the caller stores the record. They are slow: on a pool, and one import into a folder at a
/// time. An import that was cut off leaves only "incoming" names, which the next one replaces.
namespace retort {

/// Copies a Hugging Face folder to `teachers`/<id>/ with model-f16.gguf beside its files; the id is the
/// SHA-256 over the names and hashes of the files that were copied. Importing the same files again gives the
/// same record. kInvalid, kUnsupported: not a model that we can read; kOutOfBudget: the disk is full.
Result<TeacherRecord> import_teacher(const std::filesystem::path& source,
                                     const std::filesystem::path& teachers, std::string name,
                                     const Clock& clock);

/// Checks a .jsonl file ({"text": …} a line) or a .txt file (split at blank lines) and stores it as
/// `datasets`/<sha256>.jsonl, one {"text"} object a line. kInvalid names the wrong line, or says that there
/// are no documents.
Result<DatasetRecord> import_dataset(const std::filesystem::path& source,
                                     const std::filesystem::path& datasets, std::string name,
                                     const Clock& clock);

}  // namespace retort
