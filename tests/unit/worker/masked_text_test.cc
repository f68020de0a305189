#include "coordinator/worker/masked_text.h"

#include <cmath>

#include "common/core/documents.h"
#include "coordinator/worker/evaluate.h"
#include "coordinator/worker/optimise.h"
#include "tests/support/support.h"
#include "tests/support/text_step.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

using at::Tensor;

/// A tiny masked language model and a text to learn.
class Masked : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::TinyModelOptions options;
    options.n_ctx = 32;
    options.encoder.mlm_head = true;
    ASSERT_OK(testing::write_tiny_model(folder_ / "m", ModelFamily::kBert, 1, options));
    model_ = open_hf_model(folder_ / "m");
    ASSERT_OK(model_);
    ASSERT_OK(write_file_atomic(folder_ / "d.jsonl", testing::tiny_corpus_jsonl(100, 1)));
    documents_ = *read_documents(folder_ / "d.jsonl");
    stream_ = TokenStream::make(documents_, model_->tokenizer);
    ASSERT_OK(stream_);
  }
  const Tokenizer& tokenizer() const { return model_->tokenizer; }
  double judged(const Network& network, const Network* teacher = nullptr) const {
    const Evaluation e = evaluate(network, teacher, tokenizer(), documents_, 400, [] { return false; });
    return teacher != nullptr ? *e.divergence : e.nll / static_cast<double>(e.tokens);
  }

  testing::TemporaryFolder folder_;
  Result<HfModel> model_ = fail(ErrorCode::kInternal, "", "not set up");
  Result<TokenStream> stream_ = fail(ErrorCode::kInternal, "", "not set up");
  std::vector<std::string> documents_;
};

TEST_F(Masked, HidesAsThePaperSays) {
  Tensor ids = at::randint(5, 200, {200, 64}, at::kLong);  // the first five are special
  ids.select(1, 0).fill_(tokenizer().bos());
  ids.select(1, -1).fill_(tokenizer().eos());
  const MaskedText text = hide_tokens(ids, tokenizer(), 7);
  const double all = 200 * 62, hidden = static_cast<double>(text.places.numel());
  EXPECT_NEAR(hidden / all, 0.15, 0.02);
  EXPECT_TRUE(text.ids.select(1, 0).equal(ids.select(1, 0)));
  EXPECT_TRUE(text.ids.select(1, -1).equal(ids.select(1, -1)));
  const Tensor there = text.ids.reshape({-1}).index_select(0, text.places);
  EXPECT_TRUE(ids.reshape({-1}).index_select(0, text.places).equal(text.targets));
  EXPECT_NEAR(there.eq(tokenizer().mask()).sum().item<double>() / hidden, 0.8, 0.04);
  EXPECT_NEAR(there.eq(text.targets).sum().item<double>() / hidden, 0.1, 0.04);
  EXPECT_EQ(text.ids.ne(ids).sum().item<std::int64_t>(), there.ne(text.targets).sum().item<std::int64_t>());
  EXPECT_TRUE(hide_tokens(ids, tokenizer(), 7).ids.equal(text.ids));
  EXPECT_FALSE(hide_tokens(ids, tokenizer(), 8).ids.equal(text.ids));
  EXPECT_EQ(hide_tokens(at::full({1, 3}, 9, at::kLong), tokenizer(), 1).places.numel(), 1) << "never none";
}

TEST_F(Masked, IsLearntInBFloat16AsInF32) {
  const auto losses = [&](OptimisePass::Precision precision) {
    Network n = random_network(model_->config, 3);
    Moments moments;
    OptimisePass pass;
    pass.precision = precision;
    std::vector<double> out;
    for (std::uint64_t i = 0; i < 3; ++i)
      out.push_back(
          testing::text_step(n, moments, nullptr, *stream_, pass, 1, i, 60, 32, 8, &tokenizer()).loss);
    return out;
  };
  const auto whole = losses(OptimisePass::Precision::kF32), low = losses(OptimisePass::Precision::kBf16);
  for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(low[i], whole[i], 0.02 * whole[i]) << i;
}

TEST_F(Masked, IsLearntFromTextAndFromATeacher) {
  OptimisePass pass;
  pass.learning_rate = 3e-3;
  const auto train = [&](Teacher* teacher) {
    Network n = random_network(model_->config, 9);
    Moments moments;
    for (std::uint64_t i = 0; i < 60; ++i)
      EXPECT_FALSE(std::isnan(
          testing::text_step(n, moments, teacher, *stream_, pass, 1, i, 60, 32, 8, &tokenizer()).loss));
    return n;
  };
  const double before = judged(random_network(model_->config, 9));
  const Network taught = train(nullptr);
  EXPECT_LT(judged(taught), before - 1);
  // Soft targets alone, and with the maps of attention.
  pass.distil.emplace();
  pass.distil->labels = 0, pass.distil->soft = 1, pass.distil->attention = 1;
  Teacher teacher{taught, {}};
  const Network student = train(&teacher);
  EXPECT_LT(judged(student, &taught), 0.5 * judged(random_network(model_->config, 9), &taught));
}

}  // namespace
}  // namespace retort
