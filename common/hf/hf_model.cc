#include "common/hf/encoded_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
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

std::vector<Mapping> bert_mappings(const ModelConfig& c) {
  std::vector<Mapping> out;
  const std::uint64_t embd = c.n_embd;
  const auto both = [&](const std::string& hf, const std::string& gguf, std::vector<std::uint64_t> shape) {
    const std::uint64_t rows = shape[0];
    out.push_back({hf + ".weight", gguf + ".weight", std::move(shape)});
    out.push_back({hf + ".bias", gguf + ".bias", {rows}});
  };
  const std::string embeddings = "bert.embeddings.";
  out.push_back({embeddings + "word_embeddings.weight", "token_embd.weight", {c.n_vocab, embd}});
  out.push_back({embeddings + "position_embeddings.weight", "position_embd.weight", {c.n_ctx, embd}});
  if (c.encoder.n_token_types > 0)
    out.push_back(
        {embeddings + "token_type_embeddings.weight", "token_types.weight", {c.encoder.n_token_types, embd}});
  both(embeddings + "LayerNorm", "token_embd_norm", {embd});
  for (std::uint32_t i = 0; i < c.n_layer(); ++i) {
    const LayerShape& layer = c.layers[i];
    const std::string hf = fmt::format("bert.encoder.layer.{}.", i), gguf = fmt::format("blk.{}.", i);
    const std::uint64_t q = std::uint64_t{layer.n_head} * c.head_dim;
    both(hf + "attention.self.query", gguf + "attn_q", {q, embd});
    both(hf + "attention.self.key", gguf + "attn_k", {q, embd});
    both(hf + "attention.self.value", gguf + "attn_v", {q, embd});
    both(hf + "attention.output.dense", gguf + "attn_output", {embd, q});
    both(hf + "attention.output.LayerNorm", gguf + "attn_output_norm", {embd});
    both(hf + "intermediate.dense", gguf + "ffn_up", {layer.n_ff, embd});
    both(hf + "output.dense", gguf + "ffn_down", {embd, layer.n_ff});
    both(hf + "output.LayerNorm", gguf + "layer_output_norm", {embd});
  }
  if (c.encoder.pooler) both("bert.pooler.dense", "cls", {embd, embd});
  if (!c.encoder.labels.empty()) both("classifier", "cls.output", {c.encoder.labels.size(), embd});
  if (c.encoder.mlm_head) {
    both("cls.predictions.transform.dense", "mlm.dense", {embd, embd});
    both("cls.predictions.transform.LayerNorm", "mlm.norm", {embd});
    if (!c.tied_embeddings)
      out.push_back({"cls.predictions.decoder.weight", "output.weight", {c.n_vocab, embd}});
    out.push_back({"cls.predictions.bias", "output.bias", {c.n_vocab}});
  }
  return out;
}

/// Every weight of an architecture, in the order in which files hold them.
std::vector<Mapping> mappings(const ModelConfig& c) {
  if (c.family == ModelFamily::kBert) return bert_mappings(c);
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
      const Rearrange turn = c.qwen2 ? Rearrange::kNone : Rearrange::kPermute;
      const auto bias = [&](const char* hf_name, const char* gguf_name, std::uint64_t rows,
                            Rearrange rearrange = Rearrange::kNone, std::uint32_t heads = 0) {
        out.push_back({hf + hf_name, gguf + gguf_name, {rows}, rearrange, heads});
      };
      out.push_back({hf + "self_attn.q_proj.weight", gguf + "attn_q.weight", {q, embd}, turn, layer.n_head});
      out.push_back(
          {hf + "self_attn.k_proj.weight", gguf + "attn_k.weight", {kv, embd}, turn, layer.n_head_kv});
      out.push_back({hf + "self_attn.v_proj.weight", gguf + "attn_v.weight", {kv, embd}});
      out.push_back({hf + "self_attn.o_proj.weight", gguf + "attn_output.weight", {embd, q}});
      if (c.qkv_bias) {
        bias("self_attn.q_proj.bias", "attn_q.bias", q, turn, layer.n_head);
        bias("self_attn.k_proj.bias", "attn_k.bias", kv, turn, layer.n_head_kv);
        bias("self_attn.v_proj.bias", "attn_v.bias", kv);
      }
      if (c.attn_output_bias) bias("self_attn.o_proj.bias", "attn_output.bias", embd);
      out.push_back({hf + "post_attention_layernorm.weight", gguf + "ffn_norm.weight", {embd}});
      out.push_back({hf + "mlp.gate_proj.weight", gguf + "ffn_gate.weight", {layer.n_ff, embd}});
      out.push_back({hf + "mlp.up_proj.weight", gguf + "ffn_up.weight", {layer.n_ff, embd}});
      out.push_back({hf + "mlp.down_proj.weight", gguf + "ffn_down.weight", {embd, layer.n_ff}});
      if (c.mlp_bias) {
        bias("mlp.gate_proj.bias", "ffn_gate.bias", layer.n_ff);
        bias("mlp.up_proj.bias", "ffn_up.bias", layer.n_ff);
        bias("mlp.down_proj.bias", "ffn_down.bias", embd);
      }
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
/// of the first half goes to 2r, of the second half to 2r + 1, head by head. A row is `length` values.
template <typename T>
void permute(std::span<T> values, std::uint64_t length, std::uint32_t heads) {
  const std::uint64_t rows = values.size() / length, head = rows / heads;
  const std::vector<T> from(values.begin(), values.end());
  for (std::uint64_t r = 0; r < rows; ++r) {
    const std::uint64_t base = r / head * head, i = r % head;
    const std::uint64_t to = base + (i < head / 2 ? 2 * i : 2 * (i - head / 2) + 1);
    std::memcpy(&values[to * length], &from[r * length], length * sizeof(T));
  }
}

void transpose(std::vector<float>& values, std::uint64_t rows, std::uint64_t columns) {
  std::vector<float> out(values.size());
  for (std::uint64_t r = 0; r < rows; ++r)
    for (std::uint64_t c = 0; c < columns; ++c) out[c * rows + r] = values[r * columns + c];
  values = std::move(out);
}

/// What some checkpoints hold and the computation does not need: buffers, and heads that a BERT model was
/// trained with beside the one that config.json's architecture has.
bool is_ignorable(const ModelConfig& c, std::string_view name) {
  if (c.is_encoder()) {
    if (name.starts_with("bert.")) name.remove_prefix(5);
    return name == "embeddings.position_ids" || name.starts_with("cls.seq_relationship.") ||
           (name.starts_with("pooler.dense.") && !c.encoder.pooler) ||
           (name.starts_with("cls.predictions.") && !c.encoder.mlm_head) ||
           name == "cls.predictions.decoder.bias" ||
           (name == "cls.predictions.decoder.weight" && c.tied_embeddings);
  }
  if (c.tied_embeddings && name == "lm_head.weight") return true;
  return name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".attn.bias") ||
         name.ends_with(".attn.masked_bias");
}

