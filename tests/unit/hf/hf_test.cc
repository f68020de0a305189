#include <algorithm>

#include "common/blocks/matrix.h"
#include "common/core/json.h"
#include "common/hf/encoded_weights.h"
#include "common/hf/hf_model.h"
#include "tests/support/plain_llama.h"
#include "tests/support/support.h"
#include "tests/support/tiny_model.h"

namespace retort {
namespace {

using testing::TemporaryFolder;

TEST(HfModel, TinyModelsOpenAndBecomeGgufWithTheSameConfig) {
  for (const ModelFamily family : {ModelFamily::kLlama, ModelFamily::kGpt2}) {
    TemporaryFolder folder;
    ASSERT_OK(testing::write_tiny_model(folder / "m", family, 1));
    const auto model = open_hf_model(folder / "m");
    ASSERT_OK(model);
    for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kQ8_0}) {
      ASSERT_OK(write_gguf_model(folder / "m.gguf", model->config, model->tokenizer, weight_sources(*model),
                                 type, {{"retort.test", std::string("x")}}));
      const auto file = GgufFile::open(folder / "m.gguf");
      ASSERT_OK(file);
      const auto config = read_gguf_config(*file);
      ASSERT_OK(config);
      EXPECT_EQ(*config, model->config);
      EXPECT_EQ(*file->text("retort.test"), "x");
      EXPECT_EQ(file->tensor("blk.0.attn_norm.weight")->type, TensorType::kF32);
    }
    std::uint64_t counted = 0;
    for (const auto& [name, tensor] : model->weights.tensors()) counted += tensor.count();
    EXPECT_EQ(counted, parameter_count(model->config));
  }
}

TEST(HfModel, PerLayerWidthsSurviveBothFormats) {
  TemporaryFolder folder;
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 1));
  const auto model = open_hf_model(folder / "m");
  ASSERT_OK(model);
  ModelConfig cut = model->config;
  cut.layers[1] = {2, 1, 64};
  std::vector<TensorSource> weights;
  for (WeightShape& w : hf_weights(cut))
    weights.push_back({w.name, w.shape, [](std::span<float> out) -> Result<void> {
                         std::fill(out.begin(), out.end(), 0.5f);
                         return {};
                       }});
  ASSERT_OK(write_gguf_model(folder / "c.gguf", cut, model->tokenizer, weights, TensorType::kF16, {}));
  const auto file = GgufFile::open(folder / "c.gguf");
  ASSERT_OK(file);
  EXPECT_EQ(*read_gguf_config(*file), cut);
  ASSERT_OK(write_hf_model(folder / "c", cut, weights, SafeTensor::DType::kF16, folder / "m"));
  const auto copy = open_hf_model(folder / "c");
  ASSERT_OK(copy);
  EXPECT_EQ(copy->config, cut);
}

testing::TinyModelOptions bert_options(std::vector<std::string> labels, bool mlm_head, TextPooling pooling) {
  testing::TinyModelOptions options;
  options.encoder.pooler = !labels.empty();
  options.encoder.labels = std::move(labels);
  options.encoder.mlm_head = mlm_head;
  options.encoder.pooling = pooling;
  return options;
}

TEST(HfModel, BertsOpenAndBecomeGgufWithTheSameConfig) {
  testing::TinyModelOptions untied = bert_options({}, true, TextPooling::kNone), tanh_gelu = untied;
  untied.tied = false;
  tanh_gelu.encoder.gelu = Gelu::kTanh;
  tanh_gelu.encoder.n_token_types = 0;
  for (const testing::TinyModelOptions& options :
       {bert_options({}, false, TextPooling::kNone), bert_options({}, false, TextPooling::kMean),
        bert_options({}, false, TextPooling::kCls),
        bert_options({"on", "off", "ön"}, false, TextPooling::kCls),
        bert_options({}, true, TextPooling::kMean), untied, tanh_gelu}) {
    TemporaryFolder folder;
    ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kBert, 1, options));
    const auto model = open_hf_model(folder / "m");
    ASSERT_OK(model);
    EXPECT_EQ(model->config.encoder, options.encoder);
    ASSERT_OK(write_gguf_model(folder / "m.gguf", model->config, model->tokenizer, weight_sources(*model),
                               TensorType::kQ8_0, {}));
    const auto file = GgufFile::open(folder / "m.gguf");
    ASSERT_OK(file);
    const auto config = read_gguf_config(*file);
    ASSERT_OK(config);
    EXPECT_EQ(*config, model->config);
    EXPECT_EQ(file->tensor("position_embd.weight")->type, TensorType::kF32);
    EXPECT_EQ(file->tensor("blk.1.attn_q.weight")->type, TensorType::kQ8_0);
    std::uint64_t counted = 0;
    for (const auto& [name, tensor] : model->weights.tensors()) counted += tensor.count();
    EXPECT_EQ(counted, parameter_count(model->config));
    // Every operation's weight is a tensor of its shape.
    for (const Operation& op : operations(model->config)) {
      const GgufTensor* tensor = file->tensor(op.tensor);
      ASSERT_NE(tensor, nullptr) << op.tensor;
      EXPECT_EQ(tensor->rows(), op.rows) << op.tensor;
      EXPECT_EQ(tensor->columns(), op.columns) << op.tensor;
    }
  }
}

