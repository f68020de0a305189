#include "coordinator/state/state.h"

#include <algorithm>
#include <set>

#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/log.h"
#include "common/core/sha256.h"
#include "common/wire/record_table.h"
#include "coordinator/state/audit.h"
#include "coordinator/trust/trust_repository.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kGenerationJump = 1'000'000;  // more than any fleet is told between two backups

/// All records of a table that decode; the others become findings.
template <typename Record>
std::vector<Record> records_of(const Store& store, const std::string& table, StateReport& report) {
  std::vector<Record> out;
  const Result<void> read = store.scan(table, "", "", [&](std::string_view key, std::string_view value) {
    ++report.records;
    Result<Record> record = wire::decode_record<Record>(value);
    if (record)
      out.push_back(std::move(*record));
    else
      report.findings.push_back(fmt::format("{}/{}: {}", table, key, record.error().describe()));
    return true;
  });
  if (!read) report.findings.push_back(fmt::format("{}: {}", table, read.error().describe()));
  return out;
}

void check_file(const fs::path& path, const std::string& sha256, const std::string& whose,
                StateReport& report) {
  std::error_code error;
  const std::uint64_t bytes = fs::file_size(path, error);
  if (error) return report.findings.push_back(fmt::format("{}: {} is missing", whose, path.string()));
  ++report.files;
  report.bytes += bytes;
  const Result<std::string> found = sha256_file_hex(path);
  if (!found)
    report.findings.push_back(fmt::format("{}: {}", whose, found.error().describe()));
  else if (*found != sha256)
    report.findings.push_back(
        fmt::format("{}: {} hashes to {}, not to {}", whose, path.string(), *found, sha256));
}

/// The id that a teacher's folder has: SHA-256 over its files' names and hashes (coordinator/catalog).
Result<std::string> teacher_id(const fs::path& folder, StateReport& report) {
  std::vector<std::string> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (entry.path().filename() != "model-f16.gguf") files.push_back(entry.path().filename());
  if (error) return fail(ErrorCode::kNotFound, folder.string(), "is missing");
  std::sort(files.begin(), files.end());
  std::string list;
  for (const std::string& file : files) {
    list += file + " " + RETORT_TRY(sha256_file_hex(folder / file)) + "\n";
    ++report.files;
    report.bytes += fs::file_size(folder / file, error);
  }
  return sha256_hex(list);
}

Result<void> link_or_copy(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::create_hard_link(from, to, error);
  return error ? copy_file_atomic(from, to) : Result<void>();
}

enum class Copy { kAlways, kLink };

/// Copies a folder's regular files, deeper ones too, but for those that `skip` names.
Result<void> copy_tree(const fs::path& from, const fs::path& to, Copy copy,
                       const std::function<bool(const fs::path& name)>& skip = {}) {
  std::error_code error;
  if (!fs::exists(from, error)) return {};
  RETORT_TRY(make_folders(to));
  for (const auto& entry : fs::directory_iterator(from, error)) {
    const fs::path name = entry.path().filename();
    if (skip && skip(name)) continue;
    if (entry.is_directory(error)) {
      RETORT_TRY(copy_tree(entry.path(), to / name, copy, skip));
    } else if (entry.is_regular_file(error)) {
      const Result<void> done = copy == Copy::kLink ? link_or_copy(entry.path(), to / name)
                                                    : copy_file_atomic(entry.path(), to / name);
      // What goes while it is copied was not needed: a temporary file, a teacher that is being removed.
      if (!done && fs::exists(entry.path(), error)) return fail(done.error());
    }
  }
  if (error) return fail(ErrorCode::kIo, from.string(), "cannot list the folder: {}", error.message());
  return sync_folder(to);
}

bool is_temporary(const fs::path& name) { return name.string().find(".tmp") != std::string::npos; }

}  // namespace

const std::vector<std::string>& store_tables() {
  static const std::vector<std::string> tables{"meta",
                                               "devices",
                                               "classes",
                                               "sites",
                                               "teachers",
                                               "datasets",
                                               "artifacts",
                                               "jobs",
                                               "tokens",
                                               "audit",
                                               "idempotency",
                                               "token_use",
                                               "rollouts",
                                               "rollout_members",
                                               "rollout_events",
                                               "telemetry",
                                               "telemetry_minutes",
                                               "telemetry_hours",
                                               "trust",
                                               "telemetry_seen"};
  return tables;
}

