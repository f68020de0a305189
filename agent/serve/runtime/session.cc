#include "agent/serve/runtime/session.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "agent/serve/kernels/own_formats.h"
#include "common/blocks/matrix.h"
#include "common/core/units.h"

namespace retort {
namespace {

using kernels::kAttentionTokens;
using kernels::kPositionBlock;
using kernels::kScoreRows;

/// Of a layer's KV cache, at most; it shares the second-level cache with the weights that pass.
constexpr std::size_t kPrefetchedBytes = 256 << 10;

struct Widths {
  std::uint64_t query = 0, qkv = 0, ff = 0, input = 0;
};

/// The widest of each kind over all layers, in values.
Widths widths(const ModelConfig& c) {
  Widths w;
  for (const LayerShape& layer : c.layers) {
    const std::uint64_t q = std::uint64_t{layer.n_head} * c.head_dim;
    w.query = std::max(w.query, q);
    w.qkv = std::max(w.qkv, q + std::uint64_t{2} * layer.n_head_kv * c.head_dim);
    w.ff = std::max<std::uint64_t>(w.ff, layer.n_ff);
  }
  w.input = std::max<std::uint64_t>(c.n_embd, w.query);
  return w;
}

std::uint64_t padded(std::uint64_t positions) {
  return (positions + kPositionBlock - 1) / kPositionBlock * kPositionBlock;
}

/// Bytes of a head's keys, or values, of so many positions.
std::uint64_t head_bytes(const SessionOptions& options, std::uint64_t positions, std::uint32_t head_dim) {
  return padded(positions) / kPositionBlock * kernels::cache_block_bytes(options.cache, head_dim);
}

std::uint64_t score_stride(const SessionOptions& options) {
  return padded(std::uint64_t{options.n_ctx} + kAttentionTokens);
}

std::uint64_t logits_rows(const SessionOptions& options) {
  return options.logits_of_all ? options.batch : options.streams;
}

}  // namespace

MemoryPlan plan_memory(const Model& model, const SessionOptions& given, std::uint32_t threads) {
  const ModelConfig& c = model.config();
  SessionOptions options = given;
  if (options.n_ctx == 0) options.n_ctx = c.n_ctx;
  const std::uint64_t b = options.batch;
  const Widths w = widths(c);
  MemoryPlan plan;
  plan.weights_mapped_bytes =
      model.file_bytes_in_use() + (model.packed_is_shared() ? model.packed_bytes() : 0);
  plan.weights_packed_bytes = model.packed_is_shared() ? 0 : model.packed_bytes();
  for (const LayerShape& layer : c.layers)
    plan.kv_cache_bytes +=
        std::uint64_t{options.streams} * 2 * layer.n_head_kv * head_bytes(options, options.n_ctx, c.head_dim);
  plan.activation_bytes = 2 * aligned(4 * b * c.n_embd) + aligned(4 * b * w.qkv) + aligned(4 * b * w.query) +
                          2 * aligned(4 * b * w.ff) + aligned(4 * logits_rows(options) * c.n_vocab) +
                          aligned(4 * threads * kScoreRows * score_stride(options)) +
                          aligned(8 * std::uint64_t{options.n_ctx} * c.head_dim) +
                          QuantizedRows::bytes(b, w.input) + QuantizedRows::bytes(b, w.ff) + 64;
  return plan;
}

Result<std::unique_ptr<Session>> Session::create(std::shared_ptr<const Model> model, ThreadTeam& team,
                                                 SessionOptions options) {
  const ModelConfig& c = model->config();
  if (c.is_encoder())
    return fail(ErrorCode::kUnsupported, model->file().where(), "an encoder generates nothing");
  if (options.n_ctx == 0) options.n_ctx = c.n_ctx;
  if (options.n_ctx > c.n_ctx)
    return fail(ErrorCode::kInvalid, model->file().where(),
                "a context of {} tokens is asked for; the model was made for {}", options.n_ctx, c.n_ctx);
  options.streams = std::max(options.streams, 1u);
  // A batch holds a token of each stream, and no more than all streams can take.
  options.batch = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(
      options.batch, options.streams, std::uint64_t{options.n_ctx} * options.streams));
  const MemoryPlan plan = plan_memory(*model, options, team.size());
  if (options.memory_limit != 0 && plan.total() > options.memory_limit)
    return fail(ErrorCode::kOutOfBudget, model->file().where(),
                "needs {} ({} weights, {} KV cache, {} activations), the limit is {}; --memory-limit {} is "
                "enough, and a smaller --ctx than {} helps",
                format_bytes(plan.total()),
                format_bytes(plan.weights_mapped_bytes + plan.weights_packed_bytes),
                format_bytes(plan.kv_cache_bytes), format_bytes(plan.activation_bytes),
                format_bytes(options.memory_limit), plan.total(), options.n_ctx);
  const std::string where = model->file().where();
  return within_memory(where, plan.total(), [&] {
    return std::unique_ptr<Session>(new Session(std::move(model), team, options));
  });
}

