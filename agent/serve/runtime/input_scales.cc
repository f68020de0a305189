#include "agent/serve/runtime/input_scales.h"

#include <cmath>

namespace retort {

Result<InputScales> read_input_scales(const GgufFile& file) {
  constexpr std::string_view kPrefix = "retort.input_scale.";
  InputScales out;
  for (const auto& [key, value] : file.metadata()) {
    if (!key.starts_with(kPrefix)) continue;
    const std::string tensor = key.substr(kPrefix.size());
    const GgufTensor* found = file.tensor(tensor);
    if (found == nullptr)
      return fail(ErrorCode::kInvalid, file.where(), "metadata '{}': there is no such tensor", key);
    if (info(found->type).block_values == 1)
      return fail(ErrorCode::kUnsupported, file.where(),
                  "metadata '{}': {} matrices read inputs that are not quantized", key,
                  info(found->type).name);
    const auto scale = static_cast<float>(RETORT_TRY(file.number(key)));
    if (!(scale > 1e-30f && scale < 1e30f))
      return fail(ErrorCode::kInvalid, file.where(), "metadata '{}' is {}, no positive scale", key, scale);
    out.emplace(tensor, scale);
  }
  return out;
}

Result<float> shared_input_scale(const InputScales& scales, const std::vector<std::string>& tensors,
                                 const std::string& where) {
  const auto of = [&](const std::string& tensor) {
    const auto found = scales.find(tensor);
    return found == scales.end() ? 0.0f : found->second;
  };
  for (const std::string& tensor : tensors)
    if (of(tensor) != of(tensors.front()))
      return fail(ErrorCode::kInvalid, where, "'{}' and '{}' read the same input; their input scales differ",
                  tensors.front(), tensor);
  return of(tensors.front());
}

}  // namespace retort
