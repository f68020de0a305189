#include "common/core/labelled_tensors.h"

#include <algorithm>
#include <unordered_map>

#include "common/core/file.h"

namespace retort {
namespace {

Result<void> read_nested(const json::value& value, std::span<const std::size_t> dimensions,
                         std::string_view where, std::vector<float>& out) {
  if (dimensions.empty()) {
    const bool number = value.is_number();
    const double x = number ? value.to_number<double>() : 0;
    if (!number || !(x >= -3.4028234e38 && x <= 3.4028234e38))
      return fail(ErrorCode::kInvalid, std::string(where),
                  "the input must hold numbers that a float can hold");
    out.push_back(static_cast<float>(x));
    return {};
  }
  if (!value.is_array() || value.get_array().size() != dimensions.front())
    return fail(
        ErrorCode::kInvalid, std::string(where), "{} where {} values are expected",
        value.is_array() ? fmt::format("{} values", value.get_array().size()) : "something else than a list",
        dimensions.front());
  for (const json::value& element : value.get_array())
    RETORT_TRY(read_nested(element, dimensions.subspan(1), where, out));
  return {};
}

/// An idx file: big-endian magic (0, 0, 8: bytes, dimensions), its dimensions, then the bytes.
struct Idx {
  MappedFile file;
  std::vector<std::size_t> dimensions;
  std::span<const std::byte> data;
};

Result<Idx> open_idx(const std::filesystem::path& path, std::size_t least_dimensions) {
  Idx idx;
  idx.file = RETORT_TRY(MappedFile::open(path));
  const std::span<const std::byte> bytes = idx.file.bytes();
  const auto number = [&](std::size_t at) {
    std::size_t value = 0;
    for (std::size_t i = 0; i < 4; ++i) value = value << 8 | std::to_integer<std::size_t>(bytes[at + i]);
    return value;
  };
  if (bytes.size() >= 2 && bytes[0] == std::byte{0x1f} && bytes[1] == std::byte{0x8b})
    return fail(ErrorCode::kUnsupported, path.string(), "it is compressed; unpack it first (gunzip -k)");
  const std::size_t dimensions = bytes.size() < 4 || number(0) >> 8 != 8 ? 0 : number(0) & 0xff;
  if (dimensions < least_dimensions || dimensions > 4 || bytes.size() < 4 + 4 * dimensions)
    return fail(ErrorCode::kInvalid, path.string(),
                "neither JSON lines nor an idx file of unsigned bytes with {} to 4 dimensions",
                least_dimensions);
  std::size_t count = 1;
  for (std::size_t i = 0; i < dimensions; ++i) {
    idx.dimensions.push_back(number(4 + 4 * i));
    if (__builtin_mul_overflow(count, idx.dimensions.back(), &count)) count = SIZE_MAX;
  }
  idx.data = bytes.subspan(4 + 4 * dimensions);
  if (count != idx.data.size())
    return fail(ErrorCode::kCorrupt, path.string(),
                "its dimensions ask for other than the {} bytes that it has", idx.data.size());
  return idx;
}

Result<std::uint64_t> visit_idx(const std::filesystem::path& file, const std::filesystem::path& labels_file,
                                const TensorShape& shape, const std::vector<std::string>& labels,
                                const std::function<bool(std::span<const float>, std::size_t)>& visit) {
  const Idx images = RETORT_TRY(open_idx(file, 2)), places = RETORT_TRY(open_idx(labels_file, 1));
  const std::size_t count = images.dimensions[0], values = count == 0 ? 0 : images.data.size() / count;
  if (places.dimensions.size() != 1 || places.dimensions[0] != count)
    return fail(ErrorCode::kInvalid, labels_file.string(), "{} labels for {} images", places.dimensions[0],
                count);
  if (count == 0 || values != shape.values())
    return fail(ErrorCode::kInvalid, file.string(), "{} images of {} values; the model wants {}", count,
                values, shape.values());
  std::vector<float> input(values);
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t j = 0; j < values; ++j)
      input[j] = static_cast<float>(std::to_integer<unsigned>(images.data[i * values + j]));
    const auto label = std::to_integer<std::size_t>(places.data[i]);
    if (label >= labels.size())
      return fail(ErrorCode::kInvalid, labels_file.string(), "label {} of image {}; the model has {}", label,
                  i, labels.size());
    if (!visit(input, label)) return i + 1;
  }
  return count;
}

}  // namespace