Session::Session(std::shared_ptr<const Model> model, ThreadTeam& team, SessionOptions options)
    : model_(std::move(model)),
      team_(team),
      options_(options),
      position_(options.streams, 0),
      runs_(options.batch),
      rope_rates_(rope_rates(model_->config())) {
  const ModelConfig& c = model_->config();
  const MemoryPlan plan = plan_memory(*model_, options_, team.size());
  arena_ = take_arena(plan.kv_cache_bytes + plan.activation_bytes);
  ArenaCursor arena(arena_);
  const Widths w = widths(c);
  const std::uint64_t b = options_.batch;
  hidden_ = arena.floats(b * c.n_embd);
  normed_ = arena.floats(b * c.n_embd);
  qkv_ = arena.floats(b * w.qkv);
  attended_ = arena.floats(b * w.query);
  gate_ = arena.floats(b * w.ff);
  up_ = arena.floats(b * w.ff);
  logits_ = arena.floats(logits_rows(options_) * c.n_vocab);
  scores_ = arena.floats(team.size() * kScoreRows * score_stride(options_));
  rope_ = arena.floats(std::uint64_t{2} * options_.n_ctx * c.head_dim);
  input_ = QuantizedRows::take(arena, b, w.input);
  inner_ = QuantizedRows::take(arena, b, w.ff);
  for (const LayerShape& layer : c.layers) {
    layer_at_.push_back(stream_bytes_);
    stream_bytes_ += 2 * layer.n_head_kv * head_bytes(options_, options_.n_ctx, c.head_dim);
  }
  cache_ = static_cast<std::byte*>(arena.take(options_.streams * stream_bytes_));
}

Result<void> Session::check(std::span<const Chunk> chunks) const {
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    const Chunk& chunk = chunks[i];
    if (chunk.tokens.empty()) return fail(ErrorCode::kInvalid, "", "no tokens to compute");
    if (chunk.stream >= options_.streams)
      return fail(ErrorCode::kInvalid, "", "stream {} of {}", chunk.stream, options_.streams);
    for (std::size_t j = 0; j < i; ++j)
      if (chunks[j].stream == chunk.stream)
        return fail(ErrorCode::kInvalid, "", "stream {} is there twice", chunk.stream);
    for (const TokenId id : chunk.tokens)
      if (id < 0 || id >= static_cast<TokenId>(model_->config().n_vocab))
        return fail(ErrorCode::kInvalid, "", "token {} is outside the vocabulary of {}", id,
                    model_->config().n_vocab);
    if (chunk.tokens.size() > options_.n_ctx - position_[chunk.stream])
      return fail(ErrorCode::kInvalid, "", "{} tokens after {} exceed the context of {}", chunk.tokens.size(),
                  position_[chunk.stream], options_.n_ctx);
    total += chunk.tokens.size();
  }
  if (total == 0 || total > options_.batch)
    return fail(ErrorCode::kInvalid, "", "{} tokens at once, the batch is {}", total, options_.batch);
  return {};
}

