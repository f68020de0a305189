#include "tests/support/tiny_model.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <numbers>
#include <set>

#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/random.h"
#include "common/hf/hf_model.h"

namespace retort::testing {
namespace {

std::string utf8_of(unsigned point) {
  if (point < 0x80) return std::string(1, static_cast<char>(point));
  return {static_cast<char>(0xc0 | (point >> 6)), static_cast<char>(0x80 | (point & 63))};
}

}  // namespace

std::string tiny_tokenizer_json(std::uint32_t n_vocab) {
  json::object vocab;
  vocab["<|endoftext|>"] = 0;
  unsigned next = 256;
  for (unsigned b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    vocab[utf8_of(printable ? b : next++)] = b + 1;
  }
  const std::string space = utf8_of(0x120);  // how GPT-2 writes a space
  const std::vector<std::pair<std::string, std::string>> wanted = {
      {"t", "h"},   {"th", "e"},  {space, "the"}, {"i", "n"},     {"a", "n"}, {"e", "r"},   {"o", "n"},
      {space, "a"}, {"r", "e"},   {"an", "d"},    {space, "and"}, {"e", "d"}, {"in", "g"},  {space, "s"},
      {space, "w"}, {"o", "r"},   {"a", "t"},     {"e", "s"},     {"l", "l"}, {space, "o"}, {space, "c"},
      {space, "b"}, {space, "f"}, {space, "p"},   {"e", "n"},     {"a", "r"}, {"o", "u"},   {space, "t"},
      {"i", "s"},   {"a", "l"},   {space, "m"},   {"i", "t"},     {"o", "m"}, {"l", "e"},   {"a", "s"},
      {space, "h"}, {"e", "l"},   {space, "d"},   {"i", "c"},     {"u", "r"}, {"a", "c"},   {"o", "w"},
      {"s", "t"}};
  json::array merges;
  std::int64_t id = 257;
  for (const auto& [left, right] : wanted) {
    vocab[left + right] = id++;
    merges.emplace_back(left + " " + right);
  }
  // Beyond 300: two letters or digits, then three.
  std::string letters;
  for (char c = '0'; c <= 'z'; ++c)
    if (std::isalnum(static_cast<unsigned char>(c))) letters += c;
  std::vector<std::string> beginnings(letters.size());
  for (std::size_t i = 0; i < letters.size(); ++i) beginnings[i] = letters.substr(i, 1);
  while (id < n_vocab) {
    std::vector<std::string> longer;
    for (const std::string& left : beginnings)
      for (const char right : letters) {
        longer.push_back(left + right);
        if (id >= n_vocab || vocab.contains(longer.back())) continue;
        vocab[longer.back()] = id++;
        merges.emplace_back(left + " " + right);
      }
    beginnings = std::move(longer);
  }
  json::object root;
  root["version"] = "1.0";
  root["added_tokens"] =
      json::array{json::object{{"id", 0}, {"content", "<|endoftext|>"}, {"special", true}}};
  root["normalizer"] = nullptr;
  root["pre_tokenizer"] =
      json::object{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  root["post_processor"] = nullptr;
  root["decoder"] = json::object{{"type", "ByteLevel"}};
  root["model"] = json::object{{"type", "BPE"}, {"vocab", std::move(vocab)}, {"merges", std::move(merges)}};
  return json::serialize(root);
}

std::string tiny_wordpiece_json(std::uint32_t n_vocab) {
  json::object vocab;
  const auto add = [&](const std::string& token) {
    if (!vocab.contains(token)) vocab[token] = vocab.size();
  };
  for (const char* token : {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}) add(token);
  json::array added;
  for (const auto& member : vocab)
    added.push_back(json::object{{"id", member.value()}, {"content", member.key()}, {"special", true}});
  for (char c = '!'; c <= '~'; ++c)
    if (std::isupper(static_cast<unsigned char>(c)) == 0) add(std::string(1, c));
  for (char c = 'a'; c <= 'z'; ++c) add("##" + std::string(1, c));
  for (char c = '0'; c <= '9'; ++c) add("##" + std::string(1, c));
  for (const char* word :
       {"the", "and",  "server", "client", "read", "mail", "light",  "on",    "off", "turn", "log",
        "##s", "##er", "##ing",  "##ed",   "##es", "##ly", "##ness", "write", "to",  "it"})
    add(word);
  while (vocab.size() < n_vocab) add("[unused" + std::to_string(vocab.size()) + "]");
  const auto special = [](const char* name, int id) {
    return json::object{{"id", name}, {"ids", json::array{id}}, {"tokens", json::array{name}}};
  };
  const auto piece = [](const char* kind, const char* name) {
    return json::object{{kind, json::object{{"id", name}, {"type_id", 0}}}};
  };
  return json::serialize(json::object{
      {"version", "1.0"},
      {"added_tokens", std::move(added)},
      {"normalizer", json::object{{"type", "BertNormalizer"},
                                  {"clean_text", true},
                                  {"handle_chinese_chars", true},
                                  {"strip_accents", nullptr},
                                  {"lowercase", true}}},
      {"pre_tokenizer", json::object{{"type", "BertPreTokenizer"}}},
      {"post_processor",
       json::object{
           {"type", "TemplateProcessing"},
           {"single", json::array{piece("SpecialToken", "[CLS]"), piece("Sequence", "A"),
                                  piece("SpecialToken", "[SEP]")}},
           {"special_tokens", json::object{{"[CLS]", special("[CLS]", 2)}, {"[SEP]", special("[SEP]", 3)}}}}},
      {"model", json::object{{"type", "WordPiece"},
                             {"unk_token", "[UNK]"},
                             {"continuing_subword_prefix", "##"},
                             {"max_input_chars_per_word", 100},
                             {"vocab", std::move(vocab)}}}});
}

std::string tiny_corpus_jsonl(std::size_t documents, std::uint64_t seed) {
  constexpr std::string_view kSubjects[] = {"the server",  "a small tool",  "the library",
                                            "this daemon", "a fast parser", "the client"};
  constexpr std::string_view kVerbs[] = {"reads", "writes", "serves", "compresses", "checks", "prints"};
  constexpr std::string_view kObjects[] = {"text files", "network packets", "images", "the system log",
                                           "mail",       "source code"};
  SeededRandom random(seed);
  const auto pick = [&](const auto& list) { return std::string(list[random.next_u64() % std::size(list)]); };
  std::string out;
  for (std::size_t i = 0; i < documents; ++i) {
    const std::string text = pick(kSubjects) + " " + pick(kVerbs) + " " + pick(kObjects) + " and " +
                             pick(kVerbs) + " " + pick(kObjects) + " number " + std::to_string(i) + "\n";
    out += json::serialize(json::object{{"text", text}}) + "\n";
  }
  return out;
}

ModelConfig tiny_config(ModelFamily family, const TinyModelOptions& options) {
  ModelConfig c;
  c.family = family;
  c.n_vocab = options.n_vocab;
  c.n_ctx = options.n_ctx;
  c.n_embd = options.n_embd;
  c.head_dim = options.n_embd / options.n_head;
  c.layers.assign(
      options.n_layer,
      {options.n_head, family == ModelFamily::kLlama ? options.n_head_kv : options.n_head, options.n_ff});
  if (family == ModelFamily::kBert) c.encoder = options.encoder;
  c.tied_embeddings = options.tied;
  c.bos_token = family == ModelFamily::kBert ? 2 : 0;
  c.eos_token = family == ModelFamily::kBert ? 3 : 0;
  if (options.change) options.change(c);
  return c;
}

Result<void> write_tiny_model(const std::filesystem::path& folder, ModelFamily family, std::uint64_t seed,
                              TinyModelOptions options) {
  const ModelConfig c = tiny_config(family, options);
  RETORT_TRY(make_folders(folder / "tokenizer"));
  const bool bert = family == ModelFamily::kBert;
  RETORT_TRY(
      write_file_atomic(folder / "tokenizer/tokenizer.json",
                        bert ? tiny_wordpiece_json(options.n_vocab) : tiny_tokenizer_json(options.n_vocab)));
  RETORT_TRY(write_file_atomic(
      folder / "tokenizer/tokenizer_config.json",
      bert ? R"({"cls_token": "[CLS]", "sep_token": "[SEP]"})"
           : R"({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "add_bos_token": true})"));
  std::vector<TensorSource> weights;
  std::uint64_t number = 0;
  for (WeightShape& weight : hf_weights(c)) {
    const bool norm = weight.name.find("norm") != std::string::npos ||
                      weight.name.find("ln_") != std::string::npos ||
                      weight.name.find("LayerNorm") != std::string::npos;
    const bool bias = weight.name.ends_with(".bias");
    const std::uint64_t tensor_seed = seed * 1000003 + number++;
    float fifth = 1;  // of every n_embd values
    if (weight.name.ends_with("layernorm.weight")) fifth = options.outlier;
    for (const char* reader :
         {"q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight"})
      if (weight.name.ends_with(reader)) fifth = 1 / options.outlier;
    weights.push_back(
        {std::move(weight.name), std::move(weight.shape), [=](std::span<float> values) -> Result<void> {
           SeededRandom random(tensor_seed);
           for (float& x : values) {
             const double gauss = std::sqrt(-2 * std::log(1 - random.next_unit())) *
                                  std::cos(2 * std::numbers::pi * random.next_unit());
             x = static_cast<float>(norm && !bias ? 1 + 0.1 * gauss : 0.08 * gauss);
           }
           if (fifth != 1)
             for (std::size_t i = 5; i < values.size(); i += c.n_embd) values[i] *= fifth;
           return {};
         }});
  }
  RETORT_TRY(write_hf_model(folder, c, weights, SafeTensor::DType::kF32, folder / "tokenizer"));
  std::error_code ignored;
  std::filesystem::remove_all(folder / "tokenizer", ignored);
  return {};
}

Result<HfModel> write_tiny_gguf(const std::filesystem::path& folder, const std::filesystem::path& gguf,
                                ModelFamily family, std::uint64_t seed, TensorType type,
                                const TinyModelOptions& options) {
  RETORT_TRY(write_tiny_model(folder, family, seed, options));
  HfModel model = RETORT_TRY(open_hf_model(folder));
  RETORT_TRY(write_gguf_model(gguf, model.config, model.tokenizer, weight_sources(model), type, {}));
  return model;
}

}  // namespace retort::testing
