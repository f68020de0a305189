#include "common/hf/hf_model.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "common/blocks/matrix.h"
#include "common/core/file.h"
#include "common/core/json.h"

namespace retort {
namespace {

std::uint64_t count_of(const std::vector<std::uint64_t>& shape) {
  std::uint64_t n = 1;
  for (const std::uint64_t d : shape) n *= d;
  return n;
}

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

/// How a weight's values are rearranged between Hugging Face's layout and GGUF's.
enum class Rearrange { kNone, kPermute, kTranspose };

/// A Hugging Face weight, the GGUF tensor that it becomes, and how.
struct Mapping {
  std::string hf_name, gguf_name;
  std::vector<std::uint64_t> hf_shape;  // row-major
  Rearrange rearrange = Rearrange::kNone;
  std::uint32_t heads = 0;  // for kPermute
};

/// Every weight of an architecture, in the order in which files hold them.
std::vector<Mapping> mappings(const ModelConfig& c) {
  std::vector<Mapping> out;
  const std::uint64_t embd = c.n_embd;
  if (c.family == ModelFamily::kLlama) {
    out.push_back({"model.embed_tokens.weight", "token_embd.weight", {c.n_vocab, embd}});
    for (std::uint32_t i = 0; i < c.n_layer(); ++i) {
      const LayerShape& layer = c.layers[i];
      const std::string hf = fmt::format("model.layers.{}.", i), gguf = fmt::format("blk.{}.", i);
      const std::uint64_t q = std::uint64_t{layer.n_head} * c.head_dim,
                          kv = std::uint64_t{layer.n_head_kv} * c.head_dim;
      out.push_back({hf + "input_layernorm.weight", gguf + "attn_norm.weight", {embd}});
      out.push_back({hf + "self_attn.q_proj.weight",
                     gguf + "attn_q.weight",
                     {q, embd},
                     Rearrange::kPermute,
                     layer.n_head});
      out.push_back({hf + "self_attn.k_proj.weight",
                     gguf + "attn_k.weight",
                     {kv, embd},
                     Rearrange::kPermute,
                     layer.n_head_kv});
      out.push_back({hf + "self_attn.v_proj.weight", gguf + "attn_v.weight", {kv, embd}});
      out.push_back({hf + "self_attn.o_proj.weight", gguf + "attn_output.weight", {embd, q}});
      out.push_back({hf + "post_attention_layernorm.weight", gguf + "ffn_norm.weight", {embd}});
      out.push_back({hf + "mlp.gate_proj.weight", gguf + "ffn_gate.weight", {layer.n_ff, embd}});
      out.push_back({hf + "mlp.up_proj.weight", gguf + "ffn_up.weight", {layer.n_ff, embd}});
      out.push_back({hf + "mlp.down_proj.weight", gguf + "ffn_down.weight", {embd, layer.n_ff}});
    }
    out.push_back({"model.norm.weight", "output_norm.weight", {embd}});
    if (!c.tied_embeddings) out.push_back({"lm_head.weight", "output.weight", {c.n_vocab, embd}});
    return out;
  }
  out.push_back({"transformer.wte.weight", "token_embd.weight", {c.n_vocab, embd}});
  out.push_back({"transformer.wpe.weight", "position_embd.weight", {c.n_ctx, embd}});
  for (std::uint32_t i = 0; i < c.n_layer(); ++i) {
    const LayerShape& layer = c.layers[i];
    const std::string hf = fmt::format("transformer.h.{}.", i), gguf = fmt::format("blk.{}.", i);
    const std::uint64_t q = std::uint64_t{layer.n_head} * c.head_dim,
                        kv = std::uint64_t{layer.n_head_kv} * c.head_dim;
    out.push_back({hf + "ln_1.weight", gguf + "attn_norm.weight", {embd}});
    out.push_back({hf + "ln_1.bias", gguf + "attn_norm.bias", {embd}});
    out.push_back(
        {hf + "attn.c_attn.weight", gguf + "attn_qkv.weight", {embd, q + 2 * kv}, Rearrange::kTranspose});
    out.push_back({hf + "attn.c_attn.bias", gguf + "attn_qkv.bias", {q + 2 * kv}});
    out.push_back({hf + "attn.c_proj.weight", gguf + "attn_output.weight", {q, embd}, Rearrange::kTranspose});
    out.push_back({hf + "attn.c_proj.bias", gguf + "attn_output.bias", {embd}});
    out.push_back({hf + "ln_2.weight", gguf + "ffn_norm.weight", {embd}});
    out.push_back({hf + "ln_2.bias", gguf + "ffn_norm.bias", {embd}});
    out.push_back(
        {hf + "mlp.c_fc.weight", gguf + "ffn_up.weight", {embd, layer.n_ff}, Rearrange::kTranspose});
    out.push_back({hf + "mlp.c_fc.bias", gguf + "ffn_up.bias", {layer.n_ff}});
    out.push_back(
        {hf + "mlp.c_proj.weight", gguf + "ffn_down.weight", {layer.n_ff, embd}, Rearrange::kTranspose});
    out.push_back({hf + "mlp.c_proj.bias", gguf + "ffn_down.bias", {embd}});
  }
  out.push_back({"transformer.ln_f.weight", "output_norm.weight", {embd}});
  out.push_back({"transformer.ln_f.bias", "output_norm.bias", {embd}});
  if (!c.tied_embeddings) out.push_back({"lm_head.weight", "output.weight", {c.n_vocab, embd}});
  return out;
}

/// Shape in GGUF's order (fastest first).
std::vector<std::uint64_t> gguf_shape(const Mapping& m) {
  std::vector<std::uint64_t> shape(m.hf_shape.rbegin(), m.hf_shape.rend());
  if (m.rearrange == Rearrange::kTranspose) std::swap(shape[0], shape[1]);
  return shape;
}

/// Hugging Face's Llama rotates the first half of a head against the second; GGUF's rotates neighbours. Row r
/// of the first half goes to 2r, of the second half to 2r + 1, head by head.
void permute(std::vector<float>& values, std::uint64_t columns, std::uint32_t heads) {
  const std::uint64_t rows = values.size() / columns, head = rows / heads;
  std::vector<float> out(values.size());
  for (std::uint64_t r = 0; r < rows; ++r) {
    const std::uint64_t base = r / head * head, i = r % head;
    const std::uint64_t to = base + (i < head / 2 ? 2 * i : 2 * (i - head / 2) + 1);
    std::memcpy(&out[to * columns], &values[r * columns], columns * sizeof(float));
  }
  values = std::move(out);
}

void transpose(std::vector<float>& values, std::uint64_t rows, std::uint64_t columns) {
  std::vector<float> out(values.size());
  for (std::uint64_t r = 0; r < rows; ++r)
    for (std::uint64_t c = 0; c < columns; ++c) out[c * rows + r] = values[r * columns + c];
  values = std::move(out);
}

/// Buffers that some checkpoints hold and no computation needs.
bool is_ignorable(std::string_view name) {
  return name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".attn.bias") ||
         name.ends_with(".attn.masked_bias");
}

const SafeTensor* find_weight(const Safetensors& weights, const std::string& name) {
  if (const SafeTensor* found = weights.find(name)) return found;
  constexpr std::string_view kPrefix = "transformer.";
  return name.starts_with(kPrefix) ? weights.find(name.substr(kPrefix.size())) : nullptr;
}

}  // namespace

