#include <map>
#include <mutex>

#include "common/store/store.h"

namespace retort {
namespace {

class MemoryStore final : public Store {
 public:
  Result<std::optional<std::string>> get(std::string_view table, std::string_view key) const override {
    const std::lock_guard lock(mutex_);
    const auto rows = tables_.find(table);
    if (rows == tables_.end()) return std::optional<std::string>();
    const auto row = rows->second.find(key);
    return row == rows->second.end() ? std::nullopt : std::optional(row->second);
  }

  Result<void> write(const StoreBatch& batch, bool) override {
    const std::lock_guard lock(mutex_);
    for (const auto& [table, key, value] : batch.changes()) {
      if (value)
        tables_[table][key] = *value;
      else
        tables_[table].erase(key);
    }
    return {};
  }

  Result<void> sync() override { return {}; }

  /// Over a copy, as RocksDB does over a snapshot: `visit` may write.
  Result<void> scan(std::string_view table, std::string_view prefix, std::string_view start_after,
                    const std::function<bool(std::string_view, std::string_view)>& visit) const override {
    Rows rows;
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = tables_.find(table); found != tables_.end()) rows = found->second;
    }
    for (auto row = rows.lower_bound(prefix); row != rows.end() && row->first.starts_with(prefix); ++row)
      if (row->first > start_after || start_after.empty())
        if (!visit(row->first, row->second)) break;
    return {};
  }

  Result<void> checkpoint(const std::filesystem::path& folder) const override {
    return fail(ErrorCode::kUnsupported, folder.string(), "a store in memory cannot be copied to a disk");
  }

 private:
  using Rows = std::map<std::string, std::string, std::less<>>;
  mutable std::mutex mutex_;
  std::map<std::string, Rows, std::less<>> tables_;
};

}  // namespace

std::unique_ptr<Store> make_memory_store() { return std::make_unique<MemoryStore>(); }

}  // namespace retort
