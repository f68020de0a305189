#pragma once

#include <string>

#include "common/core/clock.h"
#include "common/core/json.h"

namespace retort::cli {

/// What a person sees of the coordinator's answers. Each takes the items of a list ("items") as they came;
/// a member that is missing shows as "-". `now` turns times into "3 min 20 s ago".
std::string teachers_table(const json::array& items, UnixMillis now);
std::string datasets_table(const json::array& items, UnixMillis now);
std::string classes_table(const json::array& items);
std::string sites_table(const json::array& items);
std::string jobs_table(const json::array& items, UnixMillis now);
std::string artifacts_table(const json::array& items, UnixMillis now);
std::string devices_table(const json::array& items, UnixMillis now);
std::string tokens_table(const json::array& items, UnixMillis now);
std::string audit_table(const json::array& items, UnixMillis now);
std::string telemetry_table(const json::array& items);
/// One object, a member a line, nested names joined by dots; sizes and times for people.
std::string object_view(const json::object& object, UnixMillis now);

}  // namespace retort::cli
