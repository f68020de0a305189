#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/wire/messages.h"

namespace retort {

/// Chunks that the devices of one site have asked for, and when each may go: no faster than so many bytes a
/// second, to no more than so many devices at a time, a chunk each in turn. Devices that wait for a place get
/// one in the order in which they came. Values only; the time is the caller's. Thread: reactor.
class TransferQueue {
 public:
  using Time = std::chrono::steady_clock::time_point;
  struct Limits {
    std::uint64_t bytes_per_second = 0;  ///< 0: any
    std::uint32_t transfers = 0;         ///< devices at a time; 0: any
    bool operator==(const Limits&) const = default;
  };
  /// A place is another's when its device has asked for nothing for so long.
  static constexpr std::chrono::seconds kIdle{5};
  /// A device hears that it waits after the first of these, and then each time the second has passed.
  static constexpr std::chrono::seconds kTellAfter{3}, kTellAgain{20};

  void set_limits(Limits limits) { limits_ = limits, free_at_ = {}; }
  /// What it asks for twice waits once, and what it asked for of another artifact is forgotten. False: so
  /// much of it (`most`) waits already, and this is dropped.
  bool add(const std::string& device, const wire::ChunkRequest& request, std::size_t most, Time now);
  struct Turn {
    std::string device;
    wire::ChunkRequest request;
  };
  /// The next one to answer, where one may be answered now.
  std::optional<Turn> next(Time now);
  /// When to call next() again; nothing: when add() or leave() was.
  std::optional<Time> when() const;
  /// Its transfer is over, or it has gone.
  void leave(const std::string& device);
  /// Devices that are to be told that they wait, and for which artifact; each is returned once a while.
  std::vector<std::pair<std::string, std::string>> to_tell(Time now);
  /// Devices with something to wait for.
  std::size_t waiting() const;

 private:
  struct Device {
    std::deque<wire::ChunkRequest> requests;
    Time heard{};  ///< when it last asked for something or got it
    Time tell_at{};
  };
  void give_places(Time now);

  Limits limits_;
  std::map<std::string, Device> devices_;
  std::deque<std::string> turns_;  ///< devices with a place; the first is next
  std::deque<std::string> queue_;  ///< those without one, first come first served
  Time free_at_{};                 ///< when the bytes sent so far are paid for
};

}  // namespace retort
