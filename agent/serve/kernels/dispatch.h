#pragma once

#include <atomic>

/// Inside the kernels: which of the functions that Highway compiles for each of its targets is called.
/// Highway's own dispatcher would do, but its library measures the processor's clock as it is loaded, which
/// takes 2.4 ms. Thread: any.
namespace retort::kernels {

struct InstructionSet {
  const char* name;
  int target;  ///< place in a table of RETORT_EXPORT
  /// Bytes are multiplied with a dot product: AVX-512 VNNI, AVX-VNNI, ARMv8.2's.
  bool dot_product;
};

extern std::atomic<const InstructionSet*> instruction_set_chosen;  // null: none yet
const InstructionSet& choose_instruction_set();
inline const InstructionSet& instruction_set_in_use() {
  const InstructionSet* const set = instruction_set_chosen.load(std::memory_order_relaxed);
  return set != nullptr ? *set : choose_instruction_set();
}

}  // namespace retort::kernels

// In HWY_ONCE's part of a file that was compiled for each target, the best first.
#if defined(__x86_64__)
#define RETORT_EXPORT(F)                   \
  static decltype(&HWY_STATIC_DISPATCH(F)) \
      const F##Table[] = {HWY_CHOOSE_AVX3(F), HWY_CHOOSE_AVX2(F), HWY_CHOOSE_SSSE3(F)}
#else
#define RETORT_EXPORT(F) static decltype(&HWY_STATIC_DISPATCH(F)) const F##Table[] = {&HWY_STATIC_DISPATCH(F)}
#endif
#define RETORT_CALL(F) (F##Table[instruction_set_in_use().target])
