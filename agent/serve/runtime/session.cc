#include "agent/serve/runtime/session.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/core/units.h"

namespace retort {
namespace {

struct Widths {
  std::uint64_t query = 0, hidden = 0, input = 0;
};

/// The widest of each kind over all layers, in values.
Widths widths(const ModelConfig& c) {
  Widths w;
  for (const LayerShape& layer : c.layers) {
    const std::uint64_t q = std::uint64_t{layer.n_head} * c.head_dim,
                        kv = std::uint64_t{layer.n_head_kv} * c.head_dim;
    w.query = std::max(w.query, q);
    w.hidden = std::max<std::uint64_t>({w.hidden, layer.n_ff, q + 2 * kv});
  }
  w.input = std::max<std::uint64_t>({c.n_embd, w.query, w.hidden});
  return w;
}

/// Multiplications below which waking the other threads costs more than the work that they would take over.
constexpr std::uint64_t kWorthSharing = 1 << 16;

std::uint64_t aligned(std::uint64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

MemoryPlan plan_memory(const Model& model, const SessionOptions& given, std::uint32_t threads) {
  const ModelConfig& c = model.config();
  const std::uint64_t n_ctx = given.n_ctx == 0 ? c.n_ctx : given.n_ctx, batch = given.batch;
  const Widths w = widths(c);
  MemoryPlan plan;
  plan.weights_mapped_bytes = model.file().file_length();
  for (const LayerShape& layer : c.layers)
    plan.kv_cache_bytes += 2 * aligned(4 * n_ctx * layer.n_head_kv * c.head_dim);
  const std::uint64_t rows = given.logits_of_all ? batch : 1;
  plan.activation_bytes = 2 * aligned(4 * batch * c.n_embd) + 2 * aligned(4 * batch * w.query) +
                          2 * aligned(4 * batch * w.hidden) + aligned(4 * rows * c.n_vocab) +
                          aligned(4 * threads * n_ctx) + aligned(4 * n_ctx * c.head_dim) +
                          aligned(sizeof(ActivationBlock) * batch * ((w.input + 31) / 32)) + 64;
  return plan;
}

Result<std::unique_ptr<Session>> Session::create(std::shared_ptr<const Model> model, ThreadTeam& team,
                                                 SessionOptions options) {
  const ModelConfig& c = model->config();
  if (options.n_ctx == 0) options.n_ctx = c.n_ctx;
  if (options.n_ctx > c.n_ctx)
    return fail(ErrorCode::kInvalid, model->file().where(),
                "a context of {} tokens is asked for; the model was made for {}", options.n_ctx, c.n_ctx);
  options.batch = std::clamp<std::uint32_t>(options.batch, 1, options.n_ctx);
  const MemoryPlan plan = plan_memory(*model, options, team.size());
  if (options.memory_limit != 0 && plan.total() > options.memory_limit)
    return fail(
        ErrorCode::kOutOfBudget, model->file().where(),
        "needs {} ({} weights, {} KV cache, {} activations), the limit is {}; a smaller --ctx than {} helps",
        format_bytes(plan.total()), format_bytes(plan.weights_mapped_bytes),
        format_bytes(plan.kv_cache_bytes), format_bytes(plan.activation_bytes),
        format_bytes(options.memory_limit), options.n_ctx);
  return std::unique_ptr<Session>(new Session(std::move(model), team, options));
}

Session::Session(std::shared_ptr<const Model> model, ThreadTeam& team, SessionOptions options)
    : model_(std::move(model)), team_(team), options_(options) {
  const ModelConfig& c = model_->config();
  const MemoryPlan plan = plan_memory(*model_, options_, team.size());
  const std::uint64_t size = plan.kv_cache_bytes + plan.activation_bytes;
  arena_ = std::make_unique_for_overwrite<std::byte[]>(size);
  std::uintptr_t at = aligned(reinterpret_cast<std::uintptr_t>(arena_.get()));
  const auto take = [&](std::uint64_t bytes) {
    void* const here = reinterpret_cast<void*>(at);
    at += aligned(bytes);
    return here;
  };
  const auto floats = [&](std::uint64_t count) { return static_cast<float*>(take(4 * count)); };
  const Widths w = widths(c);
  const std::uint64_t b = options_.batch, n_ctx = options_.n_ctx;
  hidden_ = floats(b * c.n_embd);
  normed_ = floats(b * c.n_embd);
  query_ = floats(b * w.query);
  attended_ = floats(b * w.query);
  gate_ = floats(b * w.hidden);
  up_ = floats(b * w.hidden);
  logits_ = floats((options_.logits_of_all ? b : 1) * c.n_vocab);
  scores_ = floats(team.size() * n_ctx);
  rope_ = floats(n_ctx * c.head_dim);
  quantized_ = static_cast<ActivationBlock*>(take(sizeof(ActivationBlock) * b * ((w.input + 31) / 32)));
  for (const LayerShape& layer : c.layers) {
    keys_.push_back(floats(n_ctx * layer.n_head_kv * c.head_dim));
    values_.push_back(floats(n_ctx * layer.n_head_kv * c.head_dim));
  }
  for (std::uint64_t p = 0; p < n_ctx && c.family == ModelFamily::kLlama; ++p)
    for (std::uint32_t i = 0; i < c.head_dim / 2; ++i) {
      const double angle =
          static_cast<double>(p) * std::pow(static_cast<double>(c.rope_theta), -2.0 * i / c.head_dim);
      rope_[p * c.head_dim + 2 * i] = static_cast<float>(std::cos(angle));
      rope_[p * c.head_dim + 2 * i + 1] = static_cast<float>(std::sin(angle));
    }
}

Result<void> Session::check(std::span<const TokenId> tokens) const {
  if (tokens.empty()) return fail(ErrorCode::kInvalid, "", "no tokens to compute");
  for (const TokenId id : tokens)
    if (id < 0 || id >= static_cast<TokenId>(model_->config().n_vocab))
      return fail(ErrorCode::kInvalid, "", "token {} is outside the vocabulary of {}", id,
                  model_->config().n_vocab);
  if (tokens.size() > options_.n_ctx - position_)
    return fail(ErrorCode::kInvalid, "", "{} tokens after {} exceed the context of {}", tokens.size(),
                position_, options_.n_ctx);
  return {};
}

Result<std::span<const float>> Session::evaluate(std::span<const TokenId> tokens) {
  RETORT_TRY(check(tokens));
  while (!tokens.empty()) {
    const std::size_t n = std::min<std::size_t>(tokens.size(), options_.batch);
    forward(tokens.first(n), false);
    tokens = tokens.subspan(n);
  }
  return std::span<const float>(logits_, model_->config().n_vocab);
}

Result<std::span<const float>> Session::evaluate_all(std::span<const TokenId> tokens) {
  RETORT_TRY(check(tokens));
  if (!options_.logits_of_all || tokens.size() > options_.batch)
    return fail(ErrorCode::kInvalid, "", "{} tokens at once, the batch is {}", tokens.size(), options_.batch);
  forward(tokens, true);
  return std::span<const float>(logits_, tokens.size() * model_->config().n_vocab);
}

void Session::project(const Matrix& w, const float* x, std::size_t count, float* out, std::size_t out_stride,
                      const float* bias) {
  const Kernels& k = kernels();
  const bool shared = std::uint64_t{w.rows} * w.columns * count >= kWorthSharing;
  const std::uint32_t members = shared ? team_.size() : 1;
  if (w.type == TensorType::kQ8_0)
    for (std::size_t t = 0; t < count; ++t)
      k.quantize(x + t * w.columns, quantized_ + t * (w.columns / 32), w.columns);
  const auto rows = [&](std::uint32_t member) {
    const std::uint32_t first = static_cast<std::uint32_t>(std::uint64_t{w.rows} * member / members);
    const std::uint32_t last = static_cast<std::uint32_t>(std::uint64_t{w.rows} * (member + 1) / members);
    matmul(k, w, first, last, x, quantized_, count, out, out_stride);
    if (bias != nullptr)
      for (std::size_t t = 0; t < count; ++t)
        for (std::uint32_t r = first; r < last; ++r) out[t * out_stride + r] += bias[r];
  };
  if (shared)
    team_.run(rows);
  else
    rows(0);
}

void Session::normalize(const float* x, const float* weight, const float* bias, std::size_t count,
                        float* out) {
  const std::uint32_t n = model_->config().n_embd;
  const float eps = model_->config().norm_eps;
  for (std::size_t t = 0; t < count; ++t, x += n, out += n) {
    float mean = 0;
    if (bias != nullptr) {  // layer norm [Ba 2016]; without a bias RMS norm [Zhang 2019]
      double sum = 0;
      for (std::uint32_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]);
      mean = static_cast<float>(sum / n);
    }
    double squares = 0;
    for (std::uint32_t i = 0; i < n; ++i) squares += static_cast<double>((x[i] - mean) * (x[i] - mean));
    const float scale = 1.0f / std::sqrt(static_cast<float>(squares / n) + eps);
    for (std::uint32_t i = 0; i < n; ++i)
      out[i] = (x[i] - mean) * scale * weight[i] + (bias != nullptr ? bias[i] : 0.0f);
  }
}

/// Causal attention with grouped K and V heads [Ainslie 2023]: query_ [count, n_head * head_dim] to
/// attended_.
void Session::attention(std::size_t index, std::size_t count) {
  const ModelConfig& c = model_->config();
  const LayerShape& shape = c.layers[index];
  const std::size_t width = std::size_t{shape.n_head_kv} * c.head_dim, group = shape.n_head / shape.n_head_kv;
  const std::size_t query_width = std::size_t{shape.n_head} * c.head_dim, work = count * shape.n_head;
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  const Kernels& k = kernels();
  const bool shared = work * 2 * c.head_dim * (position_ + count) >= kWorthSharing;
  const std::size_t members = shared ? team_.size() : 1;
  const auto heads = [&](std::uint32_t member) {
    float* scores = scores_ + std::size_t{member} * options_.n_ctx;
    for (std::size_t item = work * member / members; item < work * (member + 1) / members; ++item) {
      const std::size_t t = item / shape.n_head, head = item % shape.n_head, past = position_ + t + 1;
      const float* query = query_ + t * query_width + head * c.head_dim;
      const float* key = keys_[index] + head / group * c.head_dim;
      const float* value = values_[index] + head / group * c.head_dim;
      float largest = -INFINITY;
      for (std::size_t p = 0; p < past; ++p) {
        scores[p] = k.dot_f32(query, key + p * width, c.head_dim) * scale;
        largest = std::max(largest, scores[p]);
      }
      float sum = 0;
      for (std::size_t p = 0; p < past; ++p) sum += scores[p] = std::exp(scores[p] - largest);
      float* out = attended_ + t * query_width + head * c.head_dim;
      std::fill_n(out, c.head_dim, 0.0f);
      for (std::size_t p = 0; p < past; ++p) k.axpy(out, value + p * width, scores[p] / sum, c.head_dim);
    }
  };
  if (shared)
    team_.run(heads);
  else
    heads(0);
}

void Session::forward(std::span<const TokenId> tokens, bool all_logits) {
  const ModelConfig& c = model_->config();
  const Kernels& k = kernels();
  const std::size_t count = tokens.size(), n_embd = c.n_embd;
  const bool llama = c.family == ModelFamily::kLlama;
  const Matrix& embedding = model_->token_embedding();
  for (std::size_t t = 0; t < count; ++t) {
    float* row = hidden_ + t * n_embd;
    decode_row(
        embedding.type,
        {embedding.data + static_cast<std::uint64_t>(tokens[t]) * embedding.row_bytes, embedding.row_bytes},
        {row, n_embd});
    if (!llama) k.axpy(row, model_->position_embedding() + (position_ + t) * n_embd, 1.0f, n_embd);
  }
  for (std::size_t i = 0; i < c.layers.size(); ++i) {
    const Model::Layer& layer = model_->layers()[i];
    const LayerShape& shape = c.layers[i];
    const std::size_t q = std::size_t{shape.n_head} * c.head_dim,
                      kv = std::size_t{shape.n_head_kv} * c.head_dim;
    float* const keys = keys_[i] + position_ * kv;
    float* const values = values_[i] + position_ * kv;
    normalize(hidden_, layer.attn_norm, layer.attn_norm_bias, count, normed_);
    if (llama) {
      project(layer.q, normed_, count, query_, q, nullptr);
      project(layer.k, normed_, count, keys, kv, nullptr);
      project(layer.v, normed_, count, values, kv, nullptr);
      // Rotary embedding [Su 2021] over neighbouring pairs, the layout that GGUF's Q and K rows are in.
      const auto rotate = [&](float* x, std::size_t heads, std::size_t t) {
        const float* angles = rope_ + (position_ + t) * c.head_dim;
        for (std::size_t h = 0; h < heads; ++h, x += c.head_dim)
          for (std::size_t j = 0; j < c.head_dim; j += 2) {
            const float a = x[j], b = x[j + 1];
            x[j] = a * angles[j] - b * angles[j + 1];
            x[j + 1] = a * angles[j + 1] + b * angles[j];
          }
      };
      for (std::size_t t = 0; t < count; ++t) {
        rotate(query_ + t * q, shape.n_head, t);
        rotate(keys + t * kv, shape.n_head_kv, t);
      }
    } else {
      const std::size_t fused = q + 2 * kv;
      project(layer.qkv, normed_, count, gate_, fused, layer.qkv_bias);
      for (std::size_t t = 0; t < count; ++t) {
        std::memcpy(query_ + t * q, gate_ + t * fused, q * sizeof(float));
        std::memcpy(keys + t * kv, gate_ + t * fused + q, kv * sizeof(float));
        std::memcpy(values + t * kv, gate_ + t * fused + q + kv, kv * sizeof(float));
      }
    }
    attention(i, count);
    project(layer.attn_output, attended_, count, normed_, n_embd, layer.attn_output_bias);
    k.axpy(hidden_, normed_, 1.0f, count * n_embd);

    normalize(hidden_, layer.ffn_norm, layer.ffn_norm_bias, count, normed_);
    project(layer.ffn_up, normed_, count, up_, shape.n_ff, layer.ffn_up_bias);
    const std::size_t hidden = count * shape.n_ff;
    if (llama) {
      project(layer.ffn_gate, normed_, count, gate_, shape.n_ff, nullptr);
      for (std::size_t j = 0; j < hidden; ++j)
        up_[j] *= gate_[j] / (1.0f + std::exp(-gate_[j]));  // SwiGLU [Shazeer 2020]
    } else {
      for (std::size_t j = 0; j < hidden; ++j) {  // GELU by tanh, as GPT-2 computes it
        const float x = up_[j];
        up_[j] = 0.5f * x * (1.0f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
      }
    }
    project(layer.ffn_down, up_, count, normed_, n_embd, layer.ffn_down_bias);
    k.axpy(hidden_, normed_, 1.0f, count * n_embd);
  }
  position_ += static_cast<std::uint32_t>(count);
  const std::size_t first = all_logits ? 0 : count - 1, outputs = count - first;
  normalize(hidden_ + first * n_embd, model_->output_norm(), model_->output_norm_bias(), outputs, normed_);
  project(model_->output(), normed_, outputs, logits_, c.n_vocab, nullptr);
}

}  // namespace retort
