#include "coordinator/worker/activations.h"

#include "coordinator/worker/input_groups.h"
#include "coordinator/worker/plan.h"
#include "tests/support/support.h"
#include "tests/unit/worker/small_network.h"

namespace retort {
namespace {

using at::Tensor;
using testing::small;

class Smooth : public ::testing::TestWithParam<ModelFamily> {
 protected:
  Smooth() {
    ModelConfig config = small(GetParam());
    if (GetParam() != ModelFamily::kGpt2)
      for (LayerShape& layer : config.layers) layer.n_head_kv = layer.n_head;  // so that values can be scaled
    network_ = random_network(config, 5);
    for (auto& [name, tensor] : network_.weights)
      tensor = tensor.dim() > 1 ? tensor * 6 : tensor + at::linspace(0.1, 0.5, tensor.numel());
    at::Generator generator = at::detail::createCPUGenerator(3);
    ids_ = at::empty({8, 16}, at::kLong).random_(0, 50, generator);
    network_.weights.at(first_norm()).select(0, 4) *= 80;  // an outlier
  }
  std::string first_norm() const {
    return layer_prefix(network_.config, 0) + (GetParam() == ModelFamily::kLlama ? "input_layernorm.weight"
                                               : GetParam() == ModelFamily::kGpt2
                                                   ? "ln_1.weight"
                                                   : "output.LayerNorm.weight");
  }
  Tensor outputs(const Network& network, Trace* trace = nullptr) const {
    torch::NoGradGuard no_grad;
    return network.config.is_encoder() ? encode_text(network, ids_, at::full({8}, 16, at::kLong), trace)
                                       : forward(network, ids_, trace);
  }
  CalibrationRun text() const {
    return [this](Trace& trace) -> Result<void> {
      outputs(network_, &trace);
      return {};
    };
  }
  /// Each input's largest value a column, by the first matrix that reads it.
  std::map<std::string, Tensor> largest() const {
    std::map<std::string, Tensor> out;
    Trace trace;
    trace.inputs = [&](const std::string& name, const Tensor& input) {
      out[name] = input.reshape({-1, input.size(-1)}).abs().amax(0);
    };
    outputs(network_, &trace);
    return out;
  }

  Network network_;
  Tensor ids_;
};
INSTANTIATE_TEST_SUITE_P(Families, Smooth,
                         ::testing::Values(ModelFamily::kLlama, ModelFamily::kGpt2, ModelFamily::kBert));

TEST_P(Smooth, MovesRangesWithoutChangingTheModel) {
  const Tensor before = outputs(network_);
  const auto found = calibrate_inputs(network_, {.smooth = 0.5, .dynamic = {}}, text());
  ASSERT_OK(found);
  const Tensor after = outputs(network_);
  EXPECT_LT((after - before).norm().item<float>(), 1e-4f * before.norm().item<float>());
  const auto seen = largest();
  int smoothed = 0;
  std::size_t at = 0;
  for (const InputGroup& group : input_groups(network_)) {
    const CalibratedInput& line = found->at(at++);
    ASSERT_EQ(line.matrices, group.matrices);
    EXPECT_NEAR(line.largest, seen.at(group.matrices[0]).max().item<double>(), 1e-4 * line.largest);
    EXPECT_FLOAT_EQ(network_.input_scales.at(group.matrices.back()), static_cast<float>(line.clip / 127));
    EXPECT_EQ(line.largest_before.has_value(), !group.source.empty());
    smoothed += line.largest_before.has_value();
  }
  const int layers = static_cast<int>(network_.config.n_layer());
  EXPECT_EQ(smoothed, layers * (GetParam() == ModelFamily::kLlama  ? 4
                                : GetParam() == ModelFamily::kGpt2 ? 3
                                                                   : 1));
}

/// Equation 4: with s_j = √max|X_j| / √max|W_j| both sides have √(max|X_j| max|W_j|) afterwards.
TEST_P(Smooth, IsThePapersFormula) {
  const InputGroup group = input_groups(network_.config, 0)[GetParam() == ModelFamily::kBert ? 1 : 0];
  const auto largest_weight = [&] {
    Tensor out = at::zeros({network_.config.n_embd});
    for (const std::string& name : group.matrices)
      out = at::maximum(out, matrix_of(network_, name).abs().amax(0));
    return out;
  };
  for (const double alpha : {0.5, 0.8}) {
    const Network unscaled = network_;
    const Tensor x = largest().at(group.matrices[0]), w = largest_weight();
    std::vector<std::string> others;
    for (const InputGroup& other : input_groups(network_))
      if (other.matrices != group.matrices) others.push_back(other.matrices[0]);
    ASSERT_OK(calibrate_inputs(network_, {.smooth = alpha, .dynamic = others}, text()));
    EXPECT_TRUE(at::allclose(largest().at(group.matrices[0]), x.pow(1 - alpha) * w.pow(1 - alpha), 1e-3));
    EXPECT_TRUE(at::allclose(largest_weight(), x.pow(alpha) * w.pow(alpha), 1e-3));
    EXPECT_EQ(network_.input_scales.size(), group.matrices.size());
    network_ = unscaled;
  }
}

TEST_P(Smooth, ScalesAreWrittenWhereInputsAreQuantized) {
  ASSERT_OK(calibrate_inputs(network_, {}, text()));
  const auto written = [&](const std::string& whole) {  // this one in F16
    std::set<std::string> out;
    for (const auto& [key, value] : input_scale_metadata(network_, [&](const std::string& name) {
           return name == whole ? TensorType::kF16 : TensorType::kQ8_0;
         }))
      out.insert(key);
    return out;
  };
  const bool joined = GetParam() == ModelFamily::kGpt2, llama = GetParam() == ModelFamily::kLlama;
  const std::string prefix = "retort.input_scale.blk.1.",
                    query = joined ? "attn_qkv.weight" : "attn_q.weight";
  EXPECT_TRUE(written("").contains(prefix + query));
  EXPECT_EQ(written("").contains(prefix + "ffn_down.weight"), !llama);
  EXPECT_TRUE(written("").contains(prefix + "ffn_up.weight"));
  // Q, K and V read one input: where one of them cannot use its scale, none has it.
  const auto some = written(input_groups(network_.config, 1)[0].matrices.back());
  EXPECT_FALSE(some.contains(prefix + query));
  EXPECT_TRUE(some.contains("retort.input_scale.blk.0." + query));
}

}  // namespace
}  // namespace retort