const SafeTensor* find_weight(const Safetensors& weights, const std::string& name) {
  if (const SafeTensor* found = weights.find(name)) return found;
  for (const std::string_view prefix : {"transformer.", "bert."})  // a model without a head has none
    if (name.starts_with(prefix)) return find_weight(weights, name.substr(prefix.size()));
  // BERT's first checkpoints name a norm's parameters as the paper does.
  constexpr std::string_view kWeight = "LayerNorm.weight", kBias = "LayerNorm.bias";
  for (const auto& [ending, older] :
       {std::pair(kWeight, "LayerNorm.gamma"), std::pair(kBias, "LayerNorm.beta")})
    if (name.ends_with(ending)) {
      const std::string at = name.substr(0, name.size() - ending.size()) + older;
      if (const SafeTensor* found = weights.find(at)) return found;
      return weights.find("bert." + at);
    }
  if (name == "cls.predictions.bias") return weights.find("cls.predictions.decoder.bias");
  return nullptr;
}

/// Labels of config.json's id2label, or their number alone; two where it says neither, as Hugging Face does.
Result<std::vector<std::string>> read_labels(const json::object& root, std::string_view where) {
  std::vector<std::string> labels;
  if (json_has(root, "id2label")) {
    const json::object& names = *RETORT_TRY(json_object(root, "id2label", where));
    labels.resize(names.size());
    for (std::size_t i = 0; i < labels.size(); ++i)
      labels[i] = RETORT_TRY(json_string(names, std::to_string(i), std::string(where) + " (id2label)"));
    return labels;
  }
  const std::uint64_t count =
      json_has(root, "num_labels") ? RETORT_TRY(json_uint(root, "num_labels", where, 1u << 16)) : 2;
  for (std::uint64_t i = 0; i < count; ++i) labels.push_back(fmt::format("LABEL_{}", i));
  return labels;
}

/// What sentence-transformers folders say beside config.json: modules.json and the pooling's own file.
Result<TextPooling> read_pooling(const std::filesystem::path& folder) {
  const std::filesystem::path list = folder / "modules.json";
  std::filesystem::path pooling;
  if (std::filesystem::exists(list)) {
    const json::value document = RETORT_TRY(parse_json(RETORT_TRY(read_file(list, 1u << 20)), list.string()));
    if (!document.is_array()) return fail(ErrorCode::kInvalid, list.string(), "not a list of modules");
    for (const json::value& entry : document.get_array()) {
      const json::object& module = *RETORT_TRY(as_object(entry, list.string()));
      const std::string type = RETORT_TRY(json_string(module, "type", list.string()));
      const std::string path = RETORT_TRY(json_string(module, "path", list.string()));
      if (type.ends_with(".Pooling")) {
        if (path.empty() || path.find('/') != std::string::npos || path.starts_with('.'))
          return fail(ErrorCode::kInvalid, list.string(), "'path' is '{}', not a folder beside it", path);
        pooling = folder / path / "config.json";
      } else if (!type.ends_with(".Transformer") && !type.ends_with(".Normalize")) {
        return fail(ErrorCode::kUnsupported, list.string(),
                    "module '{}' is not supported; Transformer, Pooling and Normalize are", type);
      }
    }
  } else if (std::filesystem::exists(folder / "1_Pooling/config.json")) {
    pooling = folder / "1_Pooling/config.json";
  }
  if (pooling.empty()) return TextPooling::kNone;
  const std::string where = pooling.string();
  const json::value document = RETORT_TRY(parse_json(RETORT_TRY(read_file(pooling, 1u << 20)), where));
  const json::object& modes = *RETORT_TRY(as_object(document, where));
  TextPooling found = TextPooling::kNone;
  for (const auto& member : modes) {
    const std::string_view key = member.key();
    if (!key.starts_with("pooling_mode_") || !member.value().is_bool() || !member.value().get_bool())
      continue;
    if (found != TextPooling::kNone || (key != "pooling_mode_mean_tokens" && key != "pooling_mode_cls_token"))
      return fail(ErrorCode::kUnsupported, where,
                  "'{}' is set; pooling by mean or by [CLS] alone is supported", key);
    found = key == "pooling_mode_mean_tokens" ? TextPooling::kMean : TextPooling::kCls;
  }
  return found;
}

