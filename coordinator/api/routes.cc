#include "coordinator/api/routes.h"

namespace retort {

json::value or_null(const std::string& text) {
  return text.empty() ? json::value(nullptr) : json::value(text);
}
json::value or_null(UnixMillis time) { return time == 0 ? json::value(nullptr) : json::value(time); }

json::object to_json(const std::map<std::string, std::string>& labels) {
  json::object out;
  for (const auto& [key, value] : labels) out[key] = value;
  return out;
}

json::array to_json(const std::vector<std::string>& texts) {
  json::array out;
  for (const std::string& text : texts) out.emplace_back(text);
  return out;
}

Result<std::string> optional_text(const json::object& object, std::string_view key) {
  if (!json_has(object, key)) return std::string();
  return json_string(object, key, kRequestBody);
}

}  // namespace retort