Result<std::span<const float>> Session::step(std::span<const Chunk> chunks) {
  RETORT_TRY(check(chunks));
  forward(chunks, false);
  const auto rows =
      std::count_if(chunks.begin(), chunks.end(), [](const Chunk& c) { return c.wants_logits; });
  return std::span<const float>(logits_, static_cast<std::size_t>(rows) * model_->config().n_vocab);
}

Result<std::span<const float>> Session::evaluate(std::span<const TokenId> tokens) {
  if (tokens.size() > options_.n_ctx - position_[0])
    return fail(ErrorCode::kInvalid, "", "{} tokens after {} exceed the context of {}", tokens.size(),
                position_[0], options_.n_ctx);
  std::span<const float> logits;
  do {
    const std::size_t n = std::min<std::size_t>(tokens.size(), options_.batch);
    const Chunk chunk{0, tokens.first(n), n == tokens.size()};
    logits = RETORT_TRY(step({&chunk, 1}));
    tokens = tokens.subspan(n);
  } while (!tokens.empty());
  return logits;
}

Result<std::span<const float>> Session::evaluate_all(std::span<const TokenId> tokens) {
  const Chunk chunk{0, tokens};
  RETORT_TRY(check({&chunk, 1}));
  if (!options_.logits_of_all)
    return fail(ErrorCode::kInvalid, "", "this session keeps the logits of last tokens alone");
  forward({&chunk, 1}, true);
  return std::span<const float>(logits_, tokens.size() * model_->config().n_vocab);
}

/// Where a head's keys or values of a stream begin.
std::byte* Session::cache(std::uint32_t stream, std::size_t layer, bool values, std::size_t head) const {
  const ModelConfig& c = model_->config();
  return cache_ + stream * stream_bytes_ + layer_at_[layer] +
         head_bytes(options_, options_.n_ctx, c.head_dim) * (head + (values ? c.layers[layer].n_head_kv : 0));
}

/// Asks for a layer's keys and values while its first product is computed: in the weights' wake they come
/// from memory, and attention alone would wait for each head's.
void Session::prefetch_cache(std::uint32_t stream, std::size_t layer) const {
  const ModelConfig& c = model_->config();
  const std::size_t bytes = std::min<std::size_t>(head_bytes(options_, position_[stream], c.head_dim),
                                                  kPrefetchedBytes / (2 * c.layers[layer].n_head_kv));
  for (const bool values : {false, true})
    for (std::uint32_t head = 0; head < c.layers[layer].n_head_kv; ++head) {
      const std::byte* const at = cache(stream, layer, values, head);
      for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
    }
}

void Session::copy(std::uint32_t from, std::uint32_t to, std::uint32_t count) {
  const ModelConfig& c = model_->config();
  count = std::min(count, position_[from]);
  const std::size_t bytes = head_bytes(options_, count, c.head_dim);
  for (std::size_t layer = 0; layer < c.layers.size(); ++layer)
    for (const bool values : {false, true})
      for (std::uint32_t head = 0; head < c.layers[layer].n_head_kv; ++head)
        std::memcpy(cache(to, layer, values, head), cache(from, layer, values, head), bytes);
  position_[to] = count;
}

/// Layer norm [Ba 2016] where there is a bias, RMS norm [Zhang 2019] where there is none, of hidden_ into
/// normed_ and, when asked for, input_.
void Session::normalize(const Rows& rows, const float* weight, const float* bias, bool quantized,
                        float scale) {
  const std::uint32_t n = model_->config().n_embd;
  const float eps = model_->config().norm_eps;
  const float* const x = hidden_ + rows.first * n;
  float* const normed = normed_ + rows.first * n;
  const QuantizedRows input = input_.from(rows.first);
  rows.team.share(rows.count, n / 4 + 1, [&](std::uint32_t, std::uint64_t first, std::uint64_t last) {
    for (std::uint64_t t = first; t < last; ++t) {
      if (bias != nullptr)
        kernels::layer_norm(x + t * n, weight, bias, n, eps, normed + t * n);
      else
        kernels::rms_norm(x + t * n, weight, n, eps, normed + t * n);
      if (quantized) input.quantize(t, normed, n, 0, n, scale);
    }
  });
}

