#include "coordinator/worker/fused.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>

#include <functional>
#include <vector>

namespace retort {
namespace {

using at::Tensor;
using Operation = std::function<Tensor(const std::vector<Tensor>&)>;

/// An operation's value, and its inputs' gradients where each value weighs differently.
std::vector<Tensor> there_and_back(const Operation& operation, const std::vector<Tensor>& inputs) {
  std::vector<Tensor> own;
  for (const Tensor& input : inputs) own.push_back(input.detach().clone().set_requires_grad(true));
  std::vector<Tensor> out{operation(own)};
  const Tensor weights = at::linspace(-1, 1, out[0].numel()).view_as(out[0]);
  (out[0].to(at::kFloat) * weights).sum().backward();
  for (const Tensor& input : own) out.push_back(input.grad());
  return out;
}

/// In F32 as LibTorch's operations, in bfloat16 as they are in F32, rounded once.
void expect_same(const Operation& ours, const Operation& theirs, std::vector<Tensor> inputs) {
  const std::vector<Tensor> got = there_and_back(ours, inputs), wanted = there_and_back(theirs, inputs);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(at::allclose(got[i], wanted[i], 1e-5, 1e-6)) << i;
  std::vector<Tensor> low;
  for (Tensor& input : inputs) {
    low.push_back(input.to(at::kBFloat16));
    input = low.back().to(at::kFloat);
  }
  const std::vector<Tensor> rounded = there_and_back(ours, low), exact = there_and_back(theirs, inputs);
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(rounded[i].scalar_type(), at::kBFloat16);
    const Tensor off = (rounded[i].to(at::kFloat) - exact[i]).abs().max();
    EXPECT_LT(off.item<float>(), 0.01f * exact[i].abs().max().item<float>()) << i;
  }
}

Tensor normal(std::vector<std::int64_t> shape, std::uint64_t seed) {
  return at::empty(shape, at::kFloat).normal_(0, 2, at::detail::createCPUGenerator(seed));
}

TEST(Fused, SiluGate) {  // of more than one piece, and of one that is not full
  expect_same([](const auto& in) { return silu_gate(in[0], in[1]); },
              [](const auto& in) { return at::silu(in[0]) * in[1]; },
              {normal({5, 271, 256}, 1), normal({5, 271, 256}, 2)});
}

TEST(Fused, Rotate) {
  const Tensor angle = normal({37, 1, 8}, 3), cos = at::cat({angle, angle}, 2).cos(),
               sin = at::cat({angle, angle}, 2).sin();
  const Operation theirs = [&](const auto& in) {
    const Tensor turned = at::cat({-in[0].slice(3, 8), in[0].slice(3, 0, 8)}, 3);
    return in[0] * cos + turned * sin;
  };
  expect_same([&](const auto& in) { return rotate(in[0], cos, sin); }, theirs, {normal({131, 37, 4, 16}, 4)});
  expect_same([&](const auto& in) { return rotate(in[0].transpose(1, 2), cos, sin); },
              [&](const auto& in) { return theirs({in[0].transpose(1, 2)}); }, {normal({2, 4, 37, 16}, 5)});
}

TEST(Fused, RmsNorm) {
  const Operation theirs = [](const auto& in) {
    return in[0] * at::rsqrt(in[0].square().mean(-1, true) + 1e-2) * in[1];
  };
  expect_same([](const auto& in) { return rms_norm(in[0], in[1], 1e-2); }, theirs,
              {normal({3, 491, 192}, 6), normal({192}, 7)});
}

}  // namespace
}  // namespace retort
