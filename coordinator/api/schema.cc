#include "coordinator/api/schema.h"

#include <algorithm>

namespace retort::schema {
namespace {

json::object typed(const char* type, std::string_view description) {
  json::object out{{"type", type}};
  if (!description.empty()) out["description"] = description;
  return out;
}

bool is(const json::value& value, std::string_view type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_bool();
  if (type == "integer") return value.is_int64() || value.is_uint64();
  if (type == "number") return value.is_number();
  return value.is_null();
}

std::string_view a(std::string_view type) {
  if (type == "object") return "an object";
  if (type == "array") return "a list";
  if (type == "string") return "a text";
  if (type == "boolean") return "true or false";
  if (type == "integer") return "an integer";
  return "a number";
}

}  // namespace

json::object text(std::string_view description, std::size_t max_length) {
  json::object out = typed("string", description);
  if (max_length != 0) out["maxLength"] = max_length;
  return out;
}
json::object integer(std::string_view description) { return typed("integer", description); }
json::object count(std::string_view description, std::uint64_t maximum, std::uint64_t minimum) {
  json::object out = typed("integer", description);
  out["minimum"] = minimum;
  if (maximum != INT64_MAX) out["maximum"] = maximum;
  return out;
}
json::object number(std::string_view description) { return typed("number", description); }
json::object boolean(std::string_view description) { return typed("boolean", description); }
json::object choice(std::initializer_list<std::string_view> values, std::string_view description) {
  json::object out = typed("string", description);
  out["enum"] = json::array(values.begin(), values.end());
  return out;
}
json::object list(json::object items, std::string_view description, std::size_t most) {
  json::object out = typed("array", description);
  if (most != 0) out["maxItems"] = most;
  out["items"] = std::move(items);
  return out;
}
json::object map(json::object values, std::string_view description) {
  json::object out = typed("object", description);
  out["additionalProperties"] = std::move(values);
  return out;
}
json::object any_object(std::string_view description) { return typed("object", description); }
json::object nullable(json::object schema) {
  schema["type"] = json::array{schema.at("type"), "null"};
  if (schema.contains("enum")) schema["enum"].as_array().emplace_back(nullptr);
  return schema;
}
json::object object(std::vector<Member> members, std::string_view description) {
  json::object out = typed("object", description), properties;
  json::array required;
  for (Member& member : members) {
    properties[member.name] = std::move(member.schema);
    if (member.presence == Presence::kRequired) required.emplace_back(member.name);
  }
  out["properties"] = std::move(properties);
  if (!required.empty()) out["required"] = std::move(required);
  out["additionalProperties"] = false;
  return out;
}
json::object page(json::object items) {
  return object({{"items", list(std::move(items))},
                 {"next", nullable(text("where the next page starts; null after the last one"))}});
}

Result<void> check(const json::value& value, const json::object& schema, const std::string& where) {
  if (const json::value* type = schema.if_contains("type")) {
    const auto fits = [&](const json::value& t) { return is(value, std::string_view(t.get_string())); };
    const json::value& first = type->is_array() ? type->get_array().front() : *type;
    if (type->is_array() ? std::none_of(type->get_array().begin(), type->get_array().end(), fits)
                         : !fits(*type))
      return fail(ErrorCode::kInvalid, where, "must be {}", a(std::string_view(first.get_string())));
  }
  if (value.is_null()) return {};
  if (const json::value* allowed = schema.if_contains("enum")) {
    const json::array& values = allowed->get_array();
    if (std::find(values.begin(), values.end(), value) == values.end())
      return fail(ErrorCode::kInvalid, where, "must be one of {}", json::serialize(values));
  }
  if (value.is_number()) {
    const auto bound = [&](const char* name) { return schema.if_contains(name); };
    const double number = value.to_number<double>();
    if (const json::value* least = bound("minimum"); least && number < least->to_number<double>())
      return fail(ErrorCode::kInvalid, where, "must be at least {}", json::serialize(*least));
    if (const json::value* most = bound("maximum"); most && number > most->to_number<double>())
      return fail(ErrorCode::kInvalid, where, "must be at most {}", json::serialize(*most));
  }
  if (value.is_string())
    if (const json::value* most = schema.if_contains("maxLength");
        most && value.get_string().size() > most->to_number<std::uint64_t>())
      return fail(ErrorCode::kInvalid, where, "is longer than {} bytes", json::serialize(*most));
  if (value.is_array())
    if (const json::value* most = schema.if_contains("maxItems");
        most && value.get_array().size() > most->to_number<std::uint64_t>())
      return fail(ErrorCode::kInvalid, where, "has more than {} items", json::serialize(*most));
  if (value.is_array())
    if (const json::value* items = schema.if_contains("items"))
      for (std::size_t i = 0; i < value.get_array().size(); ++i)
        RETORT_TRY(check(value.get_array()[i], items->get_object(), fmt::format("{}[{}]", where, i)));
  if (!value.is_object()) return {};
  const json::object& members = value.get_object();
  const json::value* properties = schema.if_contains("properties");
  const json::value* others = schema.if_contains("additionalProperties");
  for (const auto& member : members) {
    const std::string key(member.key());
    const std::string inside = fmt::format("{}, '{}'", where, key);
    if (const json::value* known = properties ? properties->get_object().if_contains(key) : nullptr) {
      const json::value* required = schema.if_contains("required");
      const bool optional =
          required == nullptr || std::find(required->get_array().begin(), required->get_array().end(),
                                           json::value(key)) == required->get_array().end();
      if (!optional || !member.value().is_null())
        RETORT_TRY(check(member.value(), known->get_object(), inside));
    } else if (others && others->is_object()) {
      RETORT_TRY(check(member.value(), others->get_object(), inside));
    } else if (others && !others->get_bool()) {
      std::vector<std::string> names;
      if (properties)
        for (const auto& name : properties->get_object()) names.emplace_back(name.key());
      const auto near = nearest(key, names);
      return fail(ErrorCode::kInvalid, where, "'{}' is not known{}", key,
                  near            ? "; did you mean '" + *near + "'?"
                  : names.empty() ? "; nothing is"
                                  : fmt::format("; known are: {}", fmt::join(names, ", ")));
    }
  }
  if (const json::value* required = schema.if_contains("required"))
    for (const json::value& name : required->get_array())
      if (!members.contains(name.get_string()))
        return fail(ErrorCode::kInvalid, where, "'{}' is missing", std::string_view(name.get_string()));
  return {};
}

}  // namespace retort::schema
