#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "agent/serve/commands/commands.h"
#include "agent/serve/runtime/encoder.h"
#include "common/core/log.h"
#include "common/core/units.h"
#include "common/process/process.h"
#include "common/seal/sealed_file.h"

namespace retort {

std::uint32_t thread_count(const ServeArguments& options) {
  if (options.threads != 0) return options.threads;
  return std::max(1u, static_cast<std::uint32_t>(cpu_allowance()));
}

Result<std::uint64_t> memory_limit(const ServeArguments& options) {
  if (options.memory_limit.empty()) return std::uint64_t{0};
  return parse_bytes(options.memory_limit);
}

kernels::CacheType cache_type(const ServeArguments& options, const Model& model) {
  if (options.kv_cache == "f32") return kernels::CacheType::kF32;
  if (options.kv_cache == "q8") return kernels::CacheType::kQ8;
  // Rounding K and V to F16 is far finer than what such weights have been through.
  if (options.kv_cache == "f16" || model.bits_per_weight() <= 24) return kernels::CacheType::kF16;
  return kernels::CacheType::kF32;
}

Result<OpenedFile> open_file(const ServeArguments& options) {
  OpenedFile opened;
  if (!SealedFile::is_sealed(options.model)) {
    opened.file = RETORT_TRY(GgufFile::open(options.model));
    return opened;
  }
  if (options.seal_key.empty())
    return fail(ErrorCode::kDenied, options.model,
                "sealed to a device's key (artifact {}): --seal-key FILE opens it",
                SealedFile::artifact_of(options.model).value_or("unknown"));
  const SealKey key = RETORT_TRY(read_seal_key(options.seal_key));
  opened.memory = RETORT_TRY(unseal(options.model, key));
  opened.file = RETORT_TRY(GgufFile::parse(opened.memory.bytes(), options.model));
  return opened;
}

PackingChoice packing_choice(const ServeArguments& options) {
  if (options.pack_cache == "off") return {.pack = false};
  if (SealedFile::is_sealed(options.model)) return {};
  if (options.pack_cache == "none") return {};
  if (options.pack_cache != "auto") return {.cache = options.pack_cache};
  const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  if (cache != nullptr && cache[0] == '/') return {.cache = std::filesystem::path(cache) / "retort"};
  if (home != nullptr && home[0] == '/') return {.cache = std::filesystem::path(home) / ".cache/retort"};
  return {};
}

Result<std::shared_ptr<const Model>> open_model(const ServeArguments& options, OpenedFile& opened) {
  const PackingChoice packing = packing_choice(options);
  ModelOptions how{.pack = packing.pack, .pack_cache = packing.cache};
  if (!opened.memory.bytes().empty())
    how.done_with = [&opened](std::span<const std::byte> part) { opened.memory.forget(part); };
  if (const std::uint64_t limit = RETORT_TRY(memory_limit(options)); limit != 0)
    how.pack_if = [&options, limit](const Model& unpacked, std::uint64_t packed_bytes) {
      // A narrow KV cache costs less than weights that are not packed.
      const kernels::CacheType cache =
          options.kv_cache == "auto" ? kernels::CacheType::kQ8 : cache_type(options, unpacked);
      const std::uint32_t threads = thread_count(options);
      const MemoryPlan plan = unpacked.config().is_encoder()
                                  ? plan_encoder_memory(unpacked, {.n_ctx = options.ctx}, threads)
                                  : plan_memory(unpacked, {.n_ctx = options.ctx, .cache = cache}, threads);
      const std::uint64_t needed = plan.total() + packed_bytes;
      if (needed > limit)
        log_warn(
            "{} with packed weights is more than the limit of {}: they are used as the file has them, which "
            "is slower",
            format_bytes(needed), format_bytes(limit));
      return needed <= limit;
    };
  return Model::from_file(std::move(opened.file), how, options.model);
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace retort
