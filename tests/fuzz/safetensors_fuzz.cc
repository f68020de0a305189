#include <cstring>

#include "common/core/file.h"
#include "common/gguf/safetensors.h"
#include "tests/fuzz/fuzz_seeds.h"
#include "tests/support/support.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  retort::testing::TemporaryFolder folder;
  std::vector<std::string> seeds;
  for (const auto dtype : {SafeTensor::DType::kF32, SafeTensor::DType::kF16, SafeTensor::DType::kBF16}) {
    std::vector<TensorSource> tensors;
    for (const char* name : {"a.weight", "b", "c"})
      tensors.push_back({name, {2, 3}, [](std::span<float> out) -> Result<void> {
                           std::fill(out.begin(), out.end(), 1.5f);
                           return {};
                         }});
    fuzz::require(write_safetensors(folder / "m.safetensors", tensors, dtype).has_value());
    seeds.push_back(*read_file(folder / "m.safetensors"));
  }
  return seeds;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto parse = [](const std::string& bytes) {
    const auto file = Safetensors::parse(std::as_bytes(std::span(bytes)), "fuzz");
    if (!file) return;
    for (const auto& [name, tensor] : file->tensors()) {
      fuzz::require(tensor.data.size() <= bytes.size());
      fuzz::require(tensor.count() <= bytes.size());
      std::vector<float> values(tensor.count());
      tensor.read_f32(0, values);
    }
  };
  std::string bytes(reinterpret_cast<const char*>(data), size);
  bytes.shrink_to_fit();
  parse(bytes);
  // The same with a header length that fits, so that mutations reach the JSON.
  if (bytes.size() > 8) {
    const std::uint64_t header = std::min<std::uint64_t>(
        bytes.rfind('}') == std::string::npos ? 0 : bytes.rfind('}') - 7, bytes.size() - 8);
    std::memcpy(bytes.data(), &header, 8);
    parse(bytes);
  }
  return 0;
}
