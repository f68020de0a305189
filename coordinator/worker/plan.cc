#include "coordinator/worker/plan.h"

#include <fnmatch.h>

#include <algorithm>

#include "common/blocks/matrix.h"
#include "common/core/units.h"
#include "common/hf/hf_model.h"

namespace retort {
namespace {

/// Multiply-adds of one token's forward pass, as floating-point operations; attention scores included.
double forward_flops(const ModelConfig& config, std::uint32_t window) {
  double sum = 0;
  for (const Operation& op : operations(config)) sum += 2.0 * op.rows * op.columns;
  for (const LayerShape& layer : config.layers) sum += 4.0 * layer.n_head * config.head_dim * window;
  return sum;
}

/// Bytes that autograd keeps, or a forward pass needs, for one token: F32 values counted in network.cc.
std::uint64_t activation_bytes(const ModelConfig& config, std::uint32_t window, bool gradients) {
  std::uint64_t layers = 0, widest = 0;
  for (const LayerShape& layer : config.layers) {
    const std::uint64_t q = std::uint64_t{layer.n_head} * config.head_dim;
    const std::uint64_t values =
        10ull * config.n_embd + 12 * q + 5ull * layer.n_ff + 3ull * layer.n_head * window;
    layers += values;
    widest = std::max(widest, values);
  }
  return 4 * (gradients ? layers : widest);
}

}  // namespace

Result<ModelConfig> pruned_config(const ModelConfig& config, const PrunePass& pass,
                                  const std::string& where) {
  ModelConfig out = config;
  // What is to go now, of what is to go in all steps; the last step takes the rest.
  const auto shrunk = [&](std::uint32_t have, std::uint32_t want) {
    return have - (have - want) / pass.steps_left;
  };
  const auto larger = [&](std::string_view what, std::uint32_t wanted, std::uint32_t have) {
    return fail(ErrorCode::kInvalid, where,
                "prune.structured: {} {} asked for, but the model has {}; it can only cut", wanted, what,
                have);
  };
  if (pass.layers) {
    if (*pass.layers > config.n_layer()) return larger("layers", *pass.layers, config.n_layer());
    out.layers.resize(shrunk(config.n_layer(), *pass.layers));
    for (const LayerShape& layer : config.layers)
      if (layer != config.layers[0] && *pass.layers != config.n_layer())
        return fail(
            ErrorCode::kUnsupported, where,
            "prune.structured: layers of different widths cannot be cut out, since which ones go is known "
            "only while it runs; cut layers first, widths later");
  }
  if (pass.hidden && config.is_encoder())
    return fail(ErrorCode::kUnsupported, where,
                "prune.structured: of a bert, layers, ffn and heads can be cut");
  if (pass.hidden) {
    if (*pass.hidden > config.n_embd) return larger("hidden channels", *pass.hidden, config.n_embd);
    out.n_embd = shrunk(config.n_embd, *pass.hidden);
  }
  if (pass.ffn.size() > 1 && pass.ffn.size() != out.layers.size())
    return fail(ErrorCode::kInvalid, where,
                "prune.structured: 'ffn' lists {} widths for {} layers; give one for all, or one a layer",
                pass.ffn.size(), out.layers.size());
  for (std::size_t i = 0; i < out.layers.size(); ++i) {
    LayerShape& layer = out.layers[i];
    if (!pass.ffn.empty()) {
      const std::uint32_t width = pass.ffn.size() == 1 ? pass.ffn[0] : pass.ffn[i];
      if (width > layer.n_ff) return larger("FFN neurons", width, layer.n_ff);
      layer.n_ff = shrunk(layer.n_ff, width);
    }
    if (!pass.heads && !pass.kv_heads) continue;
    const std::uint32_t group = layer.n_head / layer.n_head_kv;
    const bool all_pairs = group == 1;
    std::uint32_t kv = pass.kv_heads.value_or(all_pairs ? pass.heads.value_or(0) : layer.n_head_kv);
    const std::uint32_t heads = pass.heads.value_or(kv * group);
    if (heads > layer.n_head) return larger("heads", heads, layer.n_head);
    if (kv > layer.n_head_kv) return larger("key/value heads", kv, layer.n_head_kv);
    if (heads % kv != 0 || heads / kv > group)
      return fail(ErrorCode::kInvalid, where,
                  "prune.structured: {} heads over {} key/value heads: each group has {} now, so kv_heads "
                  "must divide "
                  "heads and leave at most {} in a group",
                  heads, kv, group, group);
    if (config.family != ModelFamily::kLlama && heads != kv)
      return fail(ErrorCode::kInvalid, where,
                  "prune.structured: GPT-2 and BERT have one key/value head for each head");
    layer.n_head_kv = shrunk(layer.n_head_kv, kv);
    layer.n_head = layer.n_head_kv * shrunk(group, heads / kv);
  }
  return out;
}

Result<std::vector<std::string>> sparse_matrices(const ModelConfig& config, const SparsePass& pass,
                                                 const std::string& where) {
  std::vector<std::string> out;
  for (const WeightShape& weight : hf_weights(config)) {
    const StoredAs stored = stored_as(config.family, weight.name, weight.shape.size());
    const bool in_layer = weight.name.starts_with(layers_prefix(config));
    if (!stored.matrix || !in_layer || ::fnmatch(pass.match.c_str(), weight.name.c_str(), 0) != 0) continue;
    const std::uint64_t columns = stored.transposed ? weight.shape.front() : weight.shape.back();
    if (pass.m != 0 && columns % pass.m != 0)
      return fail(ErrorCode::kInvalid, where,
                  "prune.unstructured: a row of '{}' has {} weights, which are not whole groups of {}",
                  weight.name, columns, pass.m);
    out.push_back(weight.name);
  }
  if (out.empty())
    return fail(ErrorCode::kInvalid, where,
                "prune.unstructured: '{}' matches no matrix of a layer; names are as "
                "model.layers.0.mlp.down_proj.weight",
                pass.match);
  return out;
}

ModelConfig init_config(const InitShape& shape, std::uint32_t vocabulary, std::int32_t bos,
                        std::int32_t eos) {
  ModelConfig config;
  config.family = shape.family;
  config.n_vocab = vocabulary;
  config.n_ctx = shape.context;
  config.n_embd = shape.hidden;
  config.head_dim = shape.hidden / shape.heads;
  config.layers.assign(shape.layers, {shape.heads, shape.kv_heads, shape.ffn});
  config.bos_token = bos;
  config.eos_token = eos;
  if (config.is_encoder()) config.norm_eps = 1e-12f;
  return config;
}

std::uint32_t window_of(const OptimisePass& pass, const ModelConfig& config) {
  return pass.context == 0 ? config.n_ctx : std::min(pass.context, config.n_ctx);
}

std::uint32_t windows_per_step(const OptimisePass& pass, std::uint32_t window) {
  return std::max(1u, (pass.batch_tokens + window / 2) / window);
}

std::uint32_t micro_batch(std::uint32_t windows, std::uint32_t window, std::uint32_t vocabulary) {
  const std::uint64_t fits = (64ull << 20) / (4ull * window * vocabulary);
  return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(fits, 1, windows));
}