TEST(HfModel, BertLayersMayDiffer) {
  TemporaryFolder folder;
  testing::TinyModelOptions options = bert_options({"a", "b"}, false, TextPooling::kCls);
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kBert, 1, options));
  ModelConfig cut = open_hf_model(folder / "m")->config;
  cut.layers[1] = {2, 2, 64};
  std::vector<TensorSource> weights;
  for (WeightShape& w : hf_weights(cut))
    weights.push_back({w.name, w.shape, [](std::span<float> out) -> Result<void> {
                         std::fill(out.begin(), out.end(), 0.5f);
                         return {};
                       }});
  ASSERT_OK(write_hf_model(folder / "c", cut, weights, SafeTensor::DType::kF16, folder / "m"));
  const auto copy = open_hf_model(folder / "c");
  ASSERT_OK(copy);
  EXPECT_EQ(copy->config, cut);
  ASSERT_OK(write_gguf_model(folder / "c.gguf", cut, copy->tokenizer, weights, TensorType::kF16, {}));
  EXPECT_EQ(*read_gguf_config(*GgufFile::open(folder / "c.gguf")), cut);
  cut.layers[1].n_head_kv = 1;
  EXPECT_FALSE(validate(cut, "t"));
}

/// A folder's weights under other names, beside its other files.
void rename_weights(const std::filesystem::path& folder,
                    const std::function<std::string(const std::string&)>& name) {
  const auto model = open_hf_model(folder);
  ASSERT_OK(model);
  std::vector<TensorSource> weights = weight_sources(*model);
  for (TensorSource& source : weights) source.name = name(source.name);
  weights.push_back({"bert.embeddings.position_ids", {1, 128}, [](std::span<float> out) -> Result<void> {
                       std::fill(out.begin(), out.end(), 0.0f);
                       return {};
                     }});
  ASSERT_OK(write_safetensors(folder / "new.safetensors", weights, SafeTensor::DType::kF32));
  std::filesystem::rename(folder / "new.safetensors", folder / "model.safetensors");
}

TEST(HfModel, BertsOlderAndBareNamesAreKnown) {
  TemporaryFolder folder;
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kBert, 1));
  const auto read = [&] {
    const auto model = open_hf_model(folder / "m");
    EXPECT_OK(model);
    std::vector<float> all;
    if (!model) return all;
    for (const TensorSource& source : weight_sources(*model)) {
      std::uint64_t count = 1;
      for (const std::uint64_t d : source.shape) count *= d;
      std::vector<float> values(count);
      EXPECT_OK(source.read(values));
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  };
  const std::vector<float> before = read();
  rename_weights(folder / "m", [](std::string name) { return name.substr(5); });  // BertModel alone
  EXPECT_EQ(read(), before);
  rename_weights(folder / "m", [](std::string name) {  // as the first checkpoints
    for (const auto& [from, to] :
         {std::pair("LayerNorm.weight", "LayerNorm.gamma"), std::pair("LayerNorm.bias", "LayerNorm.beta")})
      if (name.ends_with(from))
        name.replace(name.size() - std::string_view(from).size(), std::string::npos, to);
    return name;
  });
  EXPECT_EQ(read(), before);
}

