#include "coordinator/worker/network.h"

#include <cmath>

#include "common/core/json.h"
#include "coordinator/worker/plan.h"
#include "coordinator/worker/prune.h"
#include "tests/support/plain_llama.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/worker/small_network.h"

namespace retort {
namespace {

using testing::TemporaryFolder;

at::Tensor ids_of(const std::vector<std::int64_t>& ids) {
  return at::tensor(ids, at::TensorOptions().dtype(at::kLong)).unsqueeze(0);
}

std::vector<std::int64_t> integers(const json::value& list) {
  std::vector<std::int64_t> out;
  for (const json::value& v : list.as_array()) out.push_back(v.to_number<std::int64_t>());
  return out;
}

/// Logits after a prompt and greedy continuations, as the asset's makers computed them.
void check_llama(const std::filesystem::path& folder) {
  torch::NoGradGuard no_grad;
  auto model = open_hf_model(folder);
  ASSERT_OK(model);
  auto network = load_network(*model);
  ASSERT_OK(network);
  auto text = read_file(folder / "golden.json");
  ASSERT_OK(text);
  const json::value golden = json::parse(*text);
  for (const json::value& item : golden.as_array()) {
    std::vector<std::int64_t> ids = integers(item.at("prompt_ids"));
    at::Tensor last = forward(*network, ids_of(ids)).select(1, -1).squeeze(0);
    for (const json::value& pair : item.at("last_logits_top8").as_array())
      EXPECT_NEAR(last[pair.as_array()[0].to_number<std::int64_t>()].item<float>(),
                  pair.as_array()[1].to_number<double>(), 1e-3);
    for (const std::int64_t wanted : integers(item.at("greedy_ids"))) {
      last = forward(*network, ids_of(ids)).select(1, -1).squeeze(0);
      ASSERT_EQ(last.argmax().item<std::int64_t>(), wanted);
      ids.push_back(wanted);
    }
  }
}

TEST(Network, StoriesAsGolden) {
  RETORT_NEED_ASSET(folder, "teachers/stories-260k");
  check_llama(folder);
}

TEST(Network, BabyLlamaAsGolden) {
  RETORT_NEED_ASSET(folder, "teachers/babyllama-936k");
  check_llama(folder);
}

TEST(Network, Gpt2SortsEveryInput) {
  RETORT_NEED_ASSET(folder, "teachers/gpt2-sort-85k");
  torch::NoGradGuard no_grad;
  auto model = open_hf_model(folder);
  ASSERT_OK(model);
  auto network = load_network(*model);
  ASSERT_OK(network);
  auto text = read_file(folder / "golden.json");
  ASSERT_OK(text);
  const json::value golden = json::parse(*text).at("example");
  const at::Tensor last = forward(*network, ids_of(integers(golden.at("ids")))).select(1, -1).squeeze(0);
  const auto& wanted = golden.at("last_logits").as_array();
  for (std::size_t i = 0; i < wanted.size(); ++i)
    EXPECT_NEAR(last[static_cast<std::int64_t>(i)].item<float>(), wanted[i].to_number<double>(), 1e-3);
  at::Tensor inputs = at::empty({729, 6}, at::kLong);
  for (std::int64_t i = 0; i < 729; ++i)
    for (std::int64_t k = 0, rest = i; k < 6; ++k, rest /= 3) inputs[i][k] = rest % 3;
  const at::Tensor sorted = std::get<0>(inputs.sort(1));
  for (int k = 0; k < 6; ++k)
    inputs = at::cat({inputs, forward(*network, inputs).select(1, -1).argmax(-1, true)}, 1);
  EXPECT_TRUE(inputs.slice(1, 6).equal(sorted));
}

class WriteOn : public ::testing::TestWithParam<ModelFamily> {};
INSTANTIATE_TEST_SUITE_P(Families, WriteOn, ::testing::Values(ModelFamily::kLlama, ModelFamily::kGpt2));

/// With kept keys and values each token's distribution is that of a whole forward pass: a network whose
/// logits are far apart writes what greedy search would.
TEST_P(WriteOn, DrawsFromWhatAWholePassSays) {
  torch::NoGradGuard no_grad;
  Network n = random_network(testing::small(GetParam()), 3);
  for (auto& [name, tensor] : n.weights)
    if (tensor.dim() > 1) tensor *= 8;
  n.weights.at(head_weight(n.config)) *= 30;
  const at::Tensor prompts = at::arange(8, at::kLong).view({2, 4});
  const at::Tensor written = write_on(n, prompts, 12, {1, 2});
  ASSERT_EQ(written.sizes().vec(), (std::vector<std::int64_t>{2, 12}));
  at::Tensor ids = prompts;
  for (int i = 0; i < 12; ++i) {
    const at::Tensor logp = at::log_softmax(forward(n, ids).select(1, -1), -1);
    for (int row = 0; row < 2; ++row)  // never anything that is all but impossible
      EXPECT_GT(logp[row][written[row][i].item<std::int64_t>()].item<float>(), -12) << row << " " << i;
    ids = at::cat({ids, written.slice(1, i, i + 1)}, 1);
  }
}

TEST_P(WriteOn, EachTextByItsOwnSeedAndAtItsTemperature) {
  const Network n = random_network(testing::small(GetParam()), 3);
  const at::Tensor prompts = at::arange(8, at::kLong).view({2, 4});
  const at::Tensor both = write_on(n, prompts, 12, {1, 2});
  EXPECT_TRUE(both.slice(0, 1).equal(write_on(n, prompts.slice(0, 1), 12, {2})));
  EXPECT_FALSE(both.equal(write_on(n, prompts, 12, {3, 4})));
  const at::Tensor likeliest = write_on(n, prompts, 12, {1, 2}, 0);
  torch::NoGradGuard no_grad;
  for (int i = 0; i < 12; ++i) {
    const at::Tensor so_far = at::cat({prompts, likeliest.slice(1, 0, i)}, 1);
    EXPECT_TRUE(forward(n, so_far).select(1, -1).argmax(-1).equal(likeliest.select(1, i))) << i;
  }
}

/// Weights on a device that only knows shapes (and neither look-ups nor layer norms): a tensor that a
/// layer makes and leaves on the CPU is an error there, as on a GPU.
TEST(Elsewhere, LayersStayWhereTheirWeightsAre) {
  Network n = random_network(testing::small(ModelFamily::kLlama), 3);
  move_to(n, at::kMeta);
  ASSERT_EQ(n.device().type(), at::kMeta);
  const Positions positions(n.config, 16, 0, n.device());
  Trace trace;
  trace.keep = true;
  at::Tensor x = at::empty({2, 16, 32}, at::TensorOptions().device(at::kMeta));
  for (std::size_t layer = 0; layer < 3; ++layer) x = run_layer(n, layer, x, positions, &trace);
  const at::Tensor logits = logits_of(n, x, &trace);
  EXPECT_EQ(logits.device().type(), at::kMeta);
  EXPECT_EQ(logits.sizes().vec(), (std::vector<std::int64_t>{2, 16, 50}));
  EXPECT_EQ(trace.attention.at(2).device().type(), at::kMeta);
}

using testing::small;

ActivationStatistics observe(const Network& network) {
  torch::NoGradGuard no_grad;
  ActivationStatistics s;
  Trace trace;
  trace.statistics = &s;
  forward(network, at::arange(32, at::kLong).view({2, 16}), &trace);
  return s;
}

TEST(Network, LlamaVariantsGiveThePlainForwardPass) {
  torch::NoGradGuard no_grad;
  for (const auto& [name, change] : testing::llama_variants()) {
    TemporaryFolder folder;
    testing::TinyModelOptions options;
    options.change = change;
    ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 1, options));
    std::vector<int> ids;
    for (int i = 0; i < 60; ++i) ids.push_back((i * 37 + 11) % 300);
    const auto expected = testing::plain_llama(folder / "m", ids);
    ASSERT_OK(expected);
    const auto model = open_hf_model(folder / "m");
    ASSERT_OK(model);
    const auto network = load_network(*model);
    ASSERT_OK(network);
    const at::Tensor logits = forward(*network, ids_of({ids.begin(), ids.end()})).to(at::kDouble).flatten();
    const at::Tensor wanted = at::tensor(*expected, at::kDouble);
    EXPECT_LT((logits - wanted).abs().max().item<double>(), 1e-4 * wanted.abs().max().item<double>()) << name;
  }
}

