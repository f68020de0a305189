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

std::uint64_t aligned(std::uint64_t bytes) { return (bytes + 63) / 64 * 64; }

std::uint64_t padded(std::uint64_t positions) {
  return (positions + kernels::kPositionBlock - 1) / kernels::kPositionBlock * kernels::kPositionBlock;
}

/// Multiplications below which waking the team costs more than it saves.
constexpr std::uint64_t kWorthSharing = 200'000;

}  // namespace

MemoryPlan plan_memory(const Model& model, const SessionOptions& given, std::uint32_t threads) {
  const ModelConfig& c = model.config();
  const std::uint64_t n_ctx = given.n_ctx == 0 ? c.n_ctx : given.n_ctx, stride = padded(n_ctx);
  const std::uint64_t batch = given.batch;
  const Widths w = widths(c);
  MemoryPlan plan;
  plan.weights_mapped_bytes = model.file().file_length();
  for (const LayerShape& layer : c.layers)
    plan.kv_cache_bytes += 2 * aligned(4 * stride * layer.n_head_kv * c.head_dim);
  const std::uint64_t rows = given.logits_of_all ? batch : 1;
  plan.activation_bytes = 2 * aligned(4 * batch * c.n_embd) + 2 * aligned(4 * batch * w.query) +
                          2 * aligned(4 * batch * w.hidden) + aligned(4 * rows * c.n_vocab) +
                          aligned(4 * threads * stride) + aligned(4 * n_ctx * c.head_dim) +
                          aligned(2 * batch * w.input) + aligned(4 * batch * ((w.input + 31) / 32)) + 64;
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
  arena_.reset(std::calloc(size, 1));  // pages that are never touched stay unmapped
  if (!arena_) std::abort();           // out of memory ends the process
  std::uintptr_t at = aligned(reinterpret_cast<std::uintptr_t>(arena_.get()));
  const auto take = [&](std::uint64_t bytes) {
    void* const here = reinterpret_cast<void*>(at);
    at += aligned(bytes);
    return here;
  };
  const auto floats = [&](std::uint64_t count) { return static_cast<float*>(take(4 * count)); };
  const Widths w = widths(c);
  const std::uint64_t b = options_.batch, n_ctx = options_.n_ctx, stride = padded(n_ctx);
  hidden_ = floats(b * c.n_embd);
  normed_ = floats(b * c.n_embd);
  query_ = floats(b * w.query);
  attended_ = floats(b * w.query);
  gate_ = floats(b * w.hidden);
  up_ = floats(b * w.hidden);
  logits_ = floats((options_.logits_of_all ? b : 1) * c.n_vocab);
  scores_ = floats(team.size() * stride);
  rope_ = floats(n_ctx * c.head_dim);
  quantized_ = static_cast<std::int16_t*>(take(2 * b * w.input));
  scales_ = floats(b * ((w.input + 31) / 32));
  for (const LayerShape& layer : c.layers) {
    keys_.push_back(floats(stride * layer.n_head_kv * c.head_dim));
    values_.push_back(floats(stride * layer.n_head_kv * c.head_dim));
  }
  if (c.family != ModelFamily::kLlama) return;
  const std::uint32_t half = c.head_dim / 2;
  for (std::uint32_t i = 0; i < half; ++i) {
    const double step = std::pow(static_cast<double>(c.rope_theta), -2.0 * i / c.head_dim);
    for (std::uint64_t p = 0; p < n_ctx; ++p) {
      const double angle = static_cast<double>(p) * step;
      rope_[p * c.head_dim + i] = static_cast<float>(std::cos(angle));
      rope_[p * c.head_dim + half + i] = static_cast<float>(std::sin(angle));
    }
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

/// Into how many chunks the team splits so many multiplications; 1: the caller does them alone.
std::uint32_t Session::chunks(std::uint64_t multiplications) const {
  if (team_.size() == 1 || multiplications < kWorthSharing) return 1;
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(4 * team_.size(), 2 * multiplications / kWorthSharing));
}

/// Chunk by chunk the same share of each product's rows, then after(first, last) with the last product's.
template <typename After>
void Session::project(std::initializer_list<Product> products, const float* x, std::size_t count,
                      const After& after) {
  const std::uint32_t columns = products.begin()->weight.columns;
  std::uint64_t work = 0;
  bool quantize = false;
  for (const Product& p : products) {
    work += std::uint64_t{p.weight.rows} * columns * count;
    quantize |= p.weight.type == TensorType::kQ8_0;
  }
  if (quantize)
    for (std::size_t t = 0; t < count; ++t)
      kernels::quantize_q8(x + t * columns, columns, quantized_ + t * columns, scales_ + t * (columns / 32));
  const kernels::Activations input{static_cast<std::uint32_t>(count), columns, x, quantized_, scales_};
  const auto share = [&](std::uint32_t part, std::uint32_t parts) {
    std::uint32_t first = 0, last = 0;
    for (const Product& p : products) {
      const std::uint64_t fours = (p.weight.rows + 3) / 4;
      first = static_cast<std::uint32_t>(fours * part / parts * 4);
      last =
          std::min<std::uint32_t>(p.weight.rows, static_cast<std::uint32_t>(fours * (part + 1) / parts * 4));
      kernels::matmul(p.weight, input, first, last, p.bias, p.out, p.stride);
    }
    after(first, last);
  };
  const std::uint32_t parts = chunks(work);
  if (parts == 1)
    share(0, 1);
  else
    team_.run(parts, [&](std::uint32_t, std::uint32_t part) { share(part, parts); });
}

void Session::project(const Product& product, const float* x, std::size_t count) {
  project({product}, x, count, [](std::uint32_t, std::uint32_t) {});
}

/// Layer norm [Ba 2016] where there is a bias, RMS norm [Zhang 2019] where there is none.
void Session::normalize(const float* x, const float* weight, const float* bias, std::size_t count,
                        float* out) {
  const std::uint32_t n = model_->config().n_embd;
  const float eps = model_->config().norm_eps;
  for (std::size_t t = 0; t < count; ++t, x += n, out += n)
    if (bias != nullptr)
      kernels::layer_norm(x, weight, bias, n, eps, out);
    else
      kernels::rms_norm(x, weight, n, eps, out);
}

/// Puts `count` rows of new keys and values into the caches, dimension by dimension.
void Session::store(std::size_t layer, const float* keys, const float* values, std::size_t stride,
                    std::size_t count) {
  const std::size_t width = std::size_t{model_->config().layers[layer].n_head_kv} * model_->config().head_dim;
  const std::size_t positions = padded(options_.n_ctx);
  for (std::size_t d = 0; d < width; ++d) {
    float* const k = keys_[layer] + d * positions + position_;
    float* const v = values_[layer] + d * positions + position_;
    for (std::size_t t = 0; t < count; ++t) {
      k[t] = keys[t * stride + d];
      v[t] = values[t * stride + d];
    }
  }
}

/// Causal attention with grouped K and V heads [Ainslie 2023]: query_ [count, n_head * head_dim] to
/// attended_.
void Session::attention(std::size_t index, std::size_t count) {
  const ModelConfig& c = model_->config();
  const LayerShape& shape = c.layers[index];
  const std::size_t stride = padded(options_.n_ctx), group = shape.n_head / shape.n_head_kv;
  const std::size_t query_width = std::size_t{shape.n_head} * c.head_dim, items = count * shape.n_head;
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  const auto share = [&](std::uint32_t member, std::uint32_t part, std::uint32_t parts) {
    float* const scores = scores_ + member * stride;
    for (std::size_t item = part; item < items; item += parts) {
      const std::size_t t = item / shape.n_head, head = item % shape.n_head;
      const std::size_t row = t * query_width + head * c.head_dim, cache = head / group * c.head_dim * stride;
      kernels::attention(query_ + row, keys_[index] + cache, values_[index] + cache,
                         static_cast<std::uint32_t>(position_ + t + 1), stride, c.head_dim, scale, scores,
                         attended_ + row);
    }
  };
  const std::uint32_t parts = chunks(2 * items * (position_ + count) * c.head_dim);
  if (parts == 1)
    share(0, 0, 1);
  else
    team_.run(parts, [&](std::uint32_t member, std::uint32_t part) { share(member, part, parts); });
}

void Session::forward(std::span<const TokenId> tokens, bool all_logits) {
  const ModelConfig& c = model_->config();
  const std::size_t count = tokens.size(), n_embd = c.n_embd;
  const bool llama = c.family == ModelFamily::kLlama;
  const kernels::Matrix& embedding = model_->token_embedding();
  const std::uint64_t embedding_bytes = *row_bytes(embedding.type, embedding.columns);
  for (std::size_t t = 0; t < count; ++t) {
    float* row = hidden_ + t * n_embd;
    decode_row(embedding.type,
               {embedding.data + static_cast<std::uint64_t>(tokens[t]) * embedding_bytes, embedding_bytes},
               {row, n_embd});
    if (!llama) kernels::add(row, model_->position_embedding() + (position_ + t) * n_embd, n_embd);
  }
  for (std::size_t i = 0; i < c.layers.size(); ++i) {
    const Model::Layer& layer = model_->layers()[i];
    const LayerShape& shape = c.layers[i];
    const std::size_t q = std::size_t{shape.n_head} * c.head_dim,
                      kv = std::size_t{shape.n_head_kv} * c.head_dim, ff = shape.n_ff;
    const auto nothing = [](std::uint32_t, std::uint32_t) {};
    normalize(hidden_, layer.attn_norm, layer.attn_norm_bias, count, normed_);
    if (llama) {
      float *const keys = gate_, *const values = up_;
      project({{layer.q, nullptr, query_, q}, {layer.k, nullptr, keys, kv}, {layer.v, nullptr, values, kv}},
              normed_, count, nothing);
      // Rotary embedding [Su 2021].
      for (std::size_t t = 0; t < count; ++t) {
        const float *cosine = rope_ + (position_ + t) * c.head_dim, *sine = cosine + c.head_dim / 2;
        kernels::rope(query_ + t * q, shape.n_head, c.head_dim, cosine, sine);
        kernels::rope(keys + t * kv, shape.n_head_kv, c.head_dim, cosine, sine);
      }
      store(i, keys, values, kv, count);
    } else {
      const std::size_t fused = q + 2 * kv;
      project({layer.qkv, layer.qkv_bias, gate_, fused}, normed_, count);
      for (std::size_t t = 0; t < count; ++t)
        std::memcpy(query_ + t * q, gate_ + t * fused, q * sizeof(float));
      store(i, gate_ + q, gate_ + q + kv, fused, count);
    }
    attention(i, count);
    project({layer.attn_output, layer.attn_output_bias, normed_, n_embd}, attended_, count);
    kernels::add(hidden_, normed_, count * n_embd);

    normalize(hidden_, layer.ffn_norm, layer.ffn_norm_bias, count, normed_);
    if (llama) {  // SwiGLU [Shazeer 2020]
      project({{layer.ffn_gate, nullptr, gate_, ff}, {layer.ffn_up, nullptr, up_, ff}}, normed_, count,
              [&](std::uint32_t first, std::uint32_t last) {
                for (std::size_t t = 0; t < count; ++t)
                  kernels::silu_mul(gate_ + t * ff + first, up_ + t * ff + first, last - first);
              });
    } else {
      project({{layer.ffn_up, layer.ffn_up_bias, gate_, ff}}, normed_, count,
              [&](std::uint32_t first, std::uint32_t last) {
                for (std::size_t t = 0; t < count; ++t) kernels::gelu(gate_ + t * ff + first, last - first);
              });
    }
    project({layer.ffn_down, layer.ffn_down_bias, normed_, n_embd}, gate_, count);
    kernels::add(hidden_, normed_, count * n_embd);
  }
  position_ += static_cast<std::uint32_t>(count);
  const std::size_t first = all_logits ? 0 : count - 1, outputs = count - first;
  normalize(hidden_ + first * n_embd, model_->output_norm(), model_->output_norm_bias(), outputs, normed_);
  project({model_->output(), nullptr, logits_, c.n_vocab}, normed_, outputs);
}

}  // namespace retort
