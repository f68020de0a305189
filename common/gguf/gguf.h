#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/blocks/tensor_type.h"
#include "common/core/file.h"
#include "common/core/result.h"

namespace retort {

/// A GGUF metadata value. Integers of every width are widened to 64 bits on reading (lists are read as
/// GgufList) and written in the width that llama.cpp expects of the key (uint32 unless the writer is told
/// otherwise).
using GgufValue = std::variant<std::uint64_t, std::int64_t, double, bool, std::string,
                               std::vector<std::int64_t>, std::vector<double>, std::vector<std::string>>;

/// A list of an open GGUF file's metadata, read where it lies: a vocabulary would take megabytes beside it.
class GgufList {
 public:
  enum class Kind { kTexts, kIntegers, kNumbers };
  /// `element` is GGUF's number of the elements' type, `bytes` what the list takes, checked to hold `count`.
  GgufList(std::uint32_t element, std::uint64_t count, std::span<const std::byte> bytes)
      : element_(element), count_(count), bytes_(bytes) {}
  Kind kind() const;
  std::uint64_t size() const { return count_; }
  /// Of kTexts: each, in their order.
  void for_each_text(const std::function<void(std::string_view)>& take) const;
  std::int64_t integer(std::uint64_t i) const;  ///< of kIntegers (flags are 0 and 1), i below size()
  double number(std::uint64_t i) const;         ///< of kNumbers

 private:
  std::uint32_t element_;
  std::uint64_t count_;
  std::span<const std::byte> bytes_;
};

/// A tensor of an open GGUF file.
struct GgufTensor {
  std::string name;
  /// GGUF's order: shape[0] is the fastest (columns, K), shape[1] the rows (N). One to four dimensions.
  std::vector<std::uint64_t> shape;
  TensorType type = TensorType::kF32;
  std::uint64_t offset = 0;         ///< from the start of the file
  std::span<const std::byte> data;  ///< into the mapping; checked to lie inside the file

  std::uint64_t columns() const { return shape.empty() ? 1 : shape[0]; }
  std::uint64_t rows() const;  ///< product of the other dimensions
};

/// An open, validated GGUF v2/v3 file: every count, length, offset and type in it has been checked against
/// the file's size, names are unique, tensors are aligned and do not overlap. Thread: any (read-only).
class GgufFile {
 public:
  static Result<GgufFile> open(const std::filesystem::path& path);
  /// The same over bytes that outlive the result (fuzzing, tests).
  static Result<GgufFile> parse(std::span<const std::byte> bytes, std::string_view where);

  /// A value that is no list.
  const GgufValue* find(std::string_view key) const;
  const GgufList* list(std::string_view key) const;
  bool has(std::string_view key) const { return find(key) != nullptr || list(key) != nullptr; }
  /// Typed access; kInvalid names the key when it is missing or of another type.
  Result<GgufList> list(std::string_view key, GgufList::Kind kind) const;
  Result<std::vector<std::string>> texts(std::string_view key) const;
  Result<std::vector<std::int64_t>> integers(std::string_view key) const;
  Result<std::vector<double>> numbers(std::string_view key) const;
  Result<std::string> text(std::string_view key) const;
  Result<std::uint64_t> uint(std::string_view key) const;
  Result<double> number(std::string_view key) const;

  /// All but the lists.
  const std::vector<std::pair<std::string, GgufValue>>& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* tensor(std::string_view name) const;
  /// Bytes before the first tensor: magic, metadata, tensor list and padding.
  std::uint64_t header_length() const { return header_length_; }
  std::uint64_t file_length() const { return file_length_; }
  const std::string& where() const { return where_; }
  /// Lets this process's mapping go of the pages it has read; they come back when they are read again.
  void drop_pages() const { file_.drop_pages(); }

 private:
  MappedFile file_;
  std::string where_;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::vector<std::pair<std::string, GgufList>> lists_;
  std::vector<GgufTensor> tensors_;
  std::uint64_t header_length_ = 0, file_length_ = 0;
};

/// Writes a GGUF v3 file, tensors 32-byte aligned, through a temporary name and a rename.
class GgufWriter {
 public:
  void set(std::string key, GgufValue value);
  /// `fill` is asked, in order, for the tensor's encoded bytes when the file is written, so that only one
  /// tensor is in memory at a time. `out` has exactly the encoded size.
  void add_tensor(std::string name, std::vector<std::uint64_t> shape, TensorType type,
                  std::function<Result<void>(std::span<std::byte> out)> fill);
  /// A matrix of any format, whose encoded bytes may depend on its values. `encode` is asked likewise.
  void add_matrix(std::string name, std::uint64_t columns, std::uint64_t rows, TensorType type,
                  std::function<Result<std::vector<std::byte>>()> encode);
  /// kOutOfBudget when the disk is full (nothing is left behind), kIo, or what `fill` returned.
  Result<void> write(const std::filesystem::path& path) const;

 private:
  struct Pending {
    std::string name;
    std::vector<std::uint64_t> shape;
    TensorType type;
    std::function<Result<void>(std::span<std::byte>)> fill;
    std::function<Result<std::vector<std::byte>>()> encode;  ///< instead of `fill`
  };
  Result<std::vector<std::byte>> encoded(const Pending& tensor) const;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::vector<Pending> tensors_;
};

}  // namespace retort
