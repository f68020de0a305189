#include "tests/support/bert_reference.h"

#include <cmath>
#include <numeric>
#include <string>

#include "common/blocks/tensor_type.h"

namespace retort::testing {
namespace {

using Row = BertReference::Row;

void add(Row& to, const Row& what) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += what[i];
}

double dot(const Row& a, const Row& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

}  // namespace

std::vector<Row> BertReference::states(std::span<const TokenId> ids) const {
  std::vector<Row> x;
  for (std::size_t t = 0; t < ids.size(); ++t) {
    Row row = tensor("token_embd.weight", static_cast<std::size_t>(ids[t]));
    add(row, tensor("position_embd.weight", t));
    if (c_.encoder.n_token_types > 0) add(row, tensor("token_types.weight", 0));
    x.push_back(normalized(row, "token_embd_norm"));
  }
  for (std::size_t i = 0; i < c_.layers.size(); ++i) {
    const std::string p = "blk." + std::to_string(i) + ".";
    std::vector<Row> q, k, v;
    for (const Row& row : x) {
      q.push_back(linear(row, p + "attn_q"));
      k.push_back(linear(row, p + "attn_k"));
      v.push_back(linear(row, p + "attn_v"));
    }
    for (std::size_t t = 0; t < x.size(); ++t) {
      Row mixed(q[t].size(), 0.0);
      for (std::size_t h = 0; h < c_.layers[i].n_head; ++h) {
        const std::size_t from = h * c_.head_dim;
        std::vector<double> weight(x.size());
        double sum = 0;
        for (std::size_t j = 0; j < x.size(); ++j) {
          double product = 0;
          for (std::size_t d = 0; d < c_.head_dim; ++d) product += q[t][from + d] * k[j][from + d];
          sum += weight[j] = std::exp(product / std::sqrt(double(c_.head_dim)));
        }
        for (std::size_t j = 0; j < x.size(); ++j)
          for (std::size_t d = 0; d < c_.head_dim; ++d) mixed[from + d] += weight[j] / sum * v[j][from + d];
      }
      Row after = linear(mixed, p + "attn_output");
      add(after, x[t]);
      after = normalized(after, p + "attn_output_norm");
      Row inner = linear(after, p + "ffn_up");
      for (double& value : inner) value = gelu(value);
      Row out = linear(inner, p + "ffn_down");
      add(out, after);
      x[t] = normalized(out, p + "layer_output_norm");  // q, k and v of this layer are all made already
    }
  }
  return x;
}

Row BertReference::embedding(std::span<const TokenId> ids) const {
  const std::vector<Row> all = states(ids);
  Row pooled = all[0];
  if (c_.encoder.pooling != TextPooling::kCls)
    for (std::size_t t = 1; t < all.size(); ++t) add(pooled, all[t]);
  const double length = std::sqrt(dot(pooled, pooled));
  for (double& value : pooled) value /= length;
  return pooled;
}

Row BertReference::classify(const Row& first) const {
  Row pooled = linear(first, "cls");
  for (double& value : pooled) value = std::tanh(value);
  return linear(pooled, "cls.output");
}

Row BertReference::predict(const Row& state) const {
  Row head = linear(state, "mlm.dense");
  for (double& value : head) value = gelu(value);
  head = normalized(head, "mlm.norm");
  const Row bias = tensor("output.bias", 0);
  Row logits(c_.n_vocab);
  for (std::size_t id = 0; id < logits.size(); ++id)
    logits[id] = bias[id] + dot(head, tensor(c_.tied_embeddings ? "token_embd.weight" : "output.weight", id));
  return logits;
}

Row BertReference::tensor(const std::string& name, std::size_t row) const {
  const GgufTensor* t = file_.tensor(name);
  std::vector<float> values(t->columns());
  const std::size_t bytes = t->data.size() / t->rows();
  decode_row(t->type, t->data.subspan(row * bytes, bytes), values);
  return {values.begin(), values.end()};
}

Row BertReference::linear(const Row& x, const std::string& name) const {
  Row out = tensor(name + ".bias", 0);
  for (std::size_t r = 0; r < out.size(); ++r) out[r] += dot(x, tensor(name + ".weight", r));
  return out;
}

Row BertReference::normalized(const Row& x, const std::string& name) const {
  const Row weight = tensor(name + ".weight", 0), bias = tensor(name + ".bias", 0);
  const double n = static_cast<double>(x.size()), mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
  double variance = 0;
  for (const double v : x) variance += (v - mean) * (v - mean) / n;
  Row out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    out[i] = (x[i] - mean) / std::sqrt(variance + double(c_.norm_eps)) * weight[i] + bias[i];
  return out;
}

double BertReference::gelu(double x) const {
  if (c_.encoder.gelu == Gelu::kErf) return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

}  // namespace retort::testing
