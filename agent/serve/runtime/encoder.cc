#include "agent/serve/runtime/encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "agent/serve/kernels/encoder.h"
#include "agent/serve/kernels/maps.h"
#include "agent/serve/kernels/own_formats.h"
#include "common/blocks/matrix.h"
#include "common/core/units.h"

namespace retort {
namespace {

struct Widths {
  std::uint64_t query = 0, ff = 0, input = 0, outputs = 0;
};

Widths widths(const ModelConfig& c) {
  Widths w;
  for (const LayerShape& layer : c.layers) {
    w.query = std::max(w.query, std::uint64_t{layer.n_head} * c.head_dim);
    w.ff = std::max<std::uint64_t>(w.ff, layer.n_ff);
  }
  w.input = std::max<std::uint64_t>(c.n_embd, w.query);
  w.outputs = std::max<std::uint64_t>(c.encoder.labels.size(), c.encoder.mlm_head ? c.n_vocab : 0);
  return w;
}

EncoderOptions filled(const ModelConfig& c, EncoderOptions options) {
  if (options.n_ctx == 0) options.n_ctx = c.n_ctx;
  options.texts = std::max(options.texts, 1u);
  options.batch = std::max(options.batch, options.n_ctx);
  options.texts = std::min(options.texts, options.batch);
  return options;
}

std::uint64_t scratch_floats(const ModelConfig& c, std::uint32_t n_ctx) {
  return aligned(4 * kernels::attention_all_scratch(n_ctx, c.head_dim)) / 4;
}

}  // namespace

MemoryPlan plan_encoder_memory(const Model& model, const EncoderOptions& given, std::uint32_t threads) {
  const ModelConfig& c = model.config();
  const EncoderOptions options = filled(c, given);
  const std::uint64_t b = options.batch, r = options.texts;
  const Widths w = widths(c);
  MemoryPlan plan;
  plan.weights_mapped_bytes =
      model.file_bytes_in_use() + (model.packed_is_shared() ? model.packed_bytes() : 0);
  plan.weights_packed_bytes = model.packed_is_shared() ? 0 : model.packed_bytes();
  plan.activation_bytes = aligned(4 * b * c.n_embd) + aligned(12 * b * w.query) + aligned(4 * b * w.query) +
                          aligned(4 * b * w.ff) + aligned(4 * threads * scratch_floats(c, options.n_ctx)) +
                          2 * aligned(4 * r * c.n_embd) + aligned(4 * r * w.outputs) +
                          QuantizedRows::bytes(b, w.input) + QuantizedRows::bytes(b, w.ff) + 64;
  return plan;
}

Result<std::unique_ptr<EncoderSession>> EncoderSession::create(std::shared_ptr<const Model> model,
                                                               ThreadTeam& team, EncoderOptions options) {
  const ModelConfig& c = model->config();
  if (!c.is_encoder())
    return fail(ErrorCode::kUnsupported, model->file().where(), "a {} model is no encoder",
                to_string(c.family));
  options = filled(c, options);
  if (options.n_ctx > c.n_ctx)
    return fail(ErrorCode::kInvalid, model->file().where(),
                "texts of {} tokens are asked for; the model was made for {}", options.n_ctx, c.n_ctx);
  const MemoryPlan plan = plan_encoder_memory(*model, options, team.size());
  if (options.memory_limit != 0 && plan.total() > options.memory_limit)
    return fail(
        ErrorCode::kOutOfBudget, model->file().where(),
        "needs {} ({} weights, {} activations), the limit is {}; --memory-limit {} is enough, and a "
        "smaller --ctx than {} helps",
        format_bytes(plan.total()), format_bytes(plan.weights_mapped_bytes + plan.weights_packed_bytes),
        format_bytes(plan.activation_bytes), format_bytes(options.memory_limit), plan.total(), options.n_ctx);
  const std::string where = model->file().where();
  return within_memory(where, plan.total(), [&] {
    return std::unique_ptr<EncoderSession>(new EncoderSession(std::move(model), team, options));
  });
}

EncoderSession::EncoderSession(std::shared_ptr<const Model> model, ThreadTeam& team, EncoderOptions options)
    : model_(std::move(model)), team_(team), options_(options), runs_(options.texts) {
  const ModelConfig& c = model_->config();
  arena_ = take_arena(plan_encoder_memory(*model_, options_, team.size()).activation_bytes);
  ArenaCursor arena(arena_);
  const Widths w = widths(c);
  const std::uint64_t b = options_.batch, r = options_.texts;
  scratch_size_ = scratch_floats(c, options_.n_ctx);
  hidden_ = arena.floats(b * c.n_embd);
  qkv_ = arena.floats(3 * b * w.query);
  attended_ = arena.floats(b * w.query);
  inner_ = arena.floats(b * w.ff);
  scratch_ = arena.floats(team.size() * scratch_size_);
  pooled_ = arena.floats(r * c.n_embd);
  head_ = arena.floats(r * c.n_embd);
  logits_ = arena.floats(r * w.outputs);
  input_ = QuantizedRows::take(arena, b, w.input);
  middle_ = QuantizedRows::take(arena, b, w.ff);
}

Result<void> EncoderSession::check(std::span<const Text> texts) const {
  std::uint64_t total = 0;
  if (texts.empty() || texts.size() > options_.texts)
    return fail(ErrorCode::kInvalid, "", "{} texts at once, 1…{} can be", texts.size(), options_.texts);
  for (const Text& text : texts) {
    if (text.empty() || text.size() > options_.n_ctx)
      return fail(ErrorCode::kInvalid, "", "a text of {} tokens, outside 1…{}", text.size(), options_.n_ctx);
    for (const TokenId id : text)
      if (id < 0 || id >= static_cast<TokenId>(model_->config().n_vocab))
        return fail(ErrorCode::kInvalid, "", "token {} is outside the vocabulary of {}", id,
                    model_->config().n_vocab);
    total += text.size();
  }
  if (total > options_.batch)
    return fail(ErrorCode::kInvalid, "", "{} tokens at once, the batch is {}", total, options_.batch);
  return {};
}

/// hidden_ = layer norm [Ba 2016] of hidden_, and quantized into input_ as its reader (null: none) wants it.
void EncoderSession::normalize(const Rows& rows, const float* weight, const float* bias,
                               const Model::Projection* reader) {
  const std::uint32_t n = model_->config().n_embd;
  float* const x = hidden_ + rows.first * n;
  const QuantizedRows input = input_.from(rows.first);
  rows.team.share(rows.count, n / 4 + 1, [&](std::uint32_t, std::uint64_t first, std::uint64_t last) {
    for (std::uint64_t t = first; t < last; ++t) {
      kernels::layer_norm(x + t * n, weight, bias, n, model_->config().norm_eps, x + t * n);
      if (reader != nullptr && reader->quantized) input.quantize(t, x, n, 0, n, reader->input_scale);
    }
  });
}

void EncoderSession::activate(float* x, std::size_t n) const {
  if (model_->config().encoder.gelu == Gelu::kErf)
    kernels::gelu_erf(x, n);
  else
    kernels::gelu(x, n);
}

/// A head's layer: x [count, n_embd] is quantized where the layer wants it so.
void EncoderSession::dense(const Model::Projection& projection, const float* x, std::size_t count,
                           float* out) {
  quantize_for(team_, projection, x, count, input_);
  project(team_, projection, x, input_, count, out, false);
}

/// Token, position and type embeddings, added.
void EncoderSession::embed_tokens(std::span<const Text> texts) {
  const std::uint32_t n = model_->config().n_embd;
  const kernels::Matrix& embedding = model_->token_embedding();
  const std::span<const std::byte> embedded(embedding.data, kernels::stored_bytes(embedding));
  std::uint32_t row = 0;
  n_runs_ = 0;
  for (const Text& text : texts) {
    for (std::size_t t = 0; t < text.size(); ++t) {
      float* const to = hidden_ + (row + t) * n;
      decode_rows(embedding.type, embedding.rows, embedding.columns, embedded,
                  static_cast<std::uint64_t>(text[t]), {to, n});
      kernels::add(to, model_->position_embedding() + t * n, n);
      if (model_->encoder().token_type != nullptr) kernels::add(to, model_->encoder().token_type, n);
    }
    runs_[n_runs_++] = {row, static_cast<std::uint32_t>(text.size())};
    row += static_cast<std::uint32_t>(text.size());
  }
}

/// A layer's rows up to its attention: their queries, keys and values.
void EncoderSession::before_attention(std::size_t index, const Rows& rows) {
  const Model::Layer& layer = model_->layers()[index];
  project(rows.team, layer.qkv, hidden_ + rows.first * model_->config().n_embd, input_.from(rows.first),
          rows.count, qkv_ + rows.first * layer.qkv.rows, false);
}

/// Attention of each text's tokens to one another: qkv_ to attended_.
void EncoderSession::attend(std::size_t layer) {
  const ModelConfig& c = model_->config();
  const std::size_t heads = c.layers[layer].n_head, q = heads * c.head_dim, stride = 3 * q;
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  std::uint64_t pairs = 0;
  for (std::size_t i = 0; i < n_runs_; ++i) pairs += std::uint64_t{runs_[i].count} * runs_[i].count;
  const std::uint64_t items = n_runs_ * heads, work = 2 * pairs * q / 40;  // some 40 products a nanosecond
  team_.share(items, work / items + 50, [&](std::uint32_t member, std::uint64_t first, std::uint64_t last) {
    for (std::uint64_t item = first; item < last; ++item) {
      const Run& run = runs_[item / heads];
      const std::size_t at = item % heads * c.head_dim;
      const float* const row = qkv_ + run.row * stride + at;
      kernels::attention_all(row, row + q, row + 2 * q, stride, run.count, c.head_dim, scale,
                             scratch_ + member * scratch_size_, attended_ + run.row * q + at, q);
    }
  });
}

/// From attention's result to the layer's: the rows of hidden_.
void EncoderSession::after_attention(std::size_t index, const Rows& rows) {
  const ModelConfig& c = model_->config();
  const Model::Layer& layer = model_->layers()[index];
  const std::size_t ff = c.layers[index].n_ff, q = std::size_t{c.layers[index].n_head} * c.head_dim,
                    count = rows.count;
  const float* const attended = attended_ + rows.first * q;
  float* const hidden = hidden_ + rows.first * c.n_embd;
  float* const inner = inner_ + rows.first * ff;
  const QuantizedRows input = input_.from(rows.first), middle = middle_.from(rows.first);
  quantize_for(rows.team, layer.attn_output, attended, count, input);
  project(rows.team, layer.attn_output, attended, input, count, hidden, true);
  normalize(rows, layer.attn_norm, layer.attn_norm_bias, &layer.ffn_up);
  // Whole blocks of the quantized result, so that each share makes its own.
  share_rows(rows.team, layer.ffn_up, 32, count, 1, [&](std::uint64_t first, std::uint64_t last) {
    multiply(layer.ffn_up, hidden, input, count, first, last, inner, ff, false);
    for (std::size_t t = 0; t < count; ++t) {
      activate(inner + t * ff + first, last - first);
      if (layer.ffn_down.quantized) middle.quantize(t, inner, ff, first, last, layer.ffn_down.input_scale);
    }
  });
  project(rows.team, layer.ffn_down, inner, middle, count, hidden, true);
  const bool last = index + 1 == c.layers.size();
  normalize(rows, layer.ffn_norm, layer.ffn_norm_bias, last ? nullptr : &model_->layers()[index + 1].qkv);
}

void EncoderSession::forward(std::span<const Text> texts) {
  const std::size_t layers = model_->config().layers.size();
  std::size_t count = 0;
  for (const Text& text : texts) count += text.size();
  embed_tokens(texts);
  const Model::Encoder& encoder = model_->encoder();
  // What lies between two layers' attentions is one stage.
  for (std::size_t layer = 0; layer <= layers; ++layer) {
    share_tokens(team_, count, count, [&](ThreadTeam& team, std::size_t first, std::size_t last) {
      const Rows rows{team, first, last - first};
      if (layer > 0)
        after_attention(layer - 1, rows);
      else
        normalize(rows, encoder.embedding_norm, encoder.embedding_norm_bias, &model_->layers()[0].qkv);
      if (layer < layers) before_attention(layer, rows);
    });
    if (layer < layers) attend(layer);
  }
}

Result<std::span<const float>> EncoderSession::states(std::span<const Text> texts) {
  RETORT_TRY(check(texts));
  forward(texts);
  const Run& last = runs_[n_runs_ - 1];
  return std::span<const float>(hidden_, std::size_t{last.row + last.count} * model_->config().n_embd);
}

Result<std::span<const float>> EncoderSession::embed(std::span<const Text> texts) {
  RETORT_TRY(check(texts));
  forward(texts);
  const std::size_t n = model_->config().n_embd;
  const bool first = model_->config().encoder.pooling == TextPooling::kCls;
  for (std::size_t i = 0; i < n_runs_; ++i) {
    float* const to = pooled_ + i * n;
    std::copy_n(hidden_ + runs_[i].row * n, n, to);
    for (std::uint32_t t = 1; t < (first ? 1 : runs_[i].count); ++t)
      kernels::add(to, hidden_ + (runs_[i].row + t) * n, n);
    double squares = 0;  // the mean's factor falls out
    for (std::size_t j = 0; j < n; ++j) squares += static_cast<double>(to[j]) * static_cast<double>(to[j]);
    const auto inverse = static_cast<float>(squares > 0 ? 1 / std::sqrt(squares) : 0.0);
    for (std::size_t j = 0; j < n; ++j) to[j] *= inverse;
  }
  return std::span<const float>(pooled_, n_runs_ * n);
}

Result<std::span<const float>> EncoderSession::classify(std::span<const Text> texts) {
  const Model::Encoder& encoder = model_->encoder();
  if (!encoder.classifier)
    return fail(ErrorCode::kUnsupported, model_->file().where(), "the model has no classification head");
  RETORT_TRY(check(texts));
  forward(texts);
  const std::size_t n = model_->config().n_embd;
  for (std::size_t i = 0; i < n_runs_; ++i) std::copy_n(hidden_ + runs_[i].row * n, n, pooled_ + i * n);
  const float* input = pooled_;
  if (encoder.pooler) {
    dense(encoder.pooler, pooled_, n_runs_, head_);
    kernels::hyperbolic_tangent(head_, n_runs_ * n);
    input = head_;
  }
  dense(encoder.classifier, input, n_runs_, logits_);
  return std::span<const float>(logits_, n_runs_ * encoder.classifier.rows);
}

Result<std::span<const float>> EncoderSession::predict(Text text, std::span<const std::uint32_t> positions) {
  const Model::Encoder& encoder = model_->encoder();
  if (!encoder.mlm_dense)
    return fail(ErrorCode::kUnsupported, model_->file().where(), "the model has no masked-LM head");
  RETORT_TRY(check({&text, 1}));
  if (positions.empty() || positions.size() > options_.texts)
    return fail(ErrorCode::kInvalid, "", "{} positions at once, 1…{} can be", positions.size(),
                options_.texts);
  for (const std::uint32_t position : positions)
    if (position >= text.size())
      return fail(ErrorCode::kInvalid, "", "position {} of a text of {} tokens", position, text.size());
  forward({&text, 1});
  const std::uint32_t n = model_->config().n_embd;
  const std::size_t count = positions.size();
  for (std::size_t i = 0; i < count; ++i) std::copy_n(hidden_ + positions[i] * n, n, pooled_ + i * n);
  dense(encoder.mlm_dense, pooled_, count, head_);
  activate(head_, count * n);
  for (std::size_t i = 0; i < count; ++i)
    kernels::layer_norm(head_ + i * n, encoder.mlm_norm, encoder.mlm_norm_bias, n, model_->config().norm_eps,
                        head_ + i * n);
  dense(model_->output(), head_, count, logits_);
  return std::span<const float>(logits_, count * model_->config().n_vocab);
}

}  // namespace retort
