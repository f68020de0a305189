#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/result.h"

namespace retort {

/// Writes that become durable together or not at all.
class StoreBatch {
 public:
  void put(std::string_view table, std::string key, std::string value) {
    changes_.push_back({std::string(table), std::move(key), std::move(value)});
  }
  void erase(std::string_view table, std::string key) {
    changes_.push_back({std::string(table), std::move(key), std::nullopt});
  }
  struct Change {
    std::string table, key;
    std::optional<std::string> value;
  };
  const std::vector<Change>& changes() const { return changes_; }

 private:
  std::vector<Change> changes_;
};

/// An ordered key-value store with named tables, atomic batches and prefix scans: RocksDB on disk, or in
/// memory for unit tests; a replicated database must be able to take its place. Thread: any.
class Store {
 public:
  virtual ~Store() = default;
  virtual Result<std::optional<std::string>> get(std::string_view table, std::string_view key) const = 0;
  /// On disk when it returns, if `durable`.
  virtual Result<void> write(const StoreBatch& batch, bool durable = true) = 0;
  /// All that was written before, durably or not, is on disk when it returns: one wait for many writes. They
  /// go to disk in the order in which they were made, so that a crash takes the last ones first.
  virtual Result<void> sync() = 0;
  /// Keys with this prefix, in order, from `start_after` (exclusive; empty: from the first); `visit` returns
  /// false to stop.
  virtual Result<void> scan(
      std::string_view table, std::string_view prefix, std::string_view start_after,
      const std::function<bool(std::string_view key, std::string_view value)>& visit) const = 0;
  /// All that is durable now, as a store of its own in a folder that does not exist yet; writes go on
  /// meanwhile. kUnsupported in memory.
  virtual Result<void> checkpoint(const std::filesystem::path& folder) const = 0;
};

/// Tables are fixed at opening. kConflict: another process has it open; kOutOfBudget: disk full.
Result<std::unique_ptr<Store>> open_rocksdb_store(const std::filesystem::path& folder,
                                                  const std::vector<std::string>& tables);
std::unique_ptr<Store> make_memory_store();

}  // namespace retort
