#include "common/core/result.h"

#include <cerrno>
#include <cstring>

namespace retort {

tl::unexpected<Error> fail_errno(std::string where, std::string_view what) {
  const int error = errno;
  const ErrorCode code = error == ENOSPC || error == EDQUOT || error == EFBIG ? ErrorCode::kOutOfBudget
                         : error == ENOENT                                    ? ErrorCode::kNotFound
                                                                              : ErrorCode::kIo;
  return fail(code, std::move(where), "{}: {}", what, std::strerror(error));
}

}  // namespace retort