std::vector<WeightShape> hf_weights(const ModelConfig& config) {
  std::vector<WeightShape> out;
  for (Mapping& m : mappings(config)) out.push_back({std::move(m.hf_name), std::move(m.hf_shape)});
  return out;
}

Result<ModelConfig> read_hf_config(std::string_view text, std::string_view where) {
  const json::value document = RETORT_TRY(parse_json(text, where));
  const json::object& root = *RETORT_TRY(as_object(document, where));
  const std::string type = RETORT_TRY(json_string(root, "model_type", where));
  ModelConfig c;
  const auto number = [&](const char* key) { return json_uint(root, key, where, 1u << 24); };
  const auto optional_number = [&](const char* key, std::uint64_t fallback) -> Result<std::uint64_t> {
    if (!json_has(root, key)) return fallback;
    return json_uint(root, key, where, 1u << 24);
  };
  const auto optional_real = [&](const char* key, double fallback) -> Result<double> {
    if (!json_has(root, key)) return fallback;
    return json_number(root, key, where);
  };
  const auto optional_text = [&](const char* key, std::string fallback) -> Result<std::string> {
    if (!json_has(root, key)) return fallback;
    return json_string(root, key, where);
  };
  const auto refuse_true = [&](const char* key) -> Result<void> {
    if (json_has(root, key) && RETORT_TRY(json_bool(root, key, where)))
      return fail(ErrorCode::kUnsupported, std::string(where), "'{}' is set, which is not supported", key);
    return {};
  };
  LayerShape layer;
  std::uint64_t layers = 0;
  c.n_vocab = static_cast<std::uint32_t>(RETORT_TRY(number("vocab_size")));
  if (type == "llama") {
    c.family = ModelFamily::kLlama;
    c.n_embd = static_cast<std::uint32_t>(RETORT_TRY(number("hidden_size")));
    layer.n_ff = static_cast<std::uint32_t>(RETORT_TRY(number("intermediate_size")));
    layers = RETORT_TRY(number("num_hidden_layers"));
    layer.n_head = static_cast<std::uint32_t>(RETORT_TRY(number("num_attention_heads")));
    layer.n_head_kv =
        static_cast<std::uint32_t>(RETORT_TRY(optional_number("num_key_value_heads", layer.n_head)));
    c.n_ctx = static_cast<std::uint32_t>(RETORT_TRY(optional_number("max_position_embeddings", 2048)));
    c.norm_eps = static_cast<float>(RETORT_TRY(optional_real("rms_norm_eps", 1e-6)));
    c.rope_theta = static_cast<float>(RETORT_TRY(optional_real("rope_theta", 10000.0)));
    const std::string activation = RETORT_TRY(optional_text("hidden_act", "silu"));
    if (activation != "silu")
      return fail(ErrorCode::kUnsupported, std::string(where), "hidden_act '{}'; 'silu' is supported",
                  activation);
    // Newer files hold it, with the kind of scaling, in rope_parameters.
    if (json_has(root, "rope_parameters")) {
      const json::object& rope = *RETORT_TRY(json_object(root, "rope_parameters", where));
      if (json_has(rope, "rope_type") && RETORT_TRY(json_string(rope, "rope_type", where)) != "default")
        return fail(ErrorCode::kUnsupported, std::string(where),
                    "'rope_parameters': only rope_type 'default' is supported");
      if (json_has(rope, "rope_theta"))
        c.rope_theta = static_cast<float>(RETORT_TRY(json_number(rope, "rope_theta", where)));
    }
    RETORT_TRY(refuse_true("attention_bias"));
    RETORT_TRY(refuse_true("mlp_bias"));
    if (json_has(root, "rope_scaling"))
      return fail(ErrorCode::kUnsupported, std::string(where), "'rope_scaling' is not supported yet");
    c.tied_embeddings =
        json_has(root, "tie_word_embeddings") && RETORT_TRY(json_bool(root, "tie_word_embeddings", where));
  } else if (type == "gpt2") {
    c.family = ModelFamily::kGpt2;
    c.n_embd = static_cast<std::uint32_t>(RETORT_TRY(number("n_embd")));
    layer.n_ff = static_cast<std::uint32_t>(RETORT_TRY(optional_number("n_inner", 4ull * c.n_embd)));
    layers = RETORT_TRY(number("n_layer"));
    layer.n_head = layer.n_head_kv = static_cast<std::uint32_t>(RETORT_TRY(number("n_head")));
    c.n_ctx = static_cast<std::uint32_t>(RETORT_TRY(optional_number("n_positions", 1024)));
    c.norm_eps = static_cast<float>(RETORT_TRY(optional_real("layer_norm_epsilon", 1e-5)));
    const std::string activation = RETORT_TRY(optional_text("activation_function", "gelu_new"));
    if (activation != "gelu_new")
      return fail(ErrorCode::kUnsupported, std::string(where),
                  "activation_function '{}'; 'gelu_new' is supported", activation);
    RETORT_TRY(refuse_true("scale_attn_by_inverse_layer_idx"));
    RETORT_TRY(refuse_true("add_cross_attention"));
    if (json_has(root, "scale_attn_weights") && !RETORT_TRY(json_bool(root, "scale_attn_weights", where)))
      return fail(ErrorCode::kUnsupported, std::string(where),
                  "'scale_attn_weights: false' is not supported");
    c.tied_embeddings =
        !json_has(root, "tie_word_embeddings") || RETORT_TRY(json_bool(root, "tie_word_embeddings", where));
  } else {
    return fail(ErrorCode::kUnsupported, std::string(where),
                "model family '{}'; 'llama' and 'gpt2' are supported", type);
  }
  if (layers < 1 || layers > 1024)
    return fail(ErrorCode::kInvalid, std::string(where), "{} layers, outside 1…1024", layers);
  if (layer.n_head == 0) return fail(ErrorCode::kInvalid, std::string(where), "no attention heads");
  c.head_dim = static_cast<std::uint32_t>(RETORT_TRY(optional_number("head_dim", c.n_embd / layer.n_head)));
  if (!json_has(root, "head_dim") && c.n_embd % layer.n_head != 0)
    return fail(ErrorCode::kInvalid, std::string(where), "{} heads do not divide a width of {}", layer.n_head,
                c.n_embd);
  c.layers.assign(layers, layer);
  if (json_has(root, "retort_layers")) {
    const json::array& list = *RETORT_TRY(json_array(root, "retort_layers", where));
    if (list.size() != layers)
      return fail(ErrorCode::kInvalid, std::string(where), "'retort_layers' lists {} layers, not {}",
                  list.size(), layers);
    for (std::size_t i = 0; i < list.size(); ++i) {
      const json::object& entry = *RETORT_TRY(as_object(list[i], where));
      c.layers[i].n_head =
          static_cast<std::uint32_t>(RETORT_TRY(json_uint(entry, "n_head", where, 1u << 16)));
      c.layers[i].n_head_kv =
          static_cast<std::uint32_t>(RETORT_TRY(json_uint(entry, "n_head_kv", where, 1u << 16)));
      c.layers[i].n_ff = static_cast<std::uint32_t>(RETORT_TRY(json_uint(entry, "n_ff", where, 1u << 24)));
    }
  }
  const auto token = [&](const char* key, std::int32_t& out) -> Result<void> {
    const json::value* value = root.if_contains(key);
    if (value == nullptr || value->is_null()) return {};
    if (value->is_array() && !value->get_array().empty()) value = &value->get_array()[0];
    if (!value->is_int64() || value->get_int64() < 0 || value->get_int64() >= c.n_vocab)
      return fail(ErrorCode::kInvalid, std::string(where), "'{}' is not a token of the vocabulary of {}", key,
                  c.n_vocab);
    out = static_cast<std::int32_t>(value->get_int64());
    return {};
  };
  RETORT_TRY(token("bos_token_id", c.bos_token));
  RETORT_TRY(token("eos_token_id", c.eos_token));
  RETORT_TRY(validate(c, where));
  return c;
}