/// Token (and gpt2's position) embeddings into hidden_; the batch's runs.
void Session::embed(std::span<const Chunk> chunks) {
  const ModelConfig& c = model_->config();
  const kernels::Matrix& embedding = model_->token_embedding();
  const std::span<const std::byte> embedded(embedding.data, kernels::stored_bytes(embedding));
  std::uint32_t row = 0, furthest = 0;
  n_runs_ = 0;
  for (const Chunk& chunk : chunks) {
    const std::uint32_t start = position_[chunk.stream], n = static_cast<std::uint32_t>(chunk.tokens.size());
    for (std::uint32_t t = 0; t < n; ++t) {
      float* const to = hidden_ + std::size_t{row + t} * c.n_embd;
      decode_rows(embedding.type, embedding.rows, embedding.columns, embedded,
                  static_cast<std::uint64_t>(chunk.tokens[t]), {to, c.n_embd});
      if (model_->position_embedding() != nullptr)
        kernels::add(to, model_->position_embedding() + std::size_t{start + t} * c.n_embd, c.n_embd);
    }
    for (std::uint32_t t = 0; t < n; t += kAttentionTokens)
      runs_[n_runs_++] = {row + t, std::min(kAttentionTokens, n - t), chunk.stream, start + t};
    row += n;
    furthest = std::max(furthest, start + n);
  }
  if (c.family != ModelFamily::kLlama) return;
  // Rotary embedding [Su 2021]: the table grows with the furthest position. Dimensions that do not turn have
  // cosine 1 and sine 0.
  for (; rope_filled_ < furthest; ++rope_filled_) {
    float* const table = rope_ + std::size_t{2} * rope_filled_ * c.head_dim;
    std::fill_n(table, c.head_dim, 1.0f);
    for (std::size_t i = 0; i < rope_rates_.rates.size(); ++i) {
      const double angle = rope_filled_ * rope_rates_.rates[i];
      const auto sine = static_cast<float>(std::sin(angle) * rope_rates_.magnitude);
      table[2 * i] = table[2 * i + 1] = static_cast<float>(std::cos(angle) * rope_rates_.magnitude);
      table[c.head_dim + 2 * i] = -sine;
      table[c.head_dim + 2 * i + 1] = sine;
    }
  }
}

/// Turns a run's queries and keys to their positions, and puts its keys and values into the cache.
void Session::turn_and_store(std::size_t layer, std::size_t index) {
  const ModelConfig& c = model_->config();
  const LayerShape& shape = c.layers[layer];
  const Run& run = runs_[index];
  const std::size_t q = std::size_t{shape.n_head} * c.head_dim,
                    kv = std::size_t{shape.n_head_kv} * c.head_dim, stride = q + 2 * kv;
  float* const rows = qkv_ + run.row * stride;
  if (c.family == ModelFamily::kLlama)
    for (std::uint32_t t = 0; t < run.count; ++t) {  // queries and keys lie side by side
      const std::uint32_t heads = shape.n_head + shape.n_head_kv;
      const float* const table = rope_ + std::size_t{2} * (run.position + t) * c.head_dim;
      if (c.qwen2)
        kernels::rope_halves(rows + t * stride, heads, c.head_dim,
                             static_cast<std::uint32_t>(rope_rates_.rates.size()), table);
      else
        kernels::rope(rows + t * stride, heads, c.head_dim, table);
    }
  for (const bool values : {false, true})
    kernels::store({rows + q + (values ? kv : 0), stride, run.count, shape.n_head_kv, c.head_dim},
                   options_.cache, run.position, head_bytes(options_, options_.n_ctx, c.head_dim),
                   cache(run.stream, layer, values, 0));
}

