#include "common/gguf/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <unordered_set>

#include "common/blocks/matrix.h"

namespace retort {
namespace {

constexpr std::uint64_t kMaxMetadata = 1 << 16, kMaxTensors = 1 << 16, kMaxKeyBytes = 1 << 16;
/// Elements of an array; keeps what a file of many gigabytes can make us hold in check.
constexpr std::uint64_t kMaxElements = 1 << 23;

/// GGUF's value types, by number.
enum : std::uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

/// Reads little-endian values and never past the end: after the first failure every read gives zero and `ok`
/// is false.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename T>
  T read() {
    T value{};
    if (bytes_.size() - at_ < sizeof(T)) return ok_ = false, value;
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  /// Into the bytes.
  std::string_view text(std::uint64_t limit) {
    const auto length = read<std::uint64_t>();
    if (!ok_ || length > limit || length > left()) return ok_ = false, std::string_view();
    const std::string_view out(reinterpret_cast<const char*>(bytes_.data()) + at_, length);
    at_ += length;
    return out;
  }
  std::span<const std::byte> take(std::uint64_t length) {
    if (length > left()) return ok_ = false, std::span<const std::byte>();
    at_ += length;
    return bytes_.subspan(at_ - length, length);
  }
  std::uint64_t left() const { return bytes_.size() - at_; }
  std::uint64_t at() const { return at_; }
  bool ok() const { return ok_; }

 private:
  std::span<const std::byte> bytes_;
  std::uint64_t at_ = 0;
  bool ok_ = true;
};

bool is_unsigned(std::uint32_t type) { return type == kU8 || type == kU16 || type == kU32 || type == kU64; }
bool is_signed(std::uint32_t type) { return type == kI8 || type == kI16 || type == kI32 || type == kI64; }

std::uint64_t read_unsigned(Cursor& in, std::uint32_t type) {
  switch (type) {
    case kU8:
      return in.read<std::uint8_t>();
    case kU16:
      return in.read<std::uint16_t>();
    case kU32:
      return in.read<std::uint32_t>();
    default:
      return in.read<std::uint64_t>();
  }
}
std::int64_t read_signed(Cursor& in, std::uint32_t type) {
  switch (type) {
    case kI8:
      return in.read<std::int8_t>();
    case kI16:
      return in.read<std::int16_t>();
    case kI32:
      return in.read<std::int32_t>();
    default:
      return in.read<std::int64_t>();
  }
}
std::size_t scalar_bytes(std::uint32_t type) {
  constexpr std::size_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 8 /* a string's length */, 0, 8, 8, 8};
  return type < std::size(kBytes) ? kBytes[type] : 0;
}

GgufValue read_value(Cursor& in, std::uint32_t type) {
  if (is_unsigned(type)) return read_unsigned(in, type);
  if (is_signed(type)) return read_signed(in, type);
  if (type == kF32) return static_cast<double>(in.read<float>());
  if (type == kF64) return in.read<double>();
  if (type == kBool) return in.read<std::uint8_t>() != 0;
  return std::string(in.text(in.left()));
}

Result<GgufList> read_list(Cursor& in, std::string_view where, const std::string& key) {
  const auto bad = [&](std::string_view what) {
    return fail(ErrorCode::kCorrupt, std::string(where), "metadata '{}': {}", key, what);
  };
  const auto element = in.read<std::uint32_t>();
  const auto count = in.read<std::uint64_t>();
  if (element == kArray) return bad("arrays of arrays are not supported");
  const std::size_t least = scalar_bytes(element);
  if (least == 0) return bad(fmt::format("unknown element type {}", element));
  if (!in.ok() || count > in.left() / least)
    return bad(fmt::format("{} elements are more than the file holds", count));
  if (count > kMaxElements)
    return bad(fmt::format("{} elements are more than the limit of {}", count, kMaxElements));
  if (element != kString) return GgufList(element, count, in.take(count * least));
  Cursor texts = in;
  for (std::uint64_t i = 0; i < count && texts.ok(); ++i) texts.text(texts.left());
  if (!texts.ok()) return bad("runs past the end of the file");
  return GgufList(element, count, in.take(texts.at() - in.at()));
}

/// The bytes of a tensor that begins at `data`; nothing on overflow, when a block does not divide the row, or
/// when what is there contradicts itself.
std::optional<std::uint64_t> tensor_bytes(TensorType type, const std::vector<std::uint64_t>& shape,
                                          std::span<const std::byte> data) {
  std::uint64_t rows = 1;
  for (std::size_t i = 1; i < shape.size(); ++i)
    if (__builtin_mul_overflow(rows, shape[i], &rows)) return std::nullopt;
  return matrix_bytes(type, rows, shape.empty() ? 1 : shape[0], data);
}

std::uint64_t align_up(std::uint64_t value, std::uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

}  // namespace

GgufList::Kind GgufList::kind() const {
  if (element_ == kString) return Kind::kTexts;
  return element_ == kF32 || element_ == kF64 ? Kind::kNumbers : Kind::kIntegers;
}

void GgufList::for_each_text(const std::function<void(std::string_view)>& take) const {
  Cursor in(bytes_);
  for (std::uint64_t i = 0; i < count_; ++i) take(in.text(in.left()));
}

std::int64_t GgufList::integer(std::uint64_t i) const {
  Cursor in(bytes_.subspan(i * scalar_bytes(element_)));
  if (element_ == kBool) return in.read<std::uint8_t>();
  return is_signed(element_) ? read_signed(in, element_)
                             : static_cast<std::int64_t>(read_unsigned(in, element_));
}

double GgufList::number(std::uint64_t i) const {
  Cursor in(bytes_.subspan(i * scalar_bytes(element_)));
  return element_ == kF32 ? in.read<float>() : in.read<double>();
}

std::uint64_t GgufTensor::rows() const {
  std::uint64_t rows = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) rows *= shape[i];
  return rows;
}