std::uint32_t calibration_batch(const ModelConfig& config, std::uint64_t window) {
  return static_cast<std::uint32_t>(
      std::clamp<std::uint64_t>((64ull << 20) / (4 * window * config.n_vocab), 1, 16));
}

std::string layers_prefix(const ModelConfig& config) {
  return config.family == ModelFamily::kLlama  ? "model.layers."
         : config.family == ModelFamily::kGpt2 ? "transformer.h."
                                               : "bert.encoder.layer.";
}

std::string layer_prefix(const ModelConfig& config, std::size_t layer) {
  return layers_prefix(config) + std::to_string(layer) + ".";
}

StoredAs stored_as(ModelFamily family, const std::string& name, std::size_t dimensions) {
  if (dimensions < 2 || name.ends_with("wpe.weight") || name.ends_with("position_embeddings.weight") ||
      name.ends_with("token_type_embeddings.weight"))
    return {};
  return {true, family == ModelFamily::kGpt2 && !name.ends_with("wte.weight") && name != "lm_head.weight"};
}

namespace {

/// A matrix as a file has it, a row after another.
struct Matrix {
  std::string name;
  std::uint64_t rows, columns;
};
std::vector<Matrix> matrices_of(const ModelConfig& config) {
  std::vector<Matrix> out;
  for (WeightShape& weight : hf_weights(config)) {
    const StoredAs stored = stored_as(config.family, weight.name, weight.shape.size());
    if (!stored.matrix) continue;
    std::uint64_t rows = weight.shape.front(), columns = weight.shape.back();
    if (stored.transposed) std::swap(rows, columns);
    out.push_back({std::move(weight.name), rows, columns});
  }
  return out;
}

}  // namespace

