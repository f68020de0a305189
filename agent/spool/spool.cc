#include "agent/spool/spool.h"

#include <fmt/format.h>
#include <sqlite3.h>
#include <sys/statvfs.h>

#include <charconv>
#include <utility>

#include "common/core/file.h"

namespace retort {
namespace {

constexpr int kSchemaVersion = 1;
constexpr const char* kSchema = R"sql(
CREATE TABLE state(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE pull(one INTEGER PRIMARY KEY CHECK(one = 1), artifact TEXT NOT NULL, slot TEXT NOT NULL,
                  manifest BLOB NOT NULL, pieces INTEGER NOT NULL, cursor INTEGER NOT NULL);
CREATE TABLE piece(number INTEGER PRIMARY KEY);
CREATE TABLE batch(number INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, bytes INTEGER NOT NULL,
                   body TEXT NOT NULL);
)sql";

/// "time metric value" a line: small, and readable with the sqlite3 shell.
std::string encode_points(std::span<const TelemetryPoint> points) {
  std::string body;
  for (const TelemetryPoint& point : points)
    body += fmt::format("{} {} {}\n", point.time, point.metric, point.value);
  return body;
}

std::vector<TelemetryPoint> decode_points(std::string_view body) {
  std::vector<TelemetryPoint> points;
  while (!body.empty()) {
    const std::string_view line = body.substr(0, body.find('\n'));
    body.remove_prefix(std::min(body.size(), line.size() + 1));
    const std::size_t first = line.find(' '), last = line.rfind(' ');
    if (first == std::string_view::npos || last <= first) continue;
    TelemetryPoint point;
    std::from_chars(line.data(), line.data() + first, point.time);
    point.metric = line.substr(first + 1, last - first - 1);
    std::from_chars(line.data() + last + 1, line.data() + line.size(), point.value);
    points.push_back(std::move(point));
  }
  return points;
}

}  // namespace

struct Spool::Impl {
  sqlite3* db = nullptr;
  std::string file;
  Limits limits;
  bool read_only = false;

  ~Impl() { sqlite3_close(db); }

  Result<void> connect(bool writing);
  /// To read and write, or to read where there is no other way.
  Result<void> connect() {
    read_only = false;
    Result<void> done = connect(true);
    if (done || (done.error().code != ErrorCode::kIo && done.error().code != ErrorCode::kOutOfBudget))
      return done;
    read_only = connect(false).has_value();
    return read_only ? Result<void>() : done;
  }

