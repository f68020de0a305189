#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/core/result.h"

namespace retort {

namespace json = boost::json;

/// Parses untrusted text: depth at most 32, the error names line and column. `where` goes into errors.
Result<json::value> parse_json(std::string_view text, std::string_view where);

/// Typed access to an object's members; every error names the member and the object (`where`).
/// A missing member and one of another type are both kInvalid.
Result<std::string> json_string(const json::object& object, std::string_view key, std::string_view where);
Result<std::int64_t> json_int(const json::object& object, std::string_view key, std::string_view where);
/// A non-negative integer not above `max`.
Result<std::uint64_t> json_uint(const json::object& object, std::string_view key, std::string_view where,
                                std::uint64_t max = INT64_MAX);
/// Finite: 1e999 is refused.
Result<double> json_number(const json::object& object, std::string_view key, std::string_view where);
Result<bool> json_bool(const json::object& object, std::string_view key, std::string_view where);
Result<const json::object*> json_object(const json::object& object, std::string_view key,
                                        std::string_view where);
Result<const json::array*> json_array(const json::object& object, std::string_view key,
                                      std::string_view where);
Result<const json::object*> as_object(const json::value& value, std::string_view where);

/// True when the member is there and not null.
bool json_has(const json::object& object, std::string_view key);

/// Two-space indented text with a final newline, for files that people read.
std::string pretty_json(const json::value& value);

/// The candidate nearest to `word` by edit distance, for "did you mean"; none when nothing is close.
std::optional<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace retort