TEST(HfModel, BertRefusalsSayWhat) {
  const std::string base =
      R"({"model_type":"bert","vocab_size":10,"hidden_size":8,"intermediate_size":16,"num_hidden_layers":1,"num_attention_heads":2)";
  const auto message = [&](const std::string& more) {
    const auto config = read_hf_config(base + more + "}", "config.json");
    return config ? std::string("accepted") : config.error().message;
  };
  EXPECT_EQ(message(""), "accepted");
  EXPECT_EQ(message(R"(,"hidden_act":"gelu_new")"), "accepted");
  EXPECT_NE(message(R"(,"hidden_act":"relu")").find("'relu'"), std::string::npos);
  EXPECT_NE(message(R"(,"position_embedding_type":"relative_key")").find("relative_key"), std::string::npos);
  EXPECT_NE(message(R"(,"is_decoder":true)").find("is_decoder"), std::string::npos);
  EXPECT_NE(message(R"(,"architectures":["BertForTokenClassification"])").find("BertForTokenClassification"),
            std::string::npos);
  const std::string classifier = R"(,"architectures":["BertForSequenceClassification"])";
  EXPECT_NE(message(classifier + R"(,"problem_type":"regression")").find("regression"), std::string::npos);
  EXPECT_NE(message(classifier + R"(,"id2label":{"0":"a","2":"b"})").find("'1'"), std::string::npos);
  EXPECT_NE(message(classifier + R"(,"id2label":{"0":"a","1":"a"})").find("'a'"), std::string::npos);
  EXPECT_EQ(read_hf_config(base + classifier + "}", "t")->encoder.labels,
            (std::vector<std::string>{"LABEL_0", "LABEL_1"}));
  const auto pooling = [](const std::string& modules, const std::string& modes) {
    TemporaryFolder folder;
    EXPECT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kBert, 1));
    EXPECT_OK(make_folders(folder / "m/1_Pooling"));
    EXPECT_OK(write_file_atomic(folder / "m/modules.json", modules));
    EXPECT_OK(write_file_atomic(folder / "m/1_Pooling/config.json", modes));
    const auto model = open_hf_model(folder / "m");
    return model ? std::to_string(static_cast<int>(model->config.encoder.pooling)) : model.error().message;
  };
  const std::string modules =
      R"([{"idx":0,"path":"","type":"sentence_transformers.models.Transformer"},)"
      R"({"idx":1,"path":"1_Pooling","type":"sentence_transformers.models.Pooling"}])";
  EXPECT_EQ(pooling(modules, R"({"pooling_mode_mean_tokens":true,"pooling_mode_max_tokens":false})"), "1");
  EXPECT_EQ(pooling(modules, R"({"pooling_mode_cls_token":true})"), "2");
  EXPECT_NE(pooling(modules, R"({"pooling_mode_max_tokens":true})").find("max_tokens"), std::string::npos);
  EXPECT_NE(pooling(R"([{"path":"../x","type":"a.Pooling"}])", "{}").find("../x"), std::string::npos);
  EXPECT_NE(pooling(R"([{"path":"2_Dense","type":"a.Dense"}])", "{}").find("Dense"), std::string::npos);
}

TEST(HfModel, LlamaRowsArePermutedToInterleavedPairs) {
  TemporaryFolder folder;
  testing::TinyModelOptions options;
  options.n_head = 2, options.n_head_kv = 1, options.n_embd = 32;  // head width 16
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 2, options));
  const auto model = open_hf_model(folder / "m");
  ASSERT_OK(model);
  ASSERT_OK(write_gguf_model(folder / "m.gguf", model->config, model->tokenizer, weight_sources(*model),
                             TensorType::kF32, {}));
  const auto file = GgufFile::open(folder / "m.gguf");
  ASSERT_OK(file);
  const SafeTensor* q = model->weights.find("model.layers.0.self_attn.q_proj.weight");
  const GgufTensor* g = file->tensor("blk.0.attn_q.weight");
  std::vector<float> from(32), to(32);
  for (std::uint64_t row = 0; row < 32; ++row) {
    const std::uint64_t head = row / 16, i = row % 16;
    q->read_f32(row * 32, from);
    const std::uint64_t target = head * 16 + (i < 8 ? 2 * i : 2 * (i - 8) + 1);
    decode_row(TensorType::kF32, g->data.subspan(target * 128, 128), to);
    EXPECT_EQ(from, to) << row;
  }
}