Result<void> write_pooling(const std::filesystem::path& folder, const ModelConfig& c) {
  const auto module = [](int index, const char* path, const char* type) {
    return json::object{{"idx", index},
                        {"name", std::to_string(index)},
                        {"path", path},
                        {"type", std::string("sentence_transformers.models.") + type}};
  };
  RETORT_TRY(make_folders(folder / "1_Pooling"));
  const json::object modes{{"word_embedding_dimension", c.n_embd},
                           {"pooling_mode_cls_token", c.encoder.pooling == TextPooling::kCls},
                           {"pooling_mode_mean_tokens", c.encoder.pooling == TextPooling::kMean}};
  RETORT_TRY(write_file_atomic(folder / "1_Pooling/config.json", pretty_json(modes), 0644));
  const json::array modules{module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling")};
  return write_file_atomic(folder / "modules.json", pretty_json(modules), 0644);
}

/// GGUF's numbers for how a text's states become one vector.
constexpr std::uint64_t kPoolingNone = 0, kPoolingMean = 1, kPoolingCls = 2, kPoolingRank = 4;

Result<void> read_rope_scaling(const json::object& rope, std::string_view key, std::string_view where,
                               ModelConfig& c) {
  RopeScaling& scaling = c.rope_scaling;
  const auto text = [&](const char* name) -> std::string {
    const json::value* value = rope.if_contains(name);
    return value != nullptr && value->is_string() ? std::string(value->get_string()) : "";
  };
  const std::string kind = text("rope_type").empty() ? text("type") : text("rope_type");
  const auto number = [&](const char* name, float& to, bool required) -> Result<void> {
    if (required || json_has(rope, name)) to = static_cast<float>(RETORT_TRY(json_number(rope, name, where)));
    return {};
  };
  if (kind.empty() || kind == "default") return {};
  if (kind == "linear")
    scaling.kind = RopeScaling::Kind::kLinear;
  else if (kind == "llama3")
    scaling.kind = RopeScaling::Kind::kLlama3;
  else if (kind == "yarn")
    scaling.kind = RopeScaling::Kind::kYarn;
  else
    return fail(ErrorCode::kUnsupported, std::string(where),
                "'{}' of type '{}' is not supported; 'linear', 'llama3' and 'yarn' are", key, kind);
  RETORT_TRY(number("factor", scaling.factor, true));
  if (scaling.kind != RopeScaling::Kind::kLinear) scaling.original_ctx = c.n_ctx;
  if (json_has(rope, "original_max_position_embeddings"))
    scaling.original_ctx = static_cast<std::uint32_t>(
        RETORT_TRY(json_uint(rope, "original_max_position_embeddings", where, 1u << 22)));
  const bool llama3 = scaling.kind == RopeScaling::Kind::kLlama3;
  if (llama3) {
    RETORT_TRY(number("low_freq_factor", scaling.low_freq_factor, true));
    RETORT_TRY(number("high_freq_factor", scaling.high_freq_factor, true));
  }
  if (scaling.kind == RopeScaling::Kind::kYarn) {
    for (const char* name : {"mscale", "mscale_all_dim"})
      if (json_has(rope, name))
        return fail(ErrorCode::kUnsupported, std::string(where), "'{}' with '{}' is not supported", key,
                    name);
    if (const json::value* truncate = rope.if_contains("truncate"); truncate != nullptr && *truncate != true)
      return fail(ErrorCode::kUnsupported, std::string(where), "'{}' without 'truncate' is not supported",
                  key);
    RETORT_TRY(number("beta_fast", scaling.beta_fast, false));
    RETORT_TRY(number("beta_slow", scaling.beta_slow, false));
    RETORT_TRY(number("attention_factor", scaling.attention_factor, false));
  }
  return {};
}

}  // namespace

std::vector<std::int64_t> gguf_row_order(const ModelConfig& config, std::string_view name) {
  for (const Mapping& m : mappings(config)) {
    if (m.hf_name != name || m.rearrange != Rearrange::kPermute) continue;
    std::vector<std::int64_t> rows(m.hf_shape[0]);
    std::iota(rows.begin(), rows.end(), 0);
    permute(std::span(rows), 1, m.heads);
    return rows;
  }
  return {};
}