std::uint64_t predicted_file_bytes(const ModelConfig& config, const QuantizePass& formats,
                                   std::uint64_t vocabulary_bytes,
                                   const std::map<std::string, double>& zeros) {
  std::uint64_t bytes = vocabulary_bytes * 4 / 5 + 2048;
  for (const WeightShape& weight : hf_weights(config)) {
    std::uint64_t count = 1;
    for (const std::uint64_t size : weight.shape) count *= size;
    const StoredAs stored = stored_as(config.family, weight.name, weight.shape.size());
    if (!stored.matrix) {
      bytes += 4 * count;
      continue;
    }
    if (formats.bits) {
      bytes += static_cast<std::uint64_t>(static_cast<double>(count) * *formats.bits / 8);
      continue;
    }
    const std::uint64_t columns = stored.transposed ? weight.shape.front() : weight.shape.back();
    const TensorType type = stored_type(format_of(formats, weight.name), columns);
    bytes += most_matrix_bytes(type, count / columns, columns);
    const auto zero = zeros.find(weight.name);
    if (type == TensorType::kSparseQ8 && zero != zeros.end())  // a byte for each value that is there
      bytes -= static_cast<std::uint64_t>(zero->second * static_cast<double>(count));
  }
  return bytes;
}

WrittenAs written_as(const ModelConfig& config, const QuantizePass& formats) {
  if (formats.bits) return {"mixed", ""};
  std::map<TensorType, std::uint64_t> values, asked, fell, fell_from;
  std::uint64_t fallen = 0, all = 0, fallen_values = 0;
  double asked_bits = 0, got_bits = 0;
  const std::vector<Matrix> matrices = matrices_of(config);
  for (const Matrix& matrix : matrices) {
    const std::uint64_t count = matrix.rows * matrix.columns;
    const TensorType wanted = format_of(formats, matrix.name), type = stored_type(wanted, matrix.columns);
    all += count;
    values[type] += count, asked[wanted] += count;
    if (type == wanted) continue;
    ++fallen, fallen_values += count, fell[type] += count, fell_from[wanted] += count;
    const TensorTypeInfo &from = info(wanted), &to = info(type);
    asked_bits += 8.0 * from.block_bytes / from.block_values * static_cast<double>(count);
    got_bits += 8.0 * to.block_bytes / to.block_values * static_cast<double>(count);
  }
  const auto largest = [](const std::map<TensorType, std::uint64_t>& of) {
    return std::string(info(std::max_element(of.begin(), of.end(),
                                             [](const auto& a, const auto& b) { return a.second < b.second; })
                                ->first)
                           .name);
  };
  WrittenAs out{asked.size() > 1 ? "mixed" : largest(values), ""};
  if (fallen > 0)
    out.fallback = fmt::format(
        "the rows of {} of {} matrices ({:.0f} % of the weights) are not whole blocks of {}: they are stored "
        "as {}, {:.2f} bits a weight instead of {:.2f}",
        fallen, matrices.size(), 100.0 * static_cast<double>(fallen_values) / static_cast<double>(all),
        largest(fell_from), largest(fell), got_bits / static_cast<double>(fallen_values),
        asked_bits / static_cast<double>(fallen_values));
  return out;
}

