// fuzz-links: retort_runtime
// A model file that was tampered with: whatever loads must also compute, inside its own memory.
#include "agent/serve/runtime/classifier.h"
#include "agent/serve/runtime/encoder.h"
#include "agent/serve/runtime/session.h"
#include "common/core/file.h"
#include "common/hf/classifier_model.h"
#include "common/hf/hf_model.h"
#include "tests/fuzz/fuzz_seeds.h"
#include "tests/support/support.h"
#include "tests/support/tiny_classifier.h"
#include "tests/support/tiny_model.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> seeds;
  retort::testing::TemporaryFolder folder;
  retort::testing::TinyModelOptions small;
  small.n_embd = 32, small.n_layer = 1, small.n_head = 2, small.n_head_kv = 1, small.n_ff = 32,
  small.n_ctx = 8;
  small.encoder.labels = {"on", "off"}, small.encoder.pooler = true,
  small.encoder.pooling = TextPooling::kCls;
  for (const ModelFamily family : {ModelFamily::kLlama, ModelFamily::kGpt2, ModelFamily::kBert})
    for (const TensorType type :
         {TensorType::kF32, TensorType::kF16, TensorType::kBF16, TensorType::kQ8_0, TensorType::kSparseQ8,
          TensorType::kSparse24Q8, TensorType::kCodebook4, TensorType::kCodebook8}) {
      const auto name = folder / (std::string(to_string(family)) + std::string(info(type).name));
      fuzz::require(retort::testing::write_tiny_model(name, family, 1, small).has_value());
      const auto model = open_hf_model(name);
      fuzz::require(model.has_value());
      fuzz::require(write_gguf_model(folder / "m.gguf", model->config, model->tokenizer,
                                     weight_sources(*model), type, {})
                        .has_value());
      seeds.push_back(*read_file(folder / "m.gguf"));
    }
  SeededRandom random(6);
  for (const ClassifierFamily family : {ClassifierFamily::kMlp, ClassifierFamily::kCnn})
    for (const TensorType type :
         {TensorType::kF32, TensorType::kQ8_0, TensorType::kSparseQ8, TensorType::kCodebook4}) {
      const ClassifierConfig config = retort::testing::random_classifier(family, random);
      fuzz::require(write_gguf_classifier(folder / "c.gguf", config,
                                          retort::testing::random_weights(config, 1), type, {})
                        .has_value());
      seeds.push_back(*read_file(folder / "c.gguf"));
    }
  return seeds;
}

namespace {

void classify(GgufFile file) {
  const auto model = Classifier::from_file(std::move(file));
  if (!model) return;
  ThreadTeam team(1);
  const auto session = ClassifierSession::create(*model, team, {.batch = 2, .memory_limit = 64 << 20});
  const std::uint64_t values = (*model)->config().input.values();
  if (!session || values > 1 << 16) return;
  for (const float x : {0.0f, 1e30f}) {
    const auto logits = (*session)->run(std::vector<float>(2 * values, x));
    fuzz::require(logits.has_value() && logits->size() == 2 * (*model)->config().labels.size());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto file = GgufFile::parse(std::as_bytes(std::span(data, size)), "fuzz");
  if (!file) return 0;
  if (is_gguf_classifier(*file)) return classify(std::move(*file)), 0;
  const auto model = Model::from_file(std::move(*file));
  if (!model) return 0;
  ThreadTeam team(1);
  const ModelConfig& c = (*model)->config();
  if (c.is_encoder()) {
    const auto encoder = EncoderSession::create(
        *model, team, {.n_ctx = std::min(8u, c.n_ctx), .batch = 8, .memory_limit = 64 << 20});
    if (!encoder) return 0;
    const std::vector<TokenId> ids{0, static_cast<TokenId>(c.n_vocab - 1)};
    const EncoderSession::Text text = std::span(ids).last(std::min<std::size_t>(2, (*encoder)->n_ctx()));
    const auto vector = (*encoder)->embed({&text, 1});
    fuzz::require(vector.has_value() && vector->size() == c.n_embd);
    const auto classes = (*encoder)->classify({&text, 1});
    fuzz::require(classes.has_value() == !c.encoder.labels.empty());
    const std::uint32_t place = 0;
    fuzz::require((*encoder)->predict(text, {&place, 1}).has_value() == c.encoder.mlm_head);
    return 0;
  }
  const auto session = Session::create(
      *model, team, {.n_ctx = std::min(8u, (*model)->config().n_ctx), .batch = 2, .memory_limit = 64 << 20});
  if (!session) return 0;
  const auto last = static_cast<TokenId>((*model)->config().n_vocab - 1);
  for (const TokenId id : {TokenId{0}, last}) {
    if ((*session)->position() == (*session)->n_ctx()) break;
    const auto logits = (*session)->evaluate(std::span(&id, 1));
    fuzz::require(logits.has_value() && logits->size() == (*model)->config().n_vocab);
  }
  return 0;
}