Result<GgufFile> GgufFile::open(const std::filesystem::path& path) {
  MappedFile mapped = RETORT_TRY(MappedFile::open(path));
  GgufFile file = RETORT_TRY(parse(mapped.bytes(), path.string()));
  file.file_ = std::move(mapped);
  return file;
}

Result<GgufFile> GgufFile::parse(std::span<const std::byte> bytes, std::string_view where) {
  const auto corrupt = [&](std::string what) {
    return fail(ErrorCode::kCorrupt, std::string(where), "{}", what);
  };
  if (bytes.size() < 4 || std::memcmp(bytes.data(), "GGUF", 4) != 0)
    return fail(ErrorCode::kInvalid, std::string(where), "not a GGUF file (it does not begin with 'GGUF')");
  Cursor in(bytes.subspan(4));
  const auto version = in.read<std::uint32_t>();
  if (!in.ok()) return corrupt("truncated after the magic");
  if (version != 2 && version != 3)
    return fail(ErrorCode::kUnsupported, std::string(where),
                "GGUF version {}; versions 2 and 3 are supported", version);
  const auto n_tensors = in.read<std::uint64_t>(), n_metadata = in.read<std::uint64_t>();
  // A tensor entry takes at least 24 bytes, a metadata entry 13: counts beyond that lie.
  if (!in.ok() || n_tensors > kMaxTensors || n_metadata > kMaxMetadata ||
      n_tensors * 24 + n_metadata * 13 > in.left())
    return corrupt(
        fmt::format("its header claims {} tensors and {} metadata entries, more than the file can hold",
                    n_tensors, n_metadata));
  GgufFile file;
  file.where_ = where;
  file.file_length_ = bytes.size();
  std::unordered_set<std::string> seen;
  for (std::uint64_t i = 0; i < n_metadata; ++i) {
    const std::string key(in.text(kMaxKeyBytes));
    const auto type = in.read<std::uint32_t>();
    if (!in.ok()) return corrupt(fmt::format("truncated in metadata entry {} of {}", i + 1, n_metadata));
    if (type == kArray)
      file.lists_.emplace_back(key, RETORT_TRY(read_list(in, where, key)));
    else if (scalar_bytes(type) != 0)
      file.metadata_.emplace_back(key, read_value(in, type));
    else
      return corrupt(fmt::format("metadata '{}': unknown value type {}", key, type));
    if (!in.ok()) return corrupt(fmt::format("metadata '{}' runs past the end of the file", key));
    if (!seen.insert(key).second) return corrupt(fmt::format("metadata '{}' is there twice", key));
  }
  std::uint64_t alignment = 32;
  if (file.find("general.alignment") != nullptr) {
    alignment = RETORT_TRY(file.uint("general.alignment"));
    if (alignment == 0 || alignment > 1 << 20 || !std::has_single_bit(alignment))
      return corrupt(fmt::format("general.alignment is {}, not a power of two up to 1 MiB", alignment));
  }
  seen.clear();
  for (std::uint64_t i = 0; i < n_tensors; ++i) {
    GgufTensor tensor;
    tensor.name = in.text(kMaxKeyBytes);
    const auto dimensions = in.read<std::uint32_t>();
    if (!in.ok()) return corrupt(fmt::format("truncated in tensor entry {} of {}", i + 1, n_tensors));
    const auto bad = [&](std::string what) {
      return fail(ErrorCode::kCorrupt, std::string(where), "tensor '{}': {}", tensor.name, what);
    };
    if (dimensions < 1 || dimensions > 4) return bad(fmt::format("{} dimensions, outside 1…4", dimensions));
    std::uint64_t count = 1;
    for (std::uint32_t d = 0; d < dimensions; ++d) {
      tensor.shape.push_back(in.read<std::uint64_t>());
      if (tensor.shape.back() == 0 || __builtin_mul_overflow(count, tensor.shape.back(), &count))
        return bad("a dimension is zero or their product overflows");
    }
    const auto type = in.read<std::uint32_t>();
    tensor.offset = in.read<std::uint64_t>();
    if (!in.ok()) return bad("its entry is truncated");
    if (!seen.insert(tensor.name).second) return bad("is there twice");
    const TensorTypeInfo* entry = find_tensor_type(type);
    if (entry == nullptr)
      return fail(ErrorCode::kUnsupported, std::string(where),
                  "tensor '{}' has type number {}; F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K, Q3_K, Q4_0, "
                  "IQ4_NL and Retort's own are supported",
                  tensor.name, type);
    tensor.type = entry->type;
    if (!fits(tensor.type, tensor.columns()) ||
        (entry->block_bytes != 0 && !tensor_bytes(tensor.type, tensor.shape, {})))
      return bad(fmt::format("{} columns are not a multiple of {}'s block, or its size overflows",
                             tensor.columns(), entry->name));
    file.tensors_.push_back(std::move(tensor));
  }
  const std::uint64_t data_start = align_up(in.at() + 4, alignment);
  if (n_tensors > 0 && data_start > bytes.size()) return corrupt("truncated before the tensors");
  file.header_length_ = std::min<std::uint64_t>(data_start, bytes.size());
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (GgufTensor& tensor : file.tensors_) {
    const bool inside = tensor.offset % alignment == 0 && tensor.offset <= bytes.size() - data_start;
    const auto from = inside ? bytes.subspan(data_start + tensor.offset) : std::span<const std::byte>();
    const auto told = tensor_bytes(tensor.type, tensor.shape, from);
    const std::uint64_t length = told.value_or(0);
    if (!inside || !told || length > from.size())
      return fail(ErrorCode::kCorrupt, std::string(where),
                  "tensor '{}': {} bytes at offset {} do not lie inside the file, or are not aligned to {}",
                  tensor.name, length, tensor.offset, alignment);
    if (const auto fault = matrix_fault(tensor.type, tensor.rows(), tensor.columns(), from.first(length)))
      return fail(ErrorCode::kCorrupt, std::string(where), "tensor '{}': {}", tensor.name, *fault);
    tensor.offset += data_start;
    tensor.data = bytes.subspan(tensor.offset, length);
    ranges.emplace_back(tensor.offset, length);
  }
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].first < ranges[i - 1].first + ranges[i - 1].second) return corrupt("two tensors overlap");
  return file;
}