TEST(HfModel, RefusalsSayWhat) {
  const auto message = [](std::string_view text) {
    return read_hf_config(text, "config.json").error().message;
  };
  EXPECT_NE(message(R"({"model_type":"mamba","vocab_size":3})")
                .find("'mamba'; 'llama', 'qwen2', 'gpt2' and 'bert'"),
            std::string::npos);
  EXPECT_NE(message(R"({"vocab_size":3})").find("'model_type' is missing"), std::string::npos);
  const std::string base =
      R"("model_type":"llama","vocab_size":10,"hidden_size":8,"intermediate_size":16,"num_hidden_layers":1,"num_attention_heads":2)";
  EXPECT_OK(read_hf_config("{" + base + "}", "t"));
  EXPECT_NE(message("{" + base + R"(,"num_key_value_heads":3})").find("key/value heads"), std::string::npos);
  for (const char* scaling : {"dynamic", "longrope", "su"})
    EXPECT_NE(
        message("{" + base + R"(,"rope_scaling":{"factor":2,"type":")" + scaling + "\"}}").find(scaling),
        std::string::npos);
  EXPECT_NE(message("{" + base + R"(,"rope_scaling":{"rope_type":"linear"}})").find("factor"),
            std::string::npos);
  EXPECT_NE(message("{" + base + R"(,"rope_scaling":{"rope_type":"linear","factor":0}})").find("factor 0"),
            std::string::npos);
  EXPECT_NE(
      message("{" + base + R"(,"rope_scaling":{"rope_type":"yarn","factor":2,"mscale":1}})").find("mscale"),
      std::string::npos);
  EXPECT_NE(message("{" + base + R"(,"sliding_window":4096})").find("sliding_window"), std::string::npos);
  EXPECT_NE(message("{" + base + R"(,"use_sliding_window":true})").find("use_sliding_window"),
            std::string::npos);
  EXPECT_NE(message("{" + base + R"(,"layer_types":["sliding_attention"]})").find("sliding_attention"),
            std::string::npos);
  EXPECT_NE(message("{" + base + R"(,"partial_rotary_factor":0.5})").find("partial_rotary_factor"),
            std::string::npos);
  EXPECT_NE(message("{" + base + R"(,"hidden_act":"relu"})").find("relu"), std::string::npos);
  EXPECT_NE(message("{" + base + R"(,"rms_norm_eps":0})").find("epsilon"), std::string::npos);
  EXPECT_FALSE(read_hf_config(R"({"model_type":"llama","vocab_size":99999999999,"hidden_size":8})", "t"));
}