namespace {

/// Whether every matrix is stored alike by both.
bool same_formats(const QuantizePass& a, const QuantizePass& b, const ModelConfig& config) {
  const std::vector<Matrix> all = matrices_of(config);
  return !b.bits && std::all_of(all.begin(), all.end(), [&](const Matrix& m) {
    return stored_type(format_of(a, m.name), m.columns) == stored_type(format_of(b, m.name), m.columns);
  });
}

/// The least that a budget's candidates take, known before anything is trained.
Result<void> check_bits(const QuantizePass& pass, const ModelConfig& config, const std::string& where) {
  if (!pass.bits) return {};
  double least = 0, values = 0;
  for (const auto& [name, rows, columns] : matrices_of(config)) {
    const auto fixed = fixed_format(pass, name);
    std::uint64_t smallest = UINT64_MAX;
    for (const TensorType candidate : fixed ? std::vector{*fixed} : pass.candidates)
      smallest = std::min(smallest, most_matrix_bytes(stored_type(candidate, columns), rows, columns));
    least += 8.0 * static_cast<double>(smallest);
    values += static_cast<double>(rows * columns);
  }
  if (least <= *pass.bits * values) return {};
  return fail(
      ErrorCode::kOutOfBudget, where,
      "quantize.weights: even the smallest candidates take {:.3f} bits a weight here, and the budget is "
      "{}; rows that are not whole blocks of 256 hold no format of the _K kind: give candidates with "
      "blocks of 32 (Q4_0, IQ4_NL), or widths that are multiples of 256",
      least / values, *pass.bits);
}

/// What a mixture's parts ask of the two shapes.
Result<void> check_mixture(const Mixture& mixture, const ModelConfig& student, const ModelConfig& teacher,
                           const std::string& where) {
  if (mixture.outputs != TeacherOutputs::kFull && mixture.k >= teacher.n_vocab)
    return fail(ErrorCode::kInvalid, where, "k is {}: of the teacher's {} tokens at most {} can be kept",
                mixture.k, teacher.n_vocab, teacher.n_vocab - 1);
  if (student.n_layer() > teacher.n_layer() && mixture.layer_map.empty() &&
      (mixture.attention > 0 || mixture.hidden > 0))
    return fail(ErrorCode::kInvalid, where,
                "distil: attention and hidden states need a teacher with at least the student's {} layers",
                student.n_layer());
  if (!mixture.layer_map.empty() && mixture.layer_map.size() != student.n_layer())
    return fail(
        ErrorCode::kInvalid, where,
        "distil: layer_map names {} of the teacher's layers, and the student has {} layers: one for each",
        mixture.layer_map.size(), student.n_layer());
  for (const std::uint32_t layer : mixture.layer_map)
    if (layer >= teacher.n_layer())
      return fail(ErrorCode::kInvalid, where,
                  "distil: layer_map names layer {}, and the teacher's are 0 to {}", layer,
                  teacher.n_layer() - 1);
  if (mixture.relation <= 0) return {};
  const std::uint32_t heads =
      mixture.relation_heads != 0 ? mixture.relation_heads : student.layers.back().n_head_kv;
  for (const ModelConfig* model : {&student, &teacher}) {
    const LayerShape& last = model->layers.back();
    if (last.n_head * model->head_dim % heads != 0 || last.n_head_kv * model->head_dim % heads != 0)
      return fail(ErrorCode::kInvalid, where,
                  "distil: relation_heads is {}, which does not divide the {}'s {} query and {} key features",
                  heads, model == &student ? "student" : "teacher", last.n_head * model->head_dim,
                  last.n_head_kv * model->head_dim);
  }
  return {};
}

}  // namespace

