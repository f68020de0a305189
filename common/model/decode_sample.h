#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/core/json.h"
#include "common/core/result.h"
#include "common/model/model_config.h"

namespace retort {

/// How long a Llama of this shape took for one generated token on a device, measured by `retort-serve
/// measure` with the kernels that serve. Its embedding is tied and its layers are alike.
struct DecodeSample {
  std::string format;  ///< of its matrices, as GGUF names it: "Q8_0"
  std::uint32_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0, vocabulary = 0;
  std::uint32_t position = 0;  ///< tokens in the context before it
  double seconds = 0;          ///< a token; 0: not measured
  bool operator==(const DecodeSample&) const = default;
};

/// The shape as a model with a context of `n_ctx` tokens.
ModelConfig decode_config(const DecodeSample& shape, std::uint32_t n_ctx);

json::array to_json(const std::vector<DecodeSample>& samples);
/// kInvalid names the member that is wrong.
Result<std::vector<DecodeSample>> decode_samples_from_json(const json::value& value, std::string_view where);

}  // namespace retort
