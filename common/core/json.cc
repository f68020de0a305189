#include "common/core/json.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace retort {
namespace {

tl::unexpected<Error> wrong(std::string_view key, std::string_view where, std::string_view wanted,
                            bool there) {
  if (!there) return fail(ErrorCode::kInvalid, std::string(where), "'{}' is missing", key);
  return fail(ErrorCode::kInvalid, std::string(where), "'{}' must be {}", key, wanted);
}

void print(std::string& out, const json::value& value, std::size_t indent) {
  const std::string pad(indent + 2, ' ');
  if (value.is_object() && !value.get_object().empty()) {
    out += "{\n";
    bool first = true;
    for (const auto& member : value.get_object()) {
      if (!first) out += ",\n";
      first = false;
      out += pad + json::serialize(json::string(member.key())) + ": ";
      print(out, member.value(), indent + 2);
    }
    out += "\n" + std::string(indent, ' ') + "}";
  } else if (value.is_array() && !value.get_array().empty()) {
    out += "[\n";
    bool first = true;
    for (const auto& element : value.get_array()) {
      if (!first) out += ",\n";
      first = false;
      out += pad;
      print(out, element, indent + 2);
    }
    out += "\n" + std::string(indent, ' ') + "]";
  } else {
    out += json::serialize(value);
  }
}

}  // namespace

Result<json::value> parse_json(std::string_view text, std::string_view where) {
  json::parse_options options;
  options.max_depth = 32;
  json::stream_parser parser({}, options);
  json::error_code error;
  const std::size_t read = parser.write_some(text.data(), text.size(), error);
  if (!error && read < text.size()) {
    const std::size_t more = text.find_first_not_of(" \t\r\n", read);
    if (more != std::string_view::npos) error = json::error::extra_data;
  }
  if (!error) parser.finish(error);
  if (error) {
    const std::string_view before = text.substr(0, read);
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const auto column =
        before.size() - (before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1) + 1;
    return fail(ErrorCode::kInvalid, std::string(where), "not valid JSON at line {}, column {}: {}", line,
                column, error.message());
  }
  return parser.release();
}

bool json_has(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && !value->is_null();
}

Result<std::string> json_string(const json::object& object, std::string_view key, std::string_view where) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_string()) return wrong(key, where, "a text", value != nullptr);
  return std::string(value->get_string());
}

Result<std::int64_t> json_int(const json::object& object, std::string_view key, std::string_view where) {
  const json::value* value = object.if_contains(key);
  if (value != nullptr && value->is_int64()) return value->get_int64();
  return wrong(key, where, "an integer", value != nullptr);
}

Result<std::uint64_t> json_uint(const json::object& object, std::string_view key, std::string_view where,
                                std::uint64_t max) {
  const json::value* value = object.if_contains(key);
  std::uint64_t number = 0;
  if (value != nullptr && value->is_int64() && value->get_int64() >= 0)
    number = static_cast<std::uint64_t>(value->get_int64());
  else if (value != nullptr && value->is_uint64())
    number = value->get_uint64();
  else
    return wrong(key, where, "a non-negative integer", value != nullptr);
  if (number > max)
    return fail(ErrorCode::kInvalid, std::string(where), "'{}' is {}, more than the limit of {}", key, number,
                max);
  return number;
}

Result<double> json_number(const json::object& object, std::string_view key, std::string_view where) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_number()) return wrong(key, where, "a number", value != nullptr);
  const double number = value->to_number<double>();
  if (!std::isfinite(number)) return wrong(key, where, "a finite number", true);
  return number;
}

Result<bool> json_bool(const json::object& object, std::string_view key, std::string_view where) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_bool()) return wrong(key, where, "true or false", value != nullptr);
  return value->get_bool();
}

Result<const json::object*> json_object(const json::object& object, std::string_view key,
                                        std::string_view where) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_object()) return wrong(key, where, "an object", value != nullptr);
  return &value->get_object();
}

Result<const json::array*> json_array(const json::object& object, std::string_view key,
                                      std::string_view where) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_array()) return wrong(key, where, "an array", value != nullptr);
  return &value->get_array();
}

Result<const json::object*> as_object(const json::value& value, std::string_view where) {
  if (!value.is_object()) return fail(ErrorCode::kInvalid, std::string(where), "must be a JSON object");
  return &value.get_object();
}

std::string pretty_json(const json::value& value) {
  std::string out;
  print(out, value, 0);
  return out + "\n";
}

std::optional<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates) {
  const auto distance = [](std::string_view a, std::string_view b) {
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 1; i <= a.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i;
      for (std::size_t j = 1; j <= b.size(); ++j) {
        const std::size_t next =
            std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
        diagonal = row[j];
        row[j] = next;
      }
    }
    return row[b.size()];
  };
  std::optional<std::string> best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 2) + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t d = distance(word, candidate);
    if (d < best_distance) {
      best_distance = d;
      best = candidate;
    }
  }
  return best;
}

}  // namespace retort