std::vector<std::string> matrix_names(const ModelConfig& config) {
  std::vector<std::string> out;
  for (Matrix& matrix : matrices_of(config)) out.push_back(std::move(matrix.name));
  return out;
}

Result<void> check_rules(const QuantizePass& pass, const std::vector<std::string>& matrices,
                         const std::string& where) {
  for (const QuantizePass::Rule& rule : pass.formats) {
    std::string names;
    bool matches = false;
    for (const std::string& matrix : matrices) {
      const QuantizePass alone{.formats = {rule}};
      matches |= fixed_format(alone, matrix).has_value();
      if (names.size() < 300) names += (names.empty() ? "" : ", ") + matrix;
    }
    if (!matches)
      return fail(ErrorCode::kInvalid, where,
                  "quantize.weights: '{}' matches no matrix of this model; its matrices are {}, …",
                  rule.match, names);
  }
  return {};
}

std::uint64_t statistics_bytes(std::uint64_t columns) { return columns * columns * (4 * 4 + 4 * 8); }

std::uint64_t quantize_bytes(const QuantizePass& pass, const ModelConfig& config) {
  std::uint64_t widest = config.n_embd, largest = std::uint64_t{config.n_vocab} * config.n_embd;
  for (const LayerShape& layer : config.layers) {
    widest = std::max<std::uint64_t>({widest, layer.n_ff, std::uint64_t{layer.n_head} * config.head_dim});
    largest = std::max(largest, std::uint64_t{layer.n_ff} * config.n_embd);
  }
  std::uint64_t bytes = parameter_count(config) + 16 * largest;  // encoded; one matrix, whole and rounded
  if (!pass.needs_calibration()) return bytes;
  const std::uint64_t window = config.n_ctx, batch = calibration_batch(config, window);
  bytes += batch * window * (activation_bytes(config, config.n_ctx, false) + 12ull * config.n_vocab);
  if (pass.needs_statistics())
    bytes += pass.calibration_tokens * config.n_embd * 8 + statistics_bytes(widest);
  if (pass.bits)
    bytes +=
        pass.sensitivity_tokens * (4ull * config.n_embd * (config.n_layer() + 1) + 4ull * config.n_vocab);
  return bytes;
}

namespace {
/// Seconds that one thread takes to encode a value (measured: AMD EPYC with AVX-512). `weighted`: with what
/// each column's error counts.
double encode_seconds(TensorType type, bool weighted) {
  switch (type) {
    case TensorType::kQ6K:
    case TensorType::kQ3K:
      return 147e-9;
    case TensorType::kQ5K:
    case TensorType::kQ4K:
      return 110e-9;
    case TensorType::kIq4Nl:
      return 345e-9;
    case TensorType::kCodebook4:
      return 250e-9;
    case TensorType::kCodebook8:
      return 480e-9;
    case TensorType::kQ4_0:
      return weighted ? 113e-9 : 3e-9;
    case TensorType::kSparse24Q8:
      return 20e-9;
    default:
      return 4e-9;
  }
}
}  // namespace

