#include "coordinator/worker/optimise.h"

#include <cmath>
#include <limits>

#include "common/core/documents.h"
#include "coordinator/worker/distil.h"
#include "coordinator/worker/plan.h"
#include "coordinator/worker/prune.h"
#include "tests/support/support.h"
#include "tests/support/text_step.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/worker/small_network.h"

namespace retort {
namespace {

using at::Tensor;
using testing::small;

double value(const Tensor& loss) { return loss.item<double>(); }

Tensor kept_loss(const Tensor& logits, const TeacherTargets& kept, double temperature) {
  return token_loss(logits.clone(), {.kept = kept, .temperature = temperature});
}

Tensor row(std::initializer_list<double> probabilities) {
  return at::tensor(std::vector<double>(probabilities)).log().to(at::kFloat).unsqueeze(0);
}

TEST(SoftLoss, AsByHand) {
  // Student (0, ln 3), teacher (0, 0): (¼, ¾) against (½, ½).
  const Tensor student = at::tensor({0.0f, std::log(3.0f)}).unsqueeze(0), teacher = at::zeros({1, 2});
  const double forward = 0.5 * std::log(0.5 / 0.25) + 0.5 * std::log(0.5 / 0.75);
  const double reverse = 0.25 * std::log(0.25 / 0.5) + 0.75 * std::log(0.75 / 0.5);
  EXPECT_NEAR(value(soft_loss(student, teacher, 1)), forward, 1e-6);
  EXPECT_NEAR(value(soft_loss(student, teacher, 1, Divergence::kReverse)), reverse, 1e-6);
  // β = 0.25: m = ¼ (½, ½) + ¾ (¼, ¾).
  const double m0 = 0.25 * 0.5 + 0.75 * 0.25, m1 = 1 - m0;
  const double jsd = 0.25 * (0.5 * std::log(0.5 / m0) + 0.5 * std::log(0.5 / m1)) +
                     0.75 * (0.25 * std::log(0.25 / m0) + 0.75 * std::log(0.75 / m1));
  EXPECT_NEAR(value(soft_loss(student, teacher, 1, Divergence::kJensenShannon, 0.25)), jsd, 1e-6);
  // T = 2 turns ln 3 into ln √3; the factor T² keeps gradients' size.
  const double s = std::sqrt(3.0), soft = 0.5 * std::log(0.5 * (1 + s)) + 0.5 * std::log(0.5 * (1 + s) / s);
  EXPECT_NEAR(value(soft_loss(student, teacher, 2)), 4 * soft, 1e-6);
  for (const Divergence d : {Divergence::kForward, Divergence::kReverse, Divergence::kJensenShannon})
    EXPECT_NEAR(value(soft_loss(teacher, teacher, 3, d)), 0, 1e-7);
}

TEST(TopK, KeepsTheLargestAndTheMassOfTheRest) {
  const Tensor teacher = row({0.5, 0.1, 0.3, 0.06, 0.04}), student = row({0.2, 0.2, 0.2, 0.3, 0.1});
  const TeacherTargets kept = teacher_targets(teacher, TeacherOutputs::kTopK, 2, 1, 0);
  EXPECT_EQ(kept.ids[0][0].item<int>(), 0);
  EXPECT_EQ(kept.ids[0][1].item<int>(), 2);
  EXPECT_NEAR(kept.logs[0][2].exp().item<double>(), 0.2, 1e-6);
  const double wanted = 0.5 * std::log(0.5 / 0.2) + 0.3 * std::log(0.3 / 0.2) + 0.2 * std::log(0.2 / 0.6);
  EXPECT_NEAR(value(kept_loss(student, kept, 1)), wanted, 1e-5);
  EXPECT_NEAR(value(kept_loss(student, kept, 2)), 4 * value(kept_loss(student / 2, kept, 1)),
              1e-5);  // the targets' own temperature is in them
  EXPECT_NEAR(value(kept_loss(teacher, kept, 1)), 0, 1e-5);
  // Merging tokens can only lower a divergence.
  EXPECT_LT(wanted, value(soft_loss(student, teacher, 1)));
}

TEST(Sampled, GradientIsTheWholeDivergencesInTheMean) {
  at::Generator generator = at::detail::createCPUGenerator(4);
  const Tensor teacher = at::empty({1, 12}, at::kFloat).normal_(0, 1.5, generator);
  const auto gradient = [&](const std::function<Tensor(const Tensor&)>& loss) {
    Tensor student = at::linspace(-1, 1, 12).unsqueeze(0).clone().set_requires_grad(true);
    loss(student).backward();
    return student.grad().clone();
  };
  const Tensor whole = gradient([&](const Tensor& s) { return soft_loss(s, teacher, 2); });
  const TeacherTargets drawn = teacher_targets(teacher, TeacherOutputs::kSampled, 40000, 2, 7);
  const Tensor sampled = gradient([&](const Tensor& s) { return kept_loss(s, drawn, 2); });
  EXPECT_LT((whole - sampled).abs().max().item<float>(), 0.03);
  // A plain top-k, renormalized, is not.
  EXPECT_TRUE(teacher_targets(teacher, TeacherOutputs::kSampled, 40, 2, 7)
                  .ids.equal(teacher_targets(teacher, TeacherOutputs::kSampled, 40, 2, 7).ids));
}

// Against LibTorch's own operations and their gradients, over more rows than are taken at once.
TEST(TokenLoss, LossAndGradientAreTheSumOfBoth) {
  constexpr std::int64_t kRows = 100, kVocabulary = 3000;
  at::Generator generator = at::detail::createCPUGenerator(8);
  const Tensor start = at::empty({kRows, kVocabulary}, at::kFloat).normal_(0, 3, generator);
  const Tensor teacher = start + at::empty_like(start).normal_(0, 2, generator);
  Tensor labels = at::randint(kVocabulary, {kRows}, generator, at::kLong);
  labels[3] = labels[99] = -1;
  const auto naive = [&](const Tensor& logits, const TokenTargets& t) {
    Tensor loss = at::zeros({});
    if (t.labels.defined())
      loss = loss +
             at::cross_entropy_loss(logits, t.labels, {}, at::Reduction::Sum, -1) * (t.labels_weight / kRows);
    if (!t.kept.ids.defined()) return loss;
    const Tensor kept = at::log_softmax(logits / t.temperature, -1).gather(-1, t.kept.ids);
    const double factor = t.soft_weight * t.temperature * t.temperature;
    if (!t.kept.logs.defined()) return loss - kept.mean() * factor;
    const Tensor q = at::cat({kept, (1 - kept.exp().sum(-1, true)).clamp_min(1e-7).log()}, -1);
    return loss + (t.kept.logs.exp() * (t.kept.logs - q)).sum(-1).mean() * factor;
  };
  std::vector<TokenTargets> cases;
  for (const double temperature : {1.0, 2.0, 2.5}) {
    const TeacherTargets top = teacher_targets(teacher, TeacherOutputs::kTopK, 16, temperature, 1),
                         drawn = teacher_targets(teacher, TeacherOutputs::kSampled, 16, temperature, 1);
    for (const TeacherTargets& kept : {top, drawn}) {
      cases.push_back({.kept = kept, .temperature = temperature});
      cases.push_back({.labels = labels,
                       .labels_weight = 0.3,
                       .kept = kept,
                       .soft_weight = 0.7,
                       .temperature = temperature});
    }
  }
  cases.push_back({.labels = labels});
  for (const TokenTargets& targets : cases) {
    Tensor ours = start.clone().set_requires_grad(true), theirs = start.clone().set_requires_grad(true);
    const Tensor loss = token_loss(ours, targets) * 0.5, wanted = naive(theirs, targets) * 0.5;
    EXPECT_NEAR(value(loss), value(wanted), 1e-5 * value(wanted));
    loss.backward(), wanted.backward();
    EXPECT_LT((ours.grad() - theirs.grad()).abs().max().item<float>(),
              1e-5 * theirs.grad().abs().max().item<float>());
  }
  // Of bfloat16 logits it is what it is of their F32 values.
  const Tensor low = start.to(at::kBFloat16);
  Tensor ours = low.clone().set_requires_grad(true), theirs = low.to(at::kFloat).set_requires_grad(true);
  token_loss(ours, cases[1]).backward(), naive(theirs, cases[1]).backward();
  EXPECT_EQ(ours.grad().scalar_type(), at::kBFloat16);
  EXPECT_LT((ours.grad().to(at::kFloat) - theirs.grad()).abs().max().item<float>(),
            0.01 * theirs.grad().abs().max().item<float>());
}

TEST(TokenLoss, StaysFiniteWhereTheStudentIsCertain) {
  // The label's probability is less than F32's least, and nothing is left for the tokens that are not kept.
  Tensor logits = at::tensor({200.0f, -200.0f, 0.0f}).unsqueeze(0).set_requires_grad(true);
  TokenTargets targets{.labels = at::tensor({1}, at::kLong)};
  targets.kept = teacher_targets(row({0.5, 0.3, 0.2}), TeacherOutputs::kTopK, 1, 1, 0);
  const Tensor loss = token_loss(logits, targets);
  EXPECT_NEAR(value(loss), 400 + 0.5 * std::log(0.5) + 0.5 * std::log(0.5 / 1e-7), 0.01);
  loss.backward();
  EXPECT_LE(logits.grad().abs().max().item<float>(), 1.5f);
}

TEST(Targets, SurviveTheirStoredForm) {
  at::Generator generator = at::detail::createCPUGenerator(5);
  for (const std::uint32_t vocabulary : {50u, 70000u}) {
    TeacherOutputsKey key;
    key.window = 3, key.k = 8, key.vocabulary = vocabulary;
    const Tensor logits = at::empty({3, vocabulary}, at::kFloat).normal_(0, 2, generator);
    for (const TeacherOutputs outputs : {TeacherOutputs::kTopK, TeacherOutputs::kSampled}) {
      key.outputs = outputs;
      const TeacherTargets made = teacher_targets(logits, outputs, 8, 1, 1);
      const std::vector<std::byte> packed = pack_targets(made, key);
      ASSERT_EQ(packed.size(), key.record_bytes());
      const TeacherTargets back = unpack_targets(packed, key);
      EXPECT_TRUE(back.ids.equal(made.ids));
      if (outputs == TeacherOutputs::kTopK) {
        EXPECT_LT((back.logs - made.logs).abs().max().item<float>(), 0.005);
      }
    }
  }
  TeacherOutputsKey key;  // what a damaged file could say: ids beyond the vocabulary
  key.window = 1, key.k = 1, key.vocabulary = 10;
  const std::vector<std::byte> damaged(key.record_bytes(), std::byte{0xff});
  EXPECT_EQ(unpack_targets(damaged, key).ids.max().item<int>(), 9);
}

TEST(LayerMap, LastLayersMeet) {
  EXPECT_EQ(layer_map(2, 6), (std::vector<std::size_t>{2, 5}));
  EXPECT_EQ(layer_map(3, 5), (std::vector<std::size_t>{1, 3, 4}));
  EXPECT_EQ(layer_map(4, 4), (std::vector<std::size_t>{0, 1, 2, 3}));
}

Trace trace_of(const Network& n) {
  torch::NoGradGuard no_grad;
  Trace t;
  t.keep = true;
  forward(n, at::arange(20, at::kLong).view({2, 10}), &t);
  return t;
}

class Traces : public ::testing::TestWithParam<ModelFamily> {};
INSTANTIATE_TEST_SUITE_P(Families, Traces, ::testing::Values(ModelFamily::kLlama, ModelFamily::kGpt2));

TEST_P(Traces, HoldWhatTheLossesCompare) {
  const Network a = random_network(small(GetParam()), 1), b = random_network(small(GetParam()), 2);
  const Trace s = trace_of(a), t = trace_of(b);
  ASSERT_EQ(s.hidden.size(), 4u);
  ASSERT_EQ(s.attention.size(), 3u);
  EXPECT_TRUE(at::allclose(s.attention[0].sum(-1), at::ones({2, 4, 10})));
  EXPECT_EQ(s.attention[0][0][0][3][7].item<float>(), 0);  // the future
  const auto map = layer_map(3, 3);
  EXPECT_EQ(value(attention_loss(s, s, map)), 0);
  EXPECT_EQ(value(hidden_loss(s, s, map, {})), 0);
  EXPECT_NEAR(value(relation_loss(s, 2, s, 2, 2)), 0, 1e-6);
  double attention = 0, hidden = 0;
  for (std::size_t i = 0; i < 3; ++i)
    attention += value((s.attention[i] - t.attention[i]).square().mean()) / 3;
  for (std::size_t i = 0; i < 4; ++i) hidden += value((s.hidden[i] - t.hidden[i]).square().mean()) / 4;
  EXPECT_NEAR(value(attention_loss(s, t, map)), attention, 1e-6);
  EXPECT_NEAR(value(hidden_loss(s, t, map, {})), hidden, 1e-6);
}

/// Two heads of four are left, of layers 0 and 2: each is compared with the head that it was.
TEST_P(Traces, AHeadThatIsLeftLearnsFromTheOneThatItWas) {
  const Network whole = random_network(small(GetParam()), 1);
  ModelConfig target = whole.config;
  target.layers.assign(2, {2, GetParam() == ModelFamily::kLlama ? 1u : 2u, 40});
  const Network cut = prune(whole, target, nullptr);
  ASSERT_EQ(cut.origins.size(), 2u);
  const Trace s = trace_of(cut), t = trace_of(whole);
  double wanted = 0;
  std::vector<std::size_t> layers;
  for (std::size_t i = 0; i < 2; ++i) {
    layers.push_back(static_cast<std::size_t>(cut.origins[i].layer));
    ASSERT_EQ(cut.origins[i].heads.size(), 2u);
    for (std::size_t h = 0; h < 2; ++h)
      wanted += value((s.attention[i].select(1, static_cast<std::int64_t>(h)) -
                       t.attention[layers[i]].select(1, cut.origins[i].heads[h]))
                          .square()
                          .mean()) /
                4;
  }
  EXPECT_NEAR(value(attention_loss(s, t, layers, cut.origins)), wanted, 1e-6);
  EXPECT_NE(value(attention_loss(s, t, layers, cut.origins)), value(attention_loss(s, t, layers)))
      << "means over heads";
}

/// Relations of one position pair, written out: two positions, one head of one feature, q = (1, 2) against
/// (1, 0); keys and values equal.
TEST(RelationLoss, AsByHand) {
  const auto states = [](double second) {
    Trace t;
    t.query = {at::tensor(std::vector<double>{1, second}).to(at::kFloat).view({1, 2, 1, 1})};
    t.key = t.value = {at::ones({1, 2, 1, 1})};
    return t;
  };
  const auto softmax = [](double a, double b) {
    return std::pair(std::exp(a) / (std::exp(a) + std::exp(b)), std::exp(b) / (std::exp(a) + std::exp(b)));
  };
  double wanted = 0;
  for (const auto& [teacher, student] :
       {std::pair(softmax(1, 2), softmax(1, 0)), std::pair(softmax(2, 4), softmax(0, 0))})
    wanted += (teacher.first * std::log(teacher.first / student.first) +
               teacher.second * std::log(teacher.second / student.second)) /
              2;
  EXPECT_NEAR(value(relation_loss(states(0), 0, states(2), 0, 1)), wanted, 1e-6);
}

TEST(RelationLoss, TakesUnlikeHeadCounts) {
  ModelConfig narrow = small(ModelFamily::kLlama);
  for (LayerShape& layer : narrow.layers) layer.n_head = 2, layer.n_head_kv = 2;
  const double loss = value(relation_loss(trace_of(random_network(narrow, 1)), 2,
                                          trace_of(random_network(small(ModelFamily::kLlama), 2)), 2, 2));
  EXPECT_GT(loss, 0);
  EXPECT_TRUE(std::isfinite(loss));
}

TEST(Projections, AppearOnlyWhereWidthsDiffer) {
  Network n = random_network(small(ModelFamily::kLlama), 1);
  const std::size_t before = n.weights.size();
  ModelConfig teacher = n.config;
  add_projections(n, teacher, 3);
  EXPECT_EQ(n.weights.size(), before);
  teacher.n_embd = 48;
  add_projections(n, teacher, 3);
  EXPECT_EQ(n.weights.size(), before + 4);
  EXPECT_EQ(n.weight("distil.hidden.0").sizes().vec(), (std::vector<std::int64_t>{32, 48}));
  drop_projections(n);
  EXPECT_EQ(n.weights.size(), before);
}

using testing::TemporaryFolder;

/// A tiny Llama and a text to learn.
class Optimise : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 1));
    model = open_hf_model(folder / "m");
    ASSERT_OK(model);
    ASSERT_OK(write_file_atomic(folder / "d.jsonl", testing::tiny_corpus_jsonl(100, 1)));
    stream = TokenStream::make(*read_documents(folder / "d.jsonl"), model->tokenizer);
    ASSERT_OK(stream);
  }
  /// What three steps make of a network of the model's shape; how many windows went through the teacher.
  Network three_steps(const OptimisePass& pass, Teacher teacher, std::uint64_t& forwards) {
    Network n = random_network(model->config, 9);
    Moments moments;
    for (int i = 0; i < 3; ++i) testing::text_step(n, moments, &teacher, *stream, pass, 1, i, 3, 32, 4);
    forwards = teacher.forwards;
    return n;
  }

  TemporaryFolder folder;
  Result<HfModel> model = fail(ErrorCode::kInternal, "", "not set up");
  Result<TokenStream> stream = fail(ErrorCode::kInternal, "", "not set up");
};

