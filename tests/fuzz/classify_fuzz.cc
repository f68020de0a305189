// fuzz-links: retort_serve_http
// Bodies of /v1/classify for a tensor, base64, and labelled examples: whatever is taken has the model's
// shape.
#include <cmath>

#include "agent/serve/http/classify.h"
#include "common/core/base64.h"
#include "common/core/file.h"
#include "common/core/labelled_tensors.h"
#include "tests/fuzz/fuzz_seeds.h"
#include "tests/support/support.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  return {R"({"input":[1,2.5,-3e2,4],"top_k":1})",
          R"({"input":[[[1,2],[3,4]]]})",
          R"({"input":[[1,2],[3,4]]})",
          R"({"input":[[[1,2],[3,4]],[[5,6],[7,8]]]})",
          R"({"input":{"a":1,"b":2.5,"c":-3,"d":4}})",
          R"({"input":[{"a":1,"b":2,"c":3,"d":4},[1,2,3,4]]})",
          R"({"input":"AACAPwAAAEAAAEBAAACAQA==","dtype":"float32"})",
          R"({"input":"AQIDBAUGBwg=","dtype":"uint8"})",
          R"({"input":""})",
          "{\"input\":[1,2,3,4],\"label\":\"x\"}\n{\"input\":[[1,2],[3,4]],\"label\":1}\n",
          std::string("\0\0\x08\x03\0\0\0\x02\0\0\0\x02\0\0\0\x02\x01\x02\x03\x04\x05\x06\x07\x08", 24)};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto configs = [] {
    ClassifierConfig mlp, cnn;
    mlp.input = {4, 1, 1};
    mlp.feature_names = {"a", "b", "c", "d"};
    cnn.family = ClassifierFamily::kCnn;
    cnn.input = {1, 2, 2};
    cnn.convolutions.push_back({.out_channels = 1, .kernel = 2});
    mlp.labels = cnn.labels = {"x", "y"};
    return std::array{mlp, cnn};
  }();
  static const retort::testing::TemporaryFolder folder;
  const std::string text(reinterpret_cast<const char*>(data), size);
  for (const ClassifierConfig& config : configs)
    if (const auto call = parse_classify(text, config, 3)) {
      fuzz::require(call->count >= 1 && call->count <= 3 && call->inputs.size() == 4 * call->count);
      for (const float x : call->inputs) fuzz::require(std::isfinite(x));
    }
  if (const auto bytes = decode_base64(text)) fuzz::require(bytes->size() <= text.size());
  fuzz::require(write_file_atomic(folder / "d", text).has_value());
  for (const bool idx : {false, true})
    (void)visit_labelled_tensors(folder / "d", idx ? folder / "d" : std::filesystem::path(), {{1, 2, 2}, {}},
                                 {"x", "y"}, [](std::span<const float> input, std::size_t label) {
                                   fuzz::require(input.size() == 4 && label < 2);
                                   return true;
                                 });
  return 0;
}
