#include "coordinator/worker/classifier.h"

#include "coordinator/worker/prune.h"

namespace retort {
namespace {

using at::Tensor;

Tensor activated(const Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kGelu:
      return at::gelu(x, "tanh");
    case Activation::kTanh:
      return at::tanh(x);
    case Activation::kNone:
      break;
  }
  return x;
}

void add_to(std::vector<Tensor>& sums, std::size_t at, const Tensor& more) {
  if (sums.size() <= at) sums.resize(at + 1);
  sums[at] = sums[at].defined() ? sums[at] + more : more;
}

Tensor tensor_logits(const Network& n, const Tensor& inputs, OutputSums* sums, Trace* trace) {
  const auto tell = [&](const std::string& weight, const Tensor& input) {
    if (trace != nullptr && trace->inputs) trace->inputs(weight, input);
  };
  const ClassifierConfig& c = *n.classifier;
  const std::int64_t batch = inputs.size(0);
  Tensor x = inputs.to(n.device()).view({batch, c.input.channels, -1});
  if (!c.mean.empty()) {
    const auto column = [&](const std::vector<float>& values) {
      return at::tensor(values).view({1, -1, 1}).to(n.device());
    };
    x = (x - column(c.mean)) / column(c.std);
  }
  x = x.view({batch, c.input.channels, c.input.height, c.input.width});
  for (std::size_t i = 0; i < c.convolutions.size(); ++i) {
    const Convolution& conv = c.convolutions[i];
    const std::string name = "conv." + std::to_string(i);
    tell(name + ".weight", x);
    x = at::conv2d(x, n.weight(name + ".weight"), n.weight(name + ".bias"), conv.stride, conv.padding);
    x = activated(x, conv.activation);
    if (sums != nullptr) add_to(sums->channels, i, x.detach().abs().sum(at::IntArrayRef({0, 2, 3})));
    if (conv.pooling == Pooling::kMax) x = at::max_pool2d(x, conv.pool_size, conv.pool_stride);
    if (conv.pooling == Pooling::kAverage) x = at::avg_pool2d(x, conv.pool_size, conv.pool_stride);
  }
  x = x.reshape({batch, -1});
  for (std::size_t i = 0; i <= c.hidden.size(); ++i) {
    const std::string name = "dense." + std::to_string(i);
    tell(name + ".weight", x);
    x = at::linear(x, n.weight(name + ".weight"), n.weight(name + ".bias"));
    if (i == c.hidden.size()) break;
    x = activated(x, c.activation);
    if (sums != nullptr) add_to(sums->dense, i, x.detach().abs().sum(0));
  }
  return x;
}

}  // namespace

Tensor class_logits(const Network& network, const ExampleBatch& batch, OutputSums* sums, Trace* trace) {
  if (network.classifier) return tensor_logits(network, batch.inputs, sums, trace);
  const Tensor first = encode_text(network, batch.inputs, batch.tokens, trace).select(1, 0);
  return text_class_logits(network, first, trace);
}

Network prune_classifier(const Network& network, const ClassifierConfig& target, const OutputSums* sums) {
  torch::NoGradGuard no_grad;
  const ClassifierConfig& c = *network.classifier;
  Network out;
  out.classifier = target;
  for (const auto& [name, tensor] : network.weights) out.weights[name] = tensor.detach();
  const auto cut = [&](const std::string& name, std::int64_t dimension, const Tensor& kept) {
    Tensor& tensor = out.weights.at(name);
    tensor = tensor.index_select(dimension, kept);
  };
  for (std::size_t i = 0; i < c.convolutions.size(); ++i) {
    const std::string name = "conv." + std::to_string(i);
    const Tensor scores = sums != nullptr
                              ? sums->channels.at(i)
                              : network.weight(name + ".weight").abs().sum(at::IntArrayRef({1, 2, 3}));
    const Tensor kept = best_of(scores, target.convolutions[i].out_channels);
    cut(name + ".weight", 0, kept);
    cut(name + ".bias", 0, kept);
    if (i + 1 < c.convolutions.size()) {
      cut("conv." + std::to_string(i + 1) + ".weight", 1, kept);
      continue;
    }
    Tensor& dense = out.weights.at("dense.0.weight");  // reads the last map channel by channel
    const std::int64_t rows = dense.size(0);
    dense = dense.view({rows, c.convolutions[i].out_channels, -1}).index_select(1, kept).reshape({rows, -1});
  }
  for (std::size_t i = 0; i < c.hidden.size(); ++i) {
    const std::string name = "dense." + std::to_string(i);
    const Tensor scores = sums != nullptr ? sums->dense.at(i) : network.weight(name + ".weight").abs().sum(1);
    const Tensor kept = best_of(scores, target.hidden[i]);
    cut(name + ".weight", 0, kept);
    cut(name + ".bias", 0, kept);
    cut("dense." + std::to_string(i + 1) + ".weight", 1, kept);
  }
  for (auto& [name, tensor] : out.weights) tensor = tensor.clone();
  return out;
}

}  // namespace retort
