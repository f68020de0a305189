#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/clock.h"
#include "common/core/result.h"
#include "common/model/device.h"

namespace retort {

/// What the agent keeps on its disk: named values, the progress of a pull, and telemetry that waits for the
/// coordinator. One SQLite file, WAL, synchronous=FULL: what a call has returned from survives kill -9 and
/// power loss. A full disk is kOutOfBudget, a damaged file kCorrupt; neither damages what is there. Where the
/// disk cannot be written when it is opened, it can be read, and each write tries whether that has changed.
/// Thread: one at a time (the agent's disk pool).
class Spool {
 public:
  struct Limits {
    std::uint64_t telemetry_bytes = 1u << 20;  ///< of waiting batches; the oldest go first
    std::chrono::hours telemetry_age{7 * 24};  ///< older ones go
    std::uint64_t file_bytes = 64u << 20;      ///< of the database, hard
  };
  /// kUnsupported when a newer agent wrote the file; kCorrupt when any page of it is damaged.
  static Result<Spool> open(const std::filesystem::path& file, const Limits& limits);
  static Result<Spool> open(const std::filesystem::path& file) { return open(file, Limits()); }
  /// One that holds nothing and can be read, for a disk that takes no file: writes fail until it does.
  static Result<Spool> empty(const std::filesystem::path& file);
  ~Spool();
  Spool(Spool&&) noexcept;
  Spool& operator=(Spool&&) noexcept;

  Result<std::optional<std::string>> get(std::string_view key);
  /// All of them or none.
  Result<void> put(const std::map<std::string, std::string>& values);
  Result<void> erase(std::string_view key);

  /// The pull under way; at most one.
  struct Pull {
    std::string artifact, slot;
    std::string manifest;      ///< its verified text
    std::vector<bool> done;    ///< by piece: its bytes are on disk and their hash was right
    std::uint64_t cursor = 0;  ///< bytes of the first piece that is not done are on disk up to here
  };
  Result<std::optional<Pull>> pull();
  Result<void> begin_pull(const Pull& pull);
  Result<void> note_progress(std::span<const std::uint32_t> pieces_done, std::uint64_t cursor);
  Result<void> end_pull();

  /// A batch in the spool. Numbers grow for ever, across restarts and deletions.
  struct Batch {
    std::uint64_t number = 0;
    std::uint64_t dropped_before = 0;  ///< batches that this device had to drop, ever
    std::vector<TelemetryPoint> points;
  };
  /// Appends a batch, drops the oldest beyond the limits, returns its number.
  Result<std::uint64_t> append(std::span<const TelemetryPoint> points, UnixMillis now);
  /// The oldest batch whose number is above `after`.
  Result<std::optional<Batch>> next_batch(std::uint64_t after);
  /// Forgets this batch and all before it.
  Result<void> acknowledge(std::uint64_t batch);
  struct Waiting {
    std::uint64_t batches = 0, bytes = 0, dropped = 0;
  };
  Result<Waiting> waiting();

 private:
  struct Impl;
  explicit Spool(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace retort
