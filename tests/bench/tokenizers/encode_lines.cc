// Token ids of many texts, for tokenizers_vs_peers.py:
//   encode_lines tokenizer.json|MODEL.gguf [OUT.gguf] < texts > ids
// One JSON string a line in, one JSON array of ids a line out (with the tokenizer's own special tokens, and
// special tokens in the text understood). With OUT.gguf the vocabulary is written there as well.
#include <iostream>

#include "common/core/json.h"
#include "common/tokenizer/tokenizer.h"

using namespace retort;

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: encode_lines tokenizer.json|MODEL.gguf [OUT.gguf|--bare] < texts > ids\n";
    return 2;
  }
  const std::string path = argv[1];
  const auto load = [&]() -> Result<Tokenizer> {
    if (!path.ends_with(".gguf")) return Tokenizer::from_huggingface(path);
    const GgufFile file = RETORT_TRY(GgufFile::open(path));
    return Tokenizer::from_gguf(file);
  };
  const auto tokenizer = load();
  if (!tokenizer) {
    std::cerr << tokenizer.error().message << "\n";
    return 1;
  }
  const bool bare = argc > 2 && std::string_view(argv[2]) == "--bare";
  if (argc > 2 && !bare) {
    GgufWriter writer;
    writer.set("general.architecture", std::string("llama"));
    tokenizer->write_gguf(writer);
    if (const auto written = writer.write(argv[2]); !written) {
      std::cerr << written.error().message << "\n";
      return 1;
    }
  }
  for (std::string line; std::getline(std::cin, line);) {
    const auto text = parse_json(line, "stdin");
    if (!text || !text->is_string()) {
      std::cerr << "not a JSON string: " << line << "\n";
      return 1;
    }
    json::array ids;
    for (const TokenId id : tokenizer->encode(text->get_string(), !bare, true)) ids.push_back(id);
    std::cout << json::serialize(ids) << "\n";
  }
  return 0;
}