TEST_F(Optimise, LearnsAndRepeatsExactly) {
  const auto train = [&] {
    Network n = random_network(model->config, 9);
    Moments moments;
    OptimisePass pass;
    pass.learning_rate = 3e-3;
    std::vector<double> losses;
    for (int i = 0; i < 12; ++i)
      losses.push_back(testing::text_step(n, moments, nullptr, *stream, pass, 1, i, 12, 32, 4).loss);
    return losses;
  };
  const std::vector<double> a = train(), b = train();
  EXPECT_EQ(a, b);
  EXPECT_LT(a.back(), a.front() - 0.5);
}

TEST_F(Optimise, BFloat16LearnsAsF32Does) {
  const auto train = [&](OptimisePass::Precision precision) {
    Network n = random_network(model->config, 9);
    Moments moments;
    OptimisePass pass;
    pass.learning_rate = 3e-3;
    pass.precision = precision;
    std::vector<double> losses;
    for (int i = 0; i < 12; ++i)
      losses.push_back(testing::text_step(n, moments, nullptr, *stream, pass, 1, i, 12, 32, 4).loss);
    for (const auto& [name, tensor] : n.weights) EXPECT_EQ(tensor.scalar_type(), at::kFloat) << name;
    return losses;
  };
  const auto whole = train(OptimisePass::Precision::kF32), low = train(OptimisePass::Precision::kBf16);
  EXPECT_NE(whole, low);
  for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(low[i], whole[i], 0.02 * whole[i]) << i;
}