TEST(Network, BiasesAreCutWithTheirRows) {
  torch::NoGradGuard no_grad;
  TemporaryFolder folder;
  testing::TinyModelOptions options;
  options.change = [](ModelConfig& c) { c.qwen2 = c.qkv_bias = c.mlp_bias = true; };
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 1, options));
  const auto model = open_hf_model(folder / "m");
  ASSERT_OK(model);
  auto network = load_network(*model);
  ASSERT_OK(network);
  // Heads 2 and 3 (KV head 1) and the last neurons give nothing: cutting them changes nothing.
  for (int layer = 0; layer < 2; ++layer) {
    const std::string p = "model.layers." + std::to_string(layer) + ".";
    const std::int64_t d = network->config.head_dim;
    for (const char* part : {"self_attn.v_proj.weight", "self_attn.v_proj.bias"})
      network->weights.at(p + part).slice(0, d).zero_();
    for (const char* part :
         {"mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.gate_proj.bias", "mlp.up_proj.bias"})
      network->weights.at(p + part).slice(0, 64).zero_();
  }
  ModelConfig target = network->config;
  for (LayerShape& layer : target.layers) layer = {2, 1, 64};
  const at::Tensor ids = ids_of({3, 1, 4, 1, 5, 9, 2, 6});
  ActivationStatistics statistics;
  Trace trace{.statistics = &statistics};
  const at::Tensor before = forward(*network, ids, &trace);
  const Network cut = prune(*network, target, &statistics);
  const at::Tensor after = forward(cut, ids);
  EXPECT_LT((before - after).abs().max().item<double>(), 1e-4);
  ASSERT_OK(write_gguf_model(folder / "s.gguf", target, model->tokenizer, weight_sources(cut),
                             TensorType::kQ8_0, {}));
  const auto config = read_gguf_config(*GgufFile::open(folder / "s.gguf"));
  ASSERT_OK(config);
  EXPECT_TRUE(config->qwen2 && config->qkv_bias && config->mlp_bias);
}

