#include "coordinator/rollout/spec.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "common/core/request.h"

namespace retort {
namespace {

constexpr std::array<std::string_view, 7> kDays = {"sun", "mon", "tue", "wed", "thu", "fri", "sat"};
constexpr std::uint64_t kMaxSeconds = 366ull * 86400;

Result<void> check_members(const json::object& object, const std::vector<std::string>& known,
                           const std::string& where) {
  for (const auto& member : object) {
    const std::string key(member.key());
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const auto near = nearest(key, known);
    return fail(
        ErrorCode::kInvalid, where, "'{}' is not known{}", key,
        near ? "; did you mean '" + *near + "'?" : fmt::format("; known are: {}", fmt::join(known, ", ")));
  }
  return {};
}

Result<void> read_seconds(const json::object& object, const char* key, const std::string& where,
                          std::chrono::seconds& out) {
  if (json_has(object, key))
    out = std::chrono::seconds(RETORT_TRY(json_uint(object, key, where, kMaxSeconds)));
  return {};
}

Result<double> percent_of(const json::object& object, const char* key, const std::string& where) {
  const double value = RETORT_TRY(json_number(object, key, where));
  if (!(value > 0 && value <= 100))
    return fail(ErrorCode::kInvalid, where, "'{}' must be above 0 and at most 100", key);
  return value;
}

Result<std::map<std::string, std::string>> texts_of(const json::object& object, const char* key,
                                                    const std::string& where) {
  std::map<std::string, std::string> out;
  for (const auto& member : *RETORT_TRY(json_object(object, key, where))) {
    if (!member.value().is_string())
      return fail(ErrorCode::kInvalid, where, "'{}' of {} must be a text", std::string_view(member.key()),
                  key);
    out[std::string(member.key())] = std::string(member.value().get_string());
  }
  return out;
}

Result<std::uint32_t> minute_of(const json::object& object, const char* key, const std::string& where) {
  const std::string text = RETORT_TRY(json_string(object, key, where));
  const auto digit = [&](std::size_t i) { return text[i] >= '0' && text[i] <= '9' ? text[i] - '0' : 99; };
  if (text.size() == 5 && text[2] == ':') {
    const int hour = digit(0) * 10 + digit(1), minute = digit(3) * 10 + digit(4);
    if (hour < 24 && minute < 60) return static_cast<std::uint32_t>(hour * 60 + minute);
  }
  return fail(ErrorCode::kInvalid, where, "'{}' must be a time of day from \"00:00\" to \"23:59\", not '{}'",
              key, text);
}

Result<RolloutStage> read_stage(const json::value& value, const std::string& where) {
  const json::object& object = *RETORT_TRY(as_object(value, where));
  RETORT_TRY(check_members(object, {"count", "percent", "labels", "soak_seconds"}, where));
  RolloutStage stage;
  int stated = 0;
  if (json_has(object, "count")) {
    stage.count = static_cast<std::uint32_t>(RETORT_TRY(json_uint(object, "count", where, 1u << 30)));
    if (stage.count == 0) return fail(ErrorCode::kInvalid, where, "'count' must be at least 1");
    ++stated;
  }
  if (json_has(object, "percent")) stage.percent = RETORT_TRY(percent_of(object, "percent", where)), ++stated;
  if (json_has(object, "labels")) {
    stage.labels = RETORT_TRY(texts_of(object, "labels", where));
    if (stage.labels.empty()) return fail(ErrorCode::kInvalid, where, "'labels' is empty");
    ++stated;
  }
  if (stated != 1)
    return fail(ErrorCode::kInvalid, where, "a stage has one of 'count', 'percent' and 'labels'");
  if (json_has(object, "soak_seconds")) {
    stage.soak.emplace();
    RETORT_TRY(read_seconds(object, "soak_seconds", where, *stage.soak));
  }
  return stage;
}

Result<MaintenanceWindow> read_window(const json::value& value, const std::string& where) {
  const json::object& object = *RETORT_TRY(as_object(value, where));
  RETORT_TRY(check_members(object, {"from", "to", "days", "zone"}, where));
  MaintenanceWindow window;
  window.from_minute = RETORT_TRY(minute_of(object, "from", where));
  window.to_minute = RETORT_TRY(minute_of(object, "to", where));
  if (json_has(object, "days"))
    for (const json::value& day : *RETORT_TRY(json_array(object, "days", where))) {
      const std::string name = day.is_string() ? std::string(day.get_string()) : "";
      const auto found = std::find(kDays.begin(), kDays.end(), name);
      if (found == kDays.end())
        return fail(ErrorCode::kInvalid, where, "'days' holds names of days: {}", fmt::join(kDays, ", "));
      window.days.push_back(static_cast<std::uint32_t>(found - kDays.begin()));
    }
  if (json_has(object, "zone")) {
    const std::string zone = RETORT_TRY(json_string(object, "zone", where));
    if (zone != "utc" && zone != "device")
      return fail(ErrorCode::kInvalid, where, "'zone' is \"utc\" or \"device\" (each device's local time)");
    window.device_time = zone == "device";
  }
  return window;
}

Result<GateOutcome> outcome_of(const json::object& object, const char* key, bool widen,
                               const std::string& where) {
  const std::string text = RETORT_TRY(json_string(object, key, where));
  if (text == "pause") return GateOutcome::kPause;
  if (!widen && text == "rollback") return GateOutcome::kRollBack;
  if (widen && text == "widen") return GateOutcome::kWiden;
  return fail(ErrorCode::kInvalid, where, "'{}' is \"pause\" or \"{}\"", key, widen ? "widen" : "rollback");
}

/// Which members each gate takes, and what its limit is called.
struct GateForm {
  const char *name, *max, *min;
  bool increase, alpha, devices, samples, metric;
};
constexpr GateForm kGates[] = {
    {"install", "max_failed_percent", nullptr, false, false, false, false, false},
    {"token_latency", "max_seconds", nullptr, true, true, true, false, false},
    {"first_token_latency", "max_seconds", nullptr, true, true, true, false, false},
    {"memory", "max_bytes", nullptr, true, true, true, false, false},
    {"energy", "max_watts", nullptr, true, true, true, false, false},
    {"errors", "max_percent", nullptr, false, true, false, true, false},
    {"canary", nullptr, "min_agreement_percent", false, true, false, true, false},
    {"evaluation", "max", "min", false, false, false, false, true},
};

Result<RolloutGate> read_gate(const GateForm& form, const json::object& object, const std::string& where) {
  std::vector<std::string> known{"on_fail", "on_insufficient"};
  if (form.max != nullptr) known.emplace_back(form.max);
  if (form.min != nullptr) known.emplace_back(form.min);
  if (form.increase) known.emplace_back("max_increase_percent");
  if (form.alpha) known.emplace_back("alpha");
  if (form.devices) known.insert(known.end(), {"min_devices", "test"});
  if (form.samples) known.emplace_back("min_samples");
  if (form.metric) known.emplace_back("metric");
  RETORT_TRY(check_members(object, known, where));
  RolloutGate gate;
  const auto limit = [&](const char* key, std::optional<double>& out) -> Result<void> {
    if (key == nullptr || !json_has(object, key)) return {};
    out = RETORT_TRY(json_number(object, key, where));
    if (!form.metric && *out < 0) return fail(ErrorCode::kInvalid, where, "'{}' must not be negative", key);
    return {};
  };
  RETORT_TRY(limit(form.max, gate.max));
  RETORT_TRY(limit(form.min, gate.min));
  RETORT_TRY(limit(form.increase ? "max_increase_percent" : nullptr, gate.max_increase_percent));
  RETORT_TRY(limit(form.alpha ? "alpha" : nullptr, gate.alpha));
  if (gate.alpha && !(*gate.alpha > 0 && *gate.alpha <= 0.5))
    return fail(ErrorCode::kInvalid, where, "'alpha' must be above 0 and at most 0.5");
  if (form.devices && json_has(object, "min_devices"))
    gate.min_devices = std::max<std::uint32_t>(
        2, static_cast<std::uint32_t>(RETORT_TRY(json_uint(object, "min_devices", where, 1u << 20))));
  if (form.samples && json_has(object, "min_samples"))
    gate.min_samples = std::max<std::uint32_t>(
        1, static_cast<std::uint32_t>(RETORT_TRY(json_uint(object, "min_samples", where, 1u << 30))));
  if (form.devices && json_has(object, "test")) {
    const std::string test = RETORT_TRY(json_string(object, "test", where));
    if (test != "welch" && test != "mann_whitney")
      return fail(ErrorCode::kInvalid, where, "'test' is \"welch\" or \"mann_whitney\"");
    gate.mann_whitney = test == "mann_whitney";
  }
  if (form.metric) {
    gate.metric = RETORT_TRY(json_string(object, "metric", where));
    if (!gate.min && !gate.max) return fail(ErrorCode::kInvalid, where, "give 'min' or 'max'");
  }
  if (json_has(object, "on_fail")) gate.on_fail = RETORT_TRY(outcome_of(object, "on_fail", false, where));
  if (json_has(object, "on_insufficient"))
    gate.on_insufficient = RETORT_TRY(outcome_of(object, "on_insufficient", true, where));
  if (std::string_view(form.name) == "install" && !gate.max) gate.max = 0;
  if (!gate.max && !gate.min && !gate.max_increase_percent && !gate.alpha)
    return fail(ErrorCode::kInvalid, where, "a gate without a limit judges nothing; known are: {}",
                fmt::join(known, ", "));
  return gate;
}

}  // namespace

bool in_window(const std::vector<MaintenanceWindow>& windows, UnixMillis now,
               std::int32_t utc_offset_minutes) {
  if (windows.empty()) return true;
  constexpr std::int64_t kDay = 24 * 60;
  for (const MaintenanceWindow& window : windows) {
    const std::int64_t minutes = now / 60000 + (window.device_time ? utc_offset_minutes : 0);
    const std::int64_t day = minutes / kDay, minute = minutes % kDay;
    const auto on = [&](std::int64_t which) {
      const auto weekday = static_cast<std::uint32_t>((which + 4) % 7);  // 1970-01-01 was a Thursday
      return window.days.empty() ||
             std::find(window.days.begin(), window.days.end(), weekday) != window.days.end();
    };
    const std::int64_t from = window.from_minute, to = window.to_minute;
    if (from < to ? minute >= from && minute < to && on(day)
                  : (minute >= from && on(day)) || (minute < to && on(day - 1)))
      return true;
  }
  return false;
}

Result<RolloutSpec> parse_rollout_spec(const json::object& body, std::string_view in) {
  const std::string where(in);
  RETORT_TRY(check_members(
      body,
      {"name", "classes", "stages", "holdout", "soak_seconds", "install_deadline_seconds", "silence_seconds",
       "sample_deadline_seconds", "deadline_seconds", "windows", "gates", "canary", "supersede"},
      where));
  RolloutSpec spec;
  if (json_has(body, "name")) spec.name = RETORT_TRY(json_string(body, "name", where));
  RETORT_TRY(check_text("name", spec.name, where));
  spec.classes = RETORT_TRY(texts_of(body, "classes", where));
  if (spec.classes.empty())
    return fail(ErrorCode::kInvalid, where,
                "'classes' must name at least one class: {{\"CLASS\": \"ARTIFACT\"}}");
  if (json_has(body, "stages")) {
    const json::array& stages = *RETORT_TRY(json_array(body, "stages", where));
    if (stages.empty() || stages.size() > 100)
      return fail(ErrorCode::kInvalid, where, "'stages' must have 1 to 100 entries");
    for (std::size_t i = 0; i < stages.size(); ++i)
      spec.stages.push_back(RETORT_TRY(read_stage(stages[i], fmt::format("{}, stage {}", where, i + 1))));
  } else {
    for (const double percent : {5.0, 25.0, 100.0}) spec.stages.push_back({0, percent, {}, std::nullopt});
  }
  if (json_has(body, "holdout")) {
    const json::object& holdout = *RETORT_TRY(json_object(body, "holdout", where));
    RETORT_TRY(check_members(holdout, {"count", "percent"}, where + ", holdout"));
    if (json_has(holdout, "count"))
      spec.holdout_count =
          static_cast<std::uint32_t>(RETORT_TRY(json_uint(holdout, "count", where + ", holdout", 1u << 30)));
    if (json_has(holdout, "percent"))
      spec.holdout_percent = RETORT_TRY(percent_of(holdout, "percent", where + ", holdout"));
    if (spec.holdout_count > 0 && spec.holdout_percent > 0)
      return fail(ErrorCode::kInvalid, where + ", holdout", "give 'count' or 'percent', not both");
  }
  RETORT_TRY(read_seconds(body, "soak_seconds", where, spec.soak));
  RETORT_TRY(read_seconds(body, "install_deadline_seconds", where, spec.install_deadline));
  RETORT_TRY(read_seconds(body, "silence_seconds", where, spec.silence));
  RETORT_TRY(read_seconds(body, "sample_deadline_seconds", where, spec.sample_deadline));
  RETORT_TRY(read_seconds(body, "deadline_seconds", where, spec.deadline));
  if (spec.install_deadline.count() == 0 || spec.deadline.count() == 0 || spec.silence.count() == 0)
    return fail(ErrorCode::kInvalid, where, "deadlines and 'silence_seconds' must be at least 1");
  if (json_has(body, "windows")) {
    const json::array& windows = *RETORT_TRY(json_array(body, "windows", where));
    if (windows.size() > 50) return fail(ErrorCode::kInvalid, where, "'windows' has more than 50 entries");
    for (std::size_t i = 0; i < windows.size(); ++i)
      spec.windows.push_back(RETORT_TRY(read_window(windows[i], fmt::format("{}, window {}", where, i + 1))));
  }
  spec.gates["install"].max = 0;
  if (json_has(body, "gates")) {
    const json::object& gates = *RETORT_TRY(json_object(body, "gates", where));
    std::vector<std::string> names;
    for (const GateForm& form : kGates) names.emplace_back(form.name);
    RETORT_TRY(check_members(gates, names, where + ", gates"));
    for (const GateForm& form : kGates)
      if (json_has(gates, form.name))
        spec.gates[form.name] =
            RETORT_TRY(read_gate(form, *RETORT_TRY(json_object(gates, form.name, where + ", gates")),
                                 fmt::format("{}, gate {}", where, form.name)));
  }
  if (json_has(body, "canary")) {
    const json::object& canary = *RETORT_TRY(json_object(body, "canary", where));
    RETORT_TRY(check_members(canary, {"dataset", "prompts"}, where + ", canary"));
    spec.canary_dataset = RETORT_TRY(json_string(canary, "dataset", where + ", canary"));
    if (spec.canary_dataset.empty())
      return fail(ErrorCode::kInvalid, where + ", canary", "'dataset' is empty");
    if (json_has(canary, "prompts"))
      spec.canary_prompts =
          static_cast<std::uint32_t>(RETORT_TRY(json_uint(canary, "prompts", where + ", canary", 256)));
    if (spec.canary_prompts == 0)
      return fail(ErrorCode::kInvalid, where + ", canary", "'prompts' must be 1 to 256");
  }
  if (spec.gates.count("canary") != 0 && spec.canary_dataset.empty())
    return fail(
        ErrorCode::kInvalid, where,
        "the gate 'canary' needs \"canary\": {{\"dataset\": NAME}}, whose texts the teacher is asked");
  if (json_has(body, "supersede")) spec.supersede = RETORT_TRY(json_bool(body, "supersede", where));
  return spec;
}

}  // namespace retort