std::string gguf_name(const ModelConfig& config, std::string_view hf_name) {
  for (Mapping& m : mappings(config))
    if (m.hf_name == hf_name) return std::move(m.gguf_name);
  return {};
}

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
  if (type == "llama" || type == "qwen2") {
    c.qwen2 = type == "qwen2";
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
    // Newer files hold base and scaling together in rope_parameters.
    for (const char* key : {"rope_scaling", "rope_parameters"})
      if (json_has(root, key)) {
        const json::object& rope = *RETORT_TRY(json_object(root, key, where));
        if (json_has(rope, "rope_theta"))
          c.rope_theta = static_cast<float>(RETORT_TRY(json_number(rope, "rope_theta", where)));
        RETORT_TRY(read_rope_scaling(rope, key, where, c));
      }
    if (json_has(root, "partial_rotary_factor") &&
        RETORT_TRY(json_number(root, "partial_rotary_factor", where)) != 1)
      return fail(ErrorCode::kUnsupported, std::string(where), "'partial_rotary_factor' is not supported");
    RETORT_TRY(refuse_true("use_sliding_window"));
    if (!c.qwen2 && json_has(root, "sliding_window"))
      return fail(ErrorCode::kUnsupported, std::string(where), "'sliding_window' is not supported");
    if (json_has(root, "layer_types"))
      for (const json::value& kind : *RETORT_TRY(json_array(root, "layer_types", where)))
        if (kind != "full_attention")
          return fail(ErrorCode::kUnsupported, std::string(where),
                      "'layer_types' holds {}; 'full_attention' is supported", json::serialize(kind));
    const auto is_true = [&](const char* key) -> Result<bool> {
      return json_has(root, key) && RETORT_TRY(json_bool(root, key, where));
    };
    c.attn_output_bias = RETORT_TRY(is_true("attention_bias"));  // Llama's has it on all four
    c.qkv_bias = c.qwen2 || c.attn_output_bias;
    if (c.qwen2) c.attn_output_bias = false;
    c.mlp_bias = RETORT_TRY(is_true("mlp_bias"));
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
  } else if (type == "bert") {
    c.family = ModelFamily::kBert;
    c.n_embd = static_cast<std::uint32_t>(RETORT_TRY(number("hidden_size")));
    layer.n_ff = static_cast<std::uint32_t>(RETORT_TRY(number("intermediate_size")));
    layers = RETORT_TRY(number("num_hidden_layers"));
    layer.n_head = layer.n_head_kv = static_cast<std::uint32_t>(RETORT_TRY(number("num_attention_heads")));
    c.n_ctx = static_cast<std::uint32_t>(RETORT_TRY(optional_number("max_position_embeddings", 512)));
    c.norm_eps = static_cast<float>(RETORT_TRY(optional_real("layer_norm_eps", 1e-12)));
    c.encoder.n_token_types = static_cast<std::uint32_t>(RETORT_TRY(optional_number("type_vocab_size", 2)));
    const std::string activation = RETORT_TRY(optional_text("hidden_act", "gelu"));
    if (activation == "gelu_new" || activation == "gelu_pytorch_tanh")
      c.encoder.gelu = Gelu::kTanh;
    else if (activation != "gelu")
      return fail(ErrorCode::kUnsupported, std::string(where),
                  "hidden_act '{}'; 'gelu', 'gelu_new' and 'gelu_pytorch_tanh' are supported", activation);
    RETORT_TRY(refuse_true("is_decoder"));
    RETORT_TRY(refuse_true("add_cross_attention"));
    if (const std::string positions = RETORT_TRY(optional_text("position_embedding_type", "absolute"));
        positions != "absolute")
      return fail(ErrorCode::kUnsupported, std::string(where),
                  "position_embedding_type '{}'; 'absolute' is supported", positions);
    std::string architecture = "BertModel";
    if (json_has(root, "architectures")) {
      const json::array& list = *RETORT_TRY(json_array(root, "architectures", where));
      if (list.size() != 1 || !list[0].is_string())
        return fail(ErrorCode::kInvalid, std::string(where), "'architectures' must name one");
      architecture = list[0].get_string();
    }
    if (architecture == "BertForSequenceClassification") {
      const std::string problem = RETORT_TRY(optional_text("problem_type", "single_label_classification"));
      if (problem != "single_label_classification")
        return fail(ErrorCode::kUnsupported, std::string(where),
                    "problem_type '{}'; 'single_label_classification' is supported", problem);
      c.encoder.labels = RETORT_TRY(read_labels(root, where));
      if (c.encoder.labels.empty())
        return fail(ErrorCode::kInvalid, std::string(where), "a classifier without labels");
      c.encoder.pooler = true;
      c.encoder.pooling = TextPooling::kCls;
    } else if (architecture == "BertForMaskedLM" || architecture == "BertForPreTraining") {
      c.encoder.mlm_head = true;
    } else if (architecture != "BertModel") {
      return fail(ErrorCode::kUnsupported, std::string(where),
                  "architecture '{}'; 'BertModel', 'BertForMaskedLM' and 'BertForSequenceClassification' are "
                  "supported",
                  architecture);
    }
    c.tied_embeddings = !c.encoder.mlm_head || !json_has(root, "tie_word_embeddings") ||
                        RETORT_TRY(json_bool(root, "tie_word_embeddings", where));
  } else {
    return fail(ErrorCode::kUnsupported, std::string(where),
                "model family '{}'; 'llama', 'qwen2', 'gpt2' and 'bert' are supported", type);
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
  if (config.is_encoder() && config.encoder.labels.empty())
    config.encoder.pooling = RETORT_TRY(read_pooling(folder));
  Safetensors weights = RETORT_TRY(Safetensors::open_folder(folder));
  Tokenizer tokenizer = RETORT_TRY(Tokenizer::from_huggingface(folder / "tokenizer.json"));
  tokenizer = tokenizer.padded(config.n_vocab);  // embeddings are often rounded up
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
    if (used.count(&tensor) == 0 && !is_ignorable(config, name))
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
  return write_gguf_model(path, c, tokenizer, weights, matrix_type, extra, {});
}