RoundingCost rounding_cost(const QuantizePass& pass, const ModelConfig& config, std::uint64_t tokens) {
  RoundingCost out;
  const bool gptq = pass.method == QuantizePass::Method::kGptq, weighted = pass.needs_statistics();
  std::uint64_t last_columns = 0;
  for (const auto& [name, rows, columns] : matrices_of(config)) {
    const auto fixed = fixed_format(pass, name);
    const TensorType type = stored_type(fixed.value_or(pass.bits ? TensorType::kQ4K : pass.format), columns);
    const double values = static_cast<double>(rows * columns), width = static_cast<double>(columns);
    out.loop_seconds += values * encode_seconds(type, weighted);
    if (pass.bits && !fixed)
      for (const TensorType candidate : pass.candidates)
        out.loop_seconds += values * encode_seconds(stored_type(candidate, columns), false);
    const bool layer = name.starts_with(layers_prefix(config));
    if (pass.awq && layer) {  // eleven values of α
      out.loop_seconds += 11 * values * encode_seconds(type, weighted);
      out.flops += 11 * 2 * values * width;
    }
    if (gptq) out.flops += values * width;  // each error, carried to the columns that are left
    if (weighted && layer && columns != last_columns)
      out.flops += 2 * static_cast<double>(tokens) * width * width + 2 * width * width * width;
    last_columns = columns;
  }
  return out;
}

double Plan::seconds(double flops_per_second) const {
  double sum = 0;
  for (const PlannedPass& pass : passes) sum += seconds(pass, flops_per_second);
  return sum;
}

