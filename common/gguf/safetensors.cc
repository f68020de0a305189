#include "common/gguf/safetensors.h"

#include <algorithm>
#include <cstring>

#include "common/blocks/tensor_type.h"
#include "common/core/json.h"

namespace retort {
namespace {

constexpr std::uint64_t kMaxHeaderBytes = 100u << 20;

std::uint64_t value_bytes(SafeTensor::DType dtype) { return dtype == SafeTensor::DType::kF32 ? 4 : 2; }

/// What a file that is not safetensors looks like, for the error message.
std::string_view looks_like(std::span<const std::byte> bytes) {
  const auto starts = [&](std::string_view magic) {
    return bytes.size() >= magic.size() && std::memcmp(bytes.data(), magic.data(), magic.size()) == 0;
  };
  if (starts("PK\x03\x04") || starts("\x80\x02") || starts("\x80\x03") || starts("\x80\x04") ||
      starts("\x80\x05"))
    return "it looks like a Python pickle, which can run code when it is loaded and is refused; convert it "
           "to "
           "safetensors first";
  if (starts("GGUF")) return "it looks like GGUF";
  return "its first eight bytes are not the length of a JSON header";
}

}  // namespace

std::uint64_t SafeTensor::count() const {
  std::uint64_t n = 1;
  for (const std::uint64_t d : shape) n *= d;
  return n;
}

void SafeTensor::read_f32(std::uint64_t first, std::span<float> out) const {
  const TensorType type = dtype == DType::kF32   ? TensorType::kF32
                          : dtype == DType::kF16 ? TensorType::kF16
                                                 : TensorType::kBF16;
  const std::uint64_t size = value_bytes(dtype);
  decode_row(type, data.subspan(first * size, out.size() * size), out);
}

Result<Safetensors> Safetensors::open(const std::filesystem::path& file) {
  Safetensors result;
  MappedFile mapped = RETORT_TRY(MappedFile::open(file));
  RETORT_TRY(result.add(mapped.bytes(), file.string()));
  result.files_.push_back(std::move(mapped));
  return result;
}

Result<Safetensors> Safetensors::open_folder(const std::filesystem::path& folder) {
  const std::filesystem::path single = folder / "model.safetensors",
                              index = folder / "model.safetensors.index.json";
  if (std::filesystem::exists(single)) return open(single);
  if (!std::filesystem::exists(index)) {
    for (const char* pickle :
         {"pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth"})
      if (std::filesystem::exists(folder / pickle))
        return fail(ErrorCode::kUnsupported, (folder / pickle).string(),
                    "a Python pickle, which can run code when it is loaded, is refused; save the model as "
                    "safetensors "
                    "(save_pretrained(…, safe_serialization=True))");
    return fail(ErrorCode::kNotFound, folder.string(),
                "holds neither model.safetensors nor model.safetensors.index.json");
  }
  const json::value document =
      RETORT_TRY(parse_json(RETORT_TRY(read_file(index, kMaxHeaderBytes)), index.string()));
  const json::object* object = RETORT_TRY(as_object(document, index.string()));
  const json::object* map = RETORT_TRY(json_object(*object, "weight_map", index.string()));
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& member : *map) {
    if (!member.value().is_string())
      return fail(ErrorCode::kInvalid, index.string(), "'{}' does not name a file",
                  std::string_view(member.key()));
    const std::string name(member.value().get_string());
    if (name.empty() || name.find('/') != std::string::npos || name.find('\0') != std::string::npos ||
        name == "." || name == "..")
      return fail(ErrorCode::kInvalid, index.string(), "shard '{}' must be a plain file name", name);
    shards[name].emplace_back(member.key());
  }
  Safetensors result;
  for (const auto& [name, tensors] : shards) {
    const std::filesystem::path path = folder / name;
    MappedFile mapped = RETORT_TRY(MappedFile::open(path));
    RETORT_TRY(result.add(mapped.bytes(), path.string()));
    result.files_.push_back(std::move(mapped));
    for (const std::string& tensor : tensors)
      if (result.find(tensor) == nullptr)
        return fail(ErrorCode::kInvalid, index.string(),
                    "tensor '{}' is not in {}, where the index says it is", tensor, name);
  }
  return result;
}

Result<Safetensors> Safetensors::parse(std::span<const std::byte> bytes, std::string_view where) {
  Safetensors result;
  RETORT_TRY(result.add(bytes, where));
  return result;
}