TEST_F(Optimise, PrunedWeightsStayZero) {
  Network n = random_network(model->config, 9);
  SparsePass cut;
  cut.wanda = false;
  ASSERT_OK(sparsify(n, cut, *sparse_matrices(n.config, cut, "test"), {}, [] { return Result<void>(); }));
  std::map<std::string, at::Tensor> before;
  for (const std::string& name : n.sparse) before[name] = n.weight(name).clone();
  Moments moments;
  OptimisePass pass;
  for (int i = 0; i < 5; ++i) testing::text_step(n, moments, nullptr, *stream, pass, 1, i, 5, 32, 4);
  for (const auto& [name, was] : before) {
    EXPECT_TRUE(n.weight(name).eq(0).equal(was.eq(0))) << name;
    EXPECT_FALSE(n.weight(name).equal(was)) << name << " has not learnt";
  }
}

TEST(Schedule, WarmsUpAndFalls) {
  OptimisePass pass;
  pass.warmup = 0.1;
  EXPECT_NEAR(schedule_factor(pass, 0, 100), 0.1, 1e-9);
  EXPECT_NEAR(schedule_factor(pass, 10, 100), 1, 1e-9);
  EXPECT_NEAR(schedule_factor(pass, 55, 100), 0.55, 1e-9);
  pass.schedule = OptimisePass::Schedule::kWsd;
  EXPECT_NEAR(schedule_factor(pass, 79, 100), 1, 1e-9);
  EXPECT_NEAR(schedule_factor(pass, 90, 100), 0.5, 1e-9);
}