class Prune : public ::testing::TestWithParam<ModelFamily> {};
INSTANTIATE_TEST_SUITE_P(Families, Prune, ::testing::Values(ModelFamily::kLlama, ModelFamily::kGpt2));

TEST_P(Prune, NothingCutIsIdentity) {
  const Network n = random_network(small(GetParam()), 3);
  const ActivationStatistics s = observe(n);
  for (const ActivationStatistics* given : {static_cast<const ActivationStatistics*>(nullptr), &s}) {
    const Network same = prune(n, n.config, given);
    ASSERT_EQ(same.weights.size(), n.weights.size());
    for (const auto& [name, tensor] : n.weights) EXPECT_TRUE(same.weight(name).equal(tensor)) << name;
  }
}

TEST_P(Prune, TensorsGetSmallerAndStillFit) {
  const Network n = random_network(small(GetParam()), 4);
  PrunePass pass;
  pass.layers = 2, pass.ffn = {24}, pass.heads = 2, pass.hidden = 20;
  if (GetParam() == ModelFamily::kLlama) pass.kv_heads = 1;
  const auto target = pruned_config(n.config, pass, "test");
  ASSERT_OK(target);
  const ActivationStatistics s = observe(n);
  const Network cut = prune(n, *target, &s);
  std::size_t seen = 0;
  for (const WeightShape& w : hf_weights(*target)) {
    ASSERT_TRUE(cut.weights.contains(w.name)) << w.name;
    EXPECT_EQ(cut.weight(w.name).sizes().vec(), std::vector<std::int64_t>(w.shape.begin(), w.shape.end()))
        << w.name;
    ++seen;
  }
  EXPECT_EQ(seen, cut.weights.size());
  EXPECT_EQ(forward(cut, at::zeros({1, 5}, at::kLong)).sizes().vec(), (std::vector<std::int64_t>{1, 5, 50}));
}