Result<HfModel> open_hf_model(const std::filesystem::path& folder) {
  const std::string where = (folder / "config.json").string();
  ModelConfig config =
      RETORT_TRY(read_hf_config(RETORT_TRY(read_file(folder / "config.json", 16u << 20)), where));
  Safetensors weights = RETORT_TRY(Safetensors::open_folder(folder));
  Tokenizer tokenizer = RETORT_TRY(Tokenizer::from_huggingface(folder / "tokenizer.json"));
  if (tokenizer.vocabulary_size() != config.n_vocab)
    return fail(ErrorCode::kInvalid, folder.string(),
                "the tokenizer has {} tokens, the model {} (vocab_size in config.json)",
                tokenizer.vocabulary_size(), config.n_vocab);
  std::set<const SafeTensor*> used;
  for (const Mapping& m : mappings(config)) {
    const SafeTensor* tensor = find_weight(weights, m.hf_name);
    if (tensor == nullptr)
      return fail(ErrorCode::kInvalid, folder.string(), "tensor '{}' is missing", m.hf_name);
    if (tensor->shape != m.hf_shape)
      return fail(ErrorCode::kInvalid, folder.string(), "tensor '{}' has shape {}, config.json asks for {}",
                  m.hf_name, shape_text(tensor->shape), shape_text(m.hf_shape));
    used.insert(tensor);
  }
  for (const auto& [name, tensor] : weights.tensors())
    if (used.count(&tensor) == 0 && !is_ignorable(name) &&
        !(config.tied_embeddings && name == "lm_head.weight"))
      return fail(ErrorCode::kUnsupported, folder.string(), "tensor '{}' has no place in a {} model", name,
                  to_string(config.family));
  if (config.bos_token < 0) config.bos_token = tokenizer.bos();
  if (config.eos_token < 0) config.eos_token = tokenizer.eos();
  return HfModel{std::move(config), std::move(tokenizer), std::move(weights)};
}

