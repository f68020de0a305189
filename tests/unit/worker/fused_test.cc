#include "coordinator/worker/fused.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>

#include <functional>
#include <limits>
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
  const Tensor weights = at::linspace(-1, 1, out[0].numel(), at::kDouble).view_as(out[0]);
  (out[0].to(at::kDouble) * weights).sum().backward();
  for (const Tensor& input : own) out.push_back(input.grad());
  return out;
}

/// As LibTorch's operations are in F64, rounded once: in F32, in bfloat16, and in F64, where ours are
/// LibTorch's.
void expect_same(const Operation& ours, const Operation& theirs, const std::vector<Tensor>& inputs) {
  for (const auto& [type, most] :
       {std::pair{at::kFloat, 1e-5}, {at::kBFloat16, 1e-2}, {at::kDouble, 1e-12}}) {
    std::vector<Tensor> given, exact;
    for (const Tensor& input : inputs) {
      given.push_back(input.to(type));
      exact.push_back(given.back().to(at::kDouble));
    }
    const std::vector<Tensor> got = there_and_back(ours, given), wanted = there_and_back(theirs, exact);
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].scalar_type(), type);
      const Tensor off = (got[i].to(at::kDouble) - wanted[i]).abs().max();
      EXPECT_LT(off.item<double>(), most * wanted[i].abs().max().item<double>()) << type << " " << i;
    }
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

TEST(Fused, SiluGateOfAnyNumber) {
  const float none = std::numeric_limits<float>::quiet_NaN(), most = std::numeric_limits<float>::infinity();
  const Tensor gate = at::tensor({-1e30f, -200.0f, -88.0f, -1e-30f, 0.0f, 20.0f, 200.0f, 1e30f, none, most}),
               got = silu_gate(gate, at::ones_like(gate));
  EXPECT_TRUE(at::allclose(got, at::silu(gate), 1e-6, 1e-6, true)) << got;
  const Tensor low = gate.to(at::kBFloat16), rounded = silu_gate(low, at::ones_like(low));
  EXPECT_TRUE(rounded[8].isnan().item<bool>());
  EXPECT_TRUE(at::allclose(rounded.to(at::kFloat), at::silu(low.to(at::kFloat)), 1e-2, 1e-6, true))
      << rounded;
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
