#include <iostream>
#include <map>

#include "agent/serve/commands/classifier.h"
#include "agent/serve/commands/commands.h"
#include "agent/serve/runtime/encoder.h"
#include "common/core/json.h"
#include "common/core/units.h"
#include "common/hf/classifier_model.h"

namespace retort {

Result<void> describe(const ServeArguments& options) {
  OpenedFile opened = RETORT_TRY(open_file(options));
  if (is_gguf_classifier(opened.file)) return describe_classifier(options, std::move(opened.file));
  const auto model =
      RETORT_TRY(Model::from_file(std::move(opened.file)));  // packed, to know what serving takes
  const ModelConfig& c = model->config();
  const SessionOptions session{
      .n_ctx = options.ctx, .streams = options.streams, .cache = cache_type(options, *model)};
  const MemoryPlan plan = c.is_encoder()
                              ? plan_encoder_memory(*model, {.n_ctx = options.ctx}, thread_count(options))
                              : plan_memory(*model, session, thread_count(options));
  std::map<std::string, std::uint64_t> types;
  for (const GgufTensor& tensor : model->file().tensors())
    types[std::string(info(tensor.type).name)] += tensor.data.size();
  json::object by_type;
  for (const auto& [name, bytes] : types) by_type[name] = bytes;
  json::object static_inputs;
  for (const auto& [tensor, scale] : model->input_scales()) static_inputs[tensor] = scale;
  if (options.as_json) {
    json::array layers;
    for (const LayerShape& layer : c.layers)
      layers.push_back(
          json::object{{"n_head", layer.n_head}, {"n_head_kv", layer.n_head_kv}, {"n_ff", layer.n_ff}});
    std::cout << json::serialize(
                     json::object{{"architecture", to_string(c.family)},
                                  {"parameters", model->parameters()},
                                  {"file_bytes", model->file().file_length()},
                                  {"bits_per_weight", model->bits_per_weight()},
                                  {"n_vocab", c.n_vocab},
                                  {"n_ctx", c.n_ctx},
                                  {"n_embd", c.n_embd},
                                  {"layers", layers},
                                  {"labels", json::array(c.encoder.labels.begin(), c.encoder.labels.end())},
                                  {"masked_lm", c.encoder.mlm_head},
                                  {"tensors", model->file().tensors().size()},
                                  {"bytes_by_type", by_type},
                                  {"static_inputs", static_inputs},
                                  {"memory", json::object{{"weights_mapped_bytes", plan.weights_mapped_bytes},
                                                          {"weights_packed_bytes", plan.weights_packed_bytes},
                                                          {"kv_cache_bytes", plan.kv_cache_bytes},
                                                          {"activation_bytes", plan.activation_bytes},
                                                          {"total_bytes", plan.total()}}}})
              << "\n";
    return {};
  }
  std::cout << fmt::format(
      "{}\n  architecture  {}, {} layers, width {}, vocabulary {}, context {}\n  parameters    {} ({:.2f} "
      "bits per weight, {})\n",
      options.model, to_string(c.family), c.n_layer(), c.n_embd, c.n_vocab, c.n_ctx,
      format_count(model->parameters()), model->bits_per_weight(), format_bytes(model->file().file_length()));
  for (std::uint32_t i = 0; i < c.n_layer(); ++i)
    std::cout << fmt::format("  layer {:<2}      {} heads, {} KV heads, FFN {}\n", i, c.layers[i].n_head,
                             c.layers[i].n_head_kv, c.layers[i].n_ff);
  if (c.is_encoder())
    std::cout << fmt::format("  heads         {}{}{} labels\n", c.encoder.mlm_head ? "masked LM, " : "",
                             c.encoder.pooler ? "pooler, " : "", c.encoder.labels.size());
  for (const auto& [name, bytes] : types)
    std::cout << fmt::format("  {:<13} {}\n", name, format_bytes(bytes));
  for (const auto& [tensor, scale] : model->input_scales())
    std::cout << fmt::format("  static input  {} in steps of {:.4g}\n", tensor, scale);
  std::cout << fmt::format(
      "  memory        {}: {} weights as in the file, {} packed, {} KV cache of {} streams, {} activations\n",
      format_bytes(plan.total()), format_bytes(plan.weights_mapped_bytes),
      format_bytes(plan.weights_packed_bytes), format_bytes(plan.kv_cache_bytes), options.streams,
      format_bytes(plan.activation_bytes));
  return {};
}

}  // namespace retort
