#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/core/file.h"
#include "common/core/result.h"

namespace retort {

/// A tensor of an open safetensors file. shape is row-major (the last dimension is the fastest).
struct SafeTensor {
  std::string name;
  std::vector<std::uint64_t> shape;
  enum class DType { kF32, kF16, kBF16 } dtype = DType::kF32;
  std::span<const std::byte> data;

  std::uint64_t count() const;
  /// Values [first, first + out.size()) as F32.
  void read_f32(std::uint64_t first, std::span<float> out) const;
};

/// One file, or the shards that an index names: memory-mapped, validated (header length, ranges inside the
/// file, sizes that match shapes, no overlap, no duplicate names). Thread: any (read-only).
class Safetensors {
 public:
  /// A single .safetensors file. A pickle (or anything else) is kInvalid and says what it looks like.
  static Result<Safetensors> open(const std::filesystem::path& file);
  /// A folder: model.safetensors, or model.safetensors.index.json with its shards (names may not leave the
  /// folder). A folder that only has pickles (pytorch_model.bin) is kUnsupported and says how to convert.
  static Result<Safetensors> open_folder(const std::filesystem::path& folder);
  static Result<Safetensors> parse(std::span<const std::byte> bytes, std::string_view where);

  const std::map<std::string, SafeTensor, std::less<>>& tensors() const { return tensors_; }
  const SafeTensor* find(std::string_view name) const;

 private:
  Result<void> add(std::span<const std::byte> bytes, std::string_view where);
  std::vector<MappedFile> files_;
  std::map<std::string, SafeTensor, std::less<>> tensors_;
};

/// A tensor to be written: row-major F32 values are asked for when their turn comes.
struct TensorSource {
  std::string name;                  ///< Hugging Face's name
  std::vector<std::uint64_t> shape;  ///< row-major
  std::function<Result<void>(std::span<float> out)> read;
};

/// Writes safetensors (F32 or F16) through a temporary name and a rename.
Result<void> write_safetensors(const std::filesystem::path& path, const std::vector<TensorSource>& tensors,
                               SafeTensor::DType dtype);

}  // namespace retort