Result<void> write_gguf_model(const std::filesystem::path& path, const ModelConfig& c,
                              const Tokenizer& tokenizer, const std::vector<TensorSource>& weights,
                              TensorType matrix_type, const GgufMetadata& extra,
                              const EncodedWeights& encoded_weights) {
  RETORT_TRY(validate(c, path.string()));
  if (tokenizer.vocabulary_size() != c.n_vocab)
    return fail(ErrorCode::kInvalid, path.string(), "the tokenizer has {} tokens, the model {}",
                tokenizer.vocabulary_size(), c.n_vocab);
  GgufWriter writer;
  const std::string arch(architecture(c));
  const auto key = [&](const char* name) { return arch + "." + name; };
  writer.set("general.architecture", arch);
  writer.set("general.name", path.stem().string());
  writer.set("general.quantization_version", std::uint64_t{2});
  // llama_ftype: the type of most values.
  std::map<TensorType, std::uint64_t> values_of;
  for (const Mapping& m : mappings(c)) {
    const std::vector<std::uint64_t> shape = gguf_shape(m);
    if (shape.size() == 1 || m.gguf_name == "position_embd.weight" || m.gguf_name == "token_types.weight")
      continue;
    const auto encoded = encoded_weights.find(m.hf_name);
    values_of[encoded != encoded_weights.end() ? encoded->second.type : stored_type(matrix_type, shape[0])] +=
        count_of(shape);
  }
  const auto most = std::max_element(values_of.begin(), values_of.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  const auto file_type = [&]() -> std::uint64_t {
    switch (most != values_of.end() ? most->first : matrix_type) {
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
  if (c.is_encoder()) {
    writer.set(key("attention.layer_norm_epsilon"), static_cast<double>(c.norm_eps));
    writer.set(key("attention.causal"), false);
    if (!c.encoder.labels.empty()) {  // llama.cpp computes the head where it pools to rank
      writer.set(key("pooling_type"), kPoolingRank);
      writer.set(key("classifier.output_labels"), c.encoder.labels);
    } else if (c.encoder.pooling != TextPooling::kNone) {
      writer.set(key("pooling_type"), c.encoder.pooling == TextPooling::kMean ? kPoolingMean : kPoolingCls);
    }
    if (c.encoder.gelu == Gelu::kTanh) writer.set("retort.gelu", std::string("tanh"));
    writer.set("tokenizer.ggml.token_type_count", std::uint64_t{c.encoder.n_token_types});
  } else if (c.family == ModelFamily::kLlama) {
    writer.set(key("attention.layer_norm_rms_epsilon"), static_cast<double>(c.norm_eps));
    writer.set(key("rope.dimension_count"), std::uint64_t{c.rope_dim != 0 ? c.rope_dim : c.head_dim});
    writer.set(key("rope.freq_base"), static_cast<double>(c.rope_theta));
    const RopeScaling& rope = c.rope_scaling;
    if (rope.kind == RopeScaling::Kind::kLinear || rope.kind == RopeScaling::Kind::kYarn) {
      const bool yarn = rope.kind == RopeScaling::Kind::kYarn;
      writer.set(key("rope.scaling.type"), std::string(yarn ? "yarn" : "linear"));
      writer.set(key("rope.scaling.factor"), static_cast<double>(rope.factor));
      if (yarn) {
        writer.set(key("rope.scaling.original_context_length"), std::uint64_t{rope.original_ctx});
        writer.set(key("rope.scaling.yarn_beta_fast"), static_cast<double>(rope.beta_fast));
        writer.set(key("rope.scaling.yarn_beta_slow"), static_cast<double>(rope.beta_slow));
        // llama.cpp multiplies its own 0.1 ln(factor) + 1 by this.
        if (rope.attention_factor != 0)
          writer.set(key("rope.scaling.attn_factor"),
                     rope.attention_factor / (0.1 * std::log(static_cast<double>(rope.factor)) + 1));
      }
    }
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
    if (shape.size() == 1 || m.gguf_name == "position_embd.weight" || m.gguf_name == "token_types.weight")
      type = TensorType::kF32;
    else
      type = stored_type(type, shape[0]);
    const std::uint64_t columns = shape[0];
    if (const auto found = encoded_weights.find(m.hf_name); found != encoded_weights.end()) {
      const EncodedMatrix* encoded = &found->second;
      if (encoded->columns != columns || encoded->rows * columns != count_of(shape) ||
          encoded->bytes.size() != matrix_bytes(encoded->type, encoded->rows, columns, encoded->bytes))
        return fail(ErrorCode::kInvalid, path.string(), "tensor '{}' is encoded in another shape", m.hf_name);
      writer.add_matrix(m.gguf_name, columns, encoded->rows, encoded->type,
                        [m, encoded]() -> Result<std::vector<std::byte>> {
                          std::vector<std::byte> out = encoded->bytes;
                          if (m.rearrange == Rearrange::kPermute && !encoded_whole(encoded->type))
                            permute(std::span(out), out.size() / encoded->rows, m.heads);
                          return out;
                        });
      continue;
    }
    // F16, and the scales of blocks, hold 65504 at most (a block's values are at least four times its scale).
    const float largest = type == TensorType::kF32 || type == TensorType::kBF16
                              ? std::numeric_limits<float>::max()
                              : 65504.0f * (type == TensorType::kF16 ? 1 : 4);
    const auto read_values = [m, source = &*source, largest, type,
                              where = path.string()]() -> Result<std::vector<float>> {
      std::vector<float> values(count_of(m.hf_shape));
      RETORT_TRY(source->read(values));
      for (const float value : values)
        if (!(std::abs(value) <= largest))
          return fail(ErrorCode::kCorrupt, where, "tensor '{}' holds {}{}", m.hf_name, value,
                      std::isfinite(value)
                          ? fmt::format(", which {} cannot: F32 or BF16 can", info(type).name)
                          : ": its file is broken, or was written by a training that had failed");
      if (m.rearrange == Rearrange::kPermute)
        permute(std::span(values), m.hf_shape.size() == 1 ? 1 : m.hf_shape.back(), m.heads);
      if (m.rearrange == Rearrange::kTranspose) transpose(values, m.hf_shape[0], m.hf_shape[1]);
      return values;
    };
    if (shape.size() != 2) {
      writer.add_tensor(m.gguf_name, std::move(shape), type,
                        [read_values, type](std::span<std::byte> out) -> Result<void> {
                          encode_row(type, RETORT_TRY(read_values()), out);
                          return {};
                        });
      continue;
    }
    const std::uint64_t rows = shape[1];
    writer.add_matrix(m.gguf_name, columns, rows, type,
                      [read_values, type, columns, rows]() -> Result<std::vector<std::byte>> {
                        return encode_matrix(type, rows, columns, RETORT_TRY(read_values()));
                      });
  }
  // GGUF has Llama 3's scaling as the divisor of each pair's angle.
  std::vector<float> factors = c.rope_factors;
  if (c.rope_scaling.kind == RopeScaling::Kind::kLlama3) {
    ModelConfig plain = c;
    plain.rope_scaling = {};
    plain.rope_factors.clear();
    const std::vector<double> scaled = rope_rates(c).rates, unscaled = rope_rates(plain).rates;
    factors.clear();
    for (std::size_t i = 0; i < scaled.size(); ++i)
      factors.push_back(static_cast<float>(unscaled[i] / scaled[i]));
  }
  if (!factors.empty())
    writer.add_tensor("rope_freqs.weight", {factors.size()}, TensorType::kF32,
                      [factors](std::span<std::byte> out) -> Result<void> {
                        std::memcpy(out.data(), factors.data(), out.size());
                        return {};
                      });
  return writer.write(path);
}

namespace {

Result<EncoderConfig> read_gguf_encoder(const GgufFile& file, const std::string& arch) {
  const std::string& where = file.where();
  EncoderConfig out;
  const GgufTensor* types = file.tensor("token_types.weight");
  const GgufTensor* classifier = file.tensor("cls.output.weight");
  for (const GgufTensor* tensor : {types, classifier})
    if (tensor != nullptr && tensor->rows() > 1u << 16)
      return fail(ErrorCode::kInvalid, where, "tensor '{}' has {} rows, beyond any sane limit", tensor->name,
                  tensor->rows());
  out.n_token_types = types == nullptr ? 0 : static_cast<std::uint32_t>(types->rows());
  out.pooler = file.tensor("cls.weight") != nullptr;
  out.mlm_head = file.tensor("mlm.dense.weight") != nullptr;
  if (const GgufValue* causal = file.find(arch + ".attention.causal"))
    if (const bool* set = std::get_if<bool>(causal); set == nullptr || *set)
      return fail(ErrorCode::kUnsupported, where, "an encoder with causal attention is not supported");
  if (file.find(arch + ".pooling_type") != nullptr) {
    const std::uint64_t pooling = RETORT_TRY(file.uint(arch + ".pooling_type"));
    if (pooling == kPoolingMean)
      out.pooling = TextPooling::kMean;
    else if (pooling == kPoolingCls || (pooling == kPoolingRank && classifier != nullptr))
      out.pooling = TextPooling::kCls;
    else if (pooling != kPoolingNone)
      return fail(
          ErrorCode::kUnsupported, where,
          "pooling type {}; none (0), mean (1), cls (2) and, with a classifier, rank (4) are supported",
          pooling);
  }
  if (file.find("retort.gelu") != nullptr) {
    const std::string gelu = RETORT_TRY(file.text("retort.gelu"));
    if (gelu != "erf" && gelu != "tanh")
      return fail(ErrorCode::kUnsupported, where, "retort.gelu '{}'; 'erf' and 'tanh' are supported", gelu);
    out.gelu = gelu == "tanh" ? Gelu::kTanh : Gelu::kErf;
  }
  if (classifier == nullptr) return out;
  out.pooling = TextPooling::kCls;  // the head reads the first token
  const std::string key = arch + ".classifier.output_labels";
  if (file.has(key)) {
    out.labels = RETORT_TRY(file.texts(key));
    if (out.labels.size() != classifier->rows())
      return fail(ErrorCode::kInvalid, where, "metadata '{}' does not name the classifier's {} outputs", key,
                  classifier->rows());
  } else {
    for (std::uint64_t i = 0; i < classifier->rows(); ++i) out.labels.push_back(fmt::format("LABEL_{}", i));
  }
  return out;
}

}  // namespace

Result<ModelConfig> read_gguf_config(const GgufFile& file) {
  const std::string& where = file.where();
  const std::string arch = RETORT_TRY(file.text("general.architecture"));
  ModelConfig c;
  if (arch == "llama" || arch == "qwen2")
    c.family = ModelFamily::kLlama, c.qwen2 = arch == "qwen2";
  else if (arch == "gpt2")
    c.family = ModelFamily::kGpt2;
  else if (arch == "bert")
    c.family = ModelFamily::kBert;
  else
    return fail(
        ErrorCode::kUnsupported, where,
        "unsupported architecture '{}'; 'llama', 'qwen2', 'gpt2', 'bert', 'mlp' and 'cnn' are supported",
        arch);
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
    if (!file.has(key(name)) && !required) return false;
    if (file.list(key(name)) != nullptr) {
      const std::vector<std::int64_t> list = RETORT_TRY(file.integers(key(name)));
      if (list.size() != layers)
        return fail(ErrorCode::kInvalid, where, "metadata '{}' lists {} layers, not {}", key(name),
                    list.size(), layers);
      for (std::uint32_t i = 0; i < layers; ++i) {
        if (list[i] < 0 || list[i] > 1 << 24)
          return fail(ErrorCode::kInvalid, where, "metadata '{}' is {} for layer {}", key(name), list[i], i);
        c.layers[i].*field = static_cast<std::uint32_t>(list[i]);
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
  if (llama && file.find(key("rope.dimension_count")) != nullptr) {
    const std::uint32_t dim = RETORT_TRY(number(key("rope.dimension_count")));
    if (dim == 0) return fail(ErrorCode::kInvalid, where, "'{}' is 0", key("rope.dimension_count"));
    c.rope_dim = dim == c.head_dim ? 0 : dim;
  }
  const auto real = [&](const char* name, float fallback) -> Result<float> {
    if (file.find(key(name)) == nullptr) return fallback;
    return static_cast<float>(RETORT_TRY(file.number(key(name))));
  };
  std::string scaling = "none";
  if (file.find(key("rope.scaling.type")) != nullptr)
    scaling = RETORT_TRY(file.text(key("rope.scaling.type")));
  else if (file.find(key("rope.scaling.factor")) != nullptr || file.find(key("rope.scale_linear")) != nullptr)
    scaling = "linear";
  if (scaling != "none") {
    if (!llama || (scaling != "linear" && scaling != "yarn"))
      return fail(ErrorCode::kUnsupported, where,
                  "'{}' is '{}'; 'none', and for llama and qwen2 'linear' and 'yarn', are supported",
                  key("rope.scaling.type"), scaling);
    RopeScaling& rope = c.rope_scaling;
    const bool yarn = scaling == "yarn";
    rope.kind = yarn ? RopeScaling::Kind::kYarn : RopeScaling::Kind::kLinear;
    rope.factor = RETORT_TRY(real("rope.scaling.factor", RETORT_TRY(real("rope.scale_linear", 1))));
    rope.original_ctx = yarn ? c.n_ctx : 0;
    if (file.find(key("rope.scaling.original_context_length")) != nullptr)
      rope.original_ctx = RETORT_TRY(number(key("rope.scaling.original_context_length")));
    rope.beta_fast = RETORT_TRY(real("rope.scaling.yarn_beta_fast", 32));
    rope.beta_slow = RETORT_TRY(real("rope.scaling.yarn_beta_slow", 1));
    if (yarn && file.find(key("rope.scaling.attn_factor")) != nullptr)
      rope.attention_factor =
          RETORT_TRY(real("rope.scaling.attn_factor", 1)) * (0.1f * std::log(rope.factor) + 1);
    if (yarn && RETORT_TRY(real("rope.scaling.yarn_ext_factor", 1)) != 1)
      return fail(ErrorCode::kUnsupported, where, "'{}' other than 1 is not supported",
                  key("rope.scaling.yarn_ext_factor"));
  }
  if (const GgufValue* window = file.find(key("attention.sliding_window")); window != nullptr)
    if (const auto* tokens = std::get_if<std::uint64_t>(window); tokens == nullptr || *tokens != 0)
      return fail(ErrorCode::kUnsupported, where, "'{}' is not supported", key("attention.sliding_window"));
  if (const GgufTensor* freqs = file.tensor("rope_freqs.weight"); llama && freqs != nullptr) {
    if (freqs->type != TensorType::kF32)
      return fail(ErrorCode::kUnsupported, where, "tensor 'rope_freqs.weight' is {}; it must be F32",
                  info(freqs->type).name);
    c.rope_factors.resize(freqs->data.size() / sizeof(float));
    std::memcpy(c.rope_factors.data(), freqs->data.data(), c.rope_factors.size() * sizeof(float));
  }
  // A tensor that a file may leave out: the first layer says.
  const auto has = [&](const char* name) { return llama && file.tensor(name) != nullptr; };
  c.qkv_bias = has("blk.0.attn_q.bias");
  c.attn_output_bias = has("blk.0.attn_output.bias");
  c.mlp_bias = has("blk.0.ffn_up.bias");
  const GgufTensor* embedding = file.tensor("token_embd.weight");
  if (embedding == nullptr) return fail(ErrorCode::kInvalid, where, "tensor 'token_embd.weight' is missing");
  if (embedding->rows() > 1u << 20)
    return fail(ErrorCode::kInvalid, where, "a vocabulary of {} is beyond any sane limit", embedding->rows());
  c.n_vocab = static_cast<std::uint32_t>(embedding->rows());
  c.tied_embeddings = file.tensor("output.weight") == nullptr;
  if (c.is_encoder()) c.encoder = RETORT_TRY(read_gguf_encoder(file, arch));
  const auto token = [&](const char* name) -> std::int32_t {
    const auto value = file.uint(name);
    return value && *value < c.n_vocab ? static_cast<std::int32_t>(*value) : -1;
  };
  c.bos_token = token("tokenizer.ggml.bos_token_id");
  c.eos_token = token("tokenizer.ggml.eos_token_id");
  if (c.is_encoder() && c.bos_token < 0) c.bos_token = token("tokenizer.ggml.cls_token_id");
  if (c.is_encoder() && c.eos_token < 0) c.eos_token = token("tokenizer.ggml.seperator_token_id");
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
  // A tensor that we would leave out of the computation makes the answers wrong.
  for (const GgufTensor& tensor : file.tensors())
    if (known.count(&tensor) == 0 && !(llama && tensor.name == "rope_freqs.weight"))
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
  config["architectures"] =
      json::array{c.is_encoder() ? !c.encoder.labels.empty() ? "BertForSequenceClassification"
                                   : c.encoder.mlm_head      ? "BertForMaskedLM"
                                                             : "BertModel"
                  : c.qwen2      ? "Qwen2ForCausalLM"
                  : llama        ? "LlamaForCausalLM"
                                 : "GPT2LMHeadModel"};
  config["model_type"] = architecture(c);
  config["vocab_size"] = c.n_vocab;
  const LayerShape& first = c.layers[0];
  if (c.is_encoder()) {
    config["hidden_size"] = c.n_embd;
    config["intermediate_size"] = first.n_ff;
    config["num_hidden_layers"] = c.n_layer();
    config["num_attention_heads"] = first.n_head;
    if (first.n_head * c.head_dim != c.n_embd) config["head_dim"] = c.head_dim;
    config["max_position_embeddings"] = c.n_ctx;
    config["layer_norm_eps"] = std::stod(fmt::format("{}", c.norm_eps));
    config["type_vocab_size"] = c.encoder.n_token_types;
    config["hidden_act"] = c.encoder.gelu == Gelu::kErf ? "gelu" : "gelu_new";
    config["position_embedding_type"] = "absolute";
    config["hidden_dropout_prob"] = config["attention_probs_dropout_prob"] = 0.0;
    if (!c.encoder.labels.empty()) {
      json::object names, ids;
      for (std::size_t i = 0; i < c.encoder.labels.size(); ++i) {
        names[std::to_string(i)] = c.encoder.labels[i];
        ids[c.encoder.labels[i]] = i;
      }
      config["id2label"] = std::move(names);
      config["label2id"] = std::move(ids);
      config["problem_type"] = "single_label_classification";
    } else if (c.encoder.pooling != TextPooling::kNone) {
      RETORT_TRY(write_pooling(folder, c));
    }
  } else if (llama) {
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
    if (c.qkv_bias != (c.qwen2 || c.attn_output_bias) || (c.qwen2 && c.attn_output_bias) || c.rope_dim != 0 ||
        !c.rope_factors.empty())
      return fail(ErrorCode::kUnsupported, folder.string(),
                  "config.json cannot say these biases or this rotary embedding");
    config["attention_bias"] = c.attn_output_bias;
    config["mlp_bias"] = c.mlp_bias;
    const RopeScaling& rope = c.rope_scaling;
    if (rope.kind != RopeScaling::Kind::kNone) {
      json::object scaling{{"factor", rope.factor}};
      const char* kind = "linear";
      if (rope.kind != RopeScaling::Kind::kLinear)
        scaling["original_max_position_embeddings"] = rope.original_ctx;
      if (rope.kind == RopeScaling::Kind::kLlama3) {
        kind = "llama3";
        scaling["low_freq_factor"] = rope.low_freq_factor;
        scaling["high_freq_factor"] = rope.high_freq_factor;
      } else if (rope.kind == RopeScaling::Kind::kYarn) {
        kind = "yarn";
        scaling["beta_fast"] = rope.beta_fast;
        scaling["beta_slow"] = rope.beta_slow;
        if (rope.attention_factor != 0) scaling["attention_factor"] = rope.attention_factor;
      }
      scaling["rope_type"] = kind;
      config["rope_scaling"] = std::move(scaling);
    }
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
