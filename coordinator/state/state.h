#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "common/store/store.h"

/// A coordinator's folder DATA as a whole: opening its store, checking, copying and restoring it.
namespace retort {

/// Of what this program writes. A store of an older version is migrated when it is opened, one of a newer
/// version is refused.
inline constexpr std::uint64_t kStoreVersion = 2;

/// The tables of the store.
const std::vector<std::string>& store_tables();
/// Opens DATA/store and brings it to kStoreVersion. kUnsupported: it was written by a newer Retort.
Result<std::unique_ptr<Store>> open_state(const std::filesystem::path& data);
/// What open_state does to a store; for tests. Version 0 had none: its tokens of kind "operator" could do
/// everything, so that they become "admin". Version 1 had no table "trust", which is filled at the next
/// start.
Result<void> migrate(Store& store);

struct StateReport {
  std::uint64_t records = 0, files = 0, bytes = 0;
  std::vector<std::string> findings;  ///< what is wrong, a line each; none: it is whole
};
/// Refuses a folder whose devices are enrolled with a key that is no longer there: a new one would be made.
Result<void> check_fleet_key(const Store& store, const std::filesystem::path& data);
/// Reads all: every record decodes, every file that one names is there with the right hash, no device is
/// ahead of what it was told, a device would accept the metadata of trust, the audit log's chain holds.
/// Nothing may have the store open. Thread: any.
Result<StateReport> check_state(const std::filesystem::path& data);

/// A copy of all that is needed to go on elsewhere: the store as it is now, artifacts, teachers and datasets
/// (hard links where both are on one file system: they never change), keys, certificates, the jobs' recipes
/// and results, but not workers' checkpoints: a job that runs begins anew. `to` appears when it is whole; it
/// must not be there yet. `store` is DATA's, open. Slow. Thread: any.
Result<void> back_up(const std::filesystem::path& data, const Store& store, const std::filesystem::path& to,
                     const Clock& clock, const std::string& program_version);

/// Makes a new DATA of a backup. Generations jump ahead, since devices may have been told of later ones after
/// the backup was made, and for the same reason the metadata of trust is signed anew. kConflict: DATA is
/// there already.
Result<void> restore(const std::filesystem::path& from, const std::filesystem::path& data,
                     const Clock& clock);

}  // namespace retort