/// Neurons and heads whose output is zero can go without any change: the cut must take exactly those.
TEST_P(Prune, DeadPartsGoFirst) {
  Network n = random_network(small(GetParam()), 5);
  const bool llama = GetParam() == ModelFamily::kLlama;
  for (int i = 0; i < 3; ++i) {
    const std::string p = (llama ? "model.layers." : "transformer.h.") + std::to_string(i) + ".";
    for (std::int64_t neuron = 3; neuron < 35; neuron += 2) {  // 16 of 40
      if (llama) {
        n.weights[p + "mlp.up_proj.weight"][neuron].zero_();
      } else {
        n.weights[p + "mlp.c_fc.weight"].select(1, neuron).zero_();
        n.weights[p + "mlp.c_fc.bias"][neuron].zero_();
      }
    }
    if (llama) {  // the second group of heads sees no values
      n.weights[p + "self_attn.v_proj.weight"].slice(0, 8, 16).zero_();
    } else {  // heads 1 and 3
      for (const std::int64_t head : {1, 3})
        n.weights[p + "attn.c_attn.weight"].slice(1, 64 + head * 8, 64 + head * 8 + 8).zero_();
    }
  }
  PrunePass pass;
  pass.ffn = {24}, pass.heads = 2;
  if (llama) pass.kv_heads = 1;
  const ModelConfig target = *pruned_config(n.config, pass, "test");
  const ActivationStatistics s = observe(n);
  torch::NoGradGuard no_grad;
  const at::Tensor ids = at::arange(16, at::kLong).unsqueeze(0);
  const at::Tensor before = forward(n, ids), after = forward(prune(n, target, &s), ids);
  EXPECT_LT((before - after).abs().max().item<float>(), 1e-5);
}

/// Channels that no token's embedding has, that nothing writes to and that norms let nothing through of can
/// go: what is left computes the same, but for the norms' means over fewer channels.
TEST_P(Prune, SilentChannelsGoFirst) {
  Network n = random_network(small(GetParam()), 8);
  const std::vector<std::int64_t> silent{1, 4, 9, 16, 25, 30};
  for (auto& [name, tensor] : n.weights) {
    const auto ends = [&, &name = name](std::string_view suffix) { return name.ends_with(suffix); };
    for (const std::int64_t channel : silent) {
      if (tensor.dim() == 1 && !ends("c_attn.bias") && !ends("c_fc.bias")) tensor[channel] = 0;
      if (ends("o_proj.weight") || ends("down_proj.weight")) tensor[channel].zero_();
      if (ends("c_proj.weight") || ends("embed_tokens.weight") || ends("wte.weight") || ends("wpe.weight"))
        tensor.select(1, channel).zero_();
    }
  }
  PrunePass pass;
  pass.hidden = 26;
  const ModelConfig target = *pruned_config(n.config, pass, "test");
  const ActivationStatistics s = observe(n);
  torch::NoGradGuard no_grad;
  for (const ActivationStatistics* given : {static_cast<const ActivationStatistics*>(nullptr), &s}) {
    const Network cut = prune(n, target, given);
    std::vector<std::int64_t> kept;
    for (std::int64_t i = 0; i < 32; ++i)
      if (std::find(silent.begin(), silent.end(), i) == silent.end()) kept.push_back(i);
    const std::string embedding = head_weight(n.config);
    EXPECT_TRUE(
        cut.weight(embedding).equal(n.weight(embedding).index_select(1, at::tensor(kept, at::kLong))));
    if (GetParam() == ModelFamily::kGpt2) continue;  // its norms take means away as well
    // A root mean square over 26 of 32 channels is √(32/26) larger.
    Network mended = cut;
    for (auto& [name, tensor] : mended.weights)
      if (name.ends_with("norm.weight")) tensor = tensor * std::sqrt(32.0 / 26.0);
    mended.config.norm_eps *= 32.0f / 26.0f;
    const at::Tensor ids = at::arange(16, at::kLong).unsqueeze(0);
    EXPECT_LT((forward(n, ids) - forward(mended, ids)).abs().max().item<float>(), 1e-4);
  }
}

