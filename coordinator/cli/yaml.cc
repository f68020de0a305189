#include "coordinator/cli/yaml.h"

#include <yaml-cpp/yaml.h>

#include <charconv>
#include <cmath>

namespace retort::cli {
namespace {

constexpr std::size_t kMaxNodes = 100000, kMaxDepth = 32;

json::value scalar(const YAML::Node& node) {
  const std::string& text = node.Scalar();
  if (node.Tag() == "!") return json::string(text);  // it was quoted
  if (text.empty() || text == "~" || text == "null") return nullptr;
  if (text == "true" || text == "false") return text == "true";
  const char *begin = text.data(), *end = begin + text.size();
  std::int64_t whole = 0;
  if (const auto [at, error] = std::from_chars(begin, end, whole); error == std::errc() && at == end)
    return whole;
  double number = 0;
  if (const auto [at, error] = std::from_chars(begin, end, number);
      error == std::errc() && at == end && std::isfinite(number))
    return number;
  return json::string(text);
}

Result<json::value> convert(const YAML::Node& node, const std::string& where, std::size_t depth,
                            std::size_t& nodes) {
  const auto bad = [&](std::string_view why) {
    return fail(ErrorCode::kInvalid, fmt::format("{}:{}", where, node.Mark().line + 1), "{}", why);
  };
  // Aliases may name one node many times: what counts is what comes out.
  if (++nodes > kMaxNodes || depth > kMaxDepth) return bad("too large or too deep a document");
  switch (node.Type()) {
    case YAML::NodeType::Scalar:
      return scalar(node);
    case YAML::NodeType::Sequence: {
      json::array out;
      for (const YAML::Node& item : node) out.push_back(RETORT_TRY(convert(item, where, depth + 1, nodes)));
      return json::value(std::move(out));
    }
    case YAML::NodeType::Map: {
      json::object out;
      for (const auto& member : node) {
        if (!member.first.IsScalar()) return bad("a name must be a text");
        const std::string& name = member.first.Scalar();
        if (out.contains(name)) return bad(fmt::format("'{}' is there twice", name));
        out[name] = RETORT_TRY(convert(member.second, where, depth + 1, nodes));
      }
      return json::value(std::move(out));
    }
    default:
      return json::value(nullptr);
  }
}

void emit(YAML::Emitter& out, const json::value& value) {
  if (value.is_object()) {
    out << YAML::BeginMap;
    for (const auto& member : value.get_object()) {
      out << YAML::Key << std::string(member.key()) << YAML::Value;
      emit(out, member.value());
    }
    out << YAML::EndMap;
  } else if (value.is_array()) {
    out << YAML::BeginSeq;
    for (const json::value& item : value.get_array()) emit(out, item);
    out << YAML::EndSeq;
  } else if (value.is_string()) {
    const std::string text(value.get_string());
    YAML::Node plain(text);
    // A text that would be read back as something else is quoted.
    if (scalar(plain).is_string())
      out << text;
    else
      out << YAML::DoubleQuoted << text;
  } else if (value.is_null()) {
    out << YAML::Null;
  } else {
    out << json::serialize(value);
  }
}

}  // namespace

Result<std::vector<json::value>> parse_yaml(const std::string& text, const std::string& where) {
  try {
    std::vector<json::value> out;
    std::size_t nodes = 0;
    for (const YAML::Node& document : YAML::LoadAll(text))
      if (!document.IsNull()) out.push_back(RETORT_TRY(convert(document, where, 0, nodes)));
    return out;
  } catch (const YAML::Exception& error) {
    return fail(ErrorCode::kInvalid, fmt::format("{}:{}", where, error.mark.line + 1), "{}", error.msg);
  }
}

std::string to_yaml(const json::value& value) {
  YAML::Emitter out;
  out.SetIndent(2);
  emit(out, value);
  return std::string(out.c_str()) + "\n";
}

}  // namespace retort::cli