Result<Plan> make_plan(const Recipe& recipe, const ModelConfig& start, const ModelConfig* teacher,
                       std::uint64_t data_bytes, std::uint64_t vocabulary_bytes, int threads) {
  constexpr std::uint64_t kBase = 220ull << 20;  // LibTorch and OpenBLAS, loaded and warm (measured)
  Plan plan;
  plan.threads = threads;
  ModelConfig config = start;
  std::optional<QuantizePass> quantized;
  const QuantizePass* learnt_for = nullptr;  // by the last training
  std::map<std::string, double> zero_shares;
  const std::uint64_t kept = teacher == nullptr ? 0 : 4 * parameter_count(*teacher);
  for (std::size_t i = 0; i < recipe.passes.size(); ++i) {
    const Pass& pass = recipe.passes[i];
    const std::string& place = recipe.place(i);
    PlannedPass planned;
    planned.name = pass_name(pass);
    const ModelConfig before = config;
    planned.shape_before = describe(config);
    std::uint64_t extra = 4 * parameter_count(config);
    if (const auto* p = std::get_if<OptimisePass>(&pass)) {
      const std::uint32_t window = window_of(*p, config), windows = windows_per_step(*p, window);
      if (p->context > config.n_ctx)
        plan.warnings.push_back(
            fmt::format("{}: a context of {} is more than the model's: windows have {} tokens", planned.name,
                        p->context, config.n_ctx));
      learnt_for = p->aware ? &*p->aware : nullptr;
      const std::uint64_t micro = micro_batch(windows, window, config.n_vocab);
      planned.steps = std::max<std::uint64_t>(1, p->tokens / (std::uint64_t{windows} * window));
      planned.tokens = planned.steps * windows * window;
      planned.flops = 3 * forward_flops(config, window) * static_cast<double>(planned.tokens);
      extra = 4 * extra + micro * window * (activation_bytes(config, window, true) + 16ull * config.n_vocab);
      if (p->distil && teacher != nullptr) {
        RETORT_TRY(check_mixture(*p->distil, config, *teacher, place));
        planned.flops += forward_flops(*teacher, window) * static_cast<double>(planned.tokens);
        extra += micro * window *
                 (activation_bytes(*teacher, window, p->distil->needs_trace()) + 24ull * config.n_vocab);
        constexpr double kTokenByToken = 8;  // products of a few rows each (measured on two cores)
        planned.flops += kTokenByToken *
                         (p->distil->on_policy * forward_flops(config, window) +
                          p->distil->teacher_text * forward_flops(*teacher, window)) *
                         static_cast<double>(planned.tokens);
      }
      if (p->aware) {
        RETORT_TRY(check_rules(*p->aware, matrix_names(config), place));
        extra += 4 * parameter_count(config);
      }
      extra += data_bytes / window * 4;  // the windows' order; the tokens are on disk
    } else if (const auto* cut = std::get_if<PrunePass>(&pass)) {
      config = RETORT_TRY(pruned_config(config, *cut, place));
      if (cut->activation) {
        planned.tokens = cut->calibration_tokens;
        planned.flops = forward_flops(before, before.n_ctx) * static_cast<double>(planned.tokens);
        extra += before.n_ctx * (activation_bytes(before, before.n_ctx, false) + 4ull * config.n_vocab);
      }
      extra += 4 * parameter_count(config);
    } else if (const auto* zeros = std::get_if<SparsePass>(&pass)) {
      const double share = zeros->m == 0 ? zeros->sparsity : 1 - static_cast<double>(zeros->n) / zeros->m;
      for (const std::string& name : RETORT_TRY(sparse_matrices(config, *zeros, place)))
        zero_shares[name] = share;
      if (zeros->wanda) {
        planned.tokens = zeros->calibration_tokens;
        planned.flops = 2 * forward_flops(config, config.n_ctx) * static_cast<double>(planned.tokens);
        extra += zeros->calibration_tokens * config.n_embd * 8 +
                 calibration_batch(config, config.n_ctx) * std::uint64_t{config.n_ctx} *
                     activation_bytes(config, config.n_ctx, false);
      }
    } else if (const auto* scales = std::get_if<ActivationPass>(&pass)) {
      const int looks = scales->smooth ? 2 : 1;
      planned.tokens = scales->calibration;
      planned.flops = looks * forward_flops(config, config.n_ctx) * static_cast<double>(planned.tokens);
      extra += scales->calibration * 8 + 4 * parameter_count(config) +  // token ids; smoothed copies
               calibration_batch(config, config.n_ctx) * std::uint64_t{config.n_ctx} *
                   (activation_bytes(config, config.n_ctx, false) + 4ull * config.n_vocab) +
               config.n_layer() * (64ull << 10);  // four histograms each
    } else if (const auto* rounding = std::get_if<QuantizePass>(&pass)) {
      RETORT_TRY(check_rules(*rounding, matrix_names(config), place));
      RETORT_TRY(check_bits(*rounding, config, place));
      quantized = *rounding;
      QuantizePass read = *rounding;  // no text has more tokens than bytes
      read.calibration_tokens =
          std::min<std::uint64_t>(read.calibration_tokens, std::max<std::uint64_t>(data_bytes, 1));
      extra += quantize_bytes(read, config);
      const double forward = forward_flops(config, config.n_ctx);
      if (rounding->needs_statistics()) {
        planned.tokens = read.calibration_tokens;
        const bool again = rounding->method == QuantizePass::Method::kGptq;
        planned.flops += (again ? 5 : 2) * forward * static_cast<double>(planned.tokens);
      }
      if (rounding->bits)
        planned.flops += static_cast<double>(rounding->candidates.size() * 7ull * config.n_layer()) / 2 *
                         forward * static_cast<double>(rounding->sensitivity_tokens);
      const RoundingCost cost = rounding_cost(*rounding, config, planned.tokens);
      planned.flops += cost.flops;
      planned.loop_seconds = cost.loop_seconds;
    } else if (std::holds_alternative<EvaluatePass>(pass)) {
      planned.tokens = recipe.held_out->max_tokens;
      planned.flops = forward_flops(config, config.n_ctx) * static_cast<double>(planned.tokens);
      extra += 16ull * config.n_ctx * config.n_vocab;
    } else if (const auto* out = std::get_if<ExportPass>(&pass)) {
      if (out->huggingface) {
        const bool wide = out->dtype == SafeTensor::DType::kF32;
        planned.format = wide ? "F32" : "F16";
        planned.file_bytes = parameter_count(config) * (wide ? 4 : 2);
      } else {
        QuantizePass formats{.format = out->format.value_or(TensorType::kF16)};
        if (!out->format && quantized)
          formats = *quantized;
        else
          planned.rewritten = formats.format;
        if (learnt_for != nullptr && !same_formats(*learnt_for, formats, config))
          plan.warnings.push_back(fmt::format(
              "{}: it is stored otherwise than quantize.aware has trained it to be: give a quantize.weights "
              "before it the same format and formats",
              out->file));
        const WrittenAs written = written_as(config, formats);
        planned.format = written.format;
        if (!written.fallback.empty()) plan.warnings.push_back(out->file + ": " + written.fallback);
        planned.file_bytes = predicted_file_bytes(config, formats, vocabulary_bytes, zero_shares);
      }
      planned.name += " " + out->file;
    }
    planned.after = config;
    planned.shape_after = describe(config);
    planned.parameters = parameter_count(config);
    // Rounding lets go of the teacher.
    planned.peak_bytes = kBase + (std::holds_alternative<QuantizePass>(pass) ? 0 : kept) + extra;
    plan.peak_bytes = std::max(plan.peak_bytes, planned.peak_bytes);
    plan.passes.push_back(std::move(planned));
  }
  return plan;
}