TEST(HfModel, CrossChecksWeightsAndTokenizer) {
  TemporaryFolder folder;
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 1));
  const std::string config = *read_file(folder / "m/config.json");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = config;
    changed.replace(changed.find(from), from.size(), to);
    EXPECT_OK(write_file_atomic(folder / "m/config.json", changed));
    return open_hf_model(folder / "m").error().message;
  };
  EXPECT_NE(with("\"vocab_size\": 300", "\"vocab_size\": 299").find("300 tokens, the model 299"),
            std::string::npos);
  EXPECT_NE(with("\"intermediate_size\": 96", "\"intermediate_size\": 64").find("shape"), std::string::npos);
  EXPECT_NE(with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3").find("missing"), std::string::npos);
  EXPECT_NE(with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1").find("no place"), std::string::npos);
  EXPECT_NE(with("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false").find("lm_head"),
            std::string::npos);
}

TEST(HfModel, SharedTeachersOpen) {
  RETORT_NEED_ASSET(teachers, "teachers");
  for (const char* name : {"stories-260k", "babyllama-936k", "gpt2-sort-85k"}) {
    TemporaryFolder folder;
    const auto model = open_hf_model(teachers / name);
    ASSERT_OK(model);
    ASSERT_OK(write_gguf_model(folder / "m.gguf", model->config, model->tokenizer, weight_sources(*model),
                               TensorType::kF16, {}));
    const auto file = GgufFile::open(folder / "m.gguf");
    ASSERT_OK(file);
    EXPECT_OK(read_gguf_config(*file));
  }
}

TEST(HfModel, RopeParametersAndGpt2Variants) {
  const std::string llama =
      R"({"model_type":"llama","vocab_size":10,"hidden_size":8,"intermediate_size":16,"num_hidden_layers":1,"num_attention_heads":2,"rope_parameters":)";
  const auto config = read_hf_config(llama + R"({"rope_type":"default","rope_theta":500.0}})", "t");
  ASSERT_OK(config);
  EXPECT_EQ(config->rope_theta, 500.0f);
  const auto yarn = read_hf_config(llama + R"({"rope_type":"yarn","factor":4.0}})", "t");
  ASSERT_OK(yarn);
  EXPECT_EQ(yarn->rope_scaling.kind, RopeScaling::Kind::kYarn);
  EXPECT_EQ(yarn->rope_scaling.original_ctx, 2048u);
  const std::string gpt2 = R"({"model_type":"gpt2","vocab_size":10,"n_embd":8,"n_layer":1,"n_head":2,)";
  EXPECT_OK(read_hf_config(gpt2 + R"("scale_attn_weights":true})", "t"));
  EXPECT_FALSE(read_hf_config(gpt2 + R"("scale_attn_weights":false})", "t"));
  EXPECT_FALSE(read_hf_config(gpt2 + R"("scale_attn_by_inverse_layer_idx":true})", "t"));
}

TEST(HfModel, LlamaVariantsSurviveBothFormats) {
  for (const auto& [name, change] : testing::llama_variants()) {
    TemporaryFolder folder;
    testing::TinyModelOptions options;
    options.change = change;
    const auto model = testing::write_tiny_gguf(folder / "m", folder / "m.gguf", ModelFamily::kLlama, 1,
                                                TensorType::kF32, options);
    ASSERT_OK(model);
    ModelConfig expected = testing::tiny_config(ModelFamily::kLlama, options);
    EXPECT_EQ(model->config, expected) << name;
    const auto config = read_gguf_config(*GgufFile::open(folder / "m.gguf"));
    ASSERT_OK(config);
    const RopeRates a = rope_rates(expected), b = rope_rates(*config);
    ASSERT_EQ(a.rates.size(), b.rates.size());
    for (std::size_t i = 0; i < a.rates.size(); ++i) EXPECT_NEAR(a.rates[i] / b.rates[i], 1, 1e-6) << name;
    EXPECT_NEAR(a.magnitude, b.magnitude, 1e-6) << name;
    EXPECT_EQ(config->qkv_bias, expected.qkv_bias) << name;
    EXPECT_EQ(config->attn_output_bias, expected.attn_output_bias) << name;
    EXPECT_EQ(config->mlp_bias, expected.mlp_bias) << name;
    EXPECT_EQ(config->qwen2, expected.qwen2) << name;
    EXPECT_EQ(parameter_count(*config), parameter_count(expected)) << name;
  }
}

TEST(HfModel, AnEmbeddingRoundedUpGetsUnusedTokens) {
  TemporaryFolder folder;
  testing::TinyModelOptions options;
  options.change = [](ModelConfig& c) { c.n_vocab = 320; };
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 1, options));
  const auto model = open_hf_model(folder / "m");
  ASSERT_OK(model);
  EXPECT_EQ(model->tokenizer.vocabulary_size(), 320u);
  EXPECT_EQ(model->tokenizer.text(319), "[PAD319]");
  EXPECT_EQ(model->tokenizer.piece(319), "");
  for (const TokenId id : model->tokenizer.encode("[PAD319]", false, true)) EXPECT_LT(id, 300);
}

TEST(HfModel, AGgufTensorThatWouldBeLeftOutIsRefused) {
  TemporaryFolder folder;
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 1));
  const auto model = open_hf_model(folder / "m");
  ASSERT_OK(model);
  ASSERT_OK(write_gguf_model(folder / "m.gguf", model->config, model->tokenizer, weight_sources(*model),
                             TensorType::kF32, {}));
  const auto file = GgufFile::open(folder / "m.gguf");
  ASSERT_OK(file);
  GgufWriter writer;
  for (const auto& [key, value] : file->metadata()) writer.set(key, value);
  for (const GgufTensor& tensor : file->tensors())
    writer.add_tensor(tensor.name, tensor.shape, tensor.type,
                      [&tensor](std::span<std::byte> out) -> Result<void> {
                        std::copy(tensor.data.begin(), tensor.data.end(), out.begin());
                        return {};
                      });
  ASSERT_OK(writer.write(folder / "same.gguf"));
  EXPECT_OK(read_gguf_config(*GgufFile::open(folder / "same.gguf")));
  writer.add_tensor("blk.0.attn_sinks.weight", {64}, TensorType::kF32,
                    [](std::span<std::byte>) -> Result<void> { return {}; });
  ASSERT_OK(writer.write(folder / "more.gguf"));
  EXPECT_NE(read_gguf_config(*GgufFile::open(folder / "more.gguf")).error().message.find("blk.0.attn_sinks"),
            std::string::npos);
}