const GgufValue* GgufFile::find(std::string_view key) const {
  for (const auto& [name, value] : metadata_)
    if (name == key) return &value;
  return nullptr;
}

const GgufList* GgufFile::list(std::string_view key) const {
  for (const auto& [name, list] : lists_)
    if (name == key) return &list;
  return nullptr;
}

Result<GgufList> GgufFile::list(std::string_view key, GgufList::Kind kind) const {
  const GgufList* found = list(key);
  if (found != nullptr && found->kind() == kind) return *found;
  return fail(ErrorCode::kInvalid, where_, "metadata '{}' is {}", key,
              has(key) ? "of another type" : "missing");
}

Result<std::vector<std::string>> GgufFile::texts(std::string_view key) const {
  const GgufList found = RETORT_TRY(list(key, GgufList::Kind::kTexts));
  std::vector<std::string> out;
  out.reserve(found.size());
  found.for_each_text([&](std::string_view text) { out.emplace_back(text); });
  return out;
}

Result<std::vector<std::int64_t>> GgufFile::integers(std::string_view key) const {
  const GgufList found = RETORT_TRY(list(key, GgufList::Kind::kIntegers));
  std::vector<std::int64_t> out(found.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = found.integer(i);
  return out;
}

Result<std::vector<double>> GgufFile::numbers(std::string_view key) const {
  const GgufList found = RETORT_TRY(list(key, GgufList::Kind::kNumbers));
  std::vector<double> out(found.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = found.number(i);
  return out;
}

const GgufTensor* GgufFile::tensor(std::string_view name) const {
  for (const GgufTensor& tensor : tensors_)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

Result<std::string> GgufFile::text(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value != nullptr)
    if (const auto* text = std::get_if<std::string>(value)) return *text;
  return fail(ErrorCode::kInvalid, where_, "metadata '{}' is {}", key,
              value == nullptr ? "missing" : "not a text");
}

Result<std::uint64_t> GgufFile::uint(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value != nullptr) {
    if (const auto* n = std::get_if<std::uint64_t>(value)) return *n;
    if (const auto* n = std::get_if<std::int64_t>(value); n != nullptr && *n >= 0)
      return static_cast<std::uint64_t>(*n);
  }
  return fail(ErrorCode::kInvalid, where_, "metadata '{}' is {}", key,
              value == nullptr ? "missing" : "not a non-negative integer");
}

Result<double> GgufFile::number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value != nullptr)
    if (const auto* n = std::get_if<double>(value)) return *n;
  return fail(ErrorCode::kInvalid, where_, "metadata '{}' is {}", key,
              value == nullptr ? "missing" : "not a number");
}

