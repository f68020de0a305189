#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "common/core/file.h"
#include "common/process/process.h"

namespace retort {
namespace {

/// Our folder below each cgroup hierarchy: controller list ("" for v2) and path.
std::vector<std::pair<std::string, std::string>> own_cgroups() {
  std::vector<std::pair<std::string, std::string>> groups;
  const std::string text = read_file("/proc/self/cgroup", 1 << 16).value_or("");
  for (std::size_t start = 0; start < text.size();) {
    std::size_t end = text.find('\n', start);
    if (end == std::string::npos) end = text.size();
    const std::string line = text.substr(start, end - start);
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second != std::string::npos)
      groups.emplace_back(line.substr(first + 1, second - first - 1), line.substr(second + 1));
    start = end + 1;
  }
  return groups;
}

/// Visits our cgroup's folder and each one above it, up to the hierarchy's root.
template <typename Visit>
void for_each_level(const std::string& root, std::string path, Visit visit) {
  for (;;) {
    visit(root + (path == "/" ? "" : path));
    if (path.empty() || path == "/") return;
    path.resize(path.rfind('/'));
    if (path.empty()) path = "/";
  }
}

/// The numbers of a small kernel file; "max" reads as -1.
std::vector<std::int64_t> numbers(const std::string& path) {
  std::vector<std::int64_t> out;
  const std::string text = read_file(path, 4096).value_or("");
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t end = std::min(text.find_first_of(" \n", i), text.size());
    const std::string word = text.substr(i, end - i);
    std::int64_t value = -1;
    if (word != "max") std::from_chars(word.data(), word.data() + word.size(), value);
    if (!word.empty()) out.push_back(value);
    i = end + 1;
  }
  return out;
}

bool has_controller(const std::string& list, std::string_view name) {
  for (std::size_t i = 0; i <= list.size();) {
    const std::size_t end = std::min(list.find(',', i), list.size());
    if (std::string_view(list).substr(i, end - i) == name) return true;
    i = end + 1;
  }
  return false;
}

}  // namespace

double cpu_allowance() {
  double cores = static_cast<double>(std::max(1l, ::sysconf(_SC_NPROCESSORS_ONLN)));
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) == 0)
    cores = std::min(cores, static_cast<double>(CPU_COUNT(&set)));
  for (const auto& [controllers, path] : own_cgroups()) {
    if (controllers.empty()) {
      for_each_level("/sys/fs/cgroup", path, [&](const std::string& folder) {
        const auto n = numbers(folder + "/cpu.max");  // "quota period"
        if (n.size() == 2 && n[0] > 0 && n[1] > 0)
          cores = std::min(cores, static_cast<double>(n[0]) / static_cast<double>(n[1]));
      });
    } else if (has_controller(controllers, "cpu")) {
      for (const char* mount : {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"})
        for_each_level(mount, path, [&](const std::string& folder) {
          const auto quota = numbers(folder + "/cpu.cfs_quota_us"),
                     period = numbers(folder + "/cpu.cfs_period_us");
          if (!quota.empty() && !period.empty() && quota[0] > 0 && period[0] > 0)
            cores = std::min(cores, static_cast<double>(quota[0]) / static_cast<double>(period[0]));
        });
    }
  }
  return cores;
}

std::uint64_t memory_allowance_bytes() {
  std::uint64_t bytes = static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
                        static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const auto limit = [&](const std::string& file) {
    const auto n = numbers(file);
    if (!n.empty() && n[0] > 0) bytes = std::min(bytes, static_cast<std::uint64_t>(n[0]));
  };
  for (const auto& [controllers, path] : own_cgroups()) {
    if (controllers.empty())
      for_each_level("/sys/fs/cgroup", path,
                     [&](const std::string& folder) { limit(folder + "/memory.max"); });
    else if (has_controller(controllers, "memory"))
      for_each_level("/sys/fs/cgroup/memory", path,
                     [&](const std::string& folder) { limit(folder + "/memory.limit_in_bytes"); });
  }
  return bytes;
}

}  // namespace retort
