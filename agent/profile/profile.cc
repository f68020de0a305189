#include "agent/profile/profile.h"

#include <dirent.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "common/core/file.h"
#include "common/process/process.h"

namespace retort {
namespace {

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

/// The value of the first line "key : value" (any white space before the colon).
std::string_view field(std::string_view text, std::string_view key) {
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const std::size_t colon = line.find(':');
    if (colon != std::string_view::npos && trim(line.substr(0, colon)) == key)
      return trim(line.substr(colon + 1));
  }
  return {};
}

constexpr std::array kFeatures = {
    // x86, as /proc/cpuinfo spells them
    "sse4_1", "sse4_2", "ssse3", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16",
    // ARM
    "asimd", "neon", "asimdhp", "fphp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"};

std::vector<std::string> folder_names(const std::string& folder) {
  std::vector<std::string> names;
  DIR* stream = ::opendir(folder.c_str());
  if (stream == nullptr) return names;
  while (const dirent* entry = ::readdir(stream))
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  ::closedir(stream);
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> find_accelerators() {
  std::vector<std::string> found;
  for (const std::string& gpu : folder_names("/proc/driver/nvidia/gpus"))
    found.push_back(parse_nvidia_information(
        read_file("/proc/driver/nvidia/gpus/" + gpu + "/information", 1 << 16).value_or("")));
  if (found.empty())
    for (const std::string& name : folder_names("/dev"))
      if (name.size() > 6 && name.starts_with("nvidia") && name[6] >= '0' && name[6] <= '9')
        found.push_back("nvidia: /dev/" + name);
  for (const std::string& name : folder_names("/dev/dri"))
    if (name.starts_with("renderD")) found.push_back("dri: /dev/dri/" + name);
  return found;
}

std::string find_energy_meter(std::vector<std::string>& notes) {
  for (const std::string& zone : folder_names("/sys/class/powercap")) {
    if (!zone.starts_with("intel-rapl:")) continue;
    if (read_file("/sys/class/powercap/" + zone + "/energy_uj", 64)) return "rapl";
    notes.emplace_back("energy: RAPL is here but may not be read (energy_uj is root's)");
    break;
  }
  for (const std::string& chip : folder_names("/sys/class/hwmon"))
    for (const std::string& file : folder_names("/sys/class/hwmon/" + chip))
      if (file.starts_with("power") && file.ends_with("_input") &&
          read_file("/sys/class/hwmon/" + chip + "/" + file, 64))
        return "hwmon: " +
               std::string(trim(read_file("/sys/class/hwmon/" + chip + "/name", 64).value_or(chip)));
  notes.emplace_back("energy: no meter (neither powercap nor hwmon shows one)");
  return "";
}

double number_in(const std::string& file) {
  return std::strtod(read_file(file, 64).value_or("").c_str(), nullptr);
}

// 32-byte vectors; the compiler splits them into what the baseline instruction set has.
using F32x8 = float __attribute__((vector_size(32)));
using I32x8 = std::int32_t __attribute__((vector_size(32)));
using U64x4 = std::uint64_t __attribute__((vector_size(32)));

/// Runs `pass` (which returns the units of work it did) until the time is over: units per second.
template <typename Pass>
double rate(std::chrono::milliseconds time, Pass pass) {
  using Steady = std::chrono::steady_clock;
  pass();  // pages and caches
  const auto start = Steady::now();
  double units = 0;
  std::chrono::duration<double> spent{0};
  do {
    units += pass();
    spent = Steady::now() - start;
  } while (spent < time);
  return std::round(units / spent.count());
}

/// So that the compiler cannot drop the work.
template <typename T>
void keep(const T& value) {
  asm volatile("" : : "m"(value) : "memory");
}

double measure_bandwidth(std::uint64_t bytes, std::chrono::milliseconds time) {
  std::vector<U64x4> memory(bytes / sizeof(U64x4), U64x4{1, 2, 3, 4});
  return rate(time, [&] {
    U64x4 a{}, b{}, c{}, d{};
    for (std::size_t i = 0; i + 4 <= memory.size(); i += 4)
      a += memory[i], b += memory[i + 1], c += memory[i + 2], d += memory[i + 3];
    keep(a + b + c + d);
    return static_cast<double>(memory.size() * sizeof(U64x4));
  });
}

constexpr std::size_t kRows = 256, kColumns = 1024;  // 1 MiB of F32: level-2 cache, so the arithmetic counts

double measure_matvec_f32(std::chrono::milliseconds time) {
  std::vector<F32x8> matrix(kRows * kColumns / 8), x(kColumns / 8);
  for (std::size_t i = 0; i < matrix.size(); ++i) matrix[i] = F32x8{} + static_cast<float>(i % 13) * 0.01f;
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = F32x8{} + static_cast<float>(i % 7) * 0.1f;
  std::vector<float> y(kRows);
  return rate(time, [&] {
    for (std::size_t row = 0; row < kRows; ++row) {
      const F32x8* w = matrix.data() + row * kColumns / 8;
      F32x8 a{}, b{};
      for (std::size_t i = 0; i + 2 <= kColumns / 8; i += 2) a += w[i] * x[i], b += w[i + 1] * x[i + 1];
      a += b;
      y[row] = a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
    }
    keep(y[0]);
    return 2.0 * kRows * kColumns;
  });
}

/// Blocks of 32 signed bytes with one scale, as in Q8_0; the vector is quantized alike.
double measure_matvec_q8_0(std::chrono::milliseconds time) {
  struct Block {
    float scale;
    std::int8_t values[32];
  };
  std::vector<Block> matrix(kRows * kColumns / 32), x(kColumns / 32);
  const auto fill_blocks = [](std::vector<Block>& blocks) {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      blocks[i].scale = 0.01f;
      for (std::size_t k = 0; k < 32; ++k) blocks[i].values[k] = static_cast<std::int8_t>((i * 7 + k) % 127);
    }
  };
  fill_blocks(matrix);
  fill_blocks(x);
  std::vector<float> y(kRows);
  return rate(time, [&] {
    for (std::size_t row = 0; row < kRows; ++row) {
      const Block* w = matrix.data() + row * kColumns / 32;
      float sum = 0;
      for (std::size_t i = 0; i < kColumns / 32; ++i) {
        I32x8 acc{};
        for (std::size_t k = 0; k < 32; k += 8)
          for (std::size_t lane = 0; lane < 8; ++lane)
            acc[lane] += std::int32_t{w[i].values[k + lane]} * std::int32_t{x[i].values[k + lane]};
        sum += w[i].scale * x[i].scale *
               static_cast<float>(acc[0] + acc[1] + acc[2] + acc[3] + acc[4] + acc[5] + acc[6] + acc[7]);
      }
      y[row] = sum;
    }
    keep(y[0]);
    return 2.0 * kRows * kColumns;
  });
}

/// What `retort-serve measure` says.
Result<std::vector<DecodeSample>> ask_serve(const ProfileOptions& options, const DeviceProfile& profile) {
  const std::string where = options.serve_binary.string() + " measure";
  const std::filesystem::path out =
      std::filesystem::temp_directory_path() / fmt::format("retort-measure-{}.json", ::getpid());
  ProcessSpec spec;
  spec.arguments = {
      options.serve_binary.string(), "measure", "--json", "--memory-limit",
      // A student is in memory once and leaves room for others; the models of this are there three times.
      std::to_string(profile.memory_budget_bytes / 2), "--threads",
      std::to_string(std::max(1u, static_cast<std::uint32_t>(profile.cpu_allowance)))};
  spec.stdout_file = out;
  spec.die_with_parent = true;
  const pid_t child = RETORT_TRY(start_process(spec));
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  Result<std::string> text = read_file(out, 1 << 20);
  std::error_code ignored;
  std::filesystem::remove(out, ignored);
  if (status != 0)
    return fail(ErrorCode::kUnavailable, where, "it ended with {}",
                WIFEXITED(status) ? fmt::format("status {}", WEXITSTATUS(status))
                                  : fmt::format("signal {}", WTERMSIG(status)));
  const json::value answer = RETORT_TRY(parse_json(RETORT_TRY(std::move(text)), where));
  const json::object& o = *RETORT_TRY(as_object(answer, where));
  const json::value* decode = o.if_contains("decode");
  if (decode == nullptr) return fail(ErrorCode::kInvalid, where, "'decode' is missing");
  return decode_samples_from_json(*decode, where);
}

}  // namespace

