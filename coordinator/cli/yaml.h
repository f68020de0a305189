#pragma once

#include <string>
#include <vector>

#include "common/core/json.h"

/// YAML for people: the same values as JSON. Thread: any.
namespace retort::cli {

/// The documents of a text ("---" between them; JSON is YAML too). Untrusted: bounded in depth and size.
/// kInvalid names file and line.
Result<std::vector<json::value>> parse_yaml(const std::string& text, const std::string& where);
std::string to_yaml(const json::value& value);

}  // namespace retort::cli
