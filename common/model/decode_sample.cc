#include "common/model/decode_sample.h"

#include <array>

namespace retort {
namespace {

constexpr std::array<std::pair<const char*, std::uint32_t DecodeSample::*>, 8> kCounts{{
    {"layers", &DecodeSample::layers},
    {"hidden", &DecodeSample::hidden},
    {"heads", &DecodeSample::heads},
    {"kv_heads", &DecodeSample::kv_heads},
    {"head_dim", &DecodeSample::head_dim},
    {"ffn", &DecodeSample::ffn},
    {"vocabulary", &DecodeSample::vocabulary},
    {"position", &DecodeSample::position},
}};

}  // namespace

ModelConfig decode_config(const DecodeSample& shape, std::uint32_t n_ctx) {
  ModelConfig config;
  config.family = ModelFamily::kLlama;
  config.n_vocab = shape.vocabulary;
  config.n_ctx = n_ctx;
  config.n_embd = shape.hidden;
  config.head_dim = shape.head_dim;
  config.layers.assign(shape.layers, {shape.heads, shape.kv_heads, shape.ffn});
  return config;
}

json::array to_json(const std::vector<DecodeSample>& samples) {
  json::array out;
  for (const DecodeSample& sample : samples) {
    json::object entry{{"format", sample.format}};
    for (const auto& [name, member] : kCounts) entry[name] = sample.*member;
    entry["seconds"] = sample.seconds;
    out.push_back(std::move(entry));
  }
  return out;
}

Result<std::vector<DecodeSample>> decode_samples_from_json(const json::value& value, std::string_view where) {
  if (!value.is_array()) return fail(ErrorCode::kInvalid, std::string(where), "not a list of measurements");
  std::vector<DecodeSample> out;
  for (const json::value& entry : value.get_array()) {
    const json::object& o = *RETORT_TRY(as_object(entry, where));
    DecodeSample& sample = out.emplace_back();
    sample.format = RETORT_TRY(json_string(o, "format", where));
    for (const auto& [name, member] : kCounts)
      sample.*member = static_cast<std::uint32_t>(RETORT_TRY(json_uint(o, name, where, UINT32_MAX)));
    sample.seconds = RETORT_TRY(json_number(o, "seconds", where));
  }
  return out;
}

}  // namespace retort