// Writing
// -------------------------------------------------------------------------------------------------------------

namespace {

template <typename T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void put_text(std::string& out, std::string_view text) {
  put<std::uint64_t>(out, text.size());
  out.append(text);
}

void put_value(std::string& out, std::string_view key, const GgufValue& value) {
  if (const auto* u = std::get_if<std::uint64_t>(&value)) {
    const bool wide = *u > std::numeric_limits<std::uint32_t>::max();
    put<std::uint32_t>(out, wide ? kU64 : kU32);
    if (wide)
      put(out, *u);
    else
      put(out, static_cast<std::uint32_t>(*u));
  } else if (const auto* i = std::get_if<std::int64_t>(&value)) {
    const bool narrow = *i >= INT32_MIN && *i <= INT32_MAX;
    put<std::uint32_t>(out, narrow ? kI32 : kI64);
    if (narrow)
      put(out, static_cast<std::int32_t>(*i));
    else
      put(out, *i);
  } else if (const auto* d = std::get_if<double>(&value)) {
    put<std::uint32_t>(out, kF32);
    put(out, static_cast<float>(*d));
  } else if (const auto* b = std::get_if<bool>(&value)) {
    put<std::uint32_t>(out, kBool);
    put<std::uint8_t>(out, *b ? 1 : 0);
  } else if (const auto* text = std::get_if<std::string>(&value)) {
    put<std::uint32_t>(out, kString);
    put_text(out, *text);
  } else if (const auto* ints = std::get_if<std::vector<std::int64_t>>(&value)) {
    put<std::uint32_t>(out, kArray);
    const bool bytes = key == "tokenizer.ggml.precompiled_charsmap";
    put<std::uint32_t>(out, bytes ? kU8 : kI32);
    put<std::uint64_t>(out, ints->size());
    for (const std::int64_t x : *ints)
      if (bytes)
        put(out, static_cast<std::uint8_t>(x));
      else
        put(out, static_cast<std::int32_t>(x));
  } else if (const auto* numbers = std::get_if<std::vector<double>>(&value)) {
    put<std::uint32_t>(out, kArray);
    put<std::uint32_t>(out, kF32);
    put<std::uint64_t>(out, numbers->size());
    for (const double x : *numbers) put(out, static_cast<float>(x));
  } else if (const auto* texts = std::get_if<std::vector<std::string>>(&value)) {
    put<std::uint32_t>(out, kArray);
    put<std::uint32_t>(out, kString);
    put<std::uint64_t>(out, texts->size());
    for (const std::string& x : *texts) put_text(out, x);
  }
}

}  // namespace

