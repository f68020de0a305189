// GGUF: the container, the architecture that it claims, and its tokenizer.
#include "common/blocks/matrix.h"
#include "common/core/file.h"
#include "common/gguf/gguf.h"
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
  for (const ModelFamily family : {ModelFamily::kLlama, ModelFamily::kGpt2, ModelFamily::kBert}) {
    const std::string name = std::string(to_string(family));
    fuzz::require(retort::testing::write_tiny_model(folder / name, family, 1, small).has_value());
    const auto model = open_hf_model(folder / name);
    fuzz::require(model.has_value());
    fuzz::require(write_gguf_model(folder / "m.gguf", model->config, model->tokenizer, weight_sources(*model),
                                   TensorType::kQ8_0, {})
                      .has_value());
    seeds.push_back(*read_file(folder / "m.gguf"));
  }
  SeededRandom random(4);
  for (const ClassifierFamily family : {ClassifierFamily::kMlp, ClassifierFamily::kCnn}) {
    const ClassifierConfig config = retort::testing::random_classifier(family, random);
    fuzz::require(write_gguf_classifier(folder / "m.gguf", config, retort::testing::random_weights(config, 1),
                                        TensorType::kQ8_0, {})
                      .has_value());
    seeds.push_back(*read_file(folder / "m.gguf"));
  }
  small.change = [](ModelConfig& c) {
    c.qwen2 = c.qkv_bias = true;
    c.rope_scaling = {.kind = RopeScaling::Kind::kYarn, .factor = 4, .original_ctx = 8};
    c.rope_factors.assign(c.head_dim / 2, 2.0f);
  };
  const ModelConfig qwen2 = retort::testing::tiny_config(ModelFamily::kLlama, small);
  std::vector<TensorSource> weights;
  for (WeightShape& weight : hf_weights(qwen2))
    weights.push_back({weight.name, weight.shape, [](std::span<float> out) -> Result<void> {
                         std::fill(out.begin(), out.end(), 0.1f);
                         return {};
                       }});
  const auto tokenizer = Tokenizer::from_huggingface_text(retort::testing::tiny_tokenizer_json(), "", "tiny");
  fuzz::require(
      write_gguf_model(folder / "q.gguf", qwen2, *tokenizer, weights, TensorType::kQ8_0, {}).has_value());
  seeds.push_back(*read_file(folder / "q.gguf"));
  GgufWriter writer;
  writer.set("general.alignment", std::uint64_t{32});
  writer.set("a", std::vector<double>{1, 2, 3});
  writer.set("b", std::vector<std::string>{"x", ""});
  writer.set("c", true);
  for (const char* name : {"t0", "t1"})
    writer.add_tensor(name, {32, 2}, TensorType::kQ8_0,
                      [](std::span<std::byte>) -> Result<void> { return {}; });
  for (const TensorType type : {TensorType::kQ4_0, TensorType::kQ3K, TensorType::kQ4K, TensorType::kQ5K,
                                TensorType::kQ6K, TensorType::kIq4Nl})
    writer.add_tensor(std::string(info(type).name), {256}, type,
                      [](std::span<std::byte> out) -> Result<void> {
                        for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>(37 * i);
                        return {};
                      });
  for (const TensorType type :
       {TensorType::kSparseQ8, TensorType::kSparse24Q8, TensorType::kCodebook4, TensorType::kCodebook8})
    writer.add_matrix(std::string(info(type).name), 64, 3, type, [type]() -> Result<std::vector<std::byte>> {
      std::vector<float> values(3 * 64);
      for (std::size_t i = 0; i < values.size(); i += 2) values[i] = static_cast<float>(i % 11) - 5;
      return encode_matrix(type, 3, 64, values);
    });
  fuzz::require(writer.write(folder / "w.gguf").has_value());
  seeds.push_back(*read_file(folder / "w.gguf"));
  return seeds;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = GgufFile::parse(std::as_bytes(std::span(data, size)), "fuzz");
  if (!file) return 0;
  std::uint64_t sum = 0;
  for (const GgufTensor& tensor : file->tensors()) {
    fuzz::require(tensor.data.size() <= size && tensor.offset <= size - tensor.data.size());
    if (!tensor.data.empty())
      sum += static_cast<std::uint64_t>(tensor.data.front()) + static_cast<std::uint64_t>(tensor.data.back());
    std::vector<float> row(tensor.columns());
    decode_rows(tensor.type, tensor.rows(), tensor.columns(), tensor.data, tensor.rows() - 1, row);
  }
  fuzz::require(sum < ~0ull);
  if (const auto config = read_gguf_config(*file)) {
    fuzz::require(config->n_vocab > 0);
    (void)parameter_count(*config);
  }
  if (const auto config = read_gguf_classifier_config(*file)) {
    fuzz::require(validate(*config, "fuzz").has_value());
    fuzz::require(parameter_count(*config) > 0 && !operations(*config).empty());
  }
  if (const auto tokenizer = Tokenizer::from_gguf(*file)) {
    const auto ids = tokenizer->encode("the server's\n \xff client <|endoftext|>", true, true);
    for (const TokenId id : ids)
      fuzz::require(id >= 0 && id < static_cast<TokenId>(tokenizer->vocabulary_size()));
    (void)tokenizer->decode(ids);
  }
  return 0;
}