std::string parse_cpu_model(std::string_view cpuinfo) {
  for (const char* key : {"model name", "Model", "cpu model", "Processor"})
    if (const std::string_view value = field(cpuinfo, key); !value.empty()) return std::string(value);
  const std::string_view implementer = field(cpuinfo, "CPU implementer"), part = field(cpuinfo, "CPU part");
  if (!implementer.empty() && !part.empty())
    return fmt::format("ARM implementer {} part {}", implementer, part);
  return "";
}

std::vector<std::string> parse_isa_features(std::string_view cpuinfo) {
  std::string_view flags = field(cpuinfo, "flags");
  if (flags.empty()) flags = field(cpuinfo, "Features");
  std::vector<std::string> found;
  while (!flags.empty()) {
    const std::string_view flag = flags.substr(0, flags.find(' '));
    flags.remove_prefix(std::min(flags.size(), flag.size() + 1));
    if (std::find(kFeatures.begin(), kFeatures.end(), flag) != kFeatures.end()) found.emplace_back(flag);
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

std::uint64_t parse_memory_total(std::string_view meminfo) {
  const std::string_view value = field(meminfo, "MemTotal");
  std::uint64_t kilobytes = 0;
  std::from_chars(value.data(), value.data() + value.size(), kilobytes);
  return kilobytes > UINT64_MAX / 1024 ? 0 : kilobytes * 1024;
}

std::string parse_nvidia_information(std::string_view information) {
  const std::string_view model = field(information, "Model");
  return "nvidia: " + std::string(model.empty() ? "unknown model" : model);
}

DeviceProfile measure_profile(const ProfileOptions& options) {
  DeviceProfile profile;
  profile.agent_version = options.version;
  profile.labels = options.labels;
  utsname system{};
  if (::uname(&system) == 0) profile.hostname = system.nodename, profile.architecture = system.machine;
  const std::string cpuinfo = read_file("/proc/cpuinfo", 16 << 20).value_or("");
  profile.cpu_model = parse_cpu_model(cpuinfo);
  if (profile.cpu_model.empty()) profile.notes.emplace_back("cpu: /proc/cpuinfo names no model");
  profile.isa_features = parse_isa_features(cpuinfo);
  profile.cores = static_cast<std::uint32_t>(std::max(1l, ::sysconf(_SC_NPROCESSORS_ONLN)));
  profile.cpu_allowance = cpu_allowance();
  if (options.budgets.cpu_threads > 0)
    profile.cpu_allowance = std::min(profile.cpu_allowance, options.budgets.cpu_threads);

  profile.memory_bytes = parse_memory_total(read_file("/proc/meminfo", 1 << 16).value_or(""));
  profile.memory_budget_bytes = memory_allowance_bytes();
  if (profile.memory_bytes == 0) profile.memory_bytes = profile.memory_budget_bytes;
  // MemTotal leaves out what the kernel keeps for itself: only a clearly smaller limit is a cgroup's.
  profile.budget_source = profile.memory_budget_bytes < profile.memory_bytes ? "cgroup" : "machine";
  profile.memory_budget_bytes = std::min(profile.memory_budget_bytes, profile.memory_bytes);
  if (options.budgets.memory_bytes > 0 && options.budgets.memory_bytes < profile.memory_budget_bytes) {
    profile.memory_budget_bytes = options.budgets.memory_bytes;
    profile.budget_source = "declared";
  }

  if (const Result<std::uint64_t> free = free_disk_bytes(options.state_folder))
    profile.disk_free_bytes = *free;
  else
    profile.notes.push_back("disk: " + free.error().describe());
  if (options.budgets.disk_bytes > 0)
    profile.disk_free_bytes = profile.disk_free_bytes == 0
                                  ? options.budgets.disk_bytes
                                  : std::min(profile.disk_free_bytes, options.budgets.disk_bytes);

  // At most an eighth of the budget, so that profiling cannot run a small device out of memory.
  const std::uint64_t working_set = std::min<std::uint64_t>(64ull << 20, profile.memory_budget_bytes / 8);
  if (working_set >= (1u << 20)) {
    profile.memory_bandwidth_bytes_per_second = measure_bandwidth(working_set, options.time_per_measure);
    if (working_set < (32u << 20))
      profile.notes.push_back(
          fmt::format("bandwidth: working set of {} MiB only, caches may flatter it", working_set >> 20));
  } else {
    profile.notes.emplace_back("bandwidth: not measured, the memory budget is too small");
  }
  profile.matvec_f32_flops = measure_matvec_f32(options.time_per_measure);
  profile.matvec_q8_0_ops = measure_matvec_q8_0(options.time_per_measure);
  profile.notes.emplace_back("matvec: the agent's own loop at the baseline instruction set, a lower bound");
  profile.accelerators = find_accelerators();
  profile.energy_meter = find_energy_meter(profile.notes);
  profile.utc_offset_minutes = utc_offset_minutes();
  if (!options.serve_binary.empty()) {
    if (Result<std::vector<DecodeSample>> decode = ask_serve(options, profile))
      profile.decode = std::move(*decode);
    else
      profile.notes.push_back("decode: " + decode.error().describe());
  }
  return profile;
}

std::int32_t utc_offset_minutes() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::tzset();
  if (::localtime_r(&now, &local) == nullptr) return 0;
  return static_cast<std::int32_t>(local.tm_gmtoff / 60);
}

std::optional<double> PowerMeter::watts(std::chrono::steady_clock::time_point now) {
  double joules = 0;
  bool rapl = false;
  const std::string powercap = "/sys/class/powercap/";
  for (const std::string& zone : folder_names(powercap)) {
    // Packages only ("intel-rapl:0"): their parts are counted in them.
    if (!zone.starts_with("intel-rapl:") || std::count(zone.begin(), zone.end(), ':') != 1) continue;
    const Result<std::string> text = read_file(powercap + zone + "/energy_uj", 64);
    if (!text) continue;
    rapl = true;
    joules += std::strtod(text->c_str(), nullptr) / 1e6;
  }
  if (rapl) {
    const auto before = std::exchange(before_, std::pair(joules, now));
    if (!before || joules < before->first) return std::nullopt;  // the counter went round
    const double seconds = std::chrono::duration<double>(now - before->second).count();
    if (seconds < 0.1) return std::nullopt;
    return (joules - before->first) / seconds;
  }
  for (const std::string& chip : folder_names("/sys/class/hwmon"))
    for (const std::string& file : folder_names("/sys/class/hwmon/" + chip))
      if (file.starts_with("power") && file.ends_with("_input"))
        if (const double microwatts = number_in("/sys/class/hwmon/" + chip + "/" + file); microwatts > 0)
          return microwatts / 1e6;
  return std::nullopt;
}

json::value profile_to_json(const DeviceProfile& p) {
  json::object labels;
  for (const auto& [key, value] : p.labels) labels[key] = value;
  return json::object{{"hostname", p.hostname},
                      {"architecture", p.architecture},
                      {"cpu_model", p.cpu_model},
                      {"isa_features", json::value_from(p.isa_features)},
                      {"cores", p.cores},
                      {"cpu_allowance", p.cpu_allowance},
                      {"memory_bytes", p.memory_bytes},
                      {"memory_budget_bytes", p.memory_budget_bytes},
                      {"budget_source", p.budget_source},
                      {"disk_free_bytes", p.disk_free_bytes},
                      {"memory_bandwidth_bytes_per_second", p.memory_bandwidth_bytes_per_second},
                      {"matvec_f32_flops", p.matvec_f32_flops},
                      {"matvec_q8_0_ops", p.matvec_q8_0_ops},
                      {"accelerators", json::value_from(p.accelerators)},
                      {"energy_meter", p.energy_meter},
                      {"labels", labels},
                      {"notes", json::value_from(p.notes)},
                      {"agent_version", p.agent_version},
                      {"utc_offset_minutes", p.utc_offset_minutes},
                      {"decode", to_json(p.decode)}};
}

Result<DeviceProfile> profile_from_json(const json::value& value, std::string_view where) {
  const json::object& o = *RETORT_TRY(as_object(value, where));
  const auto strings = [&](std::string_view key) -> Result<std::vector<std::string>> {
    std::vector<std::string> out;
    for (const json::value& item : *RETORT_TRY(json_array(o, key, where))) {
      if (!item.is_string())
        return fail(ErrorCode::kInvalid, std::string(where), "{}: not all are texts", key);
      out.emplace_back(item.as_string());
    }
    return out;
  };
  DeviceProfile p;
  p.hostname = RETORT_TRY(json_string(o, "hostname", where));
  p.architecture = RETORT_TRY(json_string(o, "architecture", where));
  p.cpu_model = RETORT_TRY(json_string(o, "cpu_model", where));
  p.isa_features = RETORT_TRY(strings("isa_features"));
  p.cores = static_cast<std::uint32_t>(RETORT_TRY(json_uint(o, "cores", where, 1 << 20)));
  p.cpu_allowance = RETORT_TRY(json_number(o, "cpu_allowance", where));
  p.memory_bytes = RETORT_TRY(json_uint(o, "memory_bytes", where));
  p.memory_budget_bytes = RETORT_TRY(json_uint(o, "memory_budget_bytes", where));
  p.budget_source = RETORT_TRY(json_string(o, "budget_source", where));
  p.disk_free_bytes = RETORT_TRY(json_uint(o, "disk_free_bytes", where));
  p.memory_bandwidth_bytes_per_second =
      RETORT_TRY(json_number(o, "memory_bandwidth_bytes_per_second", where));
  p.matvec_f32_flops = RETORT_TRY(json_number(o, "matvec_f32_flops", where));
  p.matvec_q8_0_ops = RETORT_TRY(json_number(o, "matvec_q8_0_ops", where));
  p.accelerators = RETORT_TRY(strings("accelerators"));
  p.energy_meter = RETORT_TRY(json_string(o, "energy_meter", where));
  for (const auto& item : *RETORT_TRY(json_object(o, "labels", where))) {
    if (!item.value().is_string())
      return fail(ErrorCode::kInvalid, std::string(where), "labels: not all are texts");
    p.labels[std::string(item.key())] = std::string(item.value().as_string());
  }
  p.notes = RETORT_TRY(strings("notes"));
  p.agent_version = RETORT_TRY(json_string(o, "agent_version", where));
  if (json_has(o, "utc_offset_minutes"))  // noted by an older agent, it is missing
    p.utc_offset_minutes = static_cast<std::int32_t>(RETORT_TRY(json_int(o, "utc_offset_minutes", where)));
  if (const json::value* decode = o.if_contains("decode"))
    p.decode = RETORT_TRY(decode_samples_from_json(*decode, where));
  return p;
}

bool worth_telling(const DeviceProfile& before, const DeviceProfile& now) {
  const auto moved = [](double a, double b) { return std::abs(a - b) > std::max(a, b) / 3; };
  if (moved(before.memory_bandwidth_bytes_per_second, now.memory_bandwidth_bytes_per_second) ||
      moved(before.matvec_f32_flops, now.matvec_f32_flops) ||
      moved(before.matvec_q8_0_ops, now.matvec_q8_0_ops) ||
      moved(static_cast<double>(before.disk_free_bytes), static_cast<double>(now.disk_free_bytes)))
    return true;
  DeviceProfile a = before, b = now;
  for (DeviceProfile* p : {&a, &b})
    p->memory_bandwidth_bytes_per_second = p->matvec_f32_flops = p->matvec_q8_0_ops = 0,
    p->disk_free_bytes = 0;
  return !(a == b);
}

}  // namespace retort
