#include "coordinator/cli/views.h"

#include <cmath>
#include <initializer_list>

#include "common/core/units.h"
#include "coordinator/cli/table.h"

namespace retort::cli {
namespace {

/// The member at a path like "desired.artifact"; nullptr when it is missing or null.
const json::value* find(const json::value& value, std::string_view path) {
  const json::value* at = &value;
  while (!path.empty()) {
    if (!at->is_object()) return nullptr;
    const std::size_t dot = path.find('.');
    at = at->get_object().if_contains(path.substr(0, dot));
    if (at == nullptr) return nullptr;
    path = dot == std::string_view::npos ? std::string_view() : path.substr(dot + 1);
  }
  return at->is_null() ? nullptr : at;
}

std::string plain(const json::value& value) {
  if (value.is_string()) return std::string(value.get_string());
  if (value.is_bool()) return value.get_bool() ? "yes" : "no";
  if (value.is_double()) return fmt::format("{:.6g}", value.get_double());
  return json::serialize(value);
}

std::string text(const json::value& item, std::string_view path) {
  const json::value* value = find(item, path);
  if (value == nullptr) return "-";
  std::string out = plain(*value);
  return out.empty() ? "-" : out;
}

std::optional<double> number(const json::value& item, std::string_view path) {
  const json::value* value = find(item, path);
  if (value == nullptr || !value->is_number()) return std::nullopt;
  return value->to_number<double>();
}

std::uint64_t whole(double value) {
  return value > 0 && value < 9e18 ? static_cast<std::uint64_t>(value) : 0;
}

/// Bytes; 0 shows as "-" (an unset budget, a rule that is not there).
std::string bytes(const json::value& item, std::string_view path) {
  const auto value = number(item, path);
  return value && *value > 0 ? format_bytes(whole(*value)) : "-";
}
std::string count(const json::value& item, std::string_view path) {
  const auto value = number(item, path);
  return value && *value > 0 ? format_count(whole(*value)) : "-";
}
std::string fixed(const json::value& item, std::string_view path, int digits, double scale = 1) {
  const auto value = number(item, path);
  return value ? fmt::format("{:.{}f}", *value * scale, digits) : "-";
}
/// The first characters of a hash.
std::string short_hash(const json::value& item, std::string_view path) {
  return text(item, path).substr(0, 12);
}
std::string ago(UnixMillis time, UnixMillis now) {
  if (time <= 0) return "-";
  const double seconds = static_cast<double>(now - time) / 1000;
  return seconds < 0 ? "in " + format_seconds(-seconds) : format_seconds(seconds) + " ago";
}
std::string when(const json::value& item, std::string_view path, UnixMillis now) {
  const json::value* value = find(item, path);
  if (value != nullptr && value->is_string()) return plain(*value);
  const auto millis = number(item, path);
  return millis ? ago(static_cast<UnixMillis>(*millis), now) : "-";
}

std::string rules_text(const json::value& item) {
  std::string out;
  const auto add = [&](std::string part) { out += (out.empty() ? "" : ", ") + std::move(part); };
  const auto range = [&](std::string_view what, std::string low, std::string high) {
    if (low != "-" && high != "-")
      add(fmt::format("{} {}..{}", what, low, high));
    else if (low != "-")
      add(fmt::format("{} >= {}", what, low));
    else if (high != "-")
      add(fmt::format("{} <= {}", what, high));
  };
  const auto cpu = [&](std::string_view path) {
    const auto value = number(item, path);
    return value && *value > 0 ? fmt::format("{:g}", *value) : std::string("-");
  };
  range("memory", bytes(item, "rules.min_memory_bytes"), bytes(item, "rules.max_memory_bytes"));
  range("cpu", cpu("rules.min_cpu"), cpu("rules.max_cpu"));
  if (text(item, "rules.architecture") != "-") add(text(item, "rules.architecture"));
  if (const json::value* labels = find(item, "rules.labels"); labels != nullptr && labels->is_object())
    for (const auto& label : labels->get_object())
      add(fmt::format("{}={}", std::string_view(label.key()), plain(label.value())));
  return out.empty() ? "any device" : out;
}

/// Of a device that is not let in, that; else what its agent says.
std::string device_state(const json::value& item) {
  for (const char* out : {"revoked", "pending"})
    if (const json::value* is = find(item, out); is != nullptr && is->is_bool() && is->get_bool()) return out;
  return text(item, "actual.state");
}

bool ends_with_any(std::string_view text, std::initializer_list<std::string_view> ends) {
  for (const std::string_view end : ends)
    if (text.ends_with(end)) return true;
  return false;
}

void flatten(Table& table, const std::string& prefix, const json::value& value, UnixMillis now) {
  if (value.is_object() && !value.get_object().empty()) {
    for (const auto& member : value.get_object())
      flatten(table,
              prefix.empty() ? std::string(member.key())
                             : fmt::format("{}.{}", prefix, std::string_view(member.key())),
              member.value(), now);
    return;
  }
  if (value.is_array() && !value.get_array().empty() && !value.get_array().front().is_primitive()) {
    for (std::size_t i = 0; i < value.get_array().size(); ++i)
      flatten(table, fmt::format("{}[{}]", prefix, i), value.get_array()[i], now);
    return;
  }
  std::string shown;
  if (value.is_null())
    shown = "-";
  else if (value.is_array())
    for (const json::value& element : value.get_array())
      shown += (shown.empty() ? "" : ", ") + plain(element);
  else if (value.is_number() && (prefix == "bytes" || ends_with_any(prefix, {"_bytes", ".bytes"})))
    shown = format_bytes(whole(value.to_number<double>()));
  else if (value.is_number() && value.to_number<double>() > 1e12 && value.to_number<double>() < 1e13)
    // A number of this size is a time: milliseconds since 1970, between 2001 and 2286.
    shown = fmt::format("{} ({})", to_rfc3339(static_cast<UnixMillis>(value.to_number<double>())),
                        ago(static_cast<UnixMillis>(value.to_number<double>()), now));
  else
    shown = plain(value);
  table.row({prefix, shown.empty() ? "-" : shown});
}

}  // namespace

std::string teachers_table(const json::array& items, UnixMillis now) {
  Table table({"ID", "NAME", "FAMILY", ">PARAMETERS", ">SIZE", "SERVED", "IMPORTED"});
  for (const json::value& item : items)
    table.row({short_hash(item, "id"), text(item, "name"), text(item, "family"), count(item, "parameters"),
               bytes(item, "bytes"), text(item, "served"), when(item, "created", now)});
  return table.text();
}

std::string datasets_table(const json::array& items, UnixMillis now) {
  Table table({"ID", "NAME", ">DOCUMENTS", ">SIZE", "IMPORTED"});
  for (const json::value& item : items)
    table.row({short_hash(item, "id"), text(item, "name"), text(item, "documents"), bytes(item, "bytes"),
               when(item, "created", now)});
  return table.text();
}

std::string classes_table(const json::array& items) {
  Table table(
      {"NAME", ">PRIORITY", "RULES", ">FILE <=", ">MEMORY <=", ">P95/TOKEN <=", "ARTIFACT", ">GENERATION"});
  for (const json::value& item : items) {
    const auto p95 = number(item, "budgets.p95_token_seconds");
    table.row({text(item, "name"), text(item, "priority"), rules_text(item),
               bytes(item, "budgets.artifact_bytes"), bytes(item, "budgets.serving_memory_bytes"),
               p95 && *p95 > 0 ? fmt::format("{:g} ms", *p95 * 1000) : "-", short_hash(item, "artifact"),
               text(item, "generation")});
  }
  return table.text();
}

std::string sites_table(const json::array& items) {
  Table table({"NAME", ">BYTES/S", ">TRANSFERS", "MIRRORS"});
  for (const json::value& item : items) {
    std::string mirrors;
    if (const json::value* list = find(item, "mirrors"); list != nullptr && list->is_array())
      for (const json::value& mirror : list->get_array())
        mirrors += (mirrors.empty() ? "" : ", ") + plain(mirror);
    table.row({text(item, "name"), bytes(item, "bytes_per_second"), count(item, "transfers"),
               mirrors.empty() ? "-" : mirrors});
  }
  return table.text();
}

std::string jobs_table(const json::array& items, UnixMillis now) {
  Table table({"ID", "NAME", "CLASS", "STATE", "PASS", "CREATED", "ERROR"});
  for (const json::value& item : items)
    table.row({text(item, "id"), text(item, "name"), text(item, "class"), text(item, "state"),
               text(item, "progress.pass"), when(item, "created", now),
               text(item, "error.message") == "-" ? "" : text(item, "error.message")});
  return table.text();
}

std::string artifacts_table(const json::array& items, UnixMillis now) {
  Table table({"SHA256", "LABEL", "CLASS", "FORMAT", ">PARAMETERS", ">SIZE", ">BITS/WEIGHT", ">PERPLEXITY",
               ">KL", ">TOP-1 %", "CREATED"});
  for (const json::value& item : items)
    table.row({short_hash(item, "sha256"), text(item, "label"), text(item, "class"), text(item, "format"),
               count(item, "parameters"), bytes(item, "bytes"), fixed(item, "bits_per_weight", 2),
               fixed(item, "evaluation.perplexity", 2), fixed(item, "evaluation.kl_divergence", 4),
               fixed(item, "evaluation.top1_agreement", 1, 100), when(item, "created", now)});
  return table.text();
}

std::string devices_table(const json::array& items, UnixMillis now) {
  Table table(
      {"ID", "NAME", "CLASS", "ONLINE", "STATE", ">MEMORY", ">CPU", "SERVES", "WANTED", "SEEN", "ERROR"});
  for (const json::value& item : items)
    table.row(
        {text(item, "id"), text(item, "name") != "-" ? text(item, "name") : text(item, "profile.hostname"),
         text(item, "class"), text(item, "online"), device_state(item),
         bytes(item, "profile.memory_budget_bytes"), fixed(item, "profile.cpu_allowance", 1),
         short_hash(item, "actual.artifact"), short_hash(item, "desired.artifact"),
         when(item, "last_seen", now), text(item, "actual.error") == "-" ? "" : text(item, "actual.error")});
  return table.text();
}

std::string tokens_table(const json::array& items, UnixMillis now) {
  Table table({"ID", "KIND", "NAME", ">USES LEFT", "CREATED", "EXPIRES", "LAST USED"});
  for (const json::value& item : items)
    table.row({text(item, "id"), text(item, "kind"), text(item, "name"), text(item, "uses_left"),
               when(item, "created", now), when(item, "expires", now), when(item, "last_used", now)});
  return table.text();
}

std::string audit_table(const json::array& items, UnixMillis now) {
  Table table({">ENTRY", "WHEN", "WHO", "WHAT", "OF", "RESULT"});
  for (const json::value& item : items)
    table.row({text(item, "sequence"), when(item, "time", now), text(item, "actor"), text(item, "action"),
               text(item, "target"), text(item, "result")});
  return table.text();
}

std::string telemetry_table(const json::array& items) {
  const bool sums = !items.empty() && items[0].is_object() && items[0].get_object().contains("count");
  Table table(
      sums ? std::vector<std::string>{"TIME", "DEVICE", "METRIC", ">MEAN", ">LEAST", ">MOST", ">POINTS"}
           : std::vector<std::string>{"TIME", "DEVICE", "METRIC", ">VALUE"});
  for (const json::value& item : items) {
    const auto time = number(item, "time");
    std::vector<std::string> row{time ? to_rfc3339(static_cast<UnixMillis>(*time)) : "-",
                                 text(item, "device"), text(item, "metric"), text(item, "value")};
    if (sums)
      for (const char* key : {"least", "most", "count"}) row.push_back(text(item, key));
    table.row(std::move(row));
  }
  return table.text();
}

std::string object_view(const json::object& object, UnixMillis now) {
  Table table({"", ""});
  flatten(table, "", object, now);
  const std::string all = table.text();
  return all.substr(all.find('\n') + 1);  // without the empty headings
}

}  // namespace retort::cli
