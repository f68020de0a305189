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

int exit_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalid:
    case ErrorCode::kUnsupported:
    case ErrorCode::kCorrupt:
    case ErrorCode::kNotFound:
    case ErrorCode::kConflict:
      return 3;
    case ErrorCode::kOutOfBudget:
      return 4;
    case ErrorCode::kUnavailable:
      return 5;
    case ErrorCode::kDenied:
      return 6;
    case ErrorCode::kCancelled:
      return 130;
    case ErrorCode::kIo:
    case ErrorCode::kInternal:
      break;
  }
  return 1;
}

std::string Error::describe() const { return where.empty() ? message : where + ": " + message; }

}  // namespace retort