std::string describe(const ModelConfig& config) {
  const auto [low, high] =
      std::minmax_element(config.layers.begin(), config.layers.end(),
                          [](const LayerShape& a, const LayerShape& b) { return a.n_ff < b.n_ff; });
  return fmt::format(
      "{} layers, {} wide, {}/{} heads, FFN {}", config.n_layer(), config.n_embd, config.layers[0].n_head,
      config.layers[0].n_head_kv,
      low->n_ff == high->n_ff ? fmt::format("{}", low->n_ff) : fmt::format("{}–{}", low->n_ff, high->n_ff));
}

json::object to_json(const Plan& plan, double flops_per_second) {
  json::array passes;
  for (const PlannedPass& pass : plan.passes) {
    json::object out{{"pass", pass.name},
                     {"before", pass.shape_before},
                     {"after", pass.shape_after},
                     {"parameters", pass.parameters},
                     {"tokens", pass.tokens},
                     {"steps", pass.steps},
                     {"peak_memory_bytes", pass.peak_bytes},
                     {"estimated_seconds", plan.seconds(pass, flops_per_second)}};
    if (pass.file_bytes != 0) {
      out["file_bytes"] = pass.file_bytes;
      out["format"] = pass.format;
    }
    passes.push_back(std::move(out));
  }
  return {{"passes", std::move(passes)},
          {"warnings", json::value_from(plan.warnings)},
          {"peak_memory_bytes", plan.peak_bytes},
          {"estimated_seconds", plan.seconds(flops_per_second)}};
}

std::string to_table(const Plan& plan, double flops_per_second) {
  std::string out = fmt::format("{:<24} {:<44} {:>10} {:>9} {:>10} {:>10} {:>12}\n", "pass",
                                "model afterwards", "parameters", "tokens", "file", "memory", "time");
  for (const PlannedPass& pass : plan.passes)
    out += fmt::format(
        "{:<24} {:<44} {:>10} {:>9} {:>10} {:>10} {:>12}\n", pass.name, pass.shape_after,
        format_count(pass.parameters), pass.tokens ? format_count(pass.tokens) : "",
        pass.file_bytes ? format_bytes(pass.file_bytes) : "", format_bytes(pass.peak_bytes),
        pass.flops + pass.loop_seconds > 0 ? format_seconds(plan.seconds(pass, flops_per_second)) : "");
  for (const std::string& warning : plan.warnings) out += "warning: " + warning + "\n";
  out += fmt::format(
      "peak memory about {}, time about {} (from floating-point operations at the {:.0f} GFLOP/s of\n"
      "matrix products that training reaches here, half of what a 512×512 product measured, and what "
      "searches\n"
      "for scales took on another machine)\n",
      format_bytes(plan.peak_bytes), format_seconds(plan.seconds(flops_per_second)), flops_per_second / 1e9);
  return out;
}

}  // namespace retort