TEST_F(Optimise, ANumberThatIsNoneChangesNothing) {
  Network n = random_network(model->config, 9);
  n.weights.at("model.norm.weight")[0] = std::numeric_limits<float>::infinity();
  Moments moments;
  std::map<std::string, at::Tensor> before;
  for (const auto& [name, tensor] : n.weights) before[name] = tensor.clone();
  EXPECT_TRUE(std::isnan(testing::text_step(n, moments, nullptr, *stream, {}, 1, 0, 12, 32, 4).loss));
  for (const auto& [name, tensor] : n.weights) EXPECT_TRUE(tensor.equal(before[name])) << name;
}

/// The same student, step by step, whether its teacher's outputs come from the cache or not, and another
/// result than from the whole distribution only in the small.
TEST_F(Optimise, ACacheChangesNothingButTheTeachersWork) {
  const Network teacher_network = *load_network(*model);
  OptimisePass pass;
  pass.distil.emplace().outputs = TeacherOutputs::kTopK;
  pass.distil->k = 8;
  TeacherOutputsKey key;
  key.windows = stream->windows(32), key.window = 32, key.k = 8, key.vocabulary = model->config.n_vocab;
  key.temperature = pass.distil->temperature;
  const auto run = [&](TeacherCache* cache, std::uint64_t& forwards) {
    return three_steps(pass, {teacher_network, key, cache}, forwards);
  };
  auto cache = TeacherCache::open(folder / "c", key, 1 << 30);
  ASSERT_OK(cache);
  std::uint64_t none = 0, first = 0, second = 0;
  const Network a = run(nullptr, none), b = run(&*cache, first), c = run(&*cache, second);
  EXPECT_EQ(none, 12u);
  EXPECT_EQ(first, 12u);
  EXPECT_EQ(second, 0u);
  for (const auto& [name, tensor] : a.weights) {
    EXPECT_TRUE(tensor.equal(b.weight(name))) << name;
    EXPECT_TRUE(tensor.equal(c.weight(name))) << name;
  }
}

