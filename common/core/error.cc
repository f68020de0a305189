#include "common/core/error.h"

#include <array>
#include <utility>

namespace retort {
namespace {
constexpr std::array<std::pair<ErrorCode, std::string_view>, 11> kNames{{
    {ErrorCode::kInvalid, "invalid"},
    {ErrorCode::kUnsupported, "unsupported"},
    {ErrorCode::kCorrupt, "corrupt"},
    {ErrorCode::kNotFound, "not_found"},
    {ErrorCode::kConflict, "conflict"},
    {ErrorCode::kDenied, "denied"},
    {ErrorCode::kOutOfBudget, "out_of_budget"},
    {ErrorCode::kUnavailable, "unavailable"},
    {ErrorCode::kIo, "io"},
    {ErrorCode::kCancelled, "cancelled"},
    {ErrorCode::kInternal, "internal"},
}};
}  // namespace

std::string_view to_string(ErrorCode code) {
  for (const auto& [value, name] : kNames)
    if (value == code) return name;
  return "internal";
}

ErrorCode error_code_from(std::string_view name) {
  for (const auto& [value, text] : kNames)
    if (text == name) return value;
  return ErrorCode::kInternal;
}

std::string Error::describe() const { return where.empty() ? message : where + ": " + message; }

}  // namespace retort