TEST_P(Prune, CutsRememberWhatWasWhere) {
  const Network n = random_network(small(GetParam()), 6);
  ModelConfig once = n.config, twice = n.config;
  once.layers.assign(2, n.config.layers[0]);
  twice.layers.assign(2, {2, GetParam() == ModelFamily::kLlama ? 1u : 2u, 40});
  const Network a = prune(n, once, nullptr), b = prune(a, twice, nullptr);
  ASSERT_EQ(b.origins.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(a.origins[i].heads, (std::vector<std::int64_t>{0, 1, 2, 3}));
    EXPECT_EQ(b.origins[i].layer, a.origins[i].layer);
    const std::string from = layer_prefix(n.config, static_cast<std::size_t>(b.origins[i].layer)),
                      to = layer_prefix(b.config, i);
    const bool llama = GetParam() == ModelFamily::kLlama;
    for (std::size_t h = 0; h < 2; ++h) {  // the weights that a head's output goes through
      const std::int64_t place = static_cast<std::int64_t>(h), was = b.origins[i].heads[h];
      const at::Tensor ours = llama ? b.weight(to + "self_attn.o_proj.weight").t()
                                    : b.weight(to + "attn.c_proj.weight"),
                       its = llama ? n.weight(from + "self_attn.o_proj.weight").t()
                                   : n.weight(from + "attn.c_proj.weight");
      EXPECT_TRUE(ours.slice(0, 8 * place, 8 * place + 8).equal(its.slice(0, 8 * was, 8 * was + 8)));
    }
  }
}

TEST_P(Prune, TheLayerThatDoesNothingGoes) {
  Network n = random_network(small(GetParam()), 6);
  for (auto& [name, tensor] : n.weights)
    if (name.find("s.1.") != std::string::npos || name.find("h.1.") != std::string::npos)
      if (name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") ||
          name.find("c_proj") != name.npos)
        tensor.zero_();
  PrunePass pass;
  pass.layers = 2;
  const ActivationStatistics s = observe(n);
  torch::NoGradGuard no_grad;
  const at::Tensor ids = at::arange(16, at::kLong).unsqueeze(0);
  const Network cut = prune(n, *pruned_config(n.config, pass, "test"), &s);
  EXPECT_TRUE(at::allclose(forward(n, ids), forward(cut, ids), 1e-5, 1e-6));
}

TEST(Sparse, KeepsTheBestOfEachRowOrGroup) {
  const at::Tensor scores = at::tensor({1.f, 8.f, 3.f, 2.f, 5.f, 5.f, 7.f, 6.f}).view({2, 4});
  SparsePass half;
  EXPECT_TRUE(keep_in_rows(scores, half)
                  .equal(at::tensor({0, 1, 1, 0, 0, 0, 1, 1}, at::kInt).view({2, 4}).to(at::kBool)));
  SparsePass pairs;
  pairs.n = 1, pairs.m = 2;
  EXPECT_TRUE(keep_in_rows(scores, pairs)
                  .equal(  // 5 and 5: the earlier one
                      at::tensor({0, 1, 1, 0, 1, 0, 1, 0}, at::kInt).view({2, 4}).to(at::kBool)));
}

class Sparsify : public ::testing::TestWithParam<ModelFamily> {};
INSTANTIATE_TEST_SUITE_P(Families, Sparsify,
                         ::testing::Values(ModelFamily::kLlama, ModelFamily::kGpt2, ModelFamily::kBert));