/// A teacher writes each window once; from the cache come the same words.
TEST_F(Optimise, ATeachersTextIsWrittenOnce) {
  const Network teacher_network = *load_network(*model);
  OptimisePass pass;
  pass.distil.emplace();
  pass.distil->labels = pass.distil->teacher_text = 1, pass.distil->soft = 0;
  TeacherOutputsKey key;
  key.windows = stream->windows(32), key.window = 32, key.k = 1, key.vocabulary = model->config.n_vocab;
  key.outputs = TeacherOutputs::kWritten, key.seed = 5;
  const auto run = [&](TeacherCache* cache, std::uint64_t& forwards, std::uint64_t seed) {
    key.seed = seed;
    return three_steps(pass, {teacher_network, key, cache}, forwards);
  };
  auto cache = TeacherCache::open(folder / "c", key, 1 << 30);
  ASSERT_OK(cache);
  std::uint64_t none = 0, first = 0, second = 0, other = 0;
  const Network a = run(nullptr, none, 5), b = run(&*cache, first, 5), c = run(&*cache, second, 5),
                d = run(nullptr, other, 6);
  EXPECT_EQ(none, 12u);
  EXPECT_EQ(first, 12u);
  EXPECT_EQ(second, 0u);
  bool same = true;
  for (const auto& [name, tensor] : a.weights) {
    EXPECT_TRUE(tensor.equal(b.weight(name))) << name;
    EXPECT_TRUE(tensor.equal(c.weight(name))) << name;
    same &= tensor.equal(d.weight(name));
  }
  EXPECT_FALSE(same) << "another seed, other words";
  // What it wrote goes on from the text's first quarter.
  std::vector<std::byte> record(key.record_bytes());
  std::vector<std::int64_t> text(33);
  const std::uint64_t at = stream->window(1, 0, 32, text.data());
  ASSERT_TRUE(cache->read(at, record));
  const Tensor ids = unpack_targets(record, key).ids.squeeze(1);
  EXPECT_TRUE(ids.slice(0, 0, 7).equal(at::tensor(text, at::kLong).slice(0, 1, 8)));
  EXPECT_FALSE(ids.slice(0, 7).equal(at::tensor(text, at::kLong).slice(0, 8)));
}