Result<void> Safetensors::add(std::span<const std::byte> bytes, std::string_view where) {
  std::uint64_t header_length = 0;
  if (bytes.size() >= 8) std::memcpy(&header_length, bytes.data(), 8);
  if (bytes.size() < 10 || header_length < 2 || header_length > kMaxHeaderBytes || bytes[8] != std::byte{'{'})
    return fail(ErrorCode::kInvalid, std::string(where), "not a safetensors file: {}", looks_like(bytes));
  if (header_length > bytes.size() - 8)
    return fail(ErrorCode::kCorrupt, std::string(where),
                "truncated: its header claims {} bytes, the file has {}", header_length, bytes.size());
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + 8, header_length);
  const json::value document = RETORT_TRY(parse_json(header, where));
  const json::object* object = RETORT_TRY(as_object(document, where));
  const std::span<const std::byte> data = bytes.subspan(8 + header_length);
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (const auto& member : *object) {
    const std::string name(member.key());
    if (name == "__metadata__") continue;
    const auto bad = [&](std::string what) {
      return fail(ErrorCode::kCorrupt, std::string(where), "tensor '{}': {}", name, what);
    };
    const json::object* entry =
        RETORT_TRY(as_object(member.value(), std::string(where) + ": tensor '" + name + "'"));
    SafeTensor tensor;
    tensor.name = name;
    const std::string dtype = RETORT_TRY(json_string(*entry, "dtype", where));
    if (dtype == "F32")
      tensor.dtype = SafeTensor::DType::kF32;
    else if (dtype == "F16")
      tensor.dtype = SafeTensor::DType::kF16;
    else if (dtype == "BF16")
      tensor.dtype = SafeTensor::DType::kBF16;
    else
      return fail(ErrorCode::kUnsupported, std::string(where),
                  "tensor '{}' has dtype {}; F32, F16 and BF16 are supported", name, dtype);
    std::uint64_t length = value_bytes(tensor.dtype);
    const json::array* shape = RETORT_TRY(json_array(*entry, "shape", where));
    if (shape->size() > 8) return bad("more than 8 dimensions");
    for (const json::value& d : *shape) {
      if (!d.is_int64() || d.get_int64() < 0)
        return bad("its shape holds something else than non-negative integers");
      tensor.shape.push_back(static_cast<std::uint64_t>(d.get_int64()));
      if (__builtin_mul_overflow(length, tensor.shape.back(), &length)) return bad("its shape overflows");
    }
    const json::array* offsets = RETORT_TRY(json_array(*entry, "data_offsets", where));
    if (offsets->size() != 2 || !(*offsets)[0].is_int64() || !(*offsets)[1].is_int64())
      return bad("data_offsets must be two integers");
    const std::int64_t begin = (*offsets)[0].get_int64(), end = (*offsets)[1].get_int64();
    if (begin < 0 || end < begin || static_cast<std::uint64_t>(end) > data.size())
      return bad(
          fmt::format("its bytes {}…{} do not lie inside the {} bytes of data", begin, end, data.size()));
    if (static_cast<std::uint64_t>(end - begin) != length)
      return bad(fmt::format("its shape needs {} bytes, its offsets give {}", length, end - begin));
    tensor.data = data.subspan(static_cast<std::uint64_t>(begin), length);
    if (length > 0) ranges.emplace_back(begin, length);
    if (!tensors_.emplace(name, std::move(tensor)).second) return bad("is there twice");
  }
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].first < ranges[i - 1].first + ranges[i - 1].second)
      return fail(ErrorCode::kCorrupt, std::string(where), "two tensors overlap");
  // The format leaves no holes. One shows a lie: a name that is there twice in the JSON, of which a parser
  // keeps one, or bytes hidden from every reader.
  std::uint64_t covered = 0;
  for (const auto& [begin, length] : ranges) covered += length;
  if (covered != data.size())
    return fail(ErrorCode::kCorrupt, std::string(where),
                "its tensors cover {} of {} bytes of data (the file is damaged, or names a tensor twice)",
                covered, data.size());
  return {};
}

const SafeTensor* Safetensors::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

Result<void> write_safetensors(const std::filesystem::path& path, const std::vector<TensorSource>& tensors,
                               SafeTensor::DType dtype) {
  json::object header{{"__metadata__", json::object{{"format", "pt"}}}};
  std::uint64_t at = 0;
  const auto count = [](const TensorSource& tensor) {
    std::uint64_t n = 1;
    for (const std::uint64_t d : tensor.shape) n *= d;
    return n;
  };
  const std::string_view dtype_name = dtype == SafeTensor::DType::kF32   ? "F32"
                                      : dtype == SafeTensor::DType::kF16 ? "F16"
                                                                         : "BF16";
  for (const TensorSource& tensor : tensors) {
    const std::uint64_t length = count(tensor) * value_bytes(dtype);
    json::array shape;
    for (const std::uint64_t d : tensor.shape) shape.emplace_back(d);
    header[tensor.name] =
        json::object{{"dtype", dtype_name}, {"shape", shape}, {"data_offsets", json::array{at, at + length}}};
    at += length;
  }
  std::string head = json::serialize(header);
  head.resize((head.size() + 7) / 8 * 8, ' ');
  const std::uint64_t head_length = head.size();
  head.insert(0, reinterpret_cast<const char*>(&head_length), 8);

  return write_file_with(
      path,
      [&](const File& file) -> Result<void> {
        RETORT_TRY(file.write_all_at(0, head));
        std::uint64_t offset = head.size();
        std::vector<float> values;
        std::string encoded;
        const TensorType type = dtype == SafeTensor::DType::kF32   ? TensorType::kF32
                                : dtype == SafeTensor::DType::kF16 ? TensorType::kF16
                                                                   : TensorType::kBF16;
        for (const TensorSource& tensor : tensors) {
          values.assign(count(tensor), 0.0f);
          RETORT_TRY(tensor.read(values));
          encoded.resize(values.size() * value_bytes(dtype));
          encode_row(type, values, std::as_writable_bytes(std::span(encoded)));
          RETORT_TRY(file.write_all_at(offset, encoded));
          offset += encoded.size();
        }
        return {};
      },
      0644);
}

}  // namespace retort