std::size_t TensorShape::values() const {
  std::size_t n = 1;
  for (const std::size_t d : dimensions) n *= d;
  return n;
}

Result<void> read_tensor(const json::value& value, const TensorShape& shape, std::string_view where,
                         std::vector<float>& out) {
  if (value.is_object() && !shape.names.empty()) {
    const json::object& object = value.get_object();
    for (const std::string& name : shape.names)
      RETORT_TRY(read_nested(object.contains(name) ? object.at(name) : json::value(), {},
                             fmt::format("{}: '{}'", where, name), out));
    if (object.size() == shape.names.size()) return {};
    for (const auto& member : object)
      if (std::find(shape.names.begin(), shape.names.end(), std::string_view(member.key())) ==
          shape.names.end())
        return fail(ErrorCode::kInvalid, std::string(where), "there is no feature '{}'",
                    std::string_view(member.key()));
    return {};
  }
  const std::span<const std::size_t> dimensions = shape.dimensions;
  // How deep the lists stand in each other.
  std::size_t depth = 0;
  for (const json::value* v = &value; v->is_array(); v = &v->get_array().front()) {
    ++depth;
    if (v->get_array().empty()) break;
  }
  const std::size_t before = out.size();
  const auto read = [&](std::span<const std::size_t> as) -> Result<void> {
    out.resize(before);
    return read_nested(value, as, where, out);
  };
  const std::size_t flat = shape.values();
  if (depth == dimensions.size()) return read(dimensions);
  if (depth + 1 == dimensions.size() && dimensions.front() == 1) return read(dimensions.subspan(1));
  return read({&flat, 1});
}

Result<std::uint64_t> visit_labelled_tensors(
    const std::filesystem::path& file, const std::filesystem::path& labels_file, const TensorShape& shape,
    const std::vector<std::string>& labels,
    const std::function<bool(std::span<const float> input, std::size_t label)>& visit) {
  if (!labels_file.empty()) return visit_idx(file, labels_file, shape, labels, visit);
  std::unordered_map<std::string_view, std::size_t> place;
  for (std::size_t i = 0; i < labels.size(); ++i) place.emplace(labels[i], i);
  const MappedFile mapped = RETORT_TRY(MappedFile::open(file));
  std::string_view rest(reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size());
  std::uint64_t count = 0;
  std::vector<float> input;
  for (std::uint64_t line = 1; !rest.empty(); ++line) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view text = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}:{}", file.string(), line);
    const json::value document = RETORT_TRY(parse_json(text, where));
    const json::object& example = *RETORT_TRY(as_object(document, where));
    const json::value *values = example.if_contains("input"), *label = example.if_contains("label");
    if (values == nullptr || label == nullptr)
      return fail(ErrorCode::kInvalid, where, "'{}' is missing", values == nullptr ? "input" : "label");
    input.clear();
    RETORT_TRY(read_tensor(*values, shape, where, input));
    std::size_t its = labels.size();
    if (label->is_string()) {
      if (const auto found = place.find(std::string_view(label->get_string())); found != place.end())
        its = found->second;
    } else if (label->is_int64() && label->get_int64() >= 0) {
      its = static_cast<std::size_t>(label->get_int64());
    }
    if (its >= labels.size())
      return fail(ErrorCode::kInvalid, where, "label {} is none of the model's {}", json::serialize(*label),
                  labels.size());
    ++count;
    if (!visit(input, its)) return count;
  }
  if (count == 0) return fail(ErrorCode::kInvalid, file.string(), "holds no example");
  return count;
}

}  // namespace retort