/// Every part of a mixture, alone, lowers its own loss; a narrower student learns its projections.
TEST_F(Optimise, EveryPartOfAMixtureTeaches) {
  const Network teacher_network = *load_network(*model);
  ModelConfig narrow = model->config;
  narrow.n_embd = 32, narrow.head_dim = 16;
  for (LayerShape& layer : narrow.layers) layer = {2, 1, 48};
  const auto none = [] {
    Mixture m;
    m.labels = m.soft = 0;
    return m;
  };
  std::vector<std::pair<const char*, Mixture>> parts;
  parts.emplace_back("attention", none()).second.attention = 1;
  parts.emplace_back("hidden", none()).second.hidden = 1;
  parts.emplace_back("relation", none()).second.relation = 1;
  parts.emplace_back("reverse", none()).second.soft = 1;
  parts.back().second.divergence = Divergence::kReverse;
  parts.emplace_back("on policy", none()).second.soft = 1;
  parts.back().second.divergence = Divergence::kJensenShannon;
  parts.back().second.on_policy = 0.5;
  parts.emplace_back("sequence", none()).second.labels = 1;
  parts.back().second.teacher_text = 1;
  parts.emplace_back("mapped", none()).second.hidden = 1;
  parts.back().second.layer_map.assign(narrow.layers.size(), 0);
  for (const auto& [name, mixture] : parts) {
    Network n = random_network(narrow, 9);
    if (mixture.hidden > 0) add_projections(n, model->config, 4);
    Moments moments;
    Teacher teacher{teacher_network, {}};
    teacher.key.window = 16, teacher.key.k = 1, teacher.key.vocabulary = model->config.n_vocab;
    teacher.key.outputs = TeacherOutputs::kWritten;
    OptimisePass pass;
    pass.distil = mixture;
    pass.warmup = 0;
    pass.learning_rate = 3e-3;
    double first = 0, last = 0;
    for (int i = 0; i < 10; ++i) {
      last = testing::text_step(n, moments, &teacher, *stream, pass, 1, 0, 1000, 16, 4)
                 .loss;  // the same windows
      if (i == 0) first = last;
    }
    EXPECT_LT(last, 0.97 * first) << name;
  }
}

/// Straight-through: the loss is that of the rounded network, and its gradient moves the unrounded weights.
TEST_F(Optimise, QuantizationAware) {
  const Network teacher_network = *load_network(*model);
  Network n = teacher_network;
  for (auto& [name, tensor] : n.weights) tensor = tensor.clone();
  Moments moments;
  Teacher teacher{teacher_network, {}};
  OptimisePass pass;
  pass.distil.emplace().labels = 0;
  pass.warmup = 0;
  pass.learning_rate = 1e-4;
  EXPECT_NEAR(testing::text_step(n, moments, &teacher, *stream, pass, 1, 0, 20, 32, 4).loss, 0,
              1e-6);  // the teacher itself
  pass.aware.emplace().format = TensorType::kQ4_0;
  double first = 0, last = 0;
  for (int i = 0; i < 20; ++i) {
    last = testing::text_step(n, moments, &teacher, *stream, pass, 1, 0, 1000, 32, 4).loss;
    if (i == 0) first = last;
  }
  EXPECT_GT(first, 0);
  EXPECT_LT(last, 0.9 * first);
}

}  // namespace
}  // namespace retort
