#include <rocksdb/db.h>
#include <rocksdb/slice_transform.h>
#include <rocksdb/utilities/checkpoint.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <atomic>
#include <map>

#include "common/core/file.h"
#include "common/core/units.h"
#include "common/store/store.h"

namespace retort {
namespace {

namespace db = rocksdb;

constexpr std::size_t kHintBytes = 20;  // of a device's id
/// A disk with less room is full: what RocksDB cannot write spoils its log's file, which must not be written
/// or synced again (an assertion, where it was built with them).
constexpr std::uint64_t kReserveBytes = 4 << 20;

db::Slice slice(std::string_view text) { return {text.data(), text.size()}; }
std::string_view view(const db::Slice& text) { return {text.data(), text.size()}; }

/// Every call of the library goes through here: db::Status is not [[nodiscard]].
Result<void> check(const db::Status& status, const std::filesystem::path& folder, std::string_view what) {
  if (status.ok()) return {};
  const std::string text = status.ToString();
  ErrorCode code = ErrorCode::kIo;
  if (status.IsNoSpace() || text.find("No space left") != std::string::npos)
    code = ErrorCode::kOutOfBudget;
  else if (status.IsCorruption())
    code = ErrorCode::kCorrupt;
  else if (status.IsBusy() || text.find("lock") != std::string::npos)
    code = ErrorCode::kConflict;
  else if (status.IsInvalidArgument())
    code = ErrorCode::kInvalid;
  return fail(code, folder.string(), "{}: {}{}", what, text,
              code == ErrorCode::kConflict      ? " (another process has the store open)"
              : code == ErrorCode::kOutOfBudget ? " (make room on the disk)"
                                                : "");
}

Result<void> need_room(const std::filesystem::path& folder) {
  const std::uint64_t free = RETORT_TRY(free_disk_bytes(folder));
  if (free >= kReserveBytes) return {};
  return fail(ErrorCode::kOutOfBudget, folder.string(),
              "no space left: {} are free, and the store writes only while {} are (make room on the disk)",
              format_bytes(free), format_bytes(kReserveBytes));
}

/// A table is a column family; one write-ahead log serves all, so that a batch over several is atomic.
class RocksdbStore final : public Store {
 public:
  RocksdbStore(std::filesystem::path folder, std::unique_ptr<db::DB> database,
               std::map<std::string, db::ColumnFamilyHandle*, std::less<>> tables)
      : folder_(std::move(folder)), database_(std::move(database)), tables_(std::move(tables)) {}
  ~RocksdbStore() override {
    for (const auto& [name, handle] : tables_) (void)database_->DestroyColumnFamilyHandle(handle);
    (void)database_->Close();
  }

  Result<std::optional<std::string>> get(std::string_view table, std::string_view key) const override {
    db::ColumnFamilyHandle* const handle = RETORT_TRY(find(table));
    std::string value;
    const db::Status status = database_->Get(db::ReadOptions(), handle, slice(key), &value);
    if (status.IsNotFound()) return std::optional<std::string>();
    RETORT_TRY(check(status, folder_, "cannot read"));
    return std::optional(std::move(value));
  }

  Result<void> write(const StoreBatch& batch, bool durable) override {
    db::WriteBatch changes;
    for (const auto& [table, key, value] : batch.changes()) {
      db::ColumnFamilyHandle* const handle = RETORT_TRY(find(table));
      RETORT_TRY(check(value ? changes.Put(handle, key, *value) : changes.Delete(handle, key), folder_,
                       "cannot collect a write"));
    }
    RETORT_TRY(need_room(folder_));
    RETORT_TRY(recovered());
    db::WriteOptions options;
    options.sync = durable;
    return noted(check(database_->Write(options, &changes), folder_, "cannot write"));
  }

  Result<void> sync() override {
    RETORT_TRY(recovered());
    return noted(check(database_->SyncWAL(), folder_, "cannot write to the disk"));
  }

