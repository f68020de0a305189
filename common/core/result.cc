#include "common/core/result.h"

#include <cerrno>
#include <cstring>

namespace retort {

tl::unexpected<Error> fail_errno(std::string where, std::string_view what) {
  const int error = errno;
  ErrorCode code = ErrorCode::kIo;
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) code = ErrorCode::kOutOfBudget;
  if (error == ENOENT) code = ErrorCode::kNotFound;
  if (error == ENOTDIR || error == EISDIR || error == ELOOP || error == ENAMETOOLONG)
    code = ErrorCode::kInvalid;
  return fail(code, std::move(where), "{}: {}", what, std::strerror(error));
}

}  // namespace retort
