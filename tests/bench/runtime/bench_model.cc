// Writes a Llama- or BERT-type GGUF of a given shape with random weights: speed does not depend on their
// values.
//   bench_model SHAPE TYPE OUT.gguf
#include <cmath>
#include <cstring>
#include <iostream>
#include <map>

#include "common/hf/hf_model.h"
#include "tests/support/tiny_model.h"

using namespace retort;

namespace {

const std::map<std::string, testing::TinyModelOptions> kShapes{
    {"0.26M",
     {.n_embd = 64, .n_layer = 5, .n_head = 8, .n_head_kv = 4, .n_ff = 172, .n_ctx = 512, .n_vocab = 512}},
    {"4M",
     {.n_embd = 256, .n_layer = 4, .n_head = 8, .n_head_kv = 8, .n_ff = 768, .n_ctx = 1024, .n_vocab = 4096}},
    {"15M",
     {.n_embd = 288,
      .n_layer = 6,
      .n_head = 6,
      .n_head_kv = 6,
      .n_ff = 768,
      .n_ctx = 1024,
      .n_vocab = 32000}},
    {"42M",
     {.n_embd = 512,
      .n_layer = 8,
      .n_head = 8,
      .n_head_kv = 8,
      .n_ff = 1376,
      .n_ctx = 1024,
      .n_vocab = 32000}},
    {"110M",
     {.n_embd = 768,
      .n_layer = 12,
      .n_head = 12,
      .n_head_kv = 12,
      .n_ff = 2048,
      .n_ctx = 1024,
      .n_vocab = 32000}},
    {"1.1B",
     {.n_embd = 2048,
      .n_layer = 22,
      .n_head = 32,
      .n_head_kv = 4,
      .n_ff = 5632,
      .n_ctx = 2048,
      .n_vocab = 32000,
      .tied = false}},
    {"MiniLM-L6",
     {.n_embd = 384,
      .n_layer = 6,
      .n_head = 12,
      .n_head_kv = 12,
      .n_ff = 1536,
      .n_ctx = 512,
      .n_vocab = 30522,
      .encoder = {.gelu = Gelu::kErf, .pooling = TextPooling::kMean}}},
};

Result<void> write(const std::string& shape, const std::string& type_name, const std::string& out) {
  const auto found = kShapes.find(shape);
  const auto type = tensor_type_from(type_name);
  if (found == kShapes.end() || !type)
    return fail(ErrorCode::kInvalid, shape,
                "shapes: 0.26M, 4M, 15M, 42M, 110M, 1.1B, MiniLM-L6; types as GGUF names them");
  const bool bert = shape == "MiniLM-L6";
  const ModelConfig config =
      testing::tiny_config(bert ? ModelFamily::kBert : ModelFamily::kLlama, found->second);
  const Tokenizer tokenizer = RETORT_TRY(Tokenizer::from_huggingface_text(
      bert ? testing::tiny_wordpiece_json(config.n_vocab) : testing::tiny_tokenizer_json(config.n_vocab),
      "{}", "bench"));
  std::vector<TensorSource> weights;
  std::uint32_t number = 0;
  for (WeightShape& weight : hf_weights(config)) {
    const float center =
        weight.name.find("norm") != std::string::npos || weight.name.ends_with("LayerNorm.weight") ? 1.0f
                                                                                                   : 0.0f;
    // Single bytes are never the likeliest, so that what is generated is text (llama-server refuses to answer
    // with anything else).
    const std::size_t faint = weight.name.find("embed_tokens") != std::string::npos ? 257 * config.n_embd : 0;
    weights.push_back({std::move(weight.name), std::move(weight.shape),
                       [center, faint, seed = ++number](std::span<float> values) -> Result<void> {
                         std::uint32_t state = seed * 2654435761u;  // xorshift32, uniform in ±0.1
                         for (float& x : values) {
                           state ^= state << 13, state ^= state >> 17, state ^= state << 5;
                           x = center + (static_cast<float>(state >> 8) / 8388608.0f - 1) * 0.1f;
                         }
                         for (std::size_t i = 0; i < faint; ++i) values[i] *= 0.01f;
                         return {};
                       }});
  }
  return write_gguf_model(out, config, tokenizer, weights, *type, {});
}

}  // namespace

int main(int argc, char** argv) {
  const auto done = argc == 4
                        ? write(argv[1], argv[2], argv[3])
                        : fail(ErrorCode::kInvalid, "bench_model", "usage: bench_model SHAPE TYPE OUT.gguf");
  if (done) return 0;
  std::cerr << done.error().describe() << "\n";
  return 1;
}