TEST(HfModel, AnyEpsilonSurvivesWriting) {
  TemporaryFolder folder;
  ASSERT_OK(testing::write_tiny_model(folder / "m", ModelFamily::kLlama, 1));
  const auto model = open_hf_model(folder / "m");
  ASSERT_OK(model);
  ModelConfig odd = model->config;
  odd.norm_eps = 1.1920929e-07f;
  ASSERT_OK(write_hf_model(folder / "c", odd, weight_sources(*model), SafeTensor::DType::kF32, folder / "m"));
  EXPECT_EQ(open_hf_model(folder / "c")->config, odd);
}

/// Matrices that come encoded stand in the file as those that the writer encodes itself: Llama's Q and K
/// permuted, GPT-2's Conv1D as rows of outputs.
TEST(EncodedWeights, AreWrittenAsTheyAre) {
  for (const auto& [family, type] :
       {std::pair(ModelFamily::kLlama, TensorType::kQ8_0), std::pair(ModelFamily::kGpt2, TensorType::kQ8_0),
        std::pair(ModelFamily::kLlama, TensorType::kSparseQ8),
        std::pair(ModelFamily::kLlama, TensorType::kCodebook4),
        std::pair(ModelFamily::kGpt2, TensorType::kCodebook4)}) {
    TemporaryFolder folder;
    ASSERT_OK(testing::write_tiny_model(folder / "m", family, 1));
    const auto model = open_hf_model(folder / "m");
    ASSERT_OK(model);
    const std::vector<TensorSource> sources = weight_sources(*model);
    EncodedWeights encoded;
    for (const TensorSource& source : sources) {
      if (source.shape.size() != 2 || source.name.ends_with("wpe.weight")) continue;
      std::vector<float> values(source.shape[0] * source.shape[1]);
      ASSERT_OK(source.read(values));
      EncodedMatrix matrix{type, source.shape[0], source.shape[1], {}};
      if (source.name.find(".c_") != std::string::npos) {
        std::vector<float> turned(values.size());
        for (std::uint64_t r = 0; r < matrix.rows; ++r)
          for (std::uint64_t c = 0; c < matrix.columns; ++c)
            turned[c * matrix.rows + r] = values[r * matrix.columns + c];
        values = std::move(turned);
        std::swap(matrix.rows, matrix.columns);
      }
      if (const auto order = gguf_row_order(model->config, source.name);
          encoded_whole(type) && !order.empty()) {
        const std::vector<float> from = values;
        for (std::uint64_t r = 0; r < matrix.rows; ++r)
          std::copy_n(from.begin() + order[r] * static_cast<std::int64_t>(matrix.columns), matrix.columns,
                      values.begin() + static_cast<std::int64_t>(r * matrix.columns));
      }
      matrix.bytes = encode_matrix(type, matrix.rows, matrix.columns, values);
      encoded.emplace(source.name, std::move(matrix));
    }
    ASSERT_OK(write_gguf_model(folder / "a.gguf", model->config, model->tokenizer, sources, type, {}));
    ASSERT_OK(write_gguf_model(folder / "b.gguf", model->config, model->tokenizer, sources, TensorType::kF32,
                               {}, encoded));
    const auto a = GgufFile::open(folder / "a.gguf"), b = GgufFile::open(folder / "b.gguf");
    ASSERT_OK(a);
    ASSERT_OK(b);
    EXPECT_EQ(*a->uint("general.file_type"), *b->uint("general.file_type"));
    ASSERT_EQ(a->tensors().size(), b->tensors().size());
    for (const GgufTensor& tensor : a->tensors()) {
      const GgufTensor* other = b->tensor(tensor.name);
      ASSERT_NE(other, nullptr) << tensor.name;
      EXPECT_EQ(other->type, tensor.type) << tensor.name;
      EXPECT_TRUE(std::ranges::equal(other->data, tensor.data)) << tensor.name;
    }
    encoded.begin()->second.rows += 1;
    const auto refused = write_gguf_model(folder / "c.gguf", model->config, model->tokenizer, sources,
                                          TensorType::kF32, {}, encoded);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("another shape"), std::string::npos);
  }
}

}  // namespace
}  // namespace retort
