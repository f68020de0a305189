#include "agent/serve/runtime/measure.h"

#include <unistd.h>

#include <algorithm>

#include "agent/serve/runtime/session.h"
#include "common/blocks/matrix.h"
#include "common/core/random.h"
#include "common/hf/encoded_weights.h"
#include "common/hf/hf_model.h"

namespace retort {
namespace {

/// As few tokens as a vocabulary needs: the others are unused ones, which take next to nothing.
Result<Tokenizer> small_tokenizer(std::uint32_t size) {
  json::object vocabulary;
  for (int c = '!'; c <= '~'; ++c) vocabulary[std::string(1, static_cast<char>(c))] = c - '!';
  const json::object root{
      {"pre_tokenizer",
       json::object{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"model", json::object{{"type", "BPE"}, {"vocab", std::move(vocabulary)}, {"merges", json::array()}}}};
  return RETORT_TRY(Tokenizer::from_huggingface_text(json::serialize(root), "{}", "measure")).padded(size);
}

/// Rows of random weights, the same few again and again: a product's time does not depend on its values.
EncodedMatrix random_matrix(TensorType type, std::uint64_t rows, std::uint64_t columns,
                            SeededRandom& random) {
  const std::uint64_t few = std::min<std::uint64_t>(rows, 4);
  std::vector<float> values(few * columns);
  for (float& value : values) value = static_cast<float>(random.next_unit() - 0.5) * 0.2f;
  const std::vector<std::byte> pattern = encode_matrix(type, few, columns, values);
  EncodedMatrix out;
  out.type = type, out.rows = rows, out.columns = columns;
  out.bytes.resize(rows * (pattern.size() / few));
  for (std::size_t at = 0; at < out.bytes.size(); at += pattern.size())
    std::copy_n(pattern.begin(), std::min(pattern.size(), out.bytes.size() - at),
                out.bytes.begin() + static_cast<std::ptrdiff_t>(at));
  return out;
}

Result<void> write_model(const std::filesystem::path& file, const ModelConfig& config, TensorType type) {
  SeededRandom random(1);
  std::vector<TensorSource> weights;
  EncodedWeights encoded;
  for (WeightShape& weight : hf_weights(config)) {
    if (weight.shape.size() == 2)
      encoded[weight.name] =
          random_matrix(stored_type(type, weight.shape[1]), weight.shape[0], weight.shape[1], random);
    weights.push_back(
        {std::move(weight.name), std::move(weight.shape), [](std::span<float> values) -> Result<void> {
           std::fill(values.begin(), values.end(), 1.0f);
           return {};
         }});
  }
  return write_gguf_model(file, config, RETORT_TRY(small_tokenizer(config.n_vocab)), weights, type, {},
                          encoded);
}

/// Tokens that are timed together: enough for the clock, little enough that a neighbour's burst spoils few.
constexpr std::uint32_t kTokens = 4;

Result<double> token_seconds(Session& session, std::uint32_t position, std::chrono::milliseconds time) {
  using clock = std::chrono::steady_clock;
  const std::vector<TokenId> before(std::max(position, 1u), 1);
  RETORT_TRY(session.evaluate(before));
  std::vector<double> seconds;
  bool warm = false;
  for (clock::time_point end = clock::now() + time; !warm || clock::now() < end || seconds.size() < 3;) {
    session.rewind(position);
    const auto begin = clock::now();
    for (std::uint32_t i = 0; i < kTokens; ++i) {
      const TokenId next = 1 + i;
      RETORT_TRY(session.evaluate(std::span(&next, 1)));
    }
    if (std::exchange(warm, true))
      seconds.push_back(std::chrono::duration<double>(clock::now() - begin).count() / kTokens);
    else
      end = clock::now() + time;
  }
  return *std::min_element(seconds.begin(), seconds.end());
}

}  // namespace

std::vector<DecodeSample> decode_shapes() {
  const auto shape = [](const char* format, std::uint32_t hidden, std::uint32_t ffn, std::uint32_t layers,
                        std::uint32_t vocabulary, std::uint32_t position = 0) {
    const std::uint32_t heads = hidden / 32;
    return DecodeSample{format, layers, hidden, heads, heads, 32, ffn, vocabulary, position, 0};
  };
  constexpr const char* kEight = "Q8_0";
  std::vector<DecodeSample> out{
      shape(kEight, 64, 192, 2, 512),        shape(kEight, 64, 192, 8, 512),
      shape(kEight, 64, 192, 8, 512, 192),   shape(kEight, 128, 384, 2, 512),
      shape(kEight, 128, 384, 6, 512),       shape(kEight, 128, 384, 4, 4096),
      shape(kEight, 256, 768, 2, 1024),      shape(kEight, 256, 768, 4, 4096),
      shape(kEight, 256, 768, 6, 4096, 192), shape(kEight, 256, 1024, 10, 2048),
      shape(kEight, 512, 1536, 2, 4096),     shape(kEight, 512, 1536, 4, 8192),
      shape(kEight, 512, 1536, 8, 16384),    shape(kEight, 64, 192, 4, 2048, 200),
      shape(kEight, 256, 512, 8, 1024, 240), shape(kEight, 384, 1024, 6, 2048, 100),
  };
  for (DecodeSample& s : std::span(out).last(3))
    s.head_dim = 64, s.heads /= 2, s.kv_heads = s.heads == 6 ? 2 : 1;
  for (const char* format : {"F16", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q3_K"}) {
    out.push_back(shape(format, 256, 768, 2, 1024));
    out.push_back(shape(format, 256, 1024, 8, 4096));
    out.push_back(shape(format, 512, 1536, 4, 8192));
    out.push_back(shape(format, 512, 1536, 8, 16384));
  }
  return out;
}

Result<std::vector<DecodeSample>> measure_decode(std::span<const DecodeSample> shapes, ThreadTeam& team,
                                                 const std::filesystem::path& folder,
                                                 std::chrono::milliseconds time, std::uint64_t memory_limit) {
  std::vector<DecodeSample> out;
  const std::filesystem::path file = folder / fmt::format("retort-measure-{}.gguf", ::getpid());
  for (const DecodeSample& shape : shapes) {
    const auto type = tensor_type_from(shape.format);
    if (!type || encoded_whole(*type))
      return fail(ErrorCode::kInvalid, shape.format, "not a format whose speed is measured");
    const ModelConfig config = decode_config(shape, shape.position + kTokens + 4);
    RETORT_TRY(validate(config, "measure"));
    // The weights as they are made, as the file has them and as the kernels want them.
    const std::uint64_t needed =
        3 * parameter_count(config) * info(*type).block_bytes / info(*type).block_values;
    if (memory_limit != 0 && needed > memory_limit) continue;
    const auto run = [&]() -> Result<double> {
      RETORT_TRY(write_model(file, config, *type));
      const auto model = RETORT_TRY(Model::open(file));
      const auto session =
          RETORT_TRY(Session::create(model, team, {.cache = kernels::CacheType::kF16, .memory_limit = 0}));
      return token_seconds(*session, shape.position, time);
    };
    const Result<double> seconds = run();
    std::error_code ignored;
    std::filesystem::remove(file, ignored);
    if (!seconds) return fail(seconds.error());
    out.push_back(shape);
    out.back().seconds = *seconds;
  }
  return out;
}

}  // namespace retort