/// A layer's rows up to its attention: their queries, and their keys and values in the cache.
void Session::before_attention(std::size_t index, const Rows& rows, std::size_t first_run,
                               std::size_t last_run) {
  const ModelConfig& c = model_->config();
  const Model::Layer& layer = model_->layers()[index];
  normalize(rows, layer.attn_norm, layer.attn_norm_bias, layer.qkv.quantized, layer.qkv.input_scale);
  if (n_runs_ == 1 && runs_[0].count == 1) prefetch_cache(runs_[0].stream, index);
  project(rows.team, layer.qkv, normed_ + rows.first * c.n_embd, input_.from(rows.first), rows.count,
          qkv_ + rows.first * layer.qkv.rows, false);
  const std::size_t runs = last_run - first_run;
  rows.team.share(runs, std::uint64_t{c.layers[index].n_head_kv} * c.head_dim * (rows.count / runs),
                  [&](std::uint32_t, std::uint64_t first, std::uint64_t last) {
                    for (std::uint64_t i = first; i < last; ++i) turn_and_store(index, first_run + i);
                  });
}

/// Causal attention with grouped K and V heads [Ainslie 2023]: qkv_ to attended_.
void Session::attend(std::size_t layer) {
  const ModelConfig& c = model_->config();
  const LayerShape& shape = c.layers[layer];
  const std::size_t group = shape.n_head / shape.n_head_kv, q = std::size_t{shape.n_head} * c.head_dim,
                    stride = q + std::size_t{2} * shape.n_head_kv * c.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  std::uint64_t positions = 0;
  for (std::size_t i = 0; i < n_runs_; ++i)
    positions += runs_[i].count * (runs_[i].position + runs_[i].count);
  const std::size_t head_size = head_bytes(options_, options_.n_ctx, c.head_dim);
  // Some 40 multiplications a nanosecond.
  const std::uint64_t items = n_runs_ * shape.n_head_kv, work = 2 * positions * q / 40;
  team_.share(items, work / items + 50, [&](std::uint32_t member, std::uint64_t first, std::uint64_t last) {
    const kernels::Scores scores{scores_ + member * kScoreRows * score_stride(options_),
                                 score_stride(options_)};
    for (std::uint64_t item = first; item < last;) {
      const Run& run = runs_[item / shape.n_head_kv];
      const std::size_t head = item % shape.n_head_kv;
      const float* const query = qkv_ + run.row * stride + head * group * c.head_dim;
      float* const out = attended_ + run.row * q + head * group * c.head_dim;
      kernels::Heads heads{options_.cache,
                           cache(run.stream, layer, false, head),
                           cache(run.stream, layer, true, head),
                           head_size,
                           1,
                           c.head_dim};
      if (run.count == 1 && group <= kAttentionTokens) {
        // A token's query heads that share K and V, of several such heads.
        heads.count = static_cast<std::uint32_t>(
            std::min<std::uint64_t>({last - item, shape.n_head_kv - head, kScoreRows / group}));
        kernels::attention({query, c.head_dim, static_cast<std::uint32_t>(group)}, heads, run.position + 1, 0,
                           scale, scores, {out, c.head_dim});
      } else if (run.count == 1) {
        for (std::uint32_t g = 0; g < group; g += kAttentionTokens)
          kernels::attention(
              {query + g * c.head_dim, c.head_dim,
               std::min<std::uint32_t>(kAttentionTokens, static_cast<std::uint32_t>(group) - g)},
              heads, run.position + 1, 0, scale, scores, {out + g * c.head_dim, c.head_dim});
      } else {
        for (std::uint32_t g = 0; g < group; ++g)
          kernels::attention({query + g * c.head_dim, stride, run.count}, heads, run.position + 1, 1, scale,
                             scores, {out + g * c.head_dim, q});
      }
      item += heads.count;
    }
  });
}