std::vector<TensorSource> weight_sources(const HfModel& model) {
  std::vector<TensorSource> out;
  for (const Mapping& m : mappings(model.config)) {
    const SafeTensor* tensor = find_weight(model.weights, m.hf_name);
    out.push_back({m.hf_name, m.hf_shape, [tensor](std::span<float> values) -> Result<void> {
                     tensor->read_f32(0, values);
                     return {};
                   }});
  }
  return out;
}

Result<void> write_gguf_model(const std::filesystem::path& path, const ModelConfig& c,
                              const Tokenizer& tokenizer, const std::vector<TensorSource>& weights,
                              TensorType matrix_type, const GgufMetadata& extra) {
  RETORT_TRY(validate(c, path.string()));
  if (tokenizer.vocabulary_size() != c.n_vocab)
    return fail(ErrorCode::kInvalid, path.string(), "the tokenizer has {} tokens, the model {}",
                tokenizer.vocabulary_size(), c.n_vocab);
  GgufWriter writer;
  const std::string arch(to_string(c.family));
  const auto key = [&](const char* name) { return arch + "." + name; };
  writer.set("general.architecture", arch);
  writer.set("general.name", path.stem().string());
  writer.set("general.quantization_version", std::uint64_t{2});
  // llama_ftype: the type of most matrices.
  const auto file_type = [&]() -> std::uint64_t {
    switch (matrix_type) {
      case TensorType::kF32:
        return 0;
      case TensorType::kF16:
        return 1;
      case TensorType::kQ4_0:
        return 2;
      case TensorType::kQ8_0:
        return 7;
      case TensorType::kQ3K:
        return 12;
      case TensorType::kQ4K:
        return 15;
      case TensorType::kQ5K:
        return 17;
      case TensorType::kQ6K:
        return 18;
      case TensorType::kIq4Nl:
        return 25;
      case TensorType::kBF16:
        return 32;
      case TensorType::kSparseQ8:
      case TensorType::kSparse24Q8:
      case TensorType::kCodebook4:
      case TensorType::kCodebook8:
        return 1024;  // llama.cpp's "guessed": it has no number for these
    }
    return 0;
  }();
  writer.set("general.file_type", file_type);
  writer.set(key("context_length"), std::uint64_t{c.n_ctx});
  writer.set(key("embedding_length"), std::uint64_t{c.n_embd});
  writer.set(key("block_count"), std::uint64_t{c.n_layer()});
  const auto per_layer = [&](const char* name, std::uint32_t LayerShape::*field) {
    std::vector<std::int64_t> values;
    for (const LayerShape& layer : c.layers) values.push_back(layer.*field);
    if (std::all_of(values.begin(), values.end(), [&](std::int64_t v) { return v == values[0]; }))
      writer.set(key(name), static_cast<std::uint64_t>(values[0]));
    else
      writer.set(key(name), values);
  };
  per_layer("feed_forward_length", &LayerShape::n_ff);
  per_layer("attention.head_count", &LayerShape::n_head);
  per_layer("attention.head_count_kv", &LayerShape::n_head_kv);
  writer.set(key("attention.key_length"), std::uint64_t{c.head_dim});
  writer.set(key("attention.value_length"), std::uint64_t{c.head_dim});
  writer.set(key("vocab_size"), std::uint64_t{c.n_vocab});
  if (c.family == ModelFamily::kLlama) {
    writer.set(key("attention.layer_norm_rms_epsilon"), static_cast<double>(c.norm_eps));
    writer.set(key("rope.dimension_count"), std::uint64_t{c.head_dim});
    writer.set(key("rope.freq_base"), static_cast<double>(c.rope_theta));
  } else {
    writer.set(key("attention.layer_norm_epsilon"), static_cast<double>(c.norm_eps));
  }
  tokenizer.write_gguf(writer);
  for (const auto& [name, value] : extra) writer.set(name, value);
  for (const Mapping& m : mappings(c)) {
    const auto source = std::find_if(weights.begin(), weights.end(),
                                     [&](const TensorSource& s) { return s.name == m.hf_name; });
    if (source == weights.end())
      return fail(ErrorCode::kInvalid, path.string(), "tensor '{}' is missing", m.hf_name);
    if (source->shape != m.hf_shape)
      return fail(ErrorCode::kInvalid, path.string(), "tensor '{}' has shape {}, not {}", m.hf_name,
                  shape_text(source->shape), shape_text(m.hf_shape));
    std::vector<std::uint64_t> shape = gguf_shape(m);
    TensorType type = matrix_type;
    if (shape.size() == 1 || m.gguf_name == "position_embd.weight")
      type = TensorType::kF32;
    else
      type = stored_type(type, shape[0]);
    const auto values_of = [m, source = &*source]() -> Result<std::vector<float>> {
      std::vector<float> values(count_of(m.hf_shape));
      RETORT_TRY(source->read(values));
      if (m.rearrange == Rearrange::kPermute) permute(values, m.hf_shape.back(), m.heads);
      if (m.rearrange == Rearrange::kTranspose) transpose(values, m.hf_shape[0], m.hf_shape[1]);
      return values;
    };
    if (shape.size() != 2) {
      writer.add_tensor(m.gguf_name, std::move(shape), type,
                        [values_of, type](std::span<std::byte> out) -> Result<void> {
                          encode_row(type, RETORT_TRY(values_of()), out);
                          return {};
                        });
      continue;
    }
    const std::uint64_t columns = shape[0], rows = shape[1];
    writer.add_matrix(m.gguf_name, columns, rows, type,
                      [values_of, type, columns, rows]() -> Result<std::vector<std::byte>> {
                        return encode_matrix(type, rows, columns, RETORT_TRY(values_of()));
                      });
  }
  return writer.write(path);
}

