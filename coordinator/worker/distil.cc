#include "coordinator/worker/distil.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "coordinator/worker/blas.h"

namespace retort {
namespace {

using at::Tensor;

/// Mean over rows of KL(p ‖ q), both as logarithms.
Tensor mean_divergence(const Tensor& p, const Tensor& q) { return (p.exp() * (p - q)).sum(-1).mean(); }

constexpr double kLeastRest = 1e-7;  ///< F32 sums are no finer

/// What probabilities [N, k] leave to all other tokens, [N, 1].
Tensor rest_of(const Tensor& probabilities) {
  return (1 - probabilities.sum(-1, true)).clamp_min(kLeastRest);
}

/// Of a few rows of logits x: what they lose by the targets, and that loss's gradient, which takes the place
/// of x. N is the number of all rows.
Tensor rows_loss(Tensor x, const TokenTargets& targets, std::int64_t first, double n) {
  const auto rows = [&](const Tensor& all) { return all.slice(0, first, first + x.size(0)).to(x.device()); };
  Tensor loss = at::zeros({}, x.options()), there, label, of_label, ids, of_kept, gradient;
  const bool labels = targets.labels.defined(), soft = targets.kept.ids.defined();
  const double t = soft ? targets.temperature : 1;
  x.sub_(x.amax(-1, true));
  if (labels) {
    label = rows(targets.labels).unsqueeze(1);
    there = label.ge(0).to(x.scalar_type()) * (targets.labels_weight / n);
    label = label.clamp_min(0);  // where there is none: any, of no weight
    of_label = x.gather(-1, label);
  }
  if (t != 1) x.mul_(1 / t);
  if (soft) {
    ids = rows(targets.kept.ids);
    of_kept = x.gather(-1, ids);
  }
  // eˣ is most of the work: of the labels' temperature it is eˣ of the other to the power t.
  const bool multiplied = t == 1 || t == 2;
  if (labels && !multiplied) gradient = (x * t).exp_();
  x.exp_();
  if (labels && multiplied) gradient = !soft ? x : t == 1 ? x.clone() : x.square();
  if (labels) {  // softmax(x) − [the label]
    const Tensor sum = gradient.sum(-1, true);
    loss = loss + ((sum.log() - of_label) * there).sum();
    gradient.mul_(there / sum).scatter_add_(-1, label, -there);
  }
  if (soft) {  // of q = softmax(x / t): Σ g_i over the kept ones, then the softmax's own (−q Σ g)
    const double factor = targets.soft_weight * t * t / n;
    const Tensor sum = x.sum(-1, true), kept = of_kept - sum.log();
    Tensor g;
    if (targets.kept.logs.defined()) {
      const Tensor teacher = rows(targets.kept.logs), p = teacher.exp();
      const std::int64_t k = ids.size(1);
      const Tensor likely = kept.exp(), others = rest_of(likely);
      loss = loss + (p * (teacher - at::cat({kept, others.log()}, -1))).sum() * factor;
      g = likely * (p.slice(1, k) / others * others.gt(kLeastRest)) - p.slice(1, 0, k);
    } else {
      loss = loss - kept.mean(-1).sum() * factor;
      g = at::full_like(kept, -1.0 / static_cast<double>(ids.size(1)));
    }
    g = g * (factor / t);
    x.mul_(-g.sum(-1, true) / sum).scatter_add_(-1, ids, g);
    if (labels) x.add_(gradient);
  }
  return loss;
}

class TokenLoss : public torch::autograd::Function<TokenLoss> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& logits,
                        const TokenTargets& targets) {
    const std::int64_t n = logits.size(0);
    const Tensor values = logits.detach();
    std::vector<double> losses(static_cast<std::size_t>(n));
    in_pieces(values, n, [&](std::int64_t first, std::int64_t end) {
      const Tensor own = values.slice(0, first, end), x = own.to(at::kFloat);
      losses[static_cast<std::size_t>(first)] =
          rows_loss(x, targets, first, static_cast<double>(n)).item<double>();
      if (!x.is_same(own)) own.copy_(x);
    });
    context->saved_data["gradient"] = values;
    return at::scalar_tensor(std::accumulate(losses.begin(), losses.end(), 0.0), at::kFloat);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& of_loss) {
    const Tensor gradient = context->saved_data["gradient"].toTensor();
    const double scale = of_loss[0].item<double>();
    return {scale == 1 ? gradient : gradient * scale, Tensor()};
  }
};

}  // namespace

Tensor soft_loss(const Tensor& student_logits, const Tensor& teacher_logits, double temperature,
                 Divergence divergence, double beta) {
  Tensor teacher;
  {
    torch::NoGradGuard no_grad;
    teacher = at::log_softmax(teacher_logits / temperature, -1);
  }
  const Tensor student = at::log_softmax(student_logits / temperature, -1);
  Tensor loss;
  switch (divergence) {
    case Divergence::kForward:
      loss = mean_divergence(teacher, student);
      break;
    case Divergence::kReverse:
      loss = mean_divergence(student, teacher);
      break;
    case Divergence::kJensenShannon: {
      const Tensor mixed = at::logaddexp(teacher + std::log(beta), student + std::log(1 - beta));
      loss = mean_divergence(teacher, mixed) * beta + mean_divergence(student, mixed) * (1 - beta);
      break;
    }
  }
  return loss * (temperature * temperature);
}

