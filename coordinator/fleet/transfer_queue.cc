#include "coordinator/fleet/transfer_queue.h"

#include <algorithm>

namespace retort {

bool TransferQueue::add(const std::string& device, const wire::ChunkRequest& request, std::size_t most,
                        Time now) {
  auto [found, fresh] = devices_.try_emplace(device);
  Device& d = found->second;
  if (fresh) queue_.push_back(device);
  d.heard = now;
  if (!d.requests.empty() && d.requests.front().artifact != request.artifact) d.requests.clear();
  for (const wire::ChunkRequest& waits : d.requests)
    if (waits.offset == request.offset && waits.length == request.length) return true;
  if (d.requests.size() >= most) return false;
  if (d.requests.empty()) d.tell_at = now + kTellAfter;
  d.requests.push_back(request);
  return true;
}

void TransferQueue::give_places(Time now) {
  const auto full = [&] { return limits_.transfers != 0 && turns_.size() >= limits_.transfers; };
  while (!queue_.empty()) {
    if (full()) {
      // Whoever has a place and makes no use of it makes room.
      const auto idle = std::find_if(turns_.begin(), turns_.end(), [&](const std::string& id) {
        const Device& d = devices_.at(id);
        return d.requests.empty() && now - d.heard >= kIdle;
      });
      if (idle == turns_.end()) return;
      devices_.erase(*idle);
      turns_.erase(idle);
    }
    turns_.push_back(std::move(queue_.front()));
    queue_.pop_front();
  }
}

std::optional<TransferQueue::Turn> TransferQueue::next(Time now) {
  give_places(now);
  if (now < free_at_) return std::nullopt;
  for (std::size_t i = 0; i < turns_.size(); ++i) {
    std::string id = std::move(turns_.front());
    turns_.pop_front();
    turns_.push_back(id);
    Device& d = devices_.at(id);
    if (d.requests.empty()) continue;
    Turn turn{std::move(id), std::move(d.requests.front())};
    d.requests.pop_front();
    d.heard = now;
    d.tell_at = now + kTellAfter;
    if (limits_.bytes_per_second != 0)
      free_at_ = std::max(free_at_, now) +
                 std::chrono::nanoseconds(turn.request.length * 1'000'000'000ull / limits_.bytes_per_second);
    return turn;
  }
  return std::nullopt;
}

std::optional<TransferQueue::Time> TransferQueue::when() const {
  std::optional<Time> at;
  const auto no_later = [&](Time time) { at = at ? std::min(*at, time) : time; };
  for (const std::string& id : turns_) {
    const Device& d = devices_.at(id);
    if (!d.requests.empty())
      no_later(free_at_);
    else if (!queue_.empty())
      no_later(std::max(free_at_, d.heard + kIdle));
  }
  return at;
}

void TransferQueue::leave(const std::string& device) {
  if (devices_.erase(device) == 0) return;
  std::erase(turns_, device);
  std::erase(queue_, device);
}

std::vector<std::pair<std::string, std::string>> TransferQueue::to_tell(Time now) {
  std::vector<std::pair<std::string, std::string>> out;
  for (auto& [id, device] : devices_) {
    if (device.requests.empty() || now < device.tell_at) continue;
    device.tell_at = now + kTellAgain;
    out.emplace_back(id, device.requests.front().artifact);
  }
  return out;
}

std::size_t TransferQueue::waiting() const {
  return static_cast<std::size_t>(std::count_if(
      devices_.begin(), devices_.end(), [](const auto& entry) { return !entry.second.requests.empty(); }));
}

}  // namespace retort