Result<ModelConfig> read_gguf_config(const GgufFile& file) {
  const std::string& where = file.where();
  const std::string arch = RETORT_TRY(file.text("general.architecture"));
  ModelConfig c;
  if (arch == "llama")
    c.family = ModelFamily::kLlama;
  else if (arch == "gpt2")
    c.family = ModelFamily::kGpt2;
  else
    return fail(ErrorCode::kUnsupported, where,
                "unsupported architecture '{}'; 'llama' and 'gpt2' are supported", arch);
  const auto key = [&](const char* name) { return arch + "." + name; };
  const auto number = [&](const std::string& name) -> Result<std::uint32_t> {
    const std::uint64_t value = RETORT_TRY(file.uint(name));
    if (value > 1u << 24)
      return fail(ErrorCode::kInvalid, where, "metadata '{}' is {}, beyond any sane limit", name, value);
    return static_cast<std::uint32_t>(value);
  };
  c.n_ctx = RETORT_TRY(number(key("context_length")));
  c.n_embd = RETORT_TRY(number(key("embedding_length")));
  const std::uint32_t layers = RETORT_TRY(number(key("block_count")));
  if (layers < 1 || layers > 1024)
    return fail(ErrorCode::kInvalid, where, "{} layers, outside 1…1024", layers);
  c.layers.resize(layers);
  const auto per_layer = [&](const char* name, std::uint32_t LayerShape::*field,
                             bool required) -> Result<bool> {
    const GgufValue* value = file.find(key(name));
    if (value == nullptr && !required) return false;
    if (value != nullptr)
      if (const auto* list = std::get_if<std::vector<std::int64_t>>(value)) {
        if (list->size() != layers)
          return fail(ErrorCode::kInvalid, where, "metadata '{}' lists {} layers, not {}", key(name),
                      list->size(), layers);
        for (std::uint32_t i = 0; i < layers; ++i) {
          if ((*list)[i] < 0 || (*list)[i] > 1 << 24)
            return fail(ErrorCode::kInvalid, where, "metadata '{}' is {} for layer {}", key(name), (*list)[i],
                        i);
          c.layers[i].*field = static_cast<std::uint32_t>((*list)[i]);
        }
        return true;
      }
    const std::uint32_t same = RETORT_TRY(number(key(name)));
    for (LayerShape& layer : c.layers) layer.*field = same;
    return true;
  };
  RETORT_TRY(per_layer("feed_forward_length", &LayerShape::n_ff, true));
  RETORT_TRY(per_layer("attention.head_count", &LayerShape::n_head, true));
  if (!RETORT_TRY(per_layer("attention.head_count_kv", &LayerShape::n_head_kv, false)))
    for (LayerShape& layer : c.layers) layer.n_head_kv = layer.n_head;
  if (c.layers[0].n_head == 0) return fail(ErrorCode::kInvalid, where, "no attention heads");
  c.head_dim = file.find(key("attention.key_length")) != nullptr
                   ? RETORT_TRY(number(key("attention.key_length")))
                   : c.n_embd / c.layers[0].n_head;
  const bool llama = c.family == ModelFamily::kLlama;
  c.norm_eps = static_cast<float>(RETORT_TRY(
      file.number(key(llama ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon"))));
  if (llama && file.find(key("rope.freq_base")) != nullptr)
    c.rope_theta = static_cast<float>(RETORT_TRY(file.number(key("rope.freq_base"))));
  if (llama && file.find(key("rope.dimension_count")) != nullptr &&
      RETORT_TRY(number(key("rope.dimension_count"))) != c.head_dim)
    return fail(ErrorCode::kUnsupported, where, "rotary embedding of part of a head is not supported");
  for (const char* scaling : {"rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"})
    if (file.find(key(scaling)) != nullptr) {
      const auto* type = std::get_if<std::string>(file.find(key(scaling)));
      if (type == nullptr || *type != "none")
        return fail(ErrorCode::kUnsupported, where, "'{}' is not supported yet", key(scaling));
    }
  const GgufTensor* embedding = file.tensor("token_embd.weight");
  if (embedding == nullptr) return fail(ErrorCode::kInvalid, where, "tensor 'token_embd.weight' is missing");
  if (embedding->rows() > 1u << 20)
    return fail(ErrorCode::kInvalid, where, "a vocabulary of {} is beyond any sane limit", embedding->rows());
  c.n_vocab = static_cast<std::uint32_t>(embedding->rows());
  c.tied_embeddings = file.tensor("output.weight") == nullptr;
  const auto token = [&](const char* name) -> std::int32_t {
    const auto value = file.uint(name);
    return value && *value < c.n_vocab ? static_cast<std::int32_t>(*value) : -1;
  };
  c.bos_token = token("tokenizer.ggml.bos_token_id");
  c.eos_token = token("tokenizer.ggml.eos_token_id");
  RETORT_TRY(validate(c, where));
  std::set<const GgufTensor*> known;
  for (const Mapping& m : mappings(c)) {
    const GgufTensor* tensor = file.tensor(m.gguf_name);
    if (tensor == nullptr) return fail(ErrorCode::kInvalid, where, "tensor '{}' is missing", m.gguf_name);
    std::vector<std::uint64_t> shape = tensor->shape;
    while (shape.size() > 1 && shape.back() == 1 && shape.size() > m.hf_shape.size()) shape.pop_back();
    if (shape != gguf_shape(m))
      return fail(ErrorCode::kInvalid, where, "tensor '{}' has shape {}, its metadata asks for {}",
                  m.gguf_name, shape_text(shape), shape_text(gguf_shape(m)));
    if (shape.size() == 1 && tensor->type != TensorType::kF32)
      return fail(ErrorCode::kUnsupported, where, "tensor '{}' is {}; one-dimensional tensors must be F32",
                  m.gguf_name, info(tensor->type).name);
    known.insert(tensor);
  }
  // A tensor that we would leave out of the computation (biases, rope_freqs) makes the answers wrong.
  for (const GgufTensor& tensor : file.tensors())
    if (known.count(&tensor) == 0)
      return fail(ErrorCode::kUnsupported, where, "tensor '{}' has no place in a {} model", tensor.name,
                  arch);
  return c;
}

Result<void> write_hf_model(const std::filesystem::path& folder, const ModelConfig& c,
                            const std::vector<TensorSource>& weights, SafeTensor::DType dtype,
                            const std::filesystem::path& tokenizer_folder) {
  RETORT_TRY(validate(c, folder.string()));
  RETORT_TRY(make_folders(folder));
  json::object config;
  const bool llama = c.family == ModelFamily::kLlama;
  config["architectures"] = json::array{llama ? "LlamaForCausalLM" : "GPT2LMHeadModel"};
  config["model_type"] = to_string(c.family);
  config["vocab_size"] = c.n_vocab;
  const LayerShape& first = c.layers[0];
  if (llama) {
    config["hidden_size"] = c.n_embd;
    config["intermediate_size"] = first.n_ff;
    config["num_hidden_layers"] = c.n_layer();
    config["num_attention_heads"] = first.n_head;
    config["num_key_value_heads"] = first.n_head_kv;
    config["head_dim"] = c.head_dim;
    config["max_position_embeddings"] = c.n_ctx;
    config["rms_norm_eps"] = std::stod(fmt::format("{}", c.norm_eps));
    config["rope_theta"] = static_cast<double>(c.rope_theta);
    config["hidden_act"] = "silu";
    config["attention_bias"] = false;
    config["mlp_bias"] = false;
  } else {
    config["n_positions"] = c.n_ctx;
    config["n_ctx"] = c.n_ctx;
    config["n_embd"] = c.n_embd;
    config["n_layer"] = c.n_layer();
    config["n_head"] = first.n_head;
    config["n_inner"] = first.n_ff;
    if (first.n_head * c.head_dim != c.n_embd) config["head_dim"] = c.head_dim;
    config["activation_function"] = "gelu_new";
    config["layer_norm_epsilon"] = std::stod(fmt::format("{}", c.norm_eps));
  }
  config["tie_word_embeddings"] = c.tied_embeddings;
  config["bos_token_id"] = c.bos_token >= 0 ? json::value(c.bos_token) : json::value(nullptr);
  config["eos_token_id"] = c.eos_token >= 0 ? json::value(c.eos_token) : json::value(nullptr);
  config["torch_dtype"] = dtype == SafeTensor::DType::kF32   ? "float32"
                          : dtype == SafeTensor::DType::kF16 ? "float16"
                                                             : "bfloat16";
  if (std::any_of(c.layers.begin(), c.layers.end(),
                  [&](const LayerShape& layer) { return layer != first; })) {
    json::array list;
    for (const LayerShape& layer : c.layers)
      list.push_back(
          json::object{{"n_head", layer.n_head}, {"n_head_kv", layer.n_head_kv}, {"n_ff", layer.n_ff}});
    config["retort_layers"] = std::move(list);
  }
  std::vector<TensorSource> ordered;
  for (const Mapping& m : mappings(c)) {
    const auto source = std::find_if(weights.begin(), weights.end(),
                                     [&](const TensorSource& s) { return s.name == m.hf_name; });
    if (source == weights.end())
      return fail(ErrorCode::kInvalid, folder.string(), "tensor '{}' is missing", m.hf_name);
    if (source->shape != m.hf_shape)
      return fail(ErrorCode::kInvalid, folder.string(), "tensor '{}' has shape {}, not {}", m.hf_name,
                  shape_text(source->shape), shape_text(m.hf_shape));
    ordered.push_back(*source);
  }
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}) {
    const std::filesystem::path from = tokenizer_folder / name;
    if (!std::filesystem::exists(from)) continue;
    RETORT_TRY(write_file_atomic(folder / name, RETORT_TRY(read_file(from, 256u << 20)), 0644));
  }
  RETORT_TRY(write_safetensors(folder / "model.safetensors", ordered, dtype));
  return write_file_atomic(folder / "config.json", pretty_json(config), 0644);
}

}  // namespace retort
