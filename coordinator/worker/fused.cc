#include "coordinator/worker/fused.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "coordinator/worker/blas.h"
#include "coordinator/worker/fused_loops.h"

namespace retort {
namespace {

using at::Tensor;
using loops::Bf16;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What the loops are for; LibTorch's operations do the rest: GPUs and other types.
bool loops_take(const Tensor& x) {
  return x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

/// in_pieces() with a value of the type that the tensor's are of.
template <typename Call>
void in_typed_pieces(const Tensor& x, std::int64_t n, const Call& call) {
  in_pieces(x, n, [&](std::int64_t first, std::int64_t end) {
    if (x.scalar_type() == at::kFloat)
      call(float(), first, end);
    else
      call(Bf16(), first, end);
  });
}

template <typename Value>
Value* data(const Tensor& x) {
  return static_cast<Value*>(x.data_ptr());
}

class SiluGate : public torch::autograd::Function<SiluGate> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& gate_in, const Tensor& up_in) {
    const Tensor gate = gate_in.contiguous(), up = up_in.contiguous(), out = at::empty_like(gate);
    in_typed_pieces(gate, gate.numel(), [&]<typename Value>(Value, std::int64_t first, std::int64_t end) {
      loops::silu_gate(data<Value>(gate) + first, data<Value>(up) + first, data<Value>(out) + first,
                       static_cast<std::size_t>(end - first));
    });
    context->save_for_backward({gate, up});
    return out;
  }
  static variable_list backward(AutogradContext* context, const variable_list& of_out) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &gate = saved[0], &up = saved[1], out = of_out[0].contiguous();
    const Tensor of_gate = at::empty_like(gate), of_up = at::empty_like(up);
    in_typed_pieces(gate, gate.numel(), [&]<typename Value>(Value, std::int64_t first, std::int64_t end) {
      loops::silu_gate_back(data<Value>(gate) + first, data<Value>(up) + first, data<Value>(out) + first,
                            data<Value>(of_gate) + first, data<Value>(of_up) + first,
                            static_cast<std::size_t>(end - first));
    });
    return {of_gate, of_up};
  }
};

/// x [B, S, H, D] turned, or with `sign` -1 turned back.
Tensor turn(const Tensor& x_in, const Tensor& cos, const Tensor& sin, float sign) {
  const Tensor x = x_in.contiguous(), out = at::empty_like(x);
  const std::int64_t seq = x.size(1), heads = x.size(2), width = x.size(3);
  in_typed_pieces(x, x.size(0) * seq, [&]<typename Value>(Value, std::int64_t first, std::int64_t end) {
    for (std::int64_t at = first; at < end; ++at) {
      const std::int64_t values = at * heads * width, angles = at % seq * width;
      loops::rotate(data<Value>(x) + values, data<Value>(out) + values, data<float>(cos) + angles,
                    data<float>(sin) + angles, sign, static_cast<std::size_t>(heads),
                    static_cast<std::size_t>(width));
    }
  });
  return out;
}

class Rotate : public torch::autograd::Function<Rotate> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& cos_in,
                        const Tensor& sin_in) {
    const Tensor cos = cos_in.contiguous(), sin = sin_in.contiguous();
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
  static Tensor forward(AutogradContext* context, const Tensor& x_in, const Tensor& weight_in,
                        double epsilon) {
    const Tensor x = x_in.contiguous(), weight = factors(weight_in), out = at::empty_like(x);
    const std::int64_t width = x.size(-1);
    in_typed_pieces(x, x.numel() / width, [&]<typename Value>(Value, std::int64_t first, std::int64_t end) {
      loops::rms_norm(data<Value>(x) + first * width, data<float>(weight), data<Value>(out) + first * width,
                      epsilon, static_cast<std::size_t>(end - first), static_cast<std::size_t>(width));
    });
    context->save_for_backward({x, weight_in});
    context->saved_data["epsilon"] = epsilon;
    return out;
  }
  static variable_list backward(AutogradContext* context, const variable_list& of_out) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], weight = factors(saved[1]), out = of_out[0].contiguous(),
                 of_x = at::empty_like(x);
    const double epsilon = context->saved_data["epsilon"].toDouble();
    const std::int64_t width = x.size(-1), rows = x.numel() / width, some = 64;
    // A sum for each group of rows, and the sum of these: the same on however many threads.
    const Tensor of_weight = at::zeros({(rows + some - 1) / some, width}, at::kFloat);
    in_typed_pieces(x, of_weight.size(0), [&]<typename Value>(Value, std::int64_t first, std::int64_t end) {
      for (std::int64_t group = first; group < end; ++group) {
        const std::int64_t at = group * some * width;
        loops::rms_norm_back(data<Value>(x) + at, data<float>(weight), data<Value>(out) + at,
                             data<Value>(of_x) + at, data<float>(of_weight) + group * width, epsilon,
                             static_cast<std::size_t>(std::min(some, rows - group * some)),
                             static_cast<std::size_t>(width));
      }
    });
    return {of_x, of_weight.sum(0).to(saved[1].scalar_type()), Tensor()};
  }

 private:
  /// A weight as the loops take it.
  static Tensor factors(const Tensor& weight) { return weight.to(at::kFloat).contiguous(); }
};

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double epsilon) {
  if (loops_take(x)) return RmsNorm::apply(x, weight, epsilon);
  return x * at::rsqrt(x.square().mean(-1, true) + epsilon) * weight;
}

Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  if (loops_take(x)) return Rotate::apply(x, cos, sin);
  const std::int64_t half = x.size(3) / 2;
  const Tensor crossed = at::cat({-x.slice(3, half), x.slice(3, 0, half)}, 3);
  return (x * cos + crossed * sin).to(x.scalar_type());
}

Tensor silu_gate(const Tensor& gate, const Tensor& up) {
  if (loops_take(gate)) return SiluGate::apply(gate, up);
  return at::silu(gate) * up;
}

}  // namespace retort
