#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/store/store.h"
#include "common/wire/records.h"

namespace retort {

/// One table of a store whose values are records of one type, by id. Thread: any.
template <typename Record>
class RecordTable {
 public:
  RecordTable(Store& store, std::string table) : store_(store), table_(std::move(table)) {}

  Result<std::optional<Record>> get(std::string_view id) const {
    const std::optional<std::string> bytes = RETORT_TRY(store_.get(table_, id));
    if (!bytes) return std::optional<Record>();
    return std::optional<Record>(RETORT_TRY(wire::decode_record<Record>(*bytes)));
  }
  Result<std::vector<Record>> all() const {
    std::vector<Record> out;
    Result<void> bad;
    RETORT_TRY(store_.scan(table_, "", "", [&](std::string_view key, std::string_view value) {
      Result<Record> record = wire::decode_record<Record>(value);
      if (!record) {
        bad = fail(ErrorCode::kCorrupt, table_ + "/" + std::string(key), "{}", record.error().message);
        return false;
      }
      out.push_back(std::move(*record));
      return true;
    }));
    if (!bad) return fail(bad.error());
    return out;
  }
  void put(StoreBatch& batch, const std::string& id, const Record& record) const {
    batch.put(table_, id, wire::encode(record));
  }
  void erase(StoreBatch& batch, const std::string& id) const { batch.erase(table_, id); }
  Result<void> put(const std::string& id, const Record& record) const {
    StoreBatch batch;
    put(batch, id, record);
    return store_.write(batch);
  }
  Result<void> erase(const std::string& id) const {
    StoreBatch batch;
    erase(batch, id);
    return store_.write(batch);
  }

 private:
  Store& store_;
  std::string table_;
};

}  // namespace retort
