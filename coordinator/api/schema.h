#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/json.h"

/// JSON Schema (2020-12, as OpenAPI 3.1 takes it) written in C++, and the check of requests against it. Only
/// the keywords that are built here are checked: type, properties, required, additionalProperties, items,
/// enum, minimum, maximum, maxLength, maxItems. Thread: any.
namespace retort::schema {

json::object text(std::string_view description = "", std::size_t max_length = 0);
json::object integer(std::string_view description = "");
/// An integer from `minimum` to `maximum`.
json::object count(std::string_view description = "", std::uint64_t maximum = INT64_MAX,
                   std::uint64_t minimum = 0);
json::object number(std::string_view description = "");
json::object boolean(std::string_view description = "");
/// One of these texts.
json::object choice(std::initializer_list<std::string_view> values, std::string_view description = "");
/// Of at most `most` items; 0: of any number.
json::object list(json::object items, std::string_view description = "", std::size_t most = 0);
/// An object whose members' names are free and whose values are all like this.
json::object map(json::object values, std::string_view description = "");
/// Any object.
json::object any_object(std::string_view description = "");
/// The same schema, or null.
json::object nullable(json::object schema);

enum class Presence { kRequired, kOptional };
struct Member {
  const char* name;
  json::object schema;
  Presence presence = Presence::kRequired;
};
/// An object of exactly these members.
json::object object(std::vector<Member> members, std::string_view description = "");
/// What a list answers: {"items": […], "next": cursor or null}.
json::object page(json::object items);

/// kInvalid names the member ("request body, rules: 'min_memry' is not known; did you mean …"). A null
/// stands for an optional member that is not there.
Result<void> check(const json::value& value, const json::object& schema, const std::string& where);

}  // namespace retort::schema
