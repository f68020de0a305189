#include "coordinator/api/routes.h"

#include <algorithm>
#include <cctype>

#include "common/core/hex.h"

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

Result<void> check_name(std::string_view name, std::string_view what) {
  const bool fit =
      !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](unsigned char c) {
        return std::isalnum(c) || c == '-' || c == '_' || c == '.';
      });
  if (fit) return {};
  return fail(ErrorCode::kInvalid, "", "{}'s name has 1 to 64 letters, digits, '-', '_' or '.'", what);
}

Result<std::string> optional_text(const json::object& object, std::string_view key) {
  if (!json_has(object, key)) return std::string();
  return json_string(object, key, kRequestBody);
}

Result<std::string> optional_name(const json::object& object) {
  std::string name = RETORT_TRY(optional_text(object, "name"));
  RETORT_TRY(check_text("name", name, kRequestBody));
  return name;
}
json::object name_schema(std::string_view description) { return schema::text(description, 256); }

std::vector<QueryParameter> page_parameters(std::vector<QueryParameter> filters, std::size_t most) {
  filters.push_back({"limit", schema::count("items of a page; 100 unless said", most, 1)});
  filters.push_back({"cursor", schema::text("\"next\" of the page before", 1024)});
  return filters;
}

std::string cursor_of(const std::string& key) { return to_hex(key); }

Result<PageQuery> page_query(const Call& call) {
  PageQuery query;
  if (const std::string limit = call.query("limit"); !limit.empty())
    query.limit = std::strtoul(limit.c_str(), nullptr, 10);  // check_query saw that it is a number in range
  if (const std::string cursor = call.query("cursor"); !cursor.empty()) {
    const auto key = from_hex(cursor);
    if (!key || key->empty())
      return fail(ErrorCode::kInvalid, "query, 'cursor'", "is not the \"next\" of a page");
    query.after = *key;
  }
  return query;
}

bool fits(const Call& call, const char* filter, std::string_view value) {
  const auto wanted = call.request.query.find(filter);
  return wanted == call.request.query.end() || wanted->second == value;
}
bool fits(const Call& call, const char* filter, bool value) {
  return fits(call, filter, value ? std::string_view("true") : std::string_view("false"));
}

bool fits_labels(const Call& call, const std::map<std::string, std::string>& labels) {
  const auto wanted = call.request.query.find("labels");
  if (wanted == call.request.query.end()) return true;
  std::string_view rest = wanted->second;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find(','), rest.size());
    const std::string_view one = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (one.empty()) continue;
    const std::size_t equals = one.find('=');
    const auto found = labels.find(std::string(one.substr(0, equals)));
    if (found == labels.end()) return false;
    if (equals != std::string_view::npos && found->second != one.substr(equals + 1)) return false;
  }
  return true;
}

QueryParameter labels_parameter() {
  return {"labels", schema::text("key=value or key, several joined by commas: all must be there", 4096)};
}

std::string time_key(UnixMillis time, const std::string& id) {
  return fmt::format("{:020}/{}", std::max<UnixMillis>(time, 0), id);
}

}  // namespace retort