TeacherTargets teacher_targets(const Tensor& teacher_logits, TeacherOutputs outputs, std::uint32_t k,
                               double temperature, std::uint64_t seed) {
  torch::NoGradGuard no_grad;
  const Tensor logs = at::log_softmax(teacher_logits.cpu() / temperature, -1);
  if (outputs == TeacherOutputs::kSampled) {
    at::Generator generator = at::detail::createCPUGenerator(seed);
    return {logs.exp().multinomial(k, /*replacement=*/true, generator), {}};
  }
  const auto [top, ids] = logs.topk(k, -1);
  return {ids, at::cat({top, rest_of(top.exp()).log()}, -1)};
}

std::vector<std::byte> pack_targets(const TeacherTargets& targets, const TeacherOutputsKey& key) {
  std::vector<std::byte> out(key.record_bytes());
  const std::size_t id_bytes = key.vocabulary <= 65536 ? 2 : 4;
  const Tensor ids = targets.ids.contiguous();
  const std::int64_t* id = ids.data_ptr<std::int64_t>();
  std::byte* at = out.data();
  for (std::int64_t i = 0; i < ids.numel(); ++i, at += id_bytes) {
    const auto value = static_cast<std::uint32_t>(id[i]);
    std::memcpy(at, &value, id_bytes);  // little-endian, as all our files
  }
  if (key.outputs == TeacherOutputs::kTopK) {
    const Tensor logs = targets.logs.contiguous();
    for (std::int64_t i = 0; i < logs.numel(); ++i, at += 2) {
      const std::uint16_t bits = f32_to_f16(std::max(logs.data_ptr<float>()[i], -60000.0f));
      std::memcpy(at, &bits, 2);
    }
  }
  return out;
}

TeacherTargets unpack_targets(std::span<const std::byte> record, const TeacherOutputsKey& key) {
  const std::size_t id_bytes = key.vocabulary <= 65536 ? 2 : 4;
  const std::int64_t tokens = key.window, k = key.k;
  TeacherTargets out;
  out.ids = at::empty({tokens, k}, at::kLong);
  const std::byte* at = record.data();
  for (std::int64_t i = 0; i < out.ids.numel(); ++i, at += id_bytes) {
    std::uint32_t value = 0;
    std::memcpy(&value, at, id_bytes);
    out.ids.data_ptr<std::int64_t>()[i] = std::min(value, key.vocabulary - 1);
  }
  if (key.outputs == TeacherOutputs::kTopK) {
    out.logs = at::empty({tokens, k + 1}, at::kFloat);
    for (std::int64_t i = 0; i < out.logs.numel(); ++i, at += 2) {
      std::uint16_t bits;
      std::memcpy(&bits, at, 2);
      out.logs.data_ptr<float>()[i] = f16_to_f32(bits);
    }
  }
  return out;
}

Tensor token_loss(const Tensor& logits, const TokenTargets& targets) {
  return TokenLoss::apply(logits, targets);
}

std::vector<std::size_t> layer_map(std::size_t student_layers, std::size_t teacher_layers) {
  std::vector<std::size_t> out;
  for (std::size_t i = 0; i < student_layers; ++i)
    out.push_back(((i + 1) * teacher_layers + student_layers - 1) / student_layers - 1);
  return out;
}

Tensor attention_loss(const Trace& student, const Trace& teacher, const std::vector<std::size_t>& layers,
                      const std::vector<Network::Origin>& origins) {
  Tensor sum = at::zeros({});
  for (std::size_t i = 0; i < layers.size(); ++i) {
    Tensor s = student.attention.at(i), t = teacher.attention.at(layers[i]).detach();
    if (i < origins.size() && origins[i].layer == static_cast<std::int64_t>(layers[i]) &&
        s.size(1) == static_cast<std::int64_t>(origins[i].heads.size()))
      t = t.index_select(1, at::tensor(origins[i].heads, at::kLong).to(t.device()));
    if (s.size(1) != t.size(1)) s = s.mean(1), t = t.mean(1);
    sum = sum + (s - t).square().mean();
  }
  return sum / static_cast<double>(layers.size());
}

Tensor hidden_loss(const Trace& student, const Trace& teacher, const std::vector<std::size_t>& layers,
                   const std::vector<Tensor>& projections) {
  Tensor sum = at::zeros({});
  for (std::size_t i = 0; i <= layers.size(); ++i) {  // 0: the embedding
    Tensor s = student.hidden.at(i);
    if (!projections.empty()) s = at::matmul(s, projections.at(i));
    sum = sum + (s - teacher.hidden.at(i == 0 ? 0 : layers[i - 1] + 1).detach()).square().mean();
  }
  return sum / static_cast<double>(layers.size() + 1);
}

Tensor relation_loss(const Trace& student, std::size_t student_layer, const Trace& teacher,
                     std::size_t teacher_layer, std::int64_t heads) {
  const auto relation = [&](const Tensor& x) {  // [B, S, H, D] → log-softmax [B, R, S, S]
    const std::int64_t b = x.size(0), s = x.size(1), d = x.size(2) * x.size(3) / heads;
    const Tensor cut = x.reshape({b, s, heads, d}).transpose(1, 2);
    return at::log_softmax(at::matmul(cut, cut.transpose(-1, -2)) / std::sqrt(static_cast<double>(d)), -1);
  };
  Tensor sum = at::zeros({});
  for (const auto member : {&Trace::query, &Trace::key, &Trace::value})
    sum = sum + mean_divergence(relation((teacher.*member).at(teacher_layer).detach()),
                                relation((student.*member).at(student_layer)));
  return sum;
}

}  // namespace retort