/// [Sun 2023] equation 1, written out with a second forward pass: the first layer's matrices lose, in each
/// row, the half with the least |W_ij| ‖X_j‖; later layers see what the first then puts out.
TEST_P(Sparsify, WandaIsThePapersFormula) {
  torch::NoGradGuard no_grad;
  const Network dense = random_network(small(GetParam()), 11);
  const std::vector<at::Tensor> text{at::arange(32, at::kLong).view({2, 16}),
                                     at::arange(18, 50, at::kLong).view({2, 16})};
  SparsePass pass;
  const auto names = sparse_matrices(dense.config, pass, "test");
  ASSERT_OK(names);
  Network n = dense;
  ASSERT_OK(sparsify(n, pass, *names, text, [] { return Result<void>(); }));
  EXPECT_EQ(n.sparse.size(), names->size());
  // Inputs through what was pruned before the layer in question: the pruned network up to it, dense from it
  // on.
  for (std::size_t layer = 0; layer < 3; ++layer) {
    Network until = n;
    const std::string prefix = layer_prefix(n.config, layer);
    for (auto& [name, tensor] : until.weights)
      if (name.starts_with(prefix)) tensor = dense.weight(name);
    std::map<std::string, at::Tensor> squares;
    Trace trace;
    trace.inputs = [&](const std::string& name, const at::Tensor& x) {
      const at::Tensor more = x.to(at::kDouble).reshape({-1, x.size(-1)}).square().sum(0);
      squares[name] = squares[name].defined() ? squares[name] + more : more;
    };
    for (const at::Tensor& ids : text) forward(until, ids, &trace);
    for (const std::string& name : *names) {
      if (!name.starts_with(prefix)) continue;
      const at::Tensor weight = matrix_of(dense, name), cut = matrix_of(n, name);
      const at::Tensor score = weight.abs().to(at::kDouble) * squares.at(name).sqrt();
      for (std::int64_t row = 0; row < weight.size(0); ++row) {
        const at::Tensor gone = cut[row].eq(0);
        ASSERT_EQ(gone.sum().item<std::int64_t>(), weight.size(1) / 2) << name;
        ASSERT_LE(score[row].masked_select(gone).max().item<double>(),
                  score[row].masked_select(gone.logical_not()).min().item<double>() * (1 + 1e-5))
            << name << " row " << row;
        ASSERT_TRUE(
            cut[row].masked_select(gone.logical_not()).equal(weight[row].masked_select(gone.logical_not())));
      }
    }
  }
}

TEST_P(Sparsify, MagnitudeAndPatternsAndWhatIsLeftAlone) {
  const Network dense = random_network(small(GetParam()), 12);
  SparsePass pass;
  pass.wanda = false;
  pass.sparsity = 0.75;
  Network n = dense;
  const auto names = *sparse_matrices(dense.config, pass, "test");
  ASSERT_OK(sparsify(n, pass, names, {}, [] { return Result<void>(); }));
  for (const auto& [name, tensor] : dense.weights) {
    if (!n.sparse.contains(name)) {
      EXPECT_TRUE(n.weight(name).equal(tensor)) << name;
      continue;
    }
    const at::Tensor gone = n.weight(name).eq(0);
    EXPECT_EQ(gone.sum().item<std::int64_t>(), tensor.numel() * 3 / 4) << name;
    EXPECT_LE(tensor.abs().masked_select(gone).max().item<float>(),
              tensor.abs().masked_select(gone.logical_not()).min().item<float>());
  }
  EXPECT_FALSE(n.sparse.contains(head_weight(n.config)));
  pass.n = 2, pass.m = 4, pass.match = "*c_proj*";
  if (GetParam() == ModelFamily::kLlama) pass.match = "*down_proj*";
  if (GetParam() == ModelFamily::kBert) pass.match = "*output.dense*";
  const auto some = sparse_matrices(dense.config, pass, "test");
  ASSERT_OK(some);
  Network patterned = dense;
  ASSERT_OK(sparsify(patterned, pass, *some, {}, [] { return Result<void>(); }));
  for (const std::string& name : *some) {
    const at::Tensor groups = matrix_of(patterned, name).reshape({-1, 4}).ne(0).sum(1);
    EXPECT_TRUE(groups.eq(2).all().item<bool>()) << name;
  }
  pass.m = 3, pass.n = 1;
  EXPECT_FALSE(sparse_matrices(dense.config, pass, "test")) << "40 and 32 are no multiples of 3";
  pass.match = "*embed*";
  EXPECT_FALSE(sparse_matrices(dense.config, pass, "test"));
}

}  // namespace
}  // namespace retort
