#include "agent/serve/kernels/dispatch.h"

#include <algorithm>
#include <cstdlib>

#include "agent/serve/kernels/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace retort::kernels {

constinit std::atomic<const InstructionSet*> instruction_set_chosen{nullptr};

namespace {

#if defined(__x86_64__)

// The best first. The targets are those of RETORT_EXPORT, with what Highway compiles them for. AVX-512
// without VNNI does without AVX-512.
constexpr InstructionSet kSets[] = {
    {"AVX512_VNNI", 0, true}, {"AVX2_VNNI", 1, true}, {"AVX2", 1, false}, {"SSSE3", 2, false}};

bool runs(const InstructionSet& set) {
  struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
  };
  const auto cpuid = [](unsigned leaf, unsigned part) {
    Registers r;
    __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
    return r;
  };
  const auto has = [](unsigned value, std::initializer_list<int> bits) {
    return std::all_of(bits.begin(), bits.end(), [&](int bit) { return (value >> bit & 1) != 0; });
  };
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), more = cpuid(7, 1), extended = cpuid(0x80000001, 0);
  // The compiler's own checks look at the operating system's part as well.
  const bool avx2 = __builtin_cpu_supports("avx2") && has(one.c, {12 /* FMA */, 29 /* F16C */}) &&
                    has(seven.b, {3 /* BMI */, 8 /* BMI2 */}) && has(extended.c, {5 /* LZCNT */});
  switch (set.target) {
    case 0:
      return avx2 && __builtin_cpu_supports("avx512f") &&
             has(seven.b, {17 /* DQ */, 30 /* BW */, 31 /* VL */}) && has(seven.c, {11 /* VNNI */});
    case 1:
      return avx2 && (has(more.a, {4 /* AVX-VNNI */}) || !set.dot_product);
    default:
      return true;  // what the compiler itself was told to use
  }
}

#elif defined(__aarch64__)

constexpr InstructionSet kSets[] = {{"NEON_DOT", 0, true}, {"NEON", 0, false}};

bool runs(const InstructionSet& set) {
  return !set.dot_product || (::getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
}

#else

constexpr InstructionSet kSets[] = {{"portable", 0, false}};
bool runs(const InstructionSet&) { return true; }

#endif

}  // namespace

const InstructionSet& choose_instruction_set() {
  const InstructionSet* const best = std::find_if(std::begin(kSets), std::end(kSets), runs);
  instruction_set_chosen.store(best, std::memory_order_relaxed);
  return *best;
}

const char* instruction_set() { return instruction_set_in_use().name; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : kSets)
    if (runs(set)) names.emplace_back(set.name);
  return names;
}

bool use_instruction_set(std::string_view name) {
  const auto set = std::find_if(std::begin(kSets), std::end(kSets),
                                [&](const InstructionSet& s) { return s.name == name && runs(s); });
  if (set == std::end(kSets)) return false;
  instruction_set_chosen.store(set, std::memory_order_relaxed);
  return true;
}

}  // namespace retort::kernels