  Result<void> scan(std::string_view table, std::string_view prefix, std::string_view start_after,
                    const std::function<bool(std::string_view, std::string_view)>& visit) const override {
    db::ColumnFamilyHandle* const handle = RETORT_TRY(find(table));
    const std::unique_ptr<db::Iterator> row(database_->NewIterator(db::ReadOptions(), handle));
    row->Seek(slice(std::max(prefix, start_after)));
    for (; row->Valid() && view(row->key()).starts_with(prefix); row->Next()) {
      if (!start_after.empty() && view(row->key()) <= start_after) continue;
      if (!visit(view(row->key()), view(row->value()))) break;
    }
    return check(row->status(), folder_, "cannot read");
  }

  Result<void> checkpoint(const std::filesystem::path& folder) const override {
    db::Checkpoint* made = nullptr;
    RETORT_TRY(check(db::Checkpoint::Create(database_.get(), &made), folder, "cannot begin a checkpoint"));
    const std::unique_ptr<db::Checkpoint> checkpoint(made);
    return check(checkpoint->CreateCheckpoint(folder.string()), folder, "cannot write a checkpoint");
  }

 private:
  Result<db::ColumnFamilyHandle*> find(std::string_view table) const {
    const auto found = tables_.find(table);
    if (found == tables_.end())
      return fail(ErrorCode::kInternal, folder_.string(), "the store was opened without the table '{}'",
                  table);
    return found->second;
  }

  Result<void> noted(Result<void> done) {
    if (!done) failed_ = true;
    return done;
  }
  /// After a write or sync that failed nothing is written until RocksDB has begun a new log, with all that is
  /// in memory on disk, and that waits for room.
  Result<void> recovered() {
    if (!failed_) return {};
    RETORT_TRY(need_room(folder_));
    RETORT_TRY(check(database_->Resume(), folder_, "cannot go on after a failed write"));
    failed_ = false;
    return {};
  }

  std::filesystem::path folder_;
  std::unique_ptr<db::DB> database_;
  std::atomic<bool> failed_ = false;
  std::map<std::string, db::ColumnFamilyHandle*, std::less<>> tables_;
};

}  // namespace

Result<std::unique_ptr<Store>> open_rocksdb_store(const std::filesystem::path& folder,
                                                  const std::vector<std::string>& tables) {
  RETORT_TRY(make_folders(folder));
  RETORT_TRY(need_room(folder));
  db::Options options;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  // A control plane's state is small: keep the memory small too.
  options.write_buffer_size = 4 << 20;
  options.db_write_buffer_size = 32 << 20;
  options.max_open_files = 256;
  options.keep_log_file_num = 2;
  options.info_log_level = db::WARN_LEVEL;
  options.paranoid_checks = true;
  // Where the last key with the same beginning went is where to look first: a device's telemetry comes in
  // order, mixed with all others'. The search from the top was a fifth of the coordinator's time under load.
  options.memtable_insert_with_hint_prefix_extractor.reset(db::NewFixedPrefixTransform(kHintBytes));
  options.allow_concurrent_memtable_write = false;  // the hints' condition

  // RocksDB wants every existing column family named, those of a newer version of ours too.
  std::vector<std::string> names;
  (void)db::DB::ListColumnFamilies(options, folder.string(), &names);  // fails for a new store: then none
  for (const std::string& table : tables)
    if (std::find(names.begin(), names.end(), table) == names.end()) names.push_back(table);
  if (std::find(names.begin(), names.end(), db::kDefaultColumnFamilyName) == names.end())
    names.push_back(db::kDefaultColumnFamilyName);
  std::vector<db::ColumnFamilyDescriptor> families;
  for (const std::string& name : names) families.emplace_back(name, db::ColumnFamilyOptions(options));
  std::vector<db::ColumnFamilyHandle*> handles;
  db::DB* opened = nullptr;
  RETORT_TRY(check(db::DB::Open(options, folder.string(), families, &handles, &opened), folder,
                   "cannot open the store"));
  std::map<std::string, db::ColumnFamilyHandle*, std::less<>> found;
  for (std::size_t i = 0; i < names.size(); ++i) found[names[i]] = handles[i];
  return std::unique_ptr<Store>(
      std::make_unique<RocksdbStore>(folder, std::unique_ptr<db::DB>(opened), std::move(found)));
}

}  // namespace retort