Result<void> migrate(Store& store) {
  const auto text = RETORT_TRY(store.get("meta", "store_version"));
  const std::uint64_t version = text ? std::strtoull(text->c_str(), nullptr, 10) : 0;
  if (version > kStoreVersion)
    return fail(ErrorCode::kUnsupported, "store",
                "it has version {}; this program knows versions up to {}: start the newer Retort again, or "
                "restore a backup from before the upgrade",
                version, kStoreVersion);
  if (version == kStoreVersion) return {};
  StoreBatch batch;
  bool old = false;
  const RecordTable<TokenRecord> tokens(store, "tokens");
  for (TokenRecord& token : RETORT_TRY(tokens.all())) {
    old = true;
    if (version > 0) break;
    if (token.kind != "operator") continue;
    token.kind = "admin";
    tokens.put(batch, token.id, token);
  }
  batch.put("meta", "store_version", std::to_string(kStoreVersion));
  RETORT_TRY(store.write(batch));
  if (old) log_info("store: migrated from version {} to {}", version, kStoreVersion);
  return {};
}

Result<std::unique_ptr<Store>> open_state(const std::filesystem::path& data) {
  std::unique_ptr<Store> store = RETORT_TRY(open_rocksdb_store(data / "store", store_tables()));
  RETORT_TRY(migrate(*store));
  return store;
}

Result<void> check_fleet_key(const Store& store, const std::filesystem::path& data) {
  const fs::path file = data / "keys" / "fleet.curve";
  std::error_code error;
  if (fs::exists(file, error)) return {};
  bool devices = false;
  RETORT_TRY(store.scan("devices", "", "", [&](std::string_view, std::string_view) {
    devices = true;
    return false;
  }));
  if (!devices) return {};
  return fail(ErrorCode::kNotFound, file.string(),
              "the coordinator's key is gone, and the enrolled devices speak to no other: put it back from a "
              "backup (keys/fleet.curve there)");
}

Result<StateReport> check_state(const std::filesystem::path& data) {
  std::error_code error;
  if (!fs::exists(data / "store", error))
    return fail(ErrorCode::kNotFound, data.string(), "holds no store of a coordinator");
  const std::unique_ptr<Store> store = RETORT_TRY(open_state(data));
  StateReport report;
  std::set<std::string> artifacts;
  for (const ArtifactRecord& a : records_of<ArtifactRecord>(*store, "artifacts", report)) {
    artifacts.insert(a.sha256);
    check_file(data / "blobs" / a.sha256.substr(0, 2) / a.sha256, a.sha256,
               "artifact " + a.sha256.substr(0, 12), report);
  }
  for (const DatasetRecord& d : records_of<DatasetRecord>(*store, "datasets", report))
    check_file(data / "datasets" / (d.id + ".jsonl"), d.id, "dataset " + d.id.substr(0, 12), report);
  std::set<std::string> teachers;
  for (const TeacherRecord& t : records_of<TeacherRecord>(*store, "teachers", report)) {
    teachers.insert(t.id);
    const fs::path folder = data / "teachers" / t.id;
    const Result<std::string> id = teacher_id(folder, report);
    if (!id || *id != t.id)
      report.findings.push_back(fmt::format("teacher {}: {}", t.id.substr(0, 12),
                                            id ? "its files have changed" : id.error().describe()));
    if (!fs::exists(folder / "model-f16.gguf", error))
      report.findings.push_back(fmt::format("teacher {}: model-f16.gguf is missing", t.id.substr(0, 12)));
  }
  const auto names_artifact = [&](const std::string& whose, const std::string& sha256) {
    if (!sha256.empty() && artifacts.count(sha256) == 0)
      report.findings.push_back(fmt::format("{}: there is no artifact {}", whose, sha256));
  };
  std::set<std::string> classes;
  for (const DeviceClass& c : records_of<DeviceClass>(*store, "classes", report)) {
    classes.insert(c.name);
    names_artifact("class " + c.name, c.artifact);
    if (!c.artifact.empty() && c.generation == 0)
      report.findings.push_back(fmt::format("class {}: it has an artifact, but generation 0", c.name));
  }
  for (const DeviceRecord& d : records_of<DeviceRecord>(*store, "devices", report)) {
    // A revoked one is told nothing any more, not even that its class or its artifact is gone.
    if (!d.revoked) names_artifact("device " + d.id, d.desired.artifact);
    if (!d.revoked && !d.desired.device_class.empty() && classes.count(d.desired.device_class) == 0)
      report.findings.push_back(fmt::format("device {}: there is no class {}", d.id, d.desired.device_class));
    if (d.status.generation > d.desired.generation)
      report.findings.push_back(fmt::format("device {}: it reports generation {}, but was told {} at most",
                                            d.id, d.status.generation, d.desired.generation));
  }
  for (const JobRecord& j : records_of<JobRecord>(*store, "jobs", report)) {
    if ((j.state == "queued" || j.state == "running") &&
        !fs::exists(data / "jobs" / j.id / "recipe.yaml", error))
      report.findings.push_back(fmt::format("job {}: its recipe is missing", j.id));
  }
  (void)records_of<Site>(*store, "sites", report);
  (void)records_of<TokenRecord>(*store, "tokens", report);
  if (const Result<void> key = check_fleet_key(*store, data); !key)
    report.findings.push_back(key.error().describe());
  if (const Result<void> trust = TrustRepository::check(*store, data / "keys"); !trust)
    report.findings.push_back("trust: " + trust.error().describe());
  if (const Result<Audit::Point> head = verify_audit(*store); !head)
    report.findings.push_back(head.error().describe());
  else
    report.records += head->sequence;
  return report;
}