  tl::unexpected<Error> failed(std::string_view what) const {
    const int code = sqlite3_errcode(db);
    const ErrorCode mapped = code == SQLITE_FULL                               ? ErrorCode::kOutOfBudget
                             : code == SQLITE_CORRUPT || code == SQLITE_NOTADB ? ErrorCode::kCorrupt
                             : code == SQLITE_BUSY || code == SQLITE_LOCKED    ? ErrorCode::kConflict
                                                                               : ErrorCode::kIo;
    std::string hint;
    struct statvfs disk {};
    if (mapped == ErrorCode::kIo &&
        ::statvfs(std::filesystem::path(file).parent_path().c_str(), &disk) == 0) {
      if ((disk.f_flag & ST_RDONLY) != 0)
        hint = ": the disk is read-only";
      else if (disk.f_bavail * disk.f_frsize < (64 << 10))
        hint = ": no space left on the disk";
    }
    return fail(mapped, file, "cannot {}: {}{}", what, sqlite3_errmsg(db), hint);
  }
  Result<void> run(const char* sql, std::string_view what) {
    if (sqlite3_exec(db, sql, nullptr, nullptr, nullptr) != SQLITE_OK) return failed(what);
    return {};
  }
  /// All of `body` in one transaction, on disk when it returns.
  template <typename Body>
  Result<void> transaction(std::string_view what, Body body) {
    if (read_only) {
      Impl writable{.file = file, .limits = limits};
      if (const Result<void> done = writable.connect(true); !done) return done;
      std::swap(db, writable.db);
      read_only = false;
    }
    RETORT_TRY(run("BEGIN IMMEDIATE", what));
    Result<void> done = body();
    if (done) done = run("COMMIT", what);
    if (!done) sqlite3_exec(db, "ROLLBACK", nullptr, nullptr, nullptr);
    return done;
  }
};

namespace {

/// A prepared statement; parameters are bound in order.
class Statement {
 public:
  Statement(sqlite3* db, std::string_view sql) {
    sqlite3_prepare_v2(db, sql.data(), static_cast<int>(sql.size()), &statement_, nullptr);
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  Statement& bind(std::string_view text) {
    sqlite3_bind_text64(statement_, ++bound_, text.data(), text.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
    return *this;
  }
  Statement& bind(std::uint64_t number) {
    sqlite3_bind_int64(statement_, ++bound_, static_cast<sqlite3_int64>(number));
    return *this;
  }
  int step() { return statement_ == nullptr ? SQLITE_ERROR : sqlite3_step(statement_); }
  void again() {
    sqlite3_reset(statement_);
    bound_ = 0;
  }
  std::string text(int column) {
    const auto* data = static_cast<const char*>(sqlite3_column_blob(statement_, column));
    return data == nullptr
               ? std::string()
               : std::string(data, static_cast<std::size_t>(sqlite3_column_bytes(statement_, column)));
  }
  std::uint64_t number(int column) {
    return static_cast<std::uint64_t>(sqlite3_column_int64(statement_, column));
  }

 private:
  sqlite3_stmt* statement_ = nullptr;
  int bound_ = 0;
};

}  // namespace

Spool::Spool(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Spool::~Spool() = default;
Spool::Spool(Spool&&) noexcept = default;
Spool& Spool::operator=(Spool&&) noexcept = default;

Result<Spool> Spool::open(const std::filesystem::path& file, const Limits& limits) {
  auto impl = std::make_unique<Impl>();
  impl->file = file.string();
  impl->limits = limits;
  RETORT_TRY(impl->connect());
  return Spool(std::move(impl));
}

Result<Spool> Spool::empty(const std::filesystem::path& file) {
  auto impl = std::make_unique<Impl>();
  impl->file = file.string();
  if (sqlite3_open(":memory:", &impl->db) != SQLITE_OK) return impl->failed("make a state in memory");
  RETORT_TRY(impl->run(kSchema, "make the tables"));
  impl->read_only = true;
  return Spool(std::move(impl));
}

Result<void> Spool::Impl::connect(bool writing) {
  sqlite3_close(std::exchange(db, nullptr));
  // The agent's lock keeps others out, so that SQLite needs neither locks nor a file to share with others.
  std::error_code error;
  const bool logged = std::filesystem::exists(file + "-wal", error);
  int code = SQLITE_OK;
  if (writing) {
    code = sqlite3_open_v2(file.c_str(), &db,
                           SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
  } else {
    std::string uri = "file:";
    for (const char c : std::filesystem::absolute(file).string())
      uri += c == '%' || c == '?' || c == '#' ? fmt::format("%{:02x}", static_cast<unsigned char>(c))
                                              : std::string(1, c);
    if (!logged) uri += "?immutable=1";  // or it would make a log
    code = sqlite3_open_v2(uri.c_str(), &db, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX,
                           "unix-none");
  }
  if (code != SQLITE_OK) return failed("open the agent's state");
  sqlite3_busy_timeout(db, 2000);
  // A small cache: the tables are tiny and the agent must fit beside a student.
  RETORT_TRY(run("PRAGMA locking_mode=EXCLUSIVE; PRAGMA cache_size=-256", "open the agent's state"));
  if (writing)
    RETORT_TRY(
        run("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA journal_size_limit=1048576;"
            "PRAGMA wal_autocheckpoint=200;",
            "open the agent's state"));
  RETORT_TRY(run(fmt::format("PRAGMA max_page_count={}", limits.file_bytes / 4096).c_str(),
                 "bound the agent's state"));
  std::uint64_t version = 0;
  {
    Statement ask(db, "PRAGMA user_version");
    if (ask.step() != SQLITE_ROW) return failed("read the schema version");
    version = ask.number(0);
  }
  if (version > kSchemaVersion)
    return fail(ErrorCode::kUnsupported, file,
                "written by a newer retort-agent (schema {}, this one knows {}): update retort-agent",
                version, kSchemaVersion);
  {
    Statement ask(db, "PRAGMA quick_check(1)");
    if (ask.step() != SQLITE_ROW) return failed("read the agent's state");
    if (const std::string said = ask.text(0); said != "ok")
      return fail(ErrorCode::kCorrupt, file, "the file is damaged: {}", said);
  }
  if (version == 0)
    RETORT_TRY(transaction("make the agent's state", [&]() -> Result<void> {
      RETORT_TRY(run(kSchema, "make the tables"));
      return run(fmt::format("PRAGMA user_version={}", kSchemaVersion).c_str(), "set the version");
    }));
  return {};
}

Result<std::optional<std::string>> Spool::get(std::string_view key) {
  Statement ask(impl_->db, "SELECT value FROM state WHERE key=?");
  const int code = ask.bind(key).step();
  if (code == SQLITE_ROW) return ask.text(0);
  if (code != SQLITE_DONE) return impl_->failed("read the agent's state");
  return std::nullopt;
}

Result<void> Spool::put(const std::map<std::string, std::string>& values) {
  return impl_->transaction("write the agent's state", [&]() -> Result<void> {
    Statement set(impl_->db,
                  "INSERT INTO state VALUES(?,?) ON CONFLICT(key) DO UPDATE SET value=excluded.value");
    for (const auto& [key, value] : values) {
      if (set.bind(key).bind(value).step() != SQLITE_DONE) return impl_->failed("write the agent's state");
      set.again();
    }
    return {};
  });
}

Result<void> Spool::erase(std::string_view key) {
  Statement drop(impl_->db, "DELETE FROM state WHERE key=?");
  if (drop.bind(key).step() != SQLITE_DONE) return impl_->failed("write the agent's state");
  return {};
}

Result<std::optional<Spool::Pull>> Spool::pull() {
  Pull pull;
  {
    Statement ask(impl_->db, "SELECT artifact, slot, manifest, pieces, cursor FROM pull");
    const int code = ask.step();
    if (code == SQLITE_DONE) return std::nullopt;
    if (code != SQLITE_ROW) return impl_->failed("read the pull");
    pull.artifact = ask.text(0), pull.slot = ask.text(1), pull.manifest = ask.text(2);
    pull.done.resize(ask.number(3));
    pull.cursor = ask.number(4);
  }
  Statement pieces(impl_->db, "SELECT number FROM piece");
  while (pieces.step() == SQLITE_ROW)
    if (pieces.number(0) < pull.done.size()) pull.done[pieces.number(0)] = true;
  return pull;
}

Result<void> Spool::begin_pull(const Pull& pull) {
  return impl_->transaction("begin a pull", [&]() -> Result<void> {
    RETORT_TRY(impl_->run("DELETE FROM pull; DELETE FROM piece", "begin a pull"));
    Statement add(impl_->db, "INSERT INTO pull VALUES(1,?,?,?,?,?)");
    add.bind(pull.artifact).bind(pull.slot).bind(pull.manifest).bind(pull.done.size()).bind(pull.cursor);
    if (add.step() != SQLITE_DONE) return impl_->failed("begin a pull");
    return {};
  });
}

Result<void> Spool::note_progress(std::span<const std::uint32_t> pieces_done, std::uint64_t cursor) {
  return impl_->transaction("note the pull's progress", [&]() -> Result<void> {
    Statement add(impl_->db, "INSERT OR IGNORE INTO piece VALUES(?)");
    for (const std::uint32_t piece : pieces_done) {
      if (add.bind(std::uint64_t{piece}).step() != SQLITE_DONE) return impl_->failed("note a piece");
      add.again();
    }
    Statement move(impl_->db, "UPDATE pull SET cursor=?");
    if (move.bind(cursor).step() != SQLITE_DONE) return impl_->failed("note the pull's progress");
    return {};
  });
}

Result<void> Spool::end_pull() {
  return impl_->transaction("end a pull",
                            [&] { return impl_->run("DELETE FROM pull; DELETE FROM piece", "end a pull"); });
}

Result<std::uint64_t> Spool::append(std::span<const TelemetryPoint> points, UnixMillis now) {
  const std::string body = encode_points(points);
  std::uint64_t number = 0;
  RETORT_TRY(impl_->transaction("spool telemetry", [&]() -> Result<void> {
    Statement add(impl_->db, "INSERT INTO batch(time, bytes, body) VALUES(?,?,?)");
    add.bind(static_cast<std::uint64_t>(now)).bind(body.size()).bind(body);
    if (add.step() != SQLITE_DONE) return impl_->failed("spool telemetry");
    number = static_cast<std::uint64_t>(sqlite3_last_insert_rowid(impl_->db));
    Statement sum(impl_->db, "SELECT COALESCE(SUM(bytes), 0) FROM batch");
    if (sum.step() != SQLITE_ROW) return impl_->failed("measure the spool");
    std::uint64_t bytes = sum.number(0), dropped = 0;
    const auto oldest_time =
        now - std::chrono::duration_cast<std::chrono::milliseconds>(impl_->limits.telemetry_age).count();
    for (;;) {
      Statement oldest(impl_->db, "SELECT number, time, bytes FROM batch ORDER BY number LIMIT 1");
      if (oldest.step() != SQLITE_ROW || oldest.number(0) == number) break;
      if (bytes <= impl_->limits.telemetry_bytes && static_cast<UnixMillis>(oldest.number(1)) >= oldest_time)
        break;
      bytes -= oldest.number(2);
      Statement drop(impl_->db, "DELETE FROM batch WHERE number=?");
      if (drop.bind(oldest.number(0)).step() != SQLITE_DONE) return impl_->failed("drop old telemetry");
      ++dropped;
    }
    if (dropped == 0) return {};
    Statement count(impl_->db,
                    "INSERT INTO state VALUES('telemetry_dropped',?) "
                    "ON CONFLICT(key) DO UPDATE SET value = value + excluded.value");
    if (count.bind(dropped).step() != SQLITE_DONE) return impl_->failed("count dropped telemetry");
    return {};
  }));
  return number;
}

Result<Spool::Waiting> Spool::waiting() {
  Statement ask(impl_->db,
                "SELECT COUNT(*), COALESCE(SUM(bytes),0), "
                "COALESCE((SELECT value FROM state WHERE key='telemetry_dropped'),0) FROM batch");
  if (ask.step() != SQLITE_ROW) return impl_->failed("read the spool");
  return Waiting{ask.number(0), ask.number(1), ask.number(2)};
}

Result<std::optional<Spool::Batch>> Spool::next_batch(std::uint64_t after) {
  Statement ask(impl_->db,
                "SELECT number, body, COALESCE((SELECT value FROM state WHERE key='telemetry_dropped'),0) "
                "FROM batch WHERE number>? ORDER BY number LIMIT 1");
  const int code = ask.bind(after).step();
  if (code == SQLITE_DONE) return std::nullopt;
  if (code != SQLITE_ROW) return impl_->failed("read the spool");
  return Batch{ask.number(0), ask.number(2), decode_points(ask.text(1))};
}

Result<void> Spool::acknowledge(std::uint64_t batch) {
  return impl_->transaction("forget acknowledged telemetry", [&]() -> Result<void> {
    Statement drop(impl_->db, "DELETE FROM batch WHERE number<=?");
    if (drop.bind(batch).step() != SQLITE_DONE) return impl_->failed("forget acknowledged telemetry");
    // A restored old disk: numbers go on above what the coordinator has seen.
    Statement raise(impl_->db, "UPDATE sqlite_sequence SET seq=MAX(seq,?) WHERE name='batch'");
    if (raise.bind(batch).step() != SQLITE_DONE) return impl_->failed("forget acknowledged telemetry");
    return {};
  });
}

}  // namespace retort