/// From attention's result to the layer's: the rows of hidden_.
void Session::after_attention(std::size_t index, const Rows& rows) {
  const ModelConfig& c = model_->config();
  const Model::Layer& layer = model_->layers()[index];
  const std::size_t n_embd = c.n_embd, ff = c.layers[index].n_ff,
                    q = std::size_t{c.layers[index].n_head} * c.head_dim, count = rows.count;
  const float* const attended = attended_ + rows.first * q;
  const float* const normed = normed_ + rows.first * n_embd;
  float* const hidden = hidden_ + rows.first * n_embd;
  float *const gate = gate_ + rows.first * ff, *const up = up_ + rows.first * ff;
  const QuantizedRows input = input_.from(rows.first), inner = inner_.from(rows.first);
  quantize_for(rows.team, layer.attn_output, attended, count, input);
  project(rows.team, layer.attn_output, attended, input, count, hidden, true);
  normalize(rows, layer.ffn_norm, layer.ffn_norm_bias, layer.ffn_up.quantized || layer.ffn_gate.quantized,
            layer.ffn_up.input_scale);
  // Whole blocks of the quantized result, so that each share makes its own.
  share_rows(rows.team, layer.ffn_up, 32, count, layer.ffn_gate ? 2 : 1,
             [&](std::uint64_t first, std::uint64_t last) {
               if (layer.ffn_gate) {  // SwiGLU [Shazeer 2020]
                 multiply(layer.ffn_gate, normed, input, count, first, last, gate, ff, false);
                 multiply(layer.ffn_up, normed, input, count, first, last, up, ff, false);
               } else {
                 multiply(layer.ffn_up, normed, input, count, first, last, gate, ff, false);
               }
               for (std::size_t t = 0; t < count; ++t) {
                 if (layer.ffn_gate)
                   kernels::silu_mul(gate + t * ff + first, up + t * ff + first, last - first);
                 else
                   kernels::gelu(gate + t * ff + first, last - first);
                 if (layer.ffn_down.quantized)
                   inner.quantize(t, gate, ff, first, last, layer.ffn_down.input_scale);
               }
             });
  project(rows.team, layer.ffn_down, gate, inner, count, hidden, true);
}

void Session::forward(std::span<const Chunk> chunks, bool all_logits) {
  const ModelConfig& c = model_->config();
  const std::size_t n_embd = c.n_embd, layers = c.layers.size();
  std::size_t count = 0;
  for (const Chunk& chunk : chunks) count += chunk.tokens.size();
  embed(chunks);
  // What lies between two layers' attentions is one stage.
  for (std::size_t layer = 0; layer <= layers; ++layer) {
    share_tokens(team_, count, n_runs_, [&](ThreadTeam& team, std::size_t first_run, std::size_t last_run) {
      const Run& last = runs_[last_run - 1];
      const std::size_t first = runs_[first_run].row;
      const Rows rows{team, first, last.row + last.count - first};
      if (layer > 0) after_attention(layer - 1, rows);
      if (layer < layers) before_attention(layer, rows, first_run, last_run);
    });
    if (layer < layers) attend(layer);
  }
  std::size_t outputs = 0, row = 0;
  for (const Chunk& chunk : chunks) {
    position_[chunk.stream] += static_cast<std::uint32_t>(chunk.tokens.size());
    row += chunk.tokens.size();
    if (all_logits || !chunk.wants_logits) continue;
    // The rows that count move to the front; no row moves back over one that is still to come.
    if (outputs != row - 1)
      std::memcpy(hidden_ + outputs * n_embd, hidden_ + (row - 1) * n_embd, n_embd * sizeof(float));
    ++outputs;
  }
  if (all_logits) outputs = count;
  if (outputs == 0) return;
  normalize({team_, 0, outputs}, model_->output_norm(), model_->output_norm_bias(),
            model_->output().quantized, model_->output().input_scale);
  project(team_, model_->output(), normed_, input_, outputs, logits_, false);
}

}  // namespace retort