void GgufWriter::set(std::string key, GgufValue value) {
  for (auto& [name, old] : metadata_)
    if (name == key) return void(old = std::move(value));
  metadata_.emplace_back(std::move(key), std::move(value));
}

void GgufWriter::add_tensor(std::string name, std::vector<std::uint64_t> shape, TensorType type,
                            std::function<Result<void>(std::span<std::byte>)> fill) {
  tensors_.push_back({std::move(name), std::move(shape), type, std::move(fill)});
}

void GgufWriter::add_matrix(std::string name, std::uint64_t columns, std::uint64_t rows, TensorType type,
                            std::function<Result<std::vector<std::byte>>()> encode) {
  tensors_.push_back({std::move(name), {columns, rows}, type, {}, std::move(encode)});
}

Result<std::vector<std::byte>> GgufWriter::encoded(const Pending& tensor) const {
  if (tensor.encode) return tensor.encode();
  std::vector<std::byte> bytes(*tensor_bytes(tensor.type, tensor.shape, {}));
  RETORT_TRY(tensor.fill(bytes));
  return bytes;
}

Result<void> GgufWriter::write(const std::filesystem::path& path) const {
  constexpr std::uint64_t kAlignment = 32;
  for (const Pending& tensor : tensors_)
    if (!fits(tensor.type, tensor.shape.empty() ? 0 : tensor.shape[0]) ||
        (!tensor.encode && !tensor_bytes(tensor.type, tensor.shape, {})))
      return fail(ErrorCode::kInvalid, tensor.name, "{} columns are not a multiple of {}'s block of {}",
                  tensor.shape.empty() ? 0 : tensor.shape[0], info(tensor.type).name,
                  info(tensor.type).block_values);
  std::vector<std::uint64_t> offsets(tensors_.size());
  // As long whatever the offsets are: the tensors are written first, as some tell their size by then.
  const auto header = [&] {
    std::string out = "GGUF";
    put<std::uint32_t>(out, 3);
    put<std::uint64_t>(out, tensors_.size());
    put<std::uint64_t>(out, metadata_.size());
    for (const auto& [key, value] : metadata_) {
      put_text(out, key);
      put_value(out, key, value);
    }
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      put_text(out, tensors_[i].name);
      put<std::uint32_t>(out, static_cast<std::uint32_t>(tensors_[i].shape.size()));
      for (const std::uint64_t d : tensors_[i].shape) put(out, d);
      put(out, static_cast<std::uint32_t>(tensors_[i].type));
      put(out, offsets[i]);
    }
    out.resize(align_up(out.size(), kAlignment), '\0');
    return out;
  };
  return write_file_with(
      path,
      [&](const File& file) -> Result<void> {
        const std::uint64_t start = header().size();
        std::uint64_t at = start;
        for (std::size_t i = 0; i < tensors_.size(); ++i) {
          offsets[i] = at - start;
          std::vector<std::byte> bytes = RETORT_TRY(encoded(tensors_[i]));
          bytes.resize(align_up(bytes.size(), kAlignment));
          RETORT_TRY(file.write_all_at(at, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
          at += bytes.size();
        }
        return file.write_all_at(0, header());
      },
      0644);
}

}  // namespace retort
