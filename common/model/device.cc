#include "common/model/device.h"

namespace retort {

bool matches(const DeviceClass& c, const DeviceProfile& profile) {
  if (profile.memory_budget_bytes < c.min_memory_bytes) return false;
  if (c.max_memory_bytes != 0 && profile.memory_budget_bytes > c.max_memory_bytes) return false;
  if (profile.cpu_allowance < c.min_cpu) return false;
  if (c.max_cpu != 0 && profile.cpu_allowance > c.max_cpu) return false;
  if (!c.architecture.empty() && c.architecture != profile.architecture) return false;
  for (const auto& [key, value] : c.labels) {
    const auto found = profile.labels.find(key);
    if (found == profile.labels.end() || found->second != value) return false;
  }
  return true;
}

const DeviceClass* classify(const std::vector<DeviceClass>& classes, const DeviceProfile& profile) {
  const DeviceClass* best = nullptr;
  for (const DeviceClass& c : classes) {
    if (!matches(c, profile)) continue;
    if (best == nullptr || c.priority > best->priority ||
        (c.priority == best->priority && c.name < best->name))
      best = &c;
  }
  return best;
}

std::string site_of(const DeviceProfile& profile) {
  const auto label = profile.labels.find("site");
  return label == profile.labels.end() || label->second.empty() ? "default" : label->second;
}

}  // namespace retort