Result<void> back_up(const std::filesystem::path& data, const Store& store, const std::filesystem::path& to,
                     const Clock& clock, const std::string& program_version) {
  std::error_code error;
  if (fs::exists(to, error))
    return fail(ErrorCode::kConflict, to.string(), "it is there already: a backup wants a new folder");
  const fs::path part = to.string() + ".part";
  fs::remove_all(part, error);
  const auto fill = [&]() -> Result<void> {
    RETORT_TRY(make_folders(part));
    fs::permissions(part, fs::perms::owner_all, error);  // keys are in it
    // Keys both before the store and after it: a change of the roles of trust between the two makes some and
    // removes others, and those that the copied roles name must be there.
    RETORT_TRY(copy_tree(data / "keys", part / "keys", Copy::kAlways, is_temporary));
    // The store before the files: what it names only ever grows.
    RETORT_TRY(store.checkpoint(part / "store"));
    RETORT_TRY(copy_tree(data / "blobs", part / "blobs", Copy::kLink, is_temporary));
    RETORT_TRY(copy_tree(data / "teachers", part / "teachers", Copy::kLink, is_temporary));
    RETORT_TRY(copy_tree(data / "datasets", part / "datasets", Copy::kLink, is_temporary));
    for (const char* folder : {"keys", "tls"})
      RETORT_TRY(copy_tree(data / folder, part / folder, Copy::kAlways, is_temporary));
    RETORT_TRY(copy_tree(data / "jobs", part / "jobs", Copy::kAlways, [](const fs::path& name) {
      return name == "worker.lock" || name == "state.json" || name.string().starts_with("checkpoint") ||
             name.extension() == ".gguf" || name.extension() == ".pt" || is_temporary(name);
    }));
    return write_file_atomic(part / "backup.json",
                             pretty_json(json::object{{"made", to_rfc3339(clock.unix_millis())},
                                                      {"version", program_version},
                                                      {"store_version", kStoreVersion}}),
                             0600);
  };
  Result<void> done = fill();
  if (done && ::rename(part.c_str(), to.c_str()) != 0)
    done = fail_errno(to.string(), "cannot rename into place");
  if (!done) {
    fs::remove_all(part, error);
    return done;
  }
  return sync_folder(fs::absolute(to).parent_path());
}

Result<void> restore(const std::filesystem::path& from, const std::filesystem::path& data,
                     const Clock& clock) {
  std::error_code error;
  if (!fs::exists(from / "backup.json", error))
    return fail(ErrorCode::kInvalid, from.string(), "is no backup: there is no backup.json in it");
  if (fs::exists(data, error) && !fs::is_empty(data, error))
    return fail(ErrorCode::kConflict, data.string(), "is not empty: a backup is restored into a new folder");
  fs::remove(data, error);
  const fs::path part = data.string() + ".part";
  fs::remove_all(part, error);
  const auto fill = [&]() -> Result<void> {
    // A copy, so that the backup stays as it is whatever becomes of DATA.
    RETORT_TRY(copy_tree(from, part, Copy::kAlways));
    fs::permissions(part, fs::perms::owner_all, error);
    fs::remove(part / "backup.json", error);
    const std::unique_ptr<Store> store = RETORT_TRY(open_state(part));
    StoreBatch batch;
    const RecordTable<DeviceRecord> devices(*store, "devices");
    for (DeviceRecord& device : RETORT_TRY(devices.all())) {
      device.desired.generation += kGenerationJump;
      devices.put(batch, device.id, device);
    }
    const RecordTable<DeviceClass> classes(*store, "classes");
    for (DeviceClass& value : RETORT_TRY(classes.all())) {
      if (value.generation != 0) value.generation += kGenerationJump;
      classes.put(batch, value.name, value);
    }
    RETORT_TRY(store->write(batch));
    return RETORT_TRY(TrustRepository::open(*store, part / "keys", clock))->renew();
  };
  Result<void> done = fill();
  if (done && ::rename(part.c_str(), data.c_str()) != 0)
    done = fail_errno(data.string(), "cannot rename into place");
  if (!done) fs::remove_all(part, error);
  return done;
}

}  // namespace retort
