#include "coordinator/worker/fused.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <vector>

#include "coordinator/worker/blas.h"

namespace retort {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// `call` for pieces of all tensors, which are of one shape and lie in their order.
template <typename Call>
void over(const Tensor& like, const Call& call) {
  in_pieces(like, like.numel(), [&](std::int64_t first, std::int64_t end) {
    call([&](const Tensor& all) { return all.view({-1}).slice(0, first, end); });
  });
}

class SiluGate : public torch::autograd::Function<SiluGate> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& gate_in, const Tensor& up_in) {
    const Tensor gate = gate_in.contiguous(), up = up_in.contiguous(), out = at::empty_like(gate);
    over(out,
         [&](const auto& piece) { piece(out).copy_(at::silu(piece(gate).to(at::kFloat)).mul_(piece(up))); });
    context->save_for_backward({gate, up});
    return out;
  }
  static variable_list backward(AutogradContext* context, const variable_list& of_out) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &gate = saved[0], &up = saved[1], out = of_out[0].contiguous();
    const Tensor of_gate = at::empty_like(gate), of_up = at::empty_like(up);
    over(out, [&](const auto& piece) {
      // d silu(g)/dg = σ + gσ − gσ·σ
      const Tensor g = piece(gate).to(at::kFloat), o = piece(out).to(at::kFloat);
      const Tensor sigma = at::sigmoid(g), silu = g * sigma;
      piece(of_up).copy_(silu * o);
      piece(of_gate).copy_((o * piece(up)).mul_((sigma + silu).addcmul_(silu, sigma, -1)));
    });
    return {of_gate, of_up};
  }
};

/// x [B, S, H, D] turned, or with `sign` -1 turned back.
Tensor turn(const Tensor& x_in, const Tensor& cos, const Tensor& sin, double sign) {
  const Tensor x = x_in.contiguous(), out = at::empty_like(x);
  const std::int64_t half = x.size(3) / 2;
  in_pieces(x, x.size(0), [&](std::int64_t first, std::int64_t end) {
    const Tensor from = x.slice(0, first, end).to(at::kFloat), to = from * cos;
    to.slice(3, 0, half).addcmul_(from.slice(3, half), sin.slice(2, 0, half), -sign);
    to.slice(3, half).addcmul_(from.slice(3, 0, half), sin.slice(2, half), sign);
    out.slice(0, first, end).copy_(to);
  });
  return out;
}

class Rotate : public torch::autograd::Function<Rotate> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    context->saved_data["cos"] = cos, context->saved_data["sin"] = sin;
    return turn(x, cos, sin, 1);
  }
  static variable_list backward(AutogradContext* context, const variable_list& of_out) {
    return {turn(of_out[0], context->saved_data["cos"].toTensor(), context->saved_data["sin"].toTensor(), -1),
            Tensor(), Tensor()};
  }
};

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x_in, const Tensor& weight, double epsilon) {
    const Tensor x = x_in.contiguous(), out = at::empty_like(x);
    rows(x, [&](std::int64_t, const auto& piece) {
      const Tensor from = piece(x).to(at::kFloat);
      piece(out).copy_((from * scale(from, epsilon)).mul_(weight));
    });
    context->save_for_backward({x, weight});
    context->saved_data["epsilon"] = epsilon;
    return out;
  }
  static variable_list backward(AutogradContext* context, const variable_list& of_out) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], out = of_out[0].contiguous(), of_x = at::empty_like(x);
    const double epsilon = context->saved_data["epsilon"].toDouble();
    std::vector<Tensor> of_weight(static_cast<std::size_t>(count(x)));  // at the first row of each piece
    rows(x, [&](std::int64_t first, const auto& piece) {
      const Tensor from = piece(x).to(at::kFloat), r = scale(from, epsilon), normed = from * r;
      Tensor o = piece(out).to(at::kFloat);
      of_weight[static_cast<std::size_t>(first)] = (o * normed).sum(0);
      o = o * weight;  // d/dx of x r is r (1 - x̂ mean(x̂ ·))
      piece(of_x).copy_(o.sub_(normed * (o * normed).mean(-1, true)).mul_(r));
    });
    std::erase_if(of_weight, [](const Tensor& part) { return !part.defined(); });
    return {of_x, at::stack(of_weight).sum(0), Tensor()};
  }

 private:
  static Tensor scale(const Tensor& x, double epsilon) {
    return x.square().mean(-1, true).add_(epsilon).rsqrt_();
  }
  static std::int64_t count(const Tensor& x) { return x.numel() / x.size(-1); }
  /// `call` with a piece's first row and what takes the piece out of a tensor of x's shape, as [rows, width].
  template <typename Call>
  static void rows(const Tensor& x, const Call& call) {
    in_pieces(x, count(x), [&](std::int64_t first, std::int64_t end) {
      call(first, [&](const Tensor& all) { return all.view({-1, x.size(-1)}).slice(0, first, end); });
    });
  }
};

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double epsilon) {
  return RmsNorm::apply(x, weight, epsilon);
}

Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin) { return Rotate::apply(x, cos, sin); }

Tensor silu_gate(const Tensor& gate, const Tensor& up) { return SiluGate::apply(gate, up); }

}  // namespace retort
