#include "coordinator/worker/input_groups.h"

#include "coordinator/worker/plan.h"

namespace retort {

using at::Tensor;

std::vector<InputGroup> input_groups(const ModelConfig& c, std::size_t layer) {
  const std::string p = layer_prefix(c, layer);
  const LayerShape& shape = c.layers[layer];
  const bool own_values = shape.n_head == shape.n_head_kv;
  if (c.family == ModelFamily::kLlama)
    return {{{p + "self_attn.q_proj.weight", p + "self_attn.k_proj.weight", p + "self_attn.v_proj.weight"},
             p + "input_layernorm.weight"},
            {{p + "self_attn.o_proj.weight"}, own_values ? p + "self_attn.v_proj.weight" : ""},
            {{p + "mlp.gate_proj.weight", p + "mlp.up_proj.weight"}, p + "post_attention_layernorm.weight"},
            {{p + "mlp.down_proj.weight"}, p + "mlp.up_proj.weight"}};
  if (c.family == ModelFamily::kBert) {
    const std::string self = p + "attention.self.";
    return {{{self + "query.weight", self + "key.weight", self + "value.weight"}, ""},
            {{p + "attention.output.dense.weight"}, self + "value.weight"},
            {{p + "intermediate.dense.weight"}, ""},
            {{p + "output.dense.weight"}, ""}};
  }
  return {{{p + "attn.c_attn.weight"}, p + "ln_1.weight"},
          {{p + "attn.c_proj.weight"}, p + "attn.c_attn.weight", 2 * std::int64_t{shape.n_head} * c.head_dim},
          {{p + "mlp.c_fc.weight"}, p + "ln_2.weight"},
          {{p + "mlp.c_proj.weight"}, ""}};
}

std::vector<InputGroup> input_groups(const Network& network) {
  std::vector<InputGroup> out;
  if (network.classifier) {
    for (const auto& [name, tensor] : network.weights)
      if (tensor.dim() > 1) out.push_back({{name}, ""});
    return out;
  }
  for (std::size_t layer = 0; layer < network.config.layers.size(); ++layer)
    for (InputGroup& group : input_groups(network.config, layer)) out.push_back(std::move(group));
  return out;
}

void fold_scale(Network& network, const InputGroup& group, const Tensor& scale) {
  for (const std::string& name : group.matrices)
    set_matrix(network, name, matrix_of(network, name) * scale.unsqueeze(0));
  // Copies: a student's tensors may still be its teacher's.
  const auto divided = [&](const Tensor& values) {
    Tensor out = values.detach().clone();
    out.slice(0, group.first_row, group.first_row + scale.size(0))
        .div_(out.dim() == 1 ? scale : scale.unsqueeze(1));
    return out;
  };
  const std::string bias =
      group.source.substr(0, group.source.size() - std::string_view("weight").size()) + "bias";
  if (network.weight(group.source).dim() == 1)
    network.weights.at(group.source) = divided(network.weight(group.source));
  else
    set_matrix(network, group.source, divided(matrix_of(network, group.source)));
  if (const auto found = network.weights.find(bias); found != network.weights.end())
    found->second = divided(found->second);
}

}  // namespace retort
