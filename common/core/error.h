#pragma once

#include <string>
#include <string_view>

namespace retort {

/// What the caller should do about a failure. Few on purpose: each code is an action.
enum class ErrorCode {
  kInvalid,      ///< reject the input: it can never work as given
  kUnsupported,  ///< well-formed, but we do not do this (the message names what we do)
  kCorrupt,      ///< bytes that are not what they claim to be (hash, bounds, checksum)
  kNotFound,     ///< the named thing does not exist
  kConflict,     ///< exists already, or another holder has it
  kDenied,       ///< no right to do this (token, key, signature)
  kOutOfBudget,  ///< does not fit: memory, disk, size, queue
  kUnavailable,  ///< retry later, or reconnect
  kIo,           ///< the operating system refused; the message holds its reason
  kCancelled,    ///< somebody asked us to stop
  kInternal,     ///< a bug, or a library threw something we cannot name
};

/// Stable snake_case name ("out_of_budget"): used in JSON and on the wire.
std::string_view to_string(ErrorCode code);
/// Inverse of to_string; kInternal when the name is unknown.
ErrorCode error_code_from(std::string_view name);
/// What every program of ours exits with: 1 failure, 3 bad input, 4 out of budget, 5 unavailable, 6 denied,
/// 130 interrupted (0 is success, 2 wrong usage).
int exit_code(ErrorCode code);

/// A failure: what happened, for a person, and where (which file, device, tensor, recipe line).
struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
  std::string where;

  /// "where: message", for a log line or a terminal.
  std::string describe() const;
};

}  // namespace retort
